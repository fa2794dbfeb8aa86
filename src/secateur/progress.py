"""Progress bars on stderr, for work that turns out to be long, in a terminal, and one at a time."""

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

PATIENCE_S = 1.0  # work that is over sooner shows nothing
_terminal = threading.Lock()  # held by the bar that is on screen; work within work shows none of its own


class Advance(Protocol):
    """Called after each step; or with how many steps are done, and how many there will be."""

    def __call__(self, done: int | None = None, total: int | None = None) -> None: ...


@contextmanager
def progress_bar(label: str, total: int | None = None, *, counted: bool = False) -> Generator[Advance]:
    """Gives a function to be called after each step.

    Args:
        total: how many steps there will be, None where nobody knows yet.
        counted: say how many steps are done, in numbers.
    """
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), *([MofNCompleteColumn()] if counted else []))
    bar = Progress(*columns, console=console, transient=True)
    task, started, begun = bar.add_task(label, total=total), time.monotonic(), False

    def advance(done: int | None = None, total: int | None = None) -> None:
        nonlocal begun
        if done is None:
            bar.advance(task)
        else:
            bar.update(task, completed=done, total=total)
        if not begun and console.is_terminal and time.monotonic() - started > PATIENCE_S:
            begun = _terminal.acquire(blocking=False)
            if begun:
                bar.start()

    try:
        yield advance
    finally:
        if begun:
            bar.stop()
            _terminal.release()


@contextmanager
def showing(bar: Progress) -> Generator[Progress]:
    """Shows a bar from now on, unless another one is on screen; it can be told things either way."""
    if not _terminal.acquire(blocking=False):
        yield bar
        return
    try:
        with bar:
            yield bar
    finally:
        _terminal.release()
