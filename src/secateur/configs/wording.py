"""How a config says sizes: which of its values scale with which axes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import gcd, lcm
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from secateur.axes import size_of
from secateur.configs.blueprint import Blueprint, Unbuildable, quietly, shapes
from secateur.errors import ProofFailed
from secateur.graph import Graph
from secateur.inputs import fresh
from secateur.modules import named_tensors
from secateur.origins import Attribute, Site
from secateur.planning import families
from secateur.planning.plan import Plan
from secateur.surgery.apply import put
from secateur.tracing.running import tensors_in
from secateur.tracing.shadow import copy_with, of_kind

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}  # share of an output's scale: the operations are the same ones


@dataclass(frozen=True)
class Word:
    """Values of a config that, scaled together, scale axes in the same proportion, and nothing else.

    Attributes:
        values: the values, by site.
        axes: names of the axes.
        needs: values that the config leaves open and that would else follow the ones that are scaled.
    """

    values: dict[Attribute, int]
    axes: tuple[str, ...]
    needs: dict[Attribute, int] = field(default_factory=dict[Attribute, int])


@dataclass(frozen=True)
class Wording:
    """What a config can say about the widths of a model.

    Attributes:
        blueprint: builds the model from the config.
        words: the axes that it can say; together they may shrink in any proportions that keep every value whole.
        unsaid: why the config can't say the other axes.
    """

    blueprint: Blueprint
    words: tuple[Word, ...]
    unsaid: dict[str, str]

    def restrict(self, graph: Graph) -> Graph:
        """The graph with its axes tied as the config ties them, and those that it can't say frozen."""
        known = {name for word in self.words for name in word.axes}
        stuck = {n: self._why(graph, n) for n in graph.axes if n not in known}
        steps = {n: _step(graph.axes[n].size, word) for word in self.words for n in word.axes if n in graph.axes}
        axes = {n: replace(a, step=lcm(a.step, steps.get(n, 1))) for n, a in graph.axes.items()}
        return families.tied(replace(graph, axes=axes), [*graph.ties, *(word.axes for word in self.words)], stuck)

    def _why(self, graph: Graph, name: str) -> str:
        if graph.axes[name].rewrite:
            return (
                f"uniform: a plain checkpoint keeps the class, and {graph.axes[name].rewrite[0]} can't follow it there"
            )
        return self.unsaid.get(name, "uniform: the config can't say its size")

    def values(self, graph: Graph, sizes: Mapping[str, int]) -> dict[Attribute, int]:
        """Every value of the config that has to be set when axes have the given sizes.

        Raises:
            Unbuildable: one would be no whole number.
        """
        found: dict[Attribute, Fraction] = {}
        for word in (word for word in self.words if word.axes[0] in sizes):
            share = Fraction(sizes[word.axes[0]], graph.axes[word.axes[0]].size)
            for site, value in word.needs.items():
                found.setdefault(site, Fraction(value))
            for site, value in word.values.items():
                found[site] = found.get(site, Fraction(value)) * share
        broken = [f"{site}={value}" for site, value in found.items() if value.denominator != 1]
        if broken:
            raise Unbuildable(f"{', '.join(broken)} is no whole number")
        return {site: int(value) for site, value in found.items()}

    def says(self, graph: Graph, sizes: Mapping[str, int]) -> bool:
        """Whether the config builds a model in which the axes have the given sizes."""
        try:
            built = shapes(self.blueprint.build(self.values(graph, sizes)))
        except Unbuildable:
            return False
        return all(
            built.get(name) == tuple(size_of(d, sizes) for d in info.dims) for name, info in graph.tensors.items()
        )

    def write(self, graph: Graph, plan: Plan) -> Plan:
        """The plan with what the config has to say among its settings."""
        settings: dict[Site, int] = {**dict(plan.settings), **self.values(graph, plan.sizes)}
        return replace(plan, settings=tuple(settings.items()))

    def check(self, small: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Demand that a model built from the pruned model's config computes the same with its weights.

        Raises:
            ProofFailed: it does not, or can't be built.
        """
        try:
            rebuilt = self.blueprint.read(small).build({})
        except Unbuildable as error:
            raise ProofFailed(f"its config builds no model: {error}") from error
        if shapes(rebuilt) != shapes(small):
            raise ProofFailed("its config builds a model of other shapes")
        with quietly():
            give(small, rebuilt)
            first, second = outputs(small, args, kwargs), outputs(rebuilt, args, kwargs)
        if not alike(first, second):
            raise ProofFailed(f"a model built from its config computes something else{difference(small, rebuilt)}")


def _step(size: int, word: Word) -> int:
    """What a width must be a multiple of so that every value stays whole."""
    return lcm(*(size // gcd(size, value) for value in word.values.values()))


def give(small: nn.Module, rebuilt: nn.Module) -> None:
    """Put the weights of one model into the other; what a checkpoint leaves out, it keeps as it was built.

    Raises:
        ProofFailed: something is in no checkpoint, nor filled by the constructor.
    """
    try:
        rebuilt.load_state_dict(small.state_dict(), strict=True, assign=True)
    except RuntimeError as error:
        raise ProofFailed(f"a model built from its config does not take its weights: {error}") from error
    like = named_tensors(small)
    for name, tensor in named_tensors(rebuilt).items():
        if tensor.is_meta and not like[name].is_meta:
            raise ProofFailed(f"{name} is in no checkpoint, and its constructor does not fill it")
        if (tensor.device, tensor.dtype) != (like[name].device, like[name].dtype):
            put(rebuilt, name, of_kind(tensor, tensor.detach().to(like[name])))


def outputs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Tensor], torch.dtype]:
    """Outputs in evaluation mode, in float64 where the model runs in it, and the precision.

    Raises:
        ProofFailed: it does not run.
    """
    failure: Exception = ProofFailed("no precision to run in")
    for dtype in TOLERANCE:
        positional, keywords = tree_map(lambda v, d=dtype: _cast(v, d), fresh((args, kwargs)))
        torch.manual_seed(0)
        try:
            copy = copy_with(model, lambda t, d=dtype: of_kind(t, _cast(t.detach(), d).clone())).eval()
            return tensors_in(nn.Module.__call__(copy, *positional, **keywords)), dtype
        except Exception as error:  # whatever code may raise that is given another precision
            failure = error
    raise ProofFailed(f"it does not run: {type(failure).__name__}: {failure}") from failure


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def alike(first: tuple[Sequence[Tensor], torch.dtype], second: tuple[Sequence[Tensor], torch.dtype]) -> bool:
    """Whether outputs agree."""
    if first[1] != second[1] or [t.shape for t in first[0]] != [t.shape for t in second[0]]:
        return False
    for a, b in zip(first[0], second[0], strict=True):
        if not a.is_floating_point():
            if not torch.equal(a, b):
                return False
            continue
        both = a.isfinite() & b.isfinite()
        if not torch.equal(a[~both].nan_to_num(), b[~both].nan_to_num()):
            return False
        if both.any() and float((a - b)[both].abs().max()) > TOLERANCE[first[1]] * float(a[both].abs().max()):
            return False
    return True


def difference(small: nn.Module, rebuilt: nn.Module) -> str:
    """The first table or factor that a constructor computes otherwise, for people; empty where none is seen."""
    tables = named_tensors(rebuilt)
    stored = {*small.state_dict(), *dict(small.named_parameters())}
    for name, tensor in named_tensors(small).items():
        if name not in stored and not torch.equal(tensor.double(), tables[name].double()):
            return f": it computes {name} anew"
    modules = dict(rebuilt.named_modules())
    for path, module in small.named_modules():
        for name, value in vars(module).items():
            other = vars(modules[path]).get(name) if path in modules else None
            if isinstance(value, float) and isinstance(other, float) and value != other:
                return f": it sets {f'{path}.{name}'.lstrip('.')} to {other:.4g}, not {value:.4g}"
    return ""
