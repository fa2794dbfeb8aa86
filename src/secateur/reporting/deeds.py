"""What was done to the network that a report is about, in a word for each change."""

from collections.abc import Mapping
from typing import Any

from secateur.reporting.figures import columns


def deeds(report: Mapping[str, Any]) -> list[str]:
    """What was done, in order; nothing where the network is still what it was.

    >>> deeds({"axes": [{"before": 8, "after": 4}], "plan": {"axes": {"0": {"before": 8, "kept": [0, 1, 2, 3]}}}})
    ['pruned']
    """
    done = ["adapted"] if report.get("adapted") else []
    if depth := report.get("depth"):
        done += ["shortened"] * bool(depth.get("dropped")) + ["deepened"] * bool(depth.get("inserted"))
    elif (word := _widths(report)) is not None:
        done.append(word)
    done += ["made sparse"] * bool(report.get("sparsity"))
    return done + ["tuned"] * bool(report.get("tuned"))


def in_words(report: Mapping[str, Any]) -> str:
    """What was done, as a phrase: "pruned and tuned"; empty where nothing was."""
    *first, last = deeds(report) or [""]
    return f"{', '.join(first)} and {last}" if first else last


def title(report: Mapping[str, Any], column: str) -> str:
    """What a column is called: "pruned" is "shorter" or "deeper" where whole blocks went or came in, and what became
    wider was not pruned.
    """
    depth: Mapping[str, Any] | None = report.get("depth")
    if column == "pruned" and depth:
        return "shorter" if depth.get("dropped") else "deeper"
    if column == "pruned" and report.get("sparsity"):
        return "sparse"
    if not wider(report):
        return column
    return {"dense": "before", "pruned": "reallocated" if narrower(report) else "grown"}.get(column, column)


def narrower(report: Mapping[str, Any]) -> bool:
    """Whether units were removed, or nothing was changed."""
    plan: Any = report.get("plan")
    axes: Any = plan.get("axes") if isinstance(plan, Mapping) else None
    if not isinstance(axes, Mapping) or not axes:
        return True
    return any(len(set(axis["kept"])) < axis["before"] for axis in axes.values())


def wider(report: Mapping[str, Any]) -> bool:
    """Whether axes have become wider."""
    return any(row["after"] > row["before"] for row in report.get("axes") or ())


def _widths(report: Mapping[str, Any]) -> str | None:
    """What was done to widths; None where they are what they were."""
    rows: list[Mapping[str, Any]] = list(report.get("axes") or ())
    if wider(report):
        return "reallocated" if narrower(report) else "grown"
    if any(row["after"] < row["before"] for row in rows):
        return "pruned"
    # A report without axes tells of a pruning where it has figures of one.
    return "pruned" if not rows and "pruned" in columns(report) and not report.get("sparsity") else None
