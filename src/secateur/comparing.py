"""``sc.diff``: two saved results beside each other: which axes differ, by how much, and how the figures moved."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from secateur import digests
from secateur.artifacts import open_saved
from secateur.artifacts.record import MODEL
from secateur.errors import ArtifactError
from secateur.planning import Plan
from secateur.printing import as_text
from secateur.replaying.fitting import dense_shapes
from secateur.replaying.sources import Source, source
from secateur.reporting import Report
from secateur.reporting.figures import LATENCY, Figure, before_and_after, figures

SHOWN = 8  # differences of architecture that are listed
_COLORS = {1: "green", 0: "dim", -1: "yellow"}


@dataclass(frozen=True, kw_only=True)
class Narrowed:
    """An axis of the dense model after all plans.

    Attributes:
        kind: of the axis.
        before: units that the dense model has.
        kept: which of them stay.
    """

    kind: str
    before: int
    kept: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class AxisDifference:
    """An axis of which two results keep other units.

    Attributes:
        name, kind: of the axis.
        dense: units that the dense model has; None where the two models differ in that.
        first, second: units that the results keep.
        both: units that both keep; None where the dense models differ.
    """

    name: str
    kind: str
    dense: int | None
    first: int
    second: int
    both: int | None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two saved results beside each other.

    Attributes:
        names: of the two.
        architecture: what differs between the dense models, a few words each; empty where they are alike.
        axes: those of which they keep other units.
        alike: how many axes are narrower in both, with the same units.
        figures: of the two, in the form of a column of report.json; empty where nothing is known.
        same_parent: whether they were made of the same dense weights; None where that is unknown.
        same_weights: whether the weights of the results themselves are the same.
        steps: what was done to each, in order.
    """

    names: tuple[str, str]
    architecture: tuple[str, ...]
    axes: tuple[AxisDifference, ...]
    alike: int
    figures: tuple[Mapping[str, Any], Mapping[str, Any]]
    same_parent: bool | None
    same_weights: bool
    steps: tuple[tuple[str, ...], tuple[str, ...]]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**vars(self), "axes": [vars(axis) for axis in self.axes]}

    def __rich__(self) -> RenderableType:
        parts: list[RenderableType] = []
        if self.architecture:
            more = f"; and {len(self.architecture) - SHOWN} more" if len(self.architecture) > SHOWN else ""
            text = f"The dense networks differ: {'; '.join(self.architecture[:SHOWN])}{more}."
            parts.append(Text(text, style="yellow"))
        if any(self.figures):
            parts.append(_figures(self))
        if self.axes:
            parts.append(_axes(self))
        parts.append(Text(self.summary))
        return Group(*parts)

    @property
    def summary(self) -> str:
        """What is alike and what is not, in words."""
        count = len(self.axes)
        alike = f"{self.alike} narrower {'axis keeps' if self.alike == 1 else 'axes keep'} the same units in both"
        said = [f"{count} {'axis differs' if count == 1 else 'axes differ'}, {alike}."]
        if all(LATENCY.of(column) is not None for column in self.figures):
            said.append("Times and memory were measured in two runs: secateur measure takes them again.")
        if self.same_weights:
            said.append("Their weights are the same.")
        elif self.same_parent is not None:
            said.append(f"They were made of {'the same' if self.same_parent else 'different'} dense weights.")
        if self.steps[0] != self.steps[1]:
            done = [", ".join(steps) or "not known" for steps in self.steps]
            said.append(f"Done to the first: {done[0]}; to the second: {done[1]}.")
        return " ".join(said)

    def __str__(self) -> str:
        return as_text(self)


def diff(first: str | Path, second: str | Path) -> Difference:
    """Compare two saved results.

    Args:
        first, second: a directory or a single file, as `secateur.save` or a run wrote them.

    Raises:
        ArtifactError: one is no result of ours, or damaged.

    Example:
        >>> import tempfile, torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> folder = Path(tempfile.mkdtemp())
        >>> for keep in (0.5, 0.75):
        ...     sc.save(sc.prune(net, torch.randn(1, 4), keep=keep), folder / str(keep))
        >>> found = sc.diff(folder / "0.5", folder / "0.75")
        >>> [(axis.name, axis.first, axis.second, axis.both) for axis in found.axes]
        [('0.weight:0', 4, 6, 4)]
    """
    sides = [source(Path(path)) for path in (first, second)]
    for side in sides:
        if side.record is None:
            raise ArtifactError(f"{side.name} is a plan alone: give two saved results")
    a, b = sides
    axes = _narrowed(a), _narrowed(b)
    names = [name for name in dict.fromkeys((*axes[0], *axes[1])) if axes[0].get(name) != axes[1].get(name)]
    records: list[Mapping[str, Any]] = [side.record or {} for side in sides]
    parents = [record["parent"] for record in records]
    return Difference(
        names=(a.name, b.name),
        architecture=tuple(_architecture(a, b)),
        axes=tuple(_axis(name, axes[0].get(name), axes[1].get(name)) for name in names),
        alike=len(axes[0].keys() | axes[1].keys()) - len(names),
        figures=(_column(Path(first), records[0]), _column(Path(second), records[1])),
        same_parent=parents[0] == parents[1] if all(parents) else None,
        same_weights=_same_weights(Path(first), Path(second)),
        steps=(_steps(records[0]), _steps(records[1])),
    )


