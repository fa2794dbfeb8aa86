"""How long models take in onnxruntime, in turns."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from secateur.errors import ExportError

FEWEST, MOST = 7, 201  # rounds
SHORTEST = 2e-3  # seconds that one turn takes at least: what is faster is called repeatedly


@dataclass(frozen=True, kw_only=True)
class Latency:
    """The time that a dense and a pruned model take.

    Args:
        dense_ms, pruned_ms: median over the rounds of the time of one call.
        left: the pruned model's time as a share of the dense one's in the same round, median over the rounds.
        threads: that onnxruntime had.
        rounds: how often each had its turn.
        batch: samples in a call.
    """

    dense_ms: float
    pruned_ms: float
    left: float
    threads: int
    rounds: int
    batch: int

    @property
    def clock(self) -> str:
        """What was counted: a single thread's own time stands still while others run on its core."""
        return "time of the thread" if self.threads == 1 else "time on the wall"


def in_turns(
    sessions: Mapping[str, tuple[Any, Mapping[str, Any]]], *, threads: int, seconds: float
) -> dict[str, list[float]]:
    """Seconds of one call of each session, round by round.

    Args:
        sessions: onnxruntime's, each with its inputs.
        threads: that they have; of a single one its own time counts, else the time on the wall.
        seconds: to spend in all; there are at least 7 rounds all the same.
    """
    now = time.thread_time if threads == 1 else time.perf_counter
    calls: dict[str, Callable[[], Any]] = {
        name: lambda opened=opened, inputs=inputs: opened.run(None, inputs)
        for name, (opened, inputs) in sessions.items()
    }
    times = {name: _times(call) for name, call in calls.items()}
    found: dict[str, list[float]] = {name: [] for name in calls}
    started = time.perf_counter()
    for done in range(MOST):
        if done >= FEWEST and time.perf_counter() - started > seconds:
            break
        for name, call in calls.items():
            start = now()
            for _ in range(times[name]):
                call()
            found[name].append((now() - start) / times[name])
    return found


def _times(call: Callable[[], Any]) -> int:
    """How often a call is repeated in a turn. Finding that out warms it up."""
    call()
    start = time.perf_counter()
    call()
    return max(1, round(SHORTEST / max(time.perf_counter() - start, 1e-7)))


def latency(
    dense: tuple[Any, Mapping[str, Any]],
    pruned: tuple[Any, Mapping[str, Any]],
    *,
    threads: int,
    seconds: float,
    batch: int,
) -> Latency:
    """Time two sessions in turns.

    Raises:
        ExportError: there is no such number of threads.
    """
    if threads < 1:
        raise ExportError(f"threads={threads}: give 1 or more")
    found = in_turns({"dense": dense, "pruned": pruned}, threads=threads, seconds=seconds)
    pairs = list(zip(found["dense"], found["pruned"], strict=True))
    return Latency(
        dense_ms=statistics.median(found["dense"]) * 1e3,
        pruned_ms=statistics.median(found["pruned"]) * 1e3,
        left=statistics.median(b / max(a, 1e-12) for a, b in pairs),
        threads=threads,
        rounds=len(pairs),
        batch=batch,
    )
