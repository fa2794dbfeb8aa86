"""A progress bar on stderr for work that turns out to be long, and only in a terminal."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress

PATIENCE_S = 1.0  # work that is over sooner shows nothing


@contextmanager
def progress_bar(label: str, total: int | None) -> Generator[Callable[[], None]]:
    """Gives a function to be called after each step.

    Args:
        total: how many steps there will be, None where nobody knows.
    """
    console = Console(stderr=True)
    bar = Progress(console=console, transient=True)
    task, started, begun = bar.add_task(label, total=total), time.monotonic(), False

    def step() -> None:
        nonlocal begun
        bar.advance(task)
        if not begun and console.is_terminal and time.monotonic() - started > PATIENCE_S:
            begun = True
            bar.start()

    try:
        yield step
    finally:
        if begun:
            bar.stop()
