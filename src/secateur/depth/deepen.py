"""``sc.deepen``: more blocks or layers, that compute the identity at first and train from there."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from secateur.depth.carrying import carry_out, check_class
from secateur.depth.change import MOST, DepthChange, Insertion
from secateur.depth.containers import is_sequence, parent_of
from secateur.depth.counting import Counters
from secateur.depth.identity import imitable, silencers, trains
from secateur.depth.result import DepthResult, report, unsaid
from secateur.depth.streams import Call, Calls, watch_calls
from secateur.depth.trial import Inputs, compare_once, counted, prove
from secateur.errors import PlanError, ProofFailed
from secateur.inputs import as_call, fresh
from secateur.modules import Walk
from secateur.proof import check_outputs, perturbed
from secateur.provenance import remember
from secateur.tracing.shadow import check_kind, shadow
from secateur.tracing.surroundings import quiet_backends, seed_draws

EXACT = 1e-5  # of the outputs' scale, in any precision


def deepen(
    model: nn.Module,
    after: str | Sequence[str],
    args: Any,
    kwargs: Mapping[str, Any] | None = None,
    *,
    times: int = 1,
) -> DepthResult:
    """A deeper model that computes the same, proved, and learns from there.

    After each named module comes one of these, whichever is exact:

    - After a residual block in an ``nn.Sequential`` or ``nn.ModuleList``, or one that is called by its name with one
      input: a copy of it in which the last parameters of each branch (the gain of a norm, a projection) are zero, and
      nothing else, so that it trains. Which parameters these are is found by trying (Wu et al. 2024, "LLaMA Pro",
      arXiv:2401.02415, does so for Llama).
    - After a ReLU, or whatever gives nothing negative: an identity convolution or linear layer and a ReLU (Chen et al.
      2016, "Net2Net", arXiv:1511.05641).
    - Before a ReLU, so after the layer that it belongs to: a ReLU and an identity layer. A layer that ``forward``
      calls by its name becomes an ``nn.Sequential`` of itself and these, so that its parameters are called
      ``fc1.0.weight`` instead of ``fc1.weight``.

    Nothing exact exists before or after GELU, SiLU or tanh, which change what they get a second time, nor between a
    convolution and its batch norm, nor for blocks that normalise their sum, such as BERT's: these are refused. The
    model given is untouched.

    Args:
        model: any module.
        after: paths of modules, such as "layer3.2".
        args, kwargs: example inputs: a tensor, a tuple of positional inputs, or a mapping of keyword inputs.
        times: how many come after each.

    Raises:
        PlanError: there is no such module, or nothing exact can come after it; the message says why.
        SurgeryError: the class was replaced by its graph when it was pruned.
        ProofFailed: the deeper model does not compute the same.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> sc.deepen(net, "1", torch.randn(3, 4)).model
        Sequential(
          (0): Linear(in_features=4, out_features=8, bias=True)
          (1): ReLU()
          (2): Sequential(
            (0): Linear(in_features=8, out_features=8, bias=True)
            (1): ReLU()
          )
          (3): Linear(in_features=8, out_features=2, bias=True)
        )
    """
    inputs = as_call(args, kwargs)
    names = (after,) if isinstance(after, str) else tuple(after)
    check_class(model)
    _check_names(model, names, times)
    check_outputs(model, args, kwargs)
    counters = Counters(model)
    ways = _Ways(model, inputs, counters)
    found = [ways.after(name) for name in names]
    change = DepthChange(inserted=tuple(spec for spec in found for _ in range(times)), model=type(model).__name__)
    change = counted(model, change, counters, inputs)
    deeper = change.apply(model)
    proof = prove(model, deeper, change, inputs, others=_moved(inputs), tolerance=EXACT)
    remember(deeper, "inputs", inputs)  # the probe of sc.save
    config = unsaid(model, deeper, inputs)
    return DepthResult(
        model=deeper,
        change=change,
        proof=proof,
        scores={},
        refused={},
        unsaid=config,
        report=report(model, deeper, change, proof, inputs, command="sc.deepen(...)", unsaid=config),
    )


def _check_names(model: nn.Module, names: Sequence[str], times: int) -> None:
    walk = Walk(model)
    check_kind(walk)
    known = dict(walk.places)
    absent = [name for name in names if name not in known or not name]
    if absent or not names:
        some = ", ".join(n for n in list(known)[1:6])
        raise PlanError(
            f"there is no module {absent[0]!r}; this {type(model).__name__} has {some} and so on"
            if absent
            else "name the modules that something is to come after, such as after='layer3.2'"
        )
    if type(times) is not int or not 1 <= times * len(names) <= MOST:
        raise PlanError(f"times={times!r} must be a whole number from 1, and at most {MOST} blocks come in at once")


def _moved(inputs: Inputs) -> list[Inputs]:
    """Other inputs of the same form: what is nowhere negative on the example must not be so by chance."""
    torch.manual_seed(0)

    def noisy(value: Any) -> Any:
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            return value
        return torch.randn_like(value) * (value.std() if value.numel() > 1 else 1) * 3

    def negative(value: Any) -> Any:
        return -value if isinstance(value, Tensor) and value.is_floating_point() else value

    return [tree_map(change, fresh(inputs)) for change in (noisy, negative)]


@dataclass
class _Ways:
    """What may come after a module."""

    model: nn.Module
    inputs: Inputs
    counters: Counters

    @cached_property
    def other(self) -> nn.Module:
        """The model with other weights, so that nothing fits by chance."""
        return perturbed(self.model)

    def after(self, name: str) -> Insertion:
        """The first way that is exact.

        Raises:
            PlanError: there is none.
        """
        calls, like = self._watched(name)
        if name not in calls.count:
            raise PlanError(f"{name} is not called as a module on the example inputs, so nothing can come after it")
        reasons: list[str] = []
        for spec in (*self._block(name, calls.first.get(name), reasons), *self._layers(name, like, reasons)):
            try:
                made = counted(self.model, DepthChange(inserted=(spec,)), self.counters, self.inputs)
                compare_once(self.other, made, self.inputs)
                self._check_use(spec)
            except ProofFailed as error:
                reasons.append(f"{_words(spec)}: {error}")
                continue
            return spec
        raise PlanError(f"nothing that computes the identity can come after {name}: {'; '.join(reasons)}")

    def _watched(self, name: str) -> tuple[Calls, str | None]:
        """How the module is called; and the last layer before its end whose width its output has."""
        layers = {path: m for path, m in Walk(self.model).places if imitable(m)}
        with quiet_backends():
            double = shadow(self.model)
            ends: list[tuple[str, tuple[int, ...]]] = []
            handles = [
                double.get_submodule(path).register_forward_hook(_noting(path, ends))
                for path in dict.fromkeys([*layers, name])
            ]
            seed_draws()
            with watch_calls(double, [name]) as calls:
                nn.Module.__call__(double, *fresh(self.inputs[0]), **fresh(self.inputs[1]))
            for handle in handles:
                handle.remove()
        at = next((k for k, (path, _) in enumerate(ends) if path == name), None)
        if at is None:
            return calls, None
        shape = ends[at][1]
        fitting = [p for p, _ in ends[: at + 1] if p in layers and _width_fits(layers[p], shape)]
        return calls, fitting[-1] if fitting else None

    def _block(self, name: str, call: Call | None, reasons: list[str]) -> Iterator[Insertion]:
        """A silenced copy."""
        block = self.model.get_submodule(name)
        if not any(p.dim() > 1 for p in block.parameters()) or imitable(block):
            return
        if call is None:
            reasons.append("a copy of it: it does not give the shape that it gets")
            return
        with quiet_backends():
            silenced = silencers(block, call)
            learns = bool(silenced) and trains(block, silenced, call)
        if not silenced:
            reasons.append(
                "a copy of it: no parameters at zero make it the identity (it adds to nothing, or changes the sum)"
            )
        elif not learns:
            reasons.append(f"a copy of it: with {', '.join(silenced)} at zero it would get no gradients")
        else:
            yield Insertion(after=name, kind="block", like=name, silenced=silenced, wrap=self._called(name))

    def _layers(self, name: str, like: str | None, reasons: list[str]) -> Iterator[Insertion]:
        """An identity layer, with a ReLU on one side, or on the side where forward puts one."""
        if like is None:
            reasons.append("a layer: no linear layer or convolution before it has the width of its output")
            return
        wrap = self._called(name)
        spec = Insertion(after=name, kind="layer", like=like, wrap=wrap)
        loop = isinstance(self.model.get_submodule(parent_of(name)), nn.ModuleList)
        sides = ("", "after", "before") if loop else ("after", "before")
        yield from (replace(spec, relu=side) for side in sides)

    def _called(self, name: str) -> bool:
        """Whether forward calls a module by its name."""
        return not is_sequence(self.model.get_submodule(parent_of(name)))

    def _check_use(self, spec: Insertion) -> None:
        """An identity layer without a ReLU before it must be given what comes out of one, or it would be one with the
        layer before.

        Raises:
            ProofFailed: it does not.
        """
        if spec.kind != "layer" or spec.relu == "before":
            return
        with quiet_backends():
            double = shadow(self.model)
            (new,) = carry_out(self.counters.counted(DepthChange(inserted=(spec,))), double)
            seed_draws()
            with watch_calls(double, [new]) as calls:
                nn.Module.__call__(double, *fresh(self.inputs[0]), **fresh(self.inputs[1]))
        if new in calls.first and bool((calls.first[new].stream < 0).any()):
            raise ProofFailed("no ReLU comes between it and the layer before, so that the two would be one")


def _noting(path: str, ends: list[tuple[str, tuple[int, ...]]]) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            ends.append((path, tuple(output.shape)))

    return hook


def _width_fits(layer: nn.Module, shape: tuple[int, ...]) -> bool:
    if isinstance(layer, nn.Linear):
        return bool(shape) and shape[-1] == layer.out_features
    convolution: Any = layer
    return len(shape) == convolution.weight.dim() and shape[1] == convolution.out_channels


def _words(spec: Insertion) -> str:
    if spec.kind == "block":
        return "a copy of it"
    return {"": "an identity layer", "after": "an identity layer and a ReLU", "before": "a ReLU and an identity layer"}[
        spec.relu
    ]
