"""What protecting data kept and cost, for a terminal and a page."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from secateur.reporting.numbers import count, percent, plain

SETS = {"protected": "protected data", "general": "general data"}
NETWORKS = {"dense": "dense", "without": "unprotected", "with": "protected", "tuned": "tuned"}
FIGURES = {
    "accuracy": ("Accuracy", percent),
    "agreement": ("Same answer as dense", percent),
    "divergence": ("Divergence in nats", plain),
    "difference": ("Difference from dense", percent),
}


def networks(found: Mapping[str, Any]) -> list[str]:
    """The networks that were compared, in the order of the work."""
    return [name for name in NETWORKS if name in found["figures"]["protected"]]


def rows(report: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """A label, and for each network of `networks` its figure; nothing where nothing was protected."""
    found: Mapping[str, Any] | None = report.get("protected")
    if not found:
        return []
    lines: list[tuple[str, list[str]]] = []
    for of, words in SETS.items():
        seen: Mapping[str, Mapping[str, float]] = found["figures"][of]
        for key, (label, show) in FIGURES.items():
            values = [seen[name].get(key) for name in networks(found)]
            if any(value is not None for value in values):
                lines.append((f"{label}, {words}", [show(value) for value in values]))
    costs: Mapping[str, Mapping[str, int]] = found["costs"]
    for key, label in (("macs", "MACs"), ("params", "Parameters")):
        widths = {"tuned": costs["with"], **costs}  # training changes none
        lines.append((label, [count(widths[name][key]) for name in networks(found)]))
    return lines


def sentence(report: Mapping[str, Any]) -> str | None:
    """What was protected, which units that kept, and on what the figures were taken."""
    found: Mapping[str, Any] | None = report.get("protected")
    if not found:
        return None
    share = percent(found["share"])
    said = f"Protected: {found['samples']:,} samples, {share} by weight of all that scores and refits saw."
    axes: Sequence[Mapping[str, Any]] = found["axes"]
    if found.get("failed"):
        said += f" There is nothing to compare with: without protection no network came of it ({found['failed']})."
    elif not axes:
        said += " The same units stay as without protection; the weights were refitted otherwise."
    else:
        most = sorted(axes, key=lambda row: -row["kept"])[:3]
        shown = ", ".join(f"{row['axis']} {row['kept']}" for row in most if row["kept"])
        count_of = sum(row["kept"] > 0 for row in axes)
        where = f"{count_of} {'axis' if count_of == 1 else 'axes'}{f' (most on {shown})' if shown else ''}"
        said += f" It kept {found['kept']} units that would have gone without it, on {where}"
        said += f", and {sum(row['gone'] for row in axes)} others went."
    seen = [SETS[name] for name in found["seen"]]
    if seen:
        said += f" The figures of the {' and of the '.join(seen)} are on samples that scores and refits saw, too."
    return said


def table(report: Mapping[str, Any]) -> Table | None:
    """The figures in a terminal; None where nothing was protected."""
    found: Mapping[str, Any] | None = report.get("protected")
    if not found:
        return None
    grid = Table(box=box.SIMPLE_HEAD, title="Protected", title_justify="left")
    grid.add_column("")
    for name in networks(found):
        grid.add_column(NETWORKS[name], justify="right")
    for label, cells in rows(report):
        grid.add_row(label, *cells)
    return grid