def _same_weights(first: Path, second: Path) -> bool:
    """Whether two results hold the same weights; their files may differ, of packed and of plain tensors."""
    one, other = open_saved(first), open_saved(second)
    if one.record["files"][MODEL] == other.record["files"][MODEL]:
        return True
    if not (one.packed or other.packed or one.single != other.single):
        return False
    return digests.of_tensors(one.tensors(MODEL)) == digests.of_tensors(other.tensors(MODEL))


def _narrowed(side: Source) -> dict[str, Narrowed]:
    """The axes that are narrower after all plans; an axis that a later plan cut out of others is one of its own."""
    found: dict[str, Narrowed] = {}
    for change in side.changes:
        for name, axis in change.axes.items() if isinstance(change, Plan) else ():
            earlier = found.get(name)
            if earlier is None:
                found[name] = Narrowed(kind=axis.kind, before=axis.before, kept=axis.kept)
            elif len(earlier.kept) == axis.before:
                kept = tuple(earlier.kept[k] for k in axis.kept)
                found[name] = Narrowed(kind=earlier.kind, before=earlier.before, kept=kept)
    return found


def _axis(name: str, first: Narrowed | None, second: Narrowed | None) -> AxisDifference:
    """One axis; in a result that does not narrow it, it is whole."""
    known = first or second
    assert known is not None
    sides = [side or Narrowed(kind=known.kind, before=known.before, kept=tuple(range(known.before)))
             for side in (first, second)]  # fmt: skip
    alike = sides[0].before == sides[1].before
    return AxisDifference(
        name=name,
        kind=known.kind,
        dense=known.before if alike else None,
        first=len(sides[0].kept),
        second=len(sides[1].kept),
        both=len(set(sides[0].kept) & set(sides[1].kept)) if alike else None,
    )


def _architecture(a: Source, b: Source) -> Iterable[str]:
    """What differs between the dense models, as far as plans and saved tensors tell."""
    one, other = (dense_shapes(side.changes, side.shapes) for side in (a, b))
    yield from (f"{name} is in the first only" for name in one if name not in other)
    yield from (f"{name} is in the second only" for name in other if name not in one)
    for name, shape in one.items():
        if name in other and other[name] != shape:
            yield f"{name} is {list(shape)} in the first, {list(other[name])} in the second"


def _column(path: Path, record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The last figures that are known of a result."""
    known: Mapping[str, Any] = record["figures"] or {}
    if path.is_dir() and (path / "report.json").is_file():
        known = Report.load(path)
    return before_and_after(known)[1] or known.get("dense") or {}


def _steps(record: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(done["step"]) for done in record["history"])


def _figures(found: Difference) -> Table:
    grid = Table(box=box.SIMPLE_HEAD)
    grid.add_column("")
    for name in found.names:
        grid.add_column(Path(name).name, justify="right", overflow="fold")
    grid.add_column("first → second", justify="right", no_wrap=True)
    pair = {"dense": found.figures[0], "pruned": found.figures[1]}
    for figure in figures(pair):
        before, after = (figure.of(column) for column in found.figures)
        grid.add_row(figure.label, figure.show(before), figure.show(after), _change(figure, before, after))
    return grid


def _change(figure: Figure, before: float | None, after: float | None) -> Text:
    return Text(figure.change(before, after), style=_COLORS[figure.verdict(before, after)])


def _axes(found: Difference) -> Table:
    grid = Table(box=box.SIMPLE_HEAD)
    grid.add_column("axis", overflow="fold")
    grid.add_column("kind")
    for title in ("dense", *(Path(name).name for name in found.names), "change", "units in both"):
        grid.add_column(title, justify="right")
    for axis in found.axes:
        change = axis.second - axis.first
        grid.add_row(
            axis.name,
            axis.kind,
            "differs" if axis.dense is None else f"{axis.dense:,}",
            f"{axis.first:,}",
            f"{axis.second:,}",
            f"{change:+,}" if change else "other units",
            "" if axis.both is None else f"{axis.both:,}",
        )
    return grid
