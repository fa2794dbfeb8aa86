"""Ctrl-C and a polite kill, taken between two steps."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interrupts:
    """Whether somebody asked the run to stop.

    Attributes:
        asked: the name of the signal; empty as long as nobody asked.
    """

    def __init__(self) -> None:
        self.asked = ""

    @contextmanager
    def listening(self, *signals: signal.Signals) -> Generator[None]:
        """Note the signals; the second one of a kind acts as it always did. Only the main thread hears signals."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[signal.Signals, Any] = {}

        def note(number: int, frame: FrameType | None) -> None:
            name = signal.Signals(number)
            self.asked = name.name
            signal.signal(name, before[name])

        for name in signals:
            before[name] = signal.getsignal(name)
            if before[name] not in (signal.SIG_IGN, None):
                signal.signal(name, note)
        try:
            yield
        finally:
            for name, handler in before.items():
                if handler is not None:
                    signal.signal(name, handler)
