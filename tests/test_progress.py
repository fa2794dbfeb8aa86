"""A bar that shows only in a terminal, and only for long work."""

import io

import pytest
from rich.console import Console
from rich.progress import Progress

from secateur import progress


def shown(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, seconds: float) -> str:
    written, clock = io.StringIO(), iter([0.0, *[seconds] * 10])
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=written, force_terminal=terminal))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock, seconds))
    with progress.progress_bar("Calibrating", 3) as step:
        for _ in range(3):
            step()
    return written.getvalue()


def test_long_work_in_a_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Calibrating" in shown(monkeypatch, terminal=True, seconds=2.0)


def test_short_work_and_pipes_show_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, terminal=True, seconds=0.5) == ""
    assert shown(monkeypatch, terminal=False, seconds=2.0) == ""


def test_steps_can_be_told_as_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=written, force_terminal=True))
    monkeypatch.setattr(progress, "PATIENCE_S", 0.0)
    with progress.progress_bar("Timing") as advance:
        advance(2, 4)
    assert "50%" in written.getvalue()


def test_work_within_work_shows_no_bar_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=written, force_terminal=True))
    monkeypatch.setattr(progress, "PATIENCE_S", 0.0)

    def inner(label: str) -> None:
        with progress.progress_bar(label) as advance:
            advance()

    with progress.progress_bar("Outer") as advance:
        advance()
        inner("Inner")
    inner("After")
    with progress.showing(Progress(console=Console(file=written, force_terminal=True))) as bar:
        bar.add_task("Search", total=1)
        inner("Scoring")
    assert [word in written.getvalue() for word in ("Outer", "Inner", "After", "Search", "Scoring")] == [
        True,
        False,
        True,
        True,
        False,
    ]
