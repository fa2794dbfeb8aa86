"""A plan: which units of which axes stay, and how often. Plain data to be saved, read by people, and replayed on other
weights.
"""

import itertools
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from secateur import strict
from secateur.axes import Expr, Leaf, Prod, Sum, concat, leaves, product
from secateur.errors import ArtifactError
from secateur.origins import Attribute, NodeArgument, Site
from secateur.rebuilding import as_module, handed_out
from secateur.surgery.reindex import index

VERSION = 1
MAX_SIZE = 2**40  # of an axis that is read from a file
MAX_PARTS = 10_000  # of a dim
_SET_BY_NOBODY = frozenset(vars(nn.Module())) | {
    "call_super_init",
    "dump_patches",
    "forward",
}  # what makes a module one


@dataclass(frozen=True, kw_only=True)
class PlannedAxis:
    """What a plan does to one axis: ``kept`` units, ascending, of ``before``; one that is repeated stands there
    repeatedly.
    """

    kind: str
    before: int
    kept: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class PlannedTensor:
    """A tensor that changes its size: its names (tied tensors have several), and what its dims are made of."""

    names: tuple[str, ...]
    dims: tuple[Expr, ...]


@dataclass(frozen=True, kw_only=True)
class PlannedScale:
    """Weights that are multiplied by the root of ``after / before``: queries of attention that divides by the root of
    its head size. ``positions`` are ranges [start, stop) of the tensor's dim, before surgery.
    """

    tensor: str
    dim: int
    positions: tuple[tuple[int, int], ...]
    before: int
    after: int


