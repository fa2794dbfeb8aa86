"""The figures of a report: their names, their units, and how before and after compare."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from secateur.reporting import numbers

NOISE = 0.03
"""Two timings closer than this share of each other count as the same."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line of a report.

    Args:
        key: its name in report.json; a metric's is ``metrics.accuracy``.
        label: its name for people.
        show: turns a value, or None, into text.
        better: what the change is called when it is for the better ("fewer"), and
        worse: when it is for the worse ("more").
        higher: whether more is better.
        points: compare by difference in percentage points, not by ratio.
        timed: measured with a clock, so that differences within ``NOISE`` mean nothing.
    """

    key: str
    label: str
    show: Callable[[float | None], str]
    better: str = "less"
    worse: str = "more"
    higher: bool = False
    points: bool = False
    timed: bool = False

    def of(self, figures: Mapping[str, Any] | None) -> float | None:
        """The value in one column of a report; None where there is none."""
        value: Any = figures
        for part in self.key.split(".", 1):
            value = value.get(part) if isinstance(value, Mapping) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        return float(value) if isinstance(value, int | float) else None

    def verdict(self, before: float | None, after: float | None) -> int:
        """1 where the change is for the better, -1 for the worse, 0 where it is none or can't be told."""
        if before is None or after is None:
            return 0
        if self.points:
            gap = after - before
            return 0 if abs(gap) < 0.0005 else (1 if (gap > 0) == self.higher else -1)
        if before <= 0 or after <= 0:
            return 0
        gain = after / before if self.higher else before / after
        margin = 1 + NOISE if self.timed else 1.0005
        return 1 if gain > margin else (-1 if gain < 1 / margin else 0)

    def change(self, before: float | None, after: float | None) -> str:
        """The change in words: "12.2× fewer", "-0.3 points", "no change"; empty where there is nothing to compare.

        >>> PARAMS.change(81194, 6654)
        '12.2× fewer'
        """
        if before is None or after is None:
            return ""
        if self.points:
            return f"{100 * (after - before):+.1f} points" if self.verdict(before, after) else "no change"
        if before <= 0 or after <= 0:
            return ""
        verdict = self.verdict(before, after)
        if verdict == 0:
            return "no change"
        factor, word = max(after / before, before / after), self.better if verdict > 0 else self.worse
        if factor < 1.095:
            return f"{100 * abs(after / before - 1):.1f} % {word}"
        digits = f"{factor:,.0f}" if factor >= 99.95 else f"{factor:.1f}" if factor >= 9.995 else f"{factor:.2f}"
        return f"{digits}× {word}"


PARAMS = Figure(key="params", label="Parameters", show=numbers.count, better="fewer")
MACS = Figure(key="macs", label="MACs", show=numbers.count, better="fewer")
SIZE = Figure(key="size_bytes", label="File size", show=numbers.size, better="smaller", worse="larger")
LATENCY = Figure(
    key="latency_ms", label="Latency", show=numbers.milliseconds, better="faster", worse="slower", timed=True
)
PREDICTED = Figure(
    key="predicted_latency_ms",
    label="Latency, predicted",
    show=numbers.milliseconds,
    better="faster",
    worse="slower",
    timed=True,
)
THROUGHPUT = Figure(
    key="throughput", label="Throughput", show=numbers.rate, better="faster", worse="slower", higher=True, timed=True
)
TRAINING = Figure(
    key="training_step_ms",
    label="Training step",
    show=numbers.milliseconds,
    better="faster",
    worse="slower",
    timed=True,
)
MEMORY = Figure(
    key="peak_memory_bytes", label="Peak memory", show=numbers.size, better="smaller", worse="larger", timed=True
)

COSTS = (PARAMS, MACS, SIZE, LATENCY, PREDICTED, THROUGHPUT, TRAINING, MEMORY)
COLUMNS = ("dense", "pruned", "tuned")


def metric(name: str) -> Figure:
    """The figure of one metric. Accuracies are shares in [0, 1]; of a loss, and of
    an attack's success, less is better, of others more."""
    label = name.replace("_", " ").capitalize()
    if "accuracy" in name.lower():
        return Figure(key=f"metrics.{name}", label=label, show=numbers.percent, higher=True, points=True)
    if "success" in name.lower():  # of an attack
        return Figure(key=f"metrics.{name}", label=label, show=numbers.percent, better="lower", worse="higher")
    lower = "loss" in name.lower() or "error" in name.lower()
    better, worse = ("lower", "higher") if lower else ("higher", "lower")
    return Figure(key=f"metrics.{name}", label=label, show=numbers.plain, better=better, worse=worse, higher=not lower)


def columns(report: Mapping[str, Any]) -> list[str]:
    """The columns that a report has figures for, in the order of the work."""
    return [name for name in COLUMNS if report.get(name)]


def figures(report: Mapping[str, Any]) -> list[Figure]:
    """The figures that a report has in at least one column, metrics first."""
    present = [report[name] for name in columns(report)]
    names = dict.fromkeys(name for column in present for name in column.get("metrics") or {})
    known = [*(metric(name) for name in sorted(names, key=lambda name: (name != "accuracy", name))), *COSTS]
    return [figure for figure in known if any(figure.of(column) is not None for column in present)]


def before_and_after(report: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None, str]:
    """The dense figures, the last ones that the report has, and the name of their column."""
    names = columns(report)
    last = names[-1] if names and names[-1] != "dense" else ""
    return report.get("dense") or None, (report[last] if last else None), last


def latency_cut_per_mac_cut(dense: Mapping[str, Any] | None, pruned: Mapping[str, Any] | None) -> float | None:
    """The share by which the latency fell, by the share by which the MACs fell: 1 where every operation saved shows in
    the time, above 1 where it fell by more. None where one of them wasn't measured, or nothing was cut.

    >>> latency_cut_per_mac_cut({"macs": 100, "latency_ms": 10.0}, {"macs": 50, "latency_ms": 6.0})
    0.8
    """
    (macs, fewer), (before, after) = [(f.of(dense), f.of(pruned)) for f in (MACS, LATENCY)]
    if not macs or not before or fewer is None or after is None or fewer >= macs:
        return None
    return round((1 - after / before) / (1 - fewer / macs), 4)
