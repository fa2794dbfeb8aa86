"""The steps of a run, as whoever watches it sees them."""

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol


class Step(Protocol):
    """What a step of a run tells whoever watches it."""

    def advance(self, done: int, total: int) -> None:
        """So much of the step is done."""
        ...

    def note(self, text: str) -> None:
        """What the step found, in a few words; the last note stays."""
        ...


Watch = Callable[[str], AbstractContextManager[Step]]
"""Given a step's title, a context that lasts as long as the step."""


class _Silent:
    def advance(self, done: int, total: int) -> None: ...

    def note(self, text: str) -> None: ...


@contextmanager
def silent(title: str) -> Any:
    """Watch a run without a word."""
    yield _Silent()