@dataclass(frozen=True, kw_only=True)
class PlannedSplit:
    """Weights that are divided among the copies of units of ``axes``, which they sum over. ``positions`` are ranges
    [start, stop) of the tensor's dim, before surgery.
    """

    tensor: str
    dim: int
    positions: tuple[tuple[int, int], ...]
    axes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which units stay, and how often, and what has to change in the model for that.

    Attributes:
        axes: the axes that lose units, or get more.
        tensors: the parameters and buffers that change, under their first names.
        settings: sizes in the code and their new values.
        rewrites: sizes that are fixed in ``forward`` and become stale, so that the class is replaced by its graph;
            empty where the class stays.
        scales: weights that carry the change of a head size.
        model: name of the class that was traced.
        splits: weights that are divided among the copies of units that are repeated.
        noise: how far these parts differ, as a share of the weights' root mean square; together they make the same.
        seed: of the noise.
        biases: parameters that layers without a bias are given, zero at first, because compensation fills them.
        example: shapes and dtypes of the example inputs, which lead the capture of the graph; None where the class
            stays.
    """

    axes: dict[str, PlannedAxis]
    tensors: dict[str, PlannedTensor]
    settings: tuple[tuple[Site, int], ...] = ()
    rewrites: tuple[str, ...] = ()
    scales: tuple[PlannedScale, ...] = ()
    model: str = ""
    example: Any = None
    biases: tuple[str, ...] = ()
    splits: tuple[PlannedSplit, ...] = ()
    noise: float = 0.0
    seed: int = 0

    @cached_property
    def units(self) -> dict[str, Tensor]:
        """Kept units of each axis that changes, (units kept,), int64."""
        return {name: torch.tensor(axis.kept, dtype=torch.long) for name, axis in self.axes.items()}

    @cached_property
    def kept(self) -> dict[str, dict[int, Tensor]]:
        """Kept positions of every dim that changes: {qualified tensor name: {dim: 1-D LongTensor}}."""
        return {alias: at for name, at in self._kept.items() for alias in self.tensors[name].names}

    @cached_property
    def dims(self) -> dict[str, tuple[Expr, ...]]:
        """What the dims of the tensors that change are made of: {qualified tensor name: dims}."""
        return {alias: tensor.dims for tensor in self.tensors.values() for alias in tensor.names}

    @cached_property
    def _kept(self) -> dict[str, dict[int, Tensor]]:
        return {
            name: {k: index(d, self.units) for k, d in enumerate(tensor.dims) if runs_through(d, self.axes)}
            for name, tensor in self.tensors.items()
        }

    @property
    def repeats(self) -> bool:
        """Whether units are repeated."""
        return any(a == b for axis in self.axes.values() for a, b in itertools.pairwise(axis.kept))

    @property
    def sizes(self) -> dict[str, int]:
        """New size of each axis that changes."""
        return {name: len(axis.kept) for name, axis in self.axes.items()}

    def apply(
        self,
        model: nn.Module,
        *,
        compensate: str | None = None,
        data: Iterable[Any] | None = None,
    ) -> nn.Module:
        """The smaller model, as a new module; the one given is untouched.

        Args:
            model: the model that was traced, or one of the same architecture with other weights.
            compensate: how the weights that stay make up for those that go: "lstsq", "merge", "mean" or "auto", as in
                `secateur.prune`; it needs ``data``. None leaves them as they are.
            data: batches for that, without labels.

        Raises:
            SurgeryError: the model is not of the architecture that was planned for.
            PlanError: an unknown way to compensate, or no data for it.
            DataError: data that the model does not take.
        """
        from secateur.compensation import compensate_, method
        from secateur.surgery.apply import apply

        how = method(compensate, data)
        module = as_module(model)
        small = apply(self, module)
        if how is not None and data is not None:
            compensate_(module, small, None, self, data, how=how)
        return small if module is model else handed_out(small)

    def apply_(self, model: nn.Module) -> nn.Module:
        """Make the given model smaller, in place. Returns it.

        Raises:
            SurgeryError: the model does not fit, or the plan replaces its class, which can't happen in place.
        """
        from secateur.surgery.apply import apply_

        return apply_(self, model)

    def remap_(self, thing: Any, old: nn.Module | Mapping[str, Tensor], new: nn.Module | Mapping[str, Tensor]) -> Any:
        """Carry what trains along with a model over to the smaller one, in place. Returns it.

        See `secateur.carrying.remap_` for what can be carried and how.

        Args:
            thing: an optimizer; or a copy of the model such as a moving average: a module, an ``AveragedModel``, or a
                dict of tensors by name.
            old: the model before surgery, or its parameters by name; after `apply_` the model has new ones, so note
                ``dict(model.named_parameters())`` before.
            new: the smaller model, or its parameters by name.

        Raises:
            RemapError: the thing belongs to another model, or is of no kind that can be carried.
            SurgeryError: a copy that the plan does not fit, or that can't be changed in place.

        Example:
            >>> import torch, secateur as sc
            >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> optimizer = torch.optim.Adam(net.parameters())
            >>> graph = sc.trace(net, torch.randn(1, 4))
            >>> plan = sc.plan(graph, sc.score(net, graph), keep=0.5)
            >>> old = dict(net.named_parameters())
            >>> _ = plan.remap_(optimizer, old, plan.apply_(net))
            >>> optimizer.param_groups[0]["params"][0] is net[0].weight
            True
        """
        from secateur.carrying import remap_

        return remap_(self, thing, old, new)

    # ------------------------------------------------------------------ JSON

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "version": VERSION,
            "model": self.model,
            "axes": {n: {"kind": a.kind, "before": a.before, "kept": list(a.kept)} for n, a in self.axes.items()},
            "tensors": {
                n: {"names": list(t.names), "dims": [_encode(d) for d in t.dims]} for n, t in self.tensors.items()
            },
            "settings": [{**_encode_site(site), "value": value} for site, value in self.settings],
            "rewrites": list(self.rewrites),
            "scales": [{**vars(s), "positions": [list(p) for p in s.positions]} for s in self.scales],
            "example": self.example,
            **({"biases": list(self.biases)} if self.biases else {}),
            **(
                {
                    "splits": [
                        {**vars(s), "positions": [list(p) for p in s.positions], "axes": list(s.axes)}
                        for s in self.splits
                    ]
                }
                if self.splits
                else {}
            ),
            **({"noise": self.noise, "seed": self.seed} if self.noise else {}),
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "Plan":
        """Read what `to_dict` wrote.

        Raises:
            ArtifactError: it is no plan, or one of another version.
        """
        if data.get("version") != VERSION:
            raise ArtifactError(f"a plan of version {data.get('version')!r}; this secateur reads version {VERSION}")
        try:
            plan = Plan(
                axes={n: _planned_axis(n, a) for n, a in data["axes"].items()},
                tensors={
                    n: PlannedTensor(names=_names(t["names"]), dims=tuple(_decode(d) for d in t["dims"]))
                    for n, t in data["tensors"].items()
                },
                settings=tuple((_decode_site(s), _size(s["value"])) for s in data["settings"]),
                rewrites=tuple(map(str, data["rewrites"])),
                scales=tuple(map(_decode_scale, data.get("scales", []))),
                model=str(data["model"]),
                example=data["example"],
                biases=tuple(map(str, data.get("biases", []))),
                splits=tuple(map(_decode_split, data.get("splits", []))),
                noise=strict.number(data.get("noise", 0.0), 0, 1),
                seed=strict.whole(data.get("seed", 0)),
            )
            _check_leaves(plan)
            _check_splits(plan)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ArtifactError(f"not a plan that secateur wrote: {type(error).__name__}: {error}") from error
        return plan

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, whole or not at all."""
        from secateur.files import write_text

        write_text(Path(path), json.dumps(self.to_dict(), indent=1) + "\n")

    @staticmethod
    def load(path: str | Path) -> "Plan":
        """Read a plan that `save` wrote.

        Raises:
            ArtifactError: the file can't be read, or is no plan.
        """
        return Plan.from_dict(strict.read_json(Path(path), "plan"))

    def __rich__(self) -> Any:
        from secateur.printing import plan_table

        return plan_table(self)

    def __str__(self) -> str:
        from secateur.printing import as_text

        return as_text(self)


