"""What may come after a module: a silenced copy of it, or an identity layer with a ReLU, whichever is exact."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from secateur.depth.carrying import carry_out
from secateur.depth.change import DepthChange, Insertion
from secateur.depth.containers import is_sequence, parent_of
from secateur.depth.counting import Counters
from secateur.depth.identity import imitable, silencers, trains
from secateur.depth.streams import Call, Calls, watch_calls
from secateur.depth.trial import Inputs, compare_once, counted
from secateur.errors import PlanError, ProofFailed
from secateur.inputs import fresh
from secateur.modules import Walk
from secateur.proof import perturbed
from secateur.tracing.shadow import shadow
from secateur.tracing.surroundings import draws_as_found, quiet_backends, seed_draws


@dataclass
class Ways:
    """What may come after a module."""

    model: nn.Module
    inputs: Inputs
    counters: Counters

    @cached_property
    def other(self) -> nn.Module:
        """The model with other weights, so that nothing fits by chance."""
        with draws_as_found():
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
