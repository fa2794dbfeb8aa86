"""What a run looks like in a terminal, and as plain text in a file."""

import time
from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from secateur.progress import showing


class Terminal:
    """Shows the steps of a run: a line for each, with a moving bar while it lasts where there is a terminal.

    Attributes:
        current: the step that is going on, or the last one; empty before the first.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.current = ""

    @contextmanager
    def watch(self, title: str) -> Generator["_Shown"]:
        """Show a step as long as the context lasts."""
        self.current = title
        started = time.perf_counter()
        with _bar(title, self.console) if self.console.is_terminal else _line(title, self.console) as step:
            yield step
        took = f"{time.perf_counter() - started:.1f} s"
        if self.console.is_terminal:
            self.console.print(
                Text.assemble(
                    ("✓ ", "green"), title, ("  " + step.said if step.said else "", "dim"), (f"  {took}", "dim")
                )
            )
        else:
            self.console.print(Text(f"{step.said + ', ' if step.said else ''}{took}"), soft_wrap=True)


class _Shown:
    """A step of a run; here it only remembers its last note."""

    said = ""

    def advance(self, done: int, total: int) -> None:
        """Nothing to see in plain text."""

    def note(self, text: str) -> None:
        self.said = text


class _Moving(_Shown):
    """A step with a bar."""

    def __init__(self, progress: Progress, title: str) -> None:
        self.progress = progress
        self.task = progress.add_task(title, total=None, said="")

    def advance(self, done: int, total: int) -> None:
        self.progress.update(self.task, completed=done, total=total)

    def note(self, text: str) -> None:
        super().note(text)
        self.progress.update(self.task, said=text)


@contextmanager
def _bar(title: str, console: Console) -> Generator[_Moving]:
    said = TextColumn("{task.fields[said]}", style="dim", markup=False)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        said,
    )
    with showing(Progress(*columns, console=console, transient=True)) as progress:
        yield _Moving(progress, title)


@contextmanager
def _line(title: str, console: Console) -> Generator[_Shown]:
    console.print(Text(f"{title} ... "), end="", soft_wrap=True)
    try:
        yield _Shown()
    except BaseException:
        console.print()
        raise
