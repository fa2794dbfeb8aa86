"""A test of robustness as tables."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from secateur.reporting.numbers import DASH, percent
from secateur.safety.comparing import Comparison, Difference
from secateur.safety.figures import Figures
from secateur.safety.words import TITLES, ball, points, radius

if TYPE_CHECKING:
    from secateur.safety.result import Robustness

_COLORS = {"better": "green", "worse": "yellow", "within noise": "dim"}
Row = tuple[str, list[float | None], Difference | None]


def render(found: "Robustness") -> RenderableType:
    """Accuracies, then the groups where two networks were compared, then what it means."""
    parts: list[RenderableType] = [_accuracies(found)]
    parts += [_groups(name, comparison) for name, comparison in found.comparisons.items()]
    parts += [Text(line) for line in found.sentences]
    return Group(*parts)


def _accuracies(found: "Robustness") -> Table:
    title = f"{found.model}: accuracy on {found.samples} samples"
    grid = Table(box=box.SIMPLE_HEAD, title=Text(title), title_justify="left")
    grid.add_column("")
    for name in found.networks:
        grid.add_column(name, justify="right", no_wrap=True)
    last = list(found.comparisons)[-1] if found.comparisons else None
    if last is not None:
        grid.add_column(f"dense → {last}", justify="right", no_wrap=True)
    comparison = None if last is None else found.comparisons[last]
    for label, values, difference in rows(list(found.networks.values()), comparison):
        cells = [percent(value) if value is not None else DASH for value in values]
        grid.add_row(label, *cells, *([_change(values, difference)] if comparison is not None else []))
    return grid


def rows(networks: list[Figures], comparison: Comparison | None) -> Iterator[Row]:
    """Label, a figure of each network, and the difference between the dense and the last one where it was tested."""
    yield "clean", [f.clean for f in networks], comparison and comparison.clean
    for norm, attacked in networks[-1].attacked.items():
        sides = [figures.attacked[norm] for figures in networks]
        for name in attacked.accuracy:
            yield f"{TITLES[name]}, {ball(attacked.threat)}", [side.accuracy[name] for side in sides], None
        strongest = comparison and comparison.strongest[norm]
        yield f"strongest, {ball(attacked.threat)}", [side.strongest for side in sides], strongest
        endurance = comparison and comparison.endurance[norm]
        yield "  mean over all radii", [side.endurance for side in sides], endurance
        for eps in reversed(attacked.radii):
            label = f"  within {radius(eps, attacked.threat)} (PGD)"
            yield label, [side.radii[eps] for side in sides], None
    for name in networks[-1].corrupted:
        means = [sum(figures.corrupted[name]) / len(figures.corrupted[name]) for figures in networks]
        yield f"{TITLES[name]}, mean of 5 severities", [*means], None
    if networks[-1].corrupted:
        corrupted = comparison and comparison.corrupted
        yield "all corruptions", [figures.mean_corrupted for figures in networks], corrupted
    yield "calibration error", [figures.calibration.error for figures in networks], None


def _change(values: list[float | None], difference: Difference | None) -> Text:
    """How a figure moved; a verdict beside it where it was tested."""
    first, last = values[0], values[-1]
    if first is None or last is None:
        return Text(DASH)
    if difference is None:
        return Text(points(last - first), style="dim")
    return Text(f"{points(difference.change)}, {difference.verdict}", style=_COLORS[difference.verdict])


def _groups(name: str, comparison: Comparison) -> Table:
    title = f"dense and {name}: who pays"
    grid = Table(box=box.SIMPLE_HEAD, title=Text(title), title_justify="left")
    grid.add_column("group", overflow="fold")
    for column in ("samples", "dense", name, "change", "lost", "won", "same answer", "p"):
        grid.add_column(column, justify="right")
    for group in comparison.groups:
        style = "yellow" if group.pays else ""
        grid.add_row(
            group.name,
            f"{group.samples:,}",
            percent(group.before),
            percent(group.after),
            points(group.after - group.before),
            str(group.lost),
            str(group.won),
            percent(group.agreement),
            f"{group.p:.2g}",
            style=style,
        )
    return grid
