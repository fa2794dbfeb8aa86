"""What modules give during a run, and which part of it a pruned model gives too.

A plan knows what the dims of tensors are made of. One run of the teacher under the tracer says the same of the outputs
of all modules, by the same inference as the proof's: so activations and whole blocks are known as well as layers.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from secateur.axes import Expr, leaves
from secateur.calibration.watching import running
from secateur.modules import named_parts, named_tensors
from secateur.planning.plan import Plan, runs_through
from secateur.surgery.apply import check_fit
from secateur.surgery.reindex import index
from secateur.tracing.finished import finished, live
from secateur.tracing.running import tensors_in
from secateur.tracing.sizes import SizeMode
from secateur.tracing.surroundings import quiet_backends
from secateur.tracing.tracer import Tracer

Kept = Mapping[int, Tensor]
"""Positions that stay of each dim that gets smaller, (new size,), int64."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """What one call of a module gave.

    Attributes:
        shape: of its first tensor.
        dims: what these dims are made of; empty where nobody asked.
    """

    shape: tuple[int, ...]
    dims: tuple[Expr, ...] = ()

    def kept(self, plan: Plan | None) -> Kept:
        """Which positions a model that is pruned by the plan gives too."""
        if plan is None:
            return {}
        return {k: index(d, plan.units) for k, d in enumerate(self.dims) if runs_through(d, plan.axes)}

    def smaller(self, plan: Plan | None) -> tuple[int, ...]:
        """The shape that remains."""
        kept = self.kept(plan)
        return tuple(len(kept[k]) if k in kept else size for k, size in enumerate(self.shape))


Outputs = dict[str, list[Given]]
"""What the calls of each module gave, in the order of the first calls' ends."""


def feature(output: Any) -> Tensor | None:
    """The first tensor that a module returned, where it holds floating-point numbers."""
    first = next(iter(tensors_in(output)), None)
    return first if isinstance(first, Tensor) and first.is_floating_point() else None


def shapes_of(features: Mapping[str, Sequence[Tensor]]) -> Outputs:
    """The same for tensors that were recorded."""
    return {path: [Given(shape=tuple(t.shape)) for t in given] for path, given in features.items()}


def output_dims(model: nn.Module, plan: Plan, call: Callable[[nn.Module], Any]) -> tuple[Any, Outputs]:
    """What the dims of every module's outputs are made of, in terms of the plan's axes.

    Args:
        model: the one that was planned for; a copy of it runs, in evaluation mode and without gradients.
        call: runs it on inputs.

    Returns:
        What the call returned, and the outputs.

    Raises:
        SurgeryError: the plan was made for another model.
    """
    check_fit(plan, model)
    copy, tracer, entered = running(model), Tracer(keeping=False), dict[int, str]()
    exprs = [d for tensor in plan.tensors.values() for d in tensor.dims]
    named = {leaf.name: leaf.size for d in exprs for leaf in leaves(d) if leaf.name is not None}
    axes: dict[str, Expr] = {name: tracer.algebra.fresh(size, name) for name, size in named.items()}
    planned = {alias: tensor.dims for tensor in plan.tensors.values() for alias in tensor.names}
    for name, tensor in sorted(named_tensors(copy).items(), key=lambda item: item[0] not in planned):
        if entered.setdefault(id(tensor), name) == name:  # what the plan leaves as it is, is of axes without names
            whole = [tracer.algebra.dim(int(size)) for size in tensor.shape]
            dims = [live(d, axes, tracer.algebra) for d in planned[name]] if name in planned else whole
            tracer.introduce(tensor, dims)
    seen: dict[str, list[tuple[tuple[int, ...], list[Expr]]]] = {}

    def note(path: str, module: nn.Module, args: Any, output: Any) -> None:
        if (tensor := feature(output)) is not None:
            seen.setdefault(path, []).append((tuple(tensor.shape), list(tracer.dims(tensor))))

    for path, module in named_parts(copy):
        module.register_forward_hook(partial(note, path))
    with quiet_backends(), torch.no_grad(), tracer, SizeMode(tracer, tagging=False):
        out = call(copy)
    return out, {
        path: [Given(shape=shape, dims=tuple(map(finished, dims))) for shape, dims in given]
        for path, given in seen.items()
    }


@dataclass
class Recorder:
    """Keeps what modules give while their model runs with ``recording``; hooks are there from `on` to `off`.

    A model's run begins anew with its outermost call, so what gradient checkpointing repeats in the backward pass is
    not recorded again.

    Attributes:
        given: the first tensor of each call, by module.
    """

    grads: bool
    given: dict[str, list[Tensor]] = field(default_factory=dict[str, list[Tensor]])
    _inside: bool = False
    _handles: list[RemovableHandle] = field(default_factory=list[RemovableHandle])

    def on(self, model: nn.Module, paths: Iterable[str]) -> None:
        """Watch some modules of a model."""
        wanted = set(paths)
        self._handles.append(model.register_forward_pre_hook(self._begin))
        for path, module in named_parts(model):
            if path in wanted:
                self._handles.append(module.register_forward_hook(partial(self._note, path)))
        self._handles.append(model.register_forward_hook(self._end, always_call=True))

    def narrow(self, model: nn.Module, paths: Iterable[str]) -> None:
        """Watch no others any more, and keep what these have given."""
        given = {path: self.given[path] for path in paths}
        self.off()
        self.on(model, given)
        self.given = given

    def off(self) -> None:
        """Take the hooks away."""
        while self._handles:
            self._handles.pop().remove()
        self.clear()

    def clear(self) -> None:
        """Let go of what was kept."""
        self.given = {}

    def _begin(self, module: nn.Module, args: Any) -> None:
        self.clear()
        self._inside = not self.grads or torch.is_grad_enabled()

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        self._inside = False

    def _note(self, path: str, module: nn.Module, args: Any, output: Any) -> None:
        if self._inside and (tensor := feature(output)) is not None:
            self.given.setdefault(path, []).append(tensor)
