"""A check of hints as tables, in a terminal and in Markdown, and in words."""

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from secateur.hints.whole import CONTROL
from secateur.reporting.numbers import DASH, plain

if TYPE_CHECKING:
    from secateur.hints.result import HintCheck


_NAMES, _UNITS = 16, 16  # columns that the names of axes take at least, and the units with the margins


def render(check: "HintCheck") -> RenderableType:
    """Both tables, what follows, and what is missing."""
    remarks = [Text(remark, style="yellow") for remark in check.remarks]
    return Group(_summary(check), _ByAxis(check), Text(check.sentence, style="green"), *remarks)


def markdown(check: "HintCheck") -> str:
    """The same in Markdown."""
    return "\n\n".join([_lines(*cells(check)), _lines(*axis_cells(check)), "\n".join([check.sentence, *check.remarks])])


def _lines(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, rule, *rows])


def sentence(check: "HintCheck") -> str:
    """What follows from the figures."""
    best = check.hints[0]
    if check.whole:
        found, chance = check.whole[best], check.whole[CONTROL]
        return (
            f"Best here: {best}, which costs {plain(found.refitted)} at {check.budget} with the weights refitted and "
            f"{plain(found.cut)} as cut; at random it is {plain(chance.refitted)} and {plain(chance.cut)}."
        )
    said = f"Best here: {best}, rank correlation {signed(check.agreement[best].mean)} within an axis"
    if check.shares:
        cost, chance = (plain(check.cost(who, check.shares[0])) for who in (best, None))
        said += f"; {_share(check.shares[0])} of an axis that it chooses costs {cost}, at random {chance}"
    return f"{said}."


def cells(check: "HintCheck") -> tuple[list[str], list[list[str]]]:
    """The first table, a row for each hint: its heads and its rows."""
    what = "loss" if check.truth == "loss" else "outputs"
    heads = ["hint", "within an axis", "all units", "all units, as shares"]
    heads += [f"{what} without {_share(share)} of an axis" for share in check.shares]
    if check.whole:
        heads += [f"{what} at {check.budget}, as cut", "refitted"]
    rows = [_row(check, name) for name in check.hints]
    if check.shares or check.whole:
        shares = (_rise(check.cost(None, share)) for share in check.shares)
        rows.append([CONTROL, *[DASH] * 3, *shares, *_whole(check, CONTROL)])
    return heads, rows


def axis_cells(check: "HintCheck") -> tuple[list[str], list[list[str]]]:
    """The second table, a row for each axis: correlations within it."""
    rows = [
        [axis.name, f"{len(axis.units)} of {axis.size}", *(signed(check.agreement[n].axes[k]) for n in check.hints)]
        for k, axis in enumerate(check.axes)
    ]
    return ["axis", "units", *check.hints], rows


def _row(check: "HintCheck", name: str) -> list[str]:
    found = check.agreement[name]
    pairs = (
        (found.mean, found.mean_error),
        (found.overall, found.overall_error),
        (found.shares, found.shares_error),
    )
    return [
        name,
        *(_with_error(*pair) for pair in pairs),
        *(_rise(check.cost(name, share)) for share in check.shares),
        *_whole(check, name),
    ]


def _whole(check: "HintCheck", name: str) -> list[str]:
    """What the whole model costs, pruned as a hint chooses; nothing where that was not asked."""
    return [_rise(value) for found in [check.whole.get(name)] if found for value in (found.cut, found.refitted)]


def facts(check: "HintCheck") -> str:
    """What was measured, in a line."""
    units = sum(len(axis.units) for axis in check.axes)
    truth = (
        f"against what each costs when it is silenced (dense loss {plain(check.dense)})"
        if check.truth == "loss"
        else "against how far the outputs move when it is silenced (squared, by their squared size)"
    )
    said = f"{units} units of {len(check.axes)} axes {truth}, on {check.samples:,} samples"
    if check.reliability is not None:
        said += f"; the truth agrees with itself to {check.reliability:.2f}"
    return f"{said}; seed {check.seed}" + (f"; {check.note}" if check.note else "")


def _summary(check: "HintCheck") -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        title=Text(f"{check.model}: rank correlation of each hint with the truth, ± standard error"),
        title_justify="left",
        caption=Text(facts(check)),
        caption_justify="left",
    )
    heads, rows = cells(check)
    table.add_column(heads[0], no_wrap=True)
    for head in heads[1:]:
        table.add_column(head, justify="right")
    for row in rows:
        table.add_row(*map(Text, row), style="dim" if row[1] == DASH else None)
    return table


class _ByAxis:
    """The second table, with as many of the hints, the best first, as the console is wide."""

    def __init__(self, check: "HintCheck") -> None:
        self.check = check

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        heads, rows = axis_cells(self.check)
        room = options.max_width - max(_NAMES, max(cell_len(row[0]) for row in rows)) - _UNITS
        ends = list(accumulate(max(len(name), 5) + 3 for name in heads[2:]))
        shown = max(1, sum(end <= room for end in ends))
        left = len(ends) - shown
        table = Table(
            box=box.SIMPLE_HEAD,
            title=Text("Rank correlation within each axis"),
            title_justify="left",
            caption=Text(f"and {left} hints that this is too narrow for; the picture has all") if left else None,
            caption_justify="left",
        )
        table.add_column(heads[0], overflow="fold")
        table.add_column(heads[1], justify="right")
        for name in heads[2 : 2 + shown]:
            table.add_column(Text(name), justify="right", overflow="fold")
        for (name, units, *values), best in zip(rows, _best(self.check), strict=True):
            cells = [Text(value, style="bold" if value == best else "") for value in values[:shown]]
            table.add_row(Text(name), units, *cells)
        yield table


def _best(check: "HintCheck") -> list[str]:
    """The highest correlation on each axis, as it is shown."""
    by_axis = zip(*(check.agreement[name].axes for name in check.hints), strict=True)
    return [signed(max((v for v in values if v is not None), default=None)) for values in by_axis]


def signed(value: float | None) -> str:
    """A correlation, with its sign.

    >>> signed(0.5), signed(-0.001), signed(None)
    ('+0.50', '+0.00', '–')
    """
    return DASH if value is None else f"{round(value, 2) + 0.0:+.2f}"


def _with_error(value: float | None, error: float | None) -> str:
    return signed(value) + ("" if value is None or error is None else f" ± {error:.2f}")


def _rise(value: float | None) -> str:
    return DASH if value is None else f"{'+' if value >= 0 else ''}{plain(value)}"


def _share(share: float) -> str:
    words = {0.25: "a quarter", 0.5: "half", 0.75: "three quarters"}
    return words.get(share, f"{100 * share:g} %")
