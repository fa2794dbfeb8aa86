"""One pass over the data, and what it says of every unit: activations where weights use them, gradients, Gram matrices.

Shape letters: B samples, R rows, F features (all groups), G groups, K features of a group with the window, N outputs
of a group, U units.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateur.calibration.contraction import Contraction
from secateur.calibration.sites import Site, find_sites
from secateur.calibration.watching import Key, Watch, running
from secateur.graph import Graph, named
from secateur.importance.members import positions
from secateur.inputs import split_batch
from secateur.modules import Walk, named_parameters
from secateur.objectives import Loss, logits_of, loss_of
from secateur.tracing.leavings import nothing_left
from secateur.tracing.surroundings import quiet_backends

ROWS = 2**15  # rows of a product that go into a Gram matrix, over all the data
NEEDS = ("inputs", "softmax", "gates", "gradients", "gram", "sensitivity")


@dataclass
class Inputs:
    """What a use of a weight was given: sums over rows, by feature, (F,)."""

    rows: int = 0
    total: Tensor | None = None
    magnitude: Tensor | None = None
    square: Tensor | None = None
    active: Tensor | None = None

    def add(self, x: Tensor, dim: int) -> None:
        """Count an activation in, whose features lie along a dim."""
        others = [k for k in range(x.dim()) if k != dim]
        self.rows += x.numel() // x.shape[dim]
        wide = x.float()
        for name, values in (
            ("total", wide), ("magnitude", wide.abs()), ("square", wide.square()), ("active", (x > 0).float()),
        ):  # fmt: skip
            new = values.sum(others).double() if others else values.double()
            old = getattr(self, name)
            setattr(self, name, new if old is None else old + new)


@dataclass
class Statistics:
    """What one pass over the data found.

    Attributes:
        sites: every use of a weight, in order.
        samples: how many samples there were.
        inputs: by use: what it was given.
        softmax: by axis: mean over rows of the softmax across its units, (U,).
        gate: by axis: sum over samples of the derivative of the loss by a factor on the unit, (U,).
        gate_square: the sum of their squares, (U,).
        gradients: by parameter: the mean gradient of the loss.
        grams: by use: mean products of features, (G, K, K) float64.
        means: the same of the features themselves, (G, K).
        sensitivity: by use: mean square of the derivative of the loss by each output, (G, N), times rows a sample.
    """

    sites: dict[Key, Site]
    samples: int = 0
    inputs: dict[Key, Inputs] = field(default_factory=dict[Key, Inputs])
    softmax: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    gate: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    gate_square: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    gradients: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    grams: dict[Key, Tensor] = field(default_factory=dict[Key, Tensor])
    means: dict[Key, Tensor] = field(default_factory=dict[Key, Tensor])
    sensitivity: dict[Key, Tensor] = field(default_factory=dict[Key, Tensor])


def collect(
    model: nn.Module,
    graph: Graph,
    args: Any,
    kwargs: Mapping[str, Any] | None,
    data: Iterable[Any],
    needs: Iterable[str],
    *,
    loss: Loss | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Statistics:
    """Go through the data once.

    Args:
        needs: which of `NEEDS` to collect.
        loss: of ``(output, target)``; None takes the model's own, else cross-entropy. For "sensitivity" the targets are
            drawn from the model's own answers, so that no labels are needed.
    """
    batches = list(data)
    sites = find_sites(model, graph, batches[0], forward)
    found = Statistics(sites=sites)
    copy = running(model)
    work = _Pass(copy, graph, found, frozenset(needs), max(1, ROWS // max(1, len(batches))), len(batches))
    generator = torch.Generator().manual_seed(seed)
    with ExitStack() as stack:
        stack.enter_context(quiet_backends())
        stack.enter_context(nothing_left(Walk(copy)))
        for number, batch in enumerate(batches):
            work.batch(batch, loss, forward or _call, generator)
            if progress is not None:
                progress(number + 1, len(batches))
    work.finish()
    return found


def _call(model: nn.Module, batch: Any) -> Any:
    args, kwargs, _ = split_batch(batch)
    return model(*args, **kwargs)


class _Pass:
    def __init__(
        self, model: nn.Module, graph: Graph, found: Statistics, needs: frozenset[str], rows: int, batches: int
    ) -> None:
        self.model, self.graph, self.found, self.needs, self.rows = model, graph, found, needs, rows
        self.parameters = named_parameters(model)
        self.places: dict[tuple[Key, str], Tensor] = {
            (key, axis): torch.cat(positions(site.features, axis), 1)
            for key, site in found.sites.items()
            for axis in dict.fromkeys(named([site.features]))
            if axis in graph.axes and not (axis in named([site.outputs]) and site.groups > 1)
        }
        self.axes: dict[Key, list[str]] = {}
        for key, axis in self.places:
            self.axes.setdefault(key, []).append(axis)
        self.gates: dict[str, Tensor] = {}
        self.counts: dict[Any, int] = {}

    @property
    def backward(self) -> bool:
        return bool(self.needs & {"gates", "gradients", "sensitivity"})

    def batch(self, batch: Any, loss: Loss | None, forward: Callable[..., Any], generator: torch.Generator) -> None:
        watch = _Collecting(self)
        if not self.backward:
            with torch.no_grad(), watch:
                forward(self.model, batch)
            self.found.samples += watch.samples
            return
        wanted = [p for p in self.parameters.values() if p.is_floating_point()]
        before = [p.requires_grad for p in wanted]
        try:
            for p in wanted:
                p.requires_grad_(True)
            with torch.enable_grad():
                with watch:
                    output = forward(self.model, batch)
                watch.flush()
                self._derive(output, batch, loss, generator, wanted)
        finally:
            for p, flag in zip(wanted, before, strict=True):
                p.requires_grad_(flag)
        self.found.samples += watch.samples

    def _derive(
        self, output: Any, batch: Any, loss: Loss | None, generator: torch.Generator, wanted: Sequence[nn.Parameter]
    ) -> None:
        if "sensitivity" in self.needs:
            self.mode = "sensitivity"
            drawn = own_loss(output, generator)
            torch.autograd.grad(
                drawn, wanted, retain_graph=bool(self.needs & {"gates", "gradients"}), allow_unused=True
            )
        if self.needs & {"gates", "gradients"}:
            self.mode = "gates"
            _, kwargs, target = split_batch(batch)
            target = kwargs.get("labels") if target is None else target
            mean = loss_of(output, target, loss)
            scores = logits_of(output)
            size = scores.shape[0] if scores is not None and scores.dim() else 1
            self.gates = {}
            grads = torch.autograd.grad(mean * size, wanted, allow_unused=True)
            for axis, values in self.gates.items():  # (B, U)
                _add(self.found.gate, axis, values.sum(0))
                _add(self.found.gate_square, axis, values.square().sum(0))
            if "gradients" in self.needs:
                names = {id(p): n for n, p in self.parameters.items()}
                for p, g in zip(wanted, grads, strict=True):
                    if g is not None:
                        _add(self.found.gradients, names[id(p)], g.detach())

    def finish(self) -> None:
        found = self.found
        for name in found.gradients:
            found.gradients[name] /= max(found.samples, 1)
        for key in found.grams:
            found.grams[key] /= max(self.counts["gram", key], 1)
            found.means[key] /= max(self.counts["gram", key], 1)
        for key in found.sensitivity:
            found.sensitivity[key] /= max(found.samples, 1)
        for axis in found.softmax:
            found.softmax[axis] /= max(self.counts["softmax", axis], 1)


class _Collecting(Watch):
    """Collects statistics at every use of a weight in one batch."""

    def __init__(self, work: _Pass) -> None:
        super().__init__(work.model)
        self.work = work
        self.pending: tuple[Key, Contraction, Tensor] | None = None
        self.samples = 0

    def used(self, key: Key, number: int, found: Contraction, compute: Callable[[], Tensor]) -> Tensor:
        self.flush()
        work = self.work
        self.samples = self.samples or int(found.x.shape[0])
        if key in work.axes and key in work.found.sites:
            with torch.no_grad():
                self._forward(key, found)
        out = compute()
        if work.backward and key in work.found.sites:
            self.pending = key, found, out
        return out

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.flush()
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _forward(self, key: Key, use: Contraction) -> None:
        work, needs = self.work, self.work.needs
        if "inputs" in needs:
            work.found.inputs.setdefault(key, Inputs()).add(use.x, use.x_dim)
        if "softmax" in needs:
            for axis in work.axes[key]:
                units = use.x.movedim(use.x_dim, -1)[..., work.places[key, axis]].mean(-1)
                shares = units.float().softmax(-1).flatten(0, -2)
                _add(work.found.softmax, axis, shares.double().sum(0))
                work.counts["softmax", axis] = work.counts.get(("softmax", axis), 0) + len(shares)
        if "gram" in needs:
            count = use.count()
            pick = None
            if count > work.rows:
                generator = torch.Generator().manual_seed(work.found.samples)
                pick = torch.randperm(count, generator=generator)[: work.rows].sort().values.to(use.x.device)
            rows = use.rows(pick).transpose(0, 1)  # (G, R, K)
            for start in range(0, rows.shape[1], 8192):
                part = rows[:, start : start + 8192]
                _add(work.found.grams, key, (part.transpose(1, 2) @ part).double())
                _add(work.found.means, key, part.sum(1).double())
            work.counts["gram", key] = work.counts.get(("gram", key), 0) + rows.shape[1]

    def flush(self) -> None:
        """Listen to the gradients of the use whose output has just got its place in autograd's graph."""
        if self.pending is None:
            return
        (key, use, out), self.pending = self.pending, None
        node = out.grad_fn
        if node is not None:
            node.register_hook(lambda into, outof, key=key, use=use: self._backward(key, use, into, outof))

    def _backward(self, key: Key, use: Contraction, into: Sequence[Any], outof: Sequence[Any]) -> None:
        work, delta = self.work, outof[0]
        if delta is None:
            return
        with torch.no_grad():
            if work.mode == "sensitivity":
                squares = delta.float().square().movedim(use.out_dim, -1).flatten(0, -2).double().sum(0)
                _add(work.found.sensitivity, key, squares.reshape(use.groups, -1))
            elif "gates" in work.needs and key in work.axes:
                grad = next((g for g in into if g is not None and g.shape == use.x.shape), None)
                if grad is not None:
                    product = (use.x * grad).float().movedim(use.x_dim, -1)
                    samples = product.reshape(self.samples, -1, product.shape[-1]).sum(1)  # (B, F)
                    for axis in work.axes[key]:
                        _add(work.gates, axis, samples[:, work.places[key, axis]].sum(-1))


def own_loss(output: Any, generator: torch.Generator) -> Tensor:
    """The loss, summed, against answers drawn from the model's own: its gradients' squares are Fisher's information.

    Class scores (N, C, ...) draw a class for each place. Anything else counts as the mean of a normal distribution.
    """
    scores = logits_of(output)
    if scores is None:
        raise TypeError(f"no scores among the model's outputs ({type(output).__name__})")
    last = scores.float().movedim(1, -1) if scores.dim() != 3 else scores.float()
    flat = last.reshape(-1, last.shape[-1])
    drawn = torch.multinomial(flat.detach().softmax(-1).cpu(), 1, generator=generator).to(flat.device)
    return nn.functional.cross_entropy(flat, drawn[:, 0], reduction="sum")


def _add(table: dict[Any, Tensor], key: Any, value: Tensor) -> None:
    table[key] = table[key] + value if key in table else value