def _planned_axis(name: str, data: Mapping[str, Any]) -> PlannedAxis:
    before, kept = data["before"], data["kept"]
    if type(before) is not int or any(type(k) is not int for k in kept):
        raise ValueError(f"axis {name}: units are no whole numbers")
    if before > MAX_SIZE:
        raise ValueError(f"axis {name} has {before} units, which no tensor has")
    if not kept or any(a > b for a, b in itertools.pairwise(kept)) or kept[0] < 0 or kept[-1] >= before:
        raise ValueError(f"axis {name}: kept units must ascend within [0, {before})")
    return PlannedAxis(kind=str(data["kind"]), before=before, kept=tuple(kept))


def _check_leaves(plan: Plan) -> None:
    def check(expr: Expr) -> None:
        match expr:
            case Leaf():
                if expr.name in plan.axes and plan.axes[expr.name].before != expr.size:
                    raise ValueError(
                        f"axis {expr.name} has {plan.axes[expr.name].before} units, but a dim has {expr.size}"
                    )
            case Prod():
                for factor in expr.factors:
                    check(factor)
            case Sum():
                for part in expr.parts:
                    check(part)
            case _:
                raise ValueError("an unfinished expression")

    for tensor in plan.tensors.values():
        for dim in tensor.dims:
            check(dim)


def _check_splits(plan: Plan) -> None:
    """Splits speak of axes in the dims that these run through; an axis whose units are repeated has one."""
    split_axes = {name for split in plan.splits for name in split.axes}
    for name, axis in plan.axes.items():
        if len(set(axis.kept)) < len(axis.kept) and name not in split_axes:
            raise ValueError(f"axis {name} repeats units, but no weights are divided among the copies")
    for split in plan.splits:
        tensor = plan.tensors[split.tensor]
        if not 0 <= split.dim < len(tensor.dims):
            raise ValueError(f"{split.tensor} has no dim {split.dim} to split")
        dim = tensor.dims[split.dim]
        if not split.axes or any(n not in plan.axes or not runs_through(dim, (n,)) for n in split.axes):
            raise ValueError(f"the split of {split.tensor} is along axes that its dim {split.dim} is not made of")
        edges = [edge for pair in split.positions for edge in pair]
        if not edges or edges[0] < 0 or edges[-1] > dim.size or any(a >= b for a, b in itertools.pairwise(edges)):
            raise ValueError(f"the split of {split.tensor}: {list(split.positions)} are no ranges of its {dim.size}")


