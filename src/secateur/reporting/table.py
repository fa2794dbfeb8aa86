"""A report in a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from secateur.reporting import sentences, sparse
from secateur.reporting.deeds import title
from secateur.reporting.figures import Figure, before_and_after, columns, figures

_COLORS = {1: "green", 0: "dim", -1: "yellow"}


def render(report: Mapping[str, Any]) -> RenderableType:
    """The figures as a table, then the proof, the axes, and the truth about latency, a line each."""
    rows: list[Mapping[str, Any]] = list(report.get("axes") or ())
    why = [_importances(rows)] if any("importance" in row for row in rows) else []
    by_layer = sparse.layers(report)
    lines: list[RenderableType] = [*why, *([] if by_layer is None else [by_layer]), _table(report)]
    if proof := sentences.proof(report):
        lines.append(Text(proof, style="green" if proof.startswith("Proved") else "yellow"))
    if report.get("axes") is not None:
        lines.append(Text(sentences.axes(report)))
    more = (
        sentences.adapted,
        sentences.replay,
        sentences.trial,
        sentences.compensation,
        sentences.dead,
        sentences.held_out,
        sentences.gradual,
        sentences.depth,
        sparse.sentence,
        sentences.rewrite,
        sentences.latency_per_mac,
    )
    lines += [Text(line) for line in (say(report) for say in more) if line]
    latency = sentences.latency(report)
    if latency:
        lines.append(Text(latency, style="yellow"))
    return Group(*lines)


def _importances(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Why width moved: what a unit of each axis was worth, and the axis's width before and after."""
    grid = Table(box=box.SIMPLE_HEAD, title="Width reallocated", title_justify="left")
    grid.add_column("axis", overflow="fold")
    for column in ("importance of a unit", "before", "after"):
        grid.add_column(column, justify="right")
    for row in rows:
        worth = "" if row.get("importance") is None else f"{row['importance']:.3g}"
        style = "green" if row["after"] > row["before"] else "yellow" if row["after"] < row["before"] else "dim"
        grid.add_row(str(row["name"]), worth, str(row["before"]), str(row["after"]), style=style)
    return grid


def _table(report: Mapping[str, Any]) -> Table:
    shown = columns(report)
    grid = Table(
        box=box.SIMPLE_HEAD,
        title=Text(str(report.get("model") or "")) if report.get("model") else None,
        title_justify="left",
    )
    grid.add_column("")
    for name in shown:
        grid.add_column(title(report, name), justify="right", no_wrap=True)
    dense, final, last = before_and_after(report)
    if final is not None:
        grid.add_column(f"{title(report, 'dense')} → {title(report, last)}", justify="right", no_wrap=True)
    for figure in figures(report):
        cells = [figure.show(figure.of(report[name])) for name in shown]
        grid.add_row(figure.label, *cells, *([_change(figure, dense, final)] if final is not None else []))
    return grid


def _change(figure: Figure, dense: Mapping[str, Any] | None, final: Mapping[str, Any] | None) -> Text:
    before, after = figure.of(dense), figure.of(final)
    return Text(figure.change(before, after), style=_COLORS[figure.verdict(before, after)])
