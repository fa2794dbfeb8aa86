"""Runs that are stopped by Ctrl-C at a step."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any


class Stops:
    """Watches a run without a word, and stops it by Ctrl-C when a step begins."""

    def __init__(self, title: str) -> None:
        self.title = title

    @contextmanager
    def __call__(self, title: str) -> Generator[Any]:
        if title == self.title:
            raise KeyboardInterrupt
        yield self

    def advance(self, done: int, total: int) -> None: ...

    def note(self, text: str) -> None: ...