def runs_through(dim: Expr, axes: Collection[str]) -> bool:
    """Whether a dim is made of one of the named axes, among others."""
    return any(leaf.name in axes for leaf in leaves(dim))


def _encode(expr: Expr) -> Any:
    match expr:
        case Leaf():
            return expr.size if expr.name is None else {"axis": expr.name, "size": expr.size}
        case Prod():
            return {"product": [_encode(f) for f in expr.factors]}
        case Sum():
            return {"sum": [_encode(p) for p in expr.parts]}
        case _:
            raise TypeError(f"{expr!r} is not a finished expression")


def _decode(data: Any) -> Expr:
    if type(data) is int and 0 <= data <= MAX_SIZE:
        return Leaf(None, data)
    if isinstance(data, dict):
        node = cast("dict[str, Any]", data)
        if "axis" in node and type(node["size"]) is int and 0 <= node["size"] <= MAX_SIZE:
            return Leaf(str(node["axis"]), node["size"])
        if "product" in node and _is_list(node["product"]):
            return _product([_decode(f) for f in node["product"]])
        if node.get("sum") and _is_list(node["sum"]):
            return concat(_decode(p) for p in node["sum"])
        raise ValueError("a dim of too many parts, or none of ours")
    raise ValueError(f"{data!r} is no dim expression")


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and len(cast("list[Any]", value)) <= MAX_PARTS


def _product(factors: list[Expr]) -> Expr:
    """A product that, however its factors are taken together, is no larger than a dim can be."""
    size = 1
    for factor in factors:
        if (size := size * factor.size) > MAX_SIZE or (len(factors) > 1 and not factor.size):
            raise ValueError(f"a product of {len(factors)} sizes that no dim has")
    return product(factors)


def _encode_site(site: Site) -> dict[str, Any]:
    if isinstance(site, Attribute):
        return {"module": site.module, "attribute": site.name, "index": site.index, "before": site.value}
    return {"node": site.node, "path": list(site.path), "before": site.value}


def _decode_site(data: Mapping[str, Any]) -> Site:
    if "node" in data:
        path: list[Any] = data["path"]
        if any(type(key) not in (int, str) for key in path):
            raise ValueError(f"{path!r} is no path to an argument")
        return NodeArgument(str(data["node"]), tuple(path), strict.whole(data["before"]))
    at, name = data["index"], str(data["attribute"])
    place = None if at is None else _size(at)
    steps = name.split(".")
    if not all(step.isidentifier() or step.isdigit() for step in steps) or not _SET_BY_NOBODY.isdisjoint(steps):
        raise ValueError(f"{name!r} is no attribute that holds a size")
    if any(step.startswith("__") for step in steps):
        raise ValueError(f"{name!r} is no attribute that holds a size")
    return Attribute(str(data["module"]), name, place, strict.whole(data["before"]))


def _decode_scale(data: Mapping[str, Any]) -> PlannedScale:
    return PlannedScale(
        tensor=str(data["tensor"]),
        dim=strict.whole(data["dim"], 0),
        positions=_ranges(data["positions"]),
        before=strict.whole(data["before"], 1, MAX_SIZE),
        after=strict.whole(data["after"], 1, MAX_SIZE),
    )


def _ranges(value: Any) -> tuple[tuple[int, int], ...]:
    return tuple((strict.whole(start), strict.whole(stop)) for start, stop in strict.items(value))


def _size(value: Any) -> int:
    return strict.whole(value, 0, MAX_SIZE)


def _decode_split(data: Mapping[str, Any]) -> PlannedSplit:
    return PlannedSplit(
        tensor=str(data["tensor"]),
        dim=strict.whole(data["dim"]),
        positions=_ranges(data["positions"]),
        axes=_names(data["axes"]),
    )


def _names(value: Any) -> tuple[str, ...]:
    """At least one name."""
    if not (names := strict.items(value)):
        raise ValueError("a tensor or a split without names")
    return tuple(map(strict.text, names))
