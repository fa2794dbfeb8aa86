"""Graphs and plans as tables, in a terminal or as plain text."""

from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from secateur.explaining import way_out
from secateur.graph import AxisInfo, Graph
from secateur.planning.plan import Plan


def as_text(value: Any, width: int = 140) -> str:
    """A rich renderable, or anything that offers one, as plain text."""
    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(value)
    return capture.get().rstrip()


def _quantity(number: int) -> str:
    for suffix, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.2f}{suffix}"
    return str(number)


def graph_tables(graph: Graph) -> Group:
    """Summary, prunable axes with members, frozen axes with reasons, and unknown operations."""
    cost = graph.cost()
    share = f"{graph.coverage:.1%} of the parameters lie on an axis that can be pruned"
    head = Text(
        f"{graph.model}{graph.inputs}: {_quantity(cost['params'])} params, {_quantity(cost['macs'])} MACs; {share}"
    )
    parts: list[Any] = [head, _axes_table(graph)]
    if graph.frozen:
        parts.append(_frozen_table(graph))
    parts += [
        Text(f"no rule knows {name} at {place}: what it touches is frozen; {way_out([name])}", style="yellow")
        for name, place in graph.unknown
    ]
    return Group(*parts)


def _axes_table(graph: Graph) -> Table:
    table = Table(title=f"{len(graph.axes)} axes that can be pruned", title_justify="left", expand=False)
    table.add_column("axis, and its members", overflow="fold")
    table.add_column("kind")
    for column in ("units", "params/unit", "MACs/unit"):
        table.add_column(column, justify="right")
    sizes = graph.costs.dense
    slopes = {kind: graph.costs.kinds[kind].slopes(sizes).tolist() for kind in ("params", "macs")}
    tie = {name: group for group in graph.ties for name in group}
    for k, (name, info) in enumerate(graph.axes.items()):
        notes = [f"shrinks with {', '.join(n for n in tie[name] if n != name)}"] if name in tie else []
        notes += [f"keeps {limit}" for limit in info.limits]
        notes += ["normalised over"] * bool(info.normalising) + [f"rewrites the graph: {r}" for r in info.rewrite[:1]]
        cell = Text.assemble(name, (f"\n  {_members(info)}", "dim"), *((f"\n  {note}", "yellow") for note in notes))
        table.add_row(cell, info.kind, str(info.size), *(_quantity(round(slopes[c][k])) for c in ("params", "macs")))
    return table


def _members(info: AxisInfo, most: int = 4) -> str:
    shown = [f"{name}:{dim}" for name, dim in info.members[:most]]
    return ", ".join(shown) + (f" and {len(info.members) - most} more" if len(info.members) > most else "")


def _frozen_table(graph: Graph) -> Table:
    table = Table(title=f"{len(graph.frozen)} axes that must keep their size", title_justify="left", expand=False)
    table.add_column("axis", overflow="fold")
    table.add_column("units", justify="right")
    table.add_column("why", overflow="fold")
    for name, info in graph.frozen.items():
        table.add_row(name, str(info.size), "; ".join(info.frozen))
    return table


def plan_table(plan: Plan) -> Table:
    """Widths before and after."""
    title = f"plan for {plan.model}" + (f" (rewrites the graph: {plan.rewrites[0]})" if plan.rewrites else "")
    table = Table(title=title, title_justify="left", expand=False)
    table.add_column("axis", overflow="fold")
    table.add_column("kind")
    for column in ("before", "after"):
        table.add_column(column, justify="right")
    for name, axis in plan.axes.items():
        table.add_row(name, axis.kind, str(axis.before), str(len(axis.kept)))
    if not plan.axes:
        table.add_row("nothing is removed", "", "", "")
    return table
