"""One pass over the data, and what it says of every unit: activations where weights use them, gradients, Gram matrices.

Shape letters: B samples, R rows, F features (all groups), G groups, K features of a group with the window, N outputs of
a group, U units.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from secateur.calibration.batches import Batch, Batches, Forward, drawn_loss
from secateur.calibration.contraction import Contraction, Convolution
from secateur.calibration.found import Inputs, Moments, Statistics, consumers, wide
from secateur.calibration.sites import Follows, find_followers, find_sites
from secateur.calibration.watching import Key, Watch
from secateur.errors import DataError, ScoreError
from secateur.graph import Graph
from secateur.modules import Walk, named_parameters, named_tensors
from secateur.objectives import Loss
from secateur.progress import progress_bar
from secateur.tracing.leavings import nothing_left
from secateur.tracing.rules.registry import Signature
from secateur.tracing.shadow import copied, evaluating
from secateur.tracing.surroundings import quiet_backends, seed_draws

ROWS = 2**16  # rows of a product that go into a Gram matrix, over all the data
UNSIZED = 2**13  # rows of one batch that do, where nobody knows how many batches there will be
CHUNK = 2**13  # rows whose products are added up in the precision of the data, before the sum goes on in float64
WIDEST = 4608  # features with the window (512 channels of 3 x 3): a Gram matrix of more would take over 170 MB
NEEDS = ("inputs", "softmax", "gates", "gradients", "gram", "sensitivity")
LABELLED = frozenset({"gates", "gradients"})
"""Needs that take a loss."""


def collect(
    model: nn.Module,
    graph: Graph,
    data: Iterable[Any],
    needs: Iterable[str],
    *,
    loss: Loss | None = None,
    forward: Forward | None = None,
    seed: int = 0,
    asking: str = "these criteria",
    name: str = "calibration data",
) -> Statistics:
    """Go through the data once, in evaluation mode; the model stays as it is.

    What weights are given ("inputs") and the weights as matrices are always found, whatever else is asked for.

    Args:
        model: the model that was traced, or one of the same architecture.
        data: batches, one in memory at a time; see `split_batch` for their form.
        needs: which of `NEEDS` to collect.
        loss: ``(output, target) -> scalar``, a mean over the batch; None takes the model's own, else cross-entropy.
            Only "gates" and "gradients" take it: for "sensitivity" the targets are drawn from the model's own answers.
        forward: ``(model, batch) -> output``, for batches of another form. The last item of a batch is then its target.
        seed: of what is drawn.
        asking: who needs a loss, for errors.
        name: what the data are called in errors.

    Raises:
        DataError: there is no batch, or one holds NaN or makes the model fail; naming the batch.
        ScoreError: there is no loss, or it is NaN.
    """
    with ExitStack() as stack:
        stack.enter_context(quiet_backends(model))
        copy = _borrowed(model)
        stack.enter_context(nothing_left(Walk(copy)))
        seed_draws()
        batches = Batches(copy, data, forward, name=name)
        work = _Pass(copy, graph, frozenset(needs), loss, asking, seed, len(batches))
        step = stack.enter_context(progress_bar("Calibrating", len(batches) or None))
        for batch in batches:
            if batch.samples:
                work.batch(batch)
            step()
    if not work.found.samples:
        raise DataError("data holds no sample: pass at least one batch (a generator that was used up is empty)")
    work.finish()
    return work.found


def _borrowed(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode: its parameters are the model's memory under flags of their own, its buffers copies.

    A layer that writes to its weights while it runs (an embedding with ``max_norm``) makes it own its parameters too.
    """
    writes = any(getattr(module, "max_norm", None) is not None for module in model.modules())

    def take(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter) or writes or tensor.is_inference():
            values = tensor.detach().clone()
        else:
            values = tensor.detach()
        return nn.Parameter(values, requires_grad=_smooth(tensor)) if isinstance(tensor, nn.Parameter) else values

    return evaluating(copied(Walk(model), take))


def _smooth(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


class _Pass:
    """Where the pass stands."""

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        needs: frozenset[str],
        loss: Loss | None,
        asking: str,
        seed: int,
        count: int,
    ) -> None:
        self.model, self.graph, self.needs, self.loss, self.asking = model, graph, needs, loss, asking
        self.found = Statistics(sites={}, needs=needs)
        self.rows = max(1, ROWS // count) if count else UNSIZED
        self.generator = torch.Generator().manual_seed(seed)
        names = named_parameters(model)
        self.tensors = named_tensors(model)
        self.names = {id(names[name]): name for name in reversed(names)}  # tied ones by their first
        self.weights = [p for p in dict.fromkeys(names.values()) if p.requires_grad]
        self.axes: dict[Key, dict[str, Tensor]] = {}  # by use, the axes that it consumes and where their units sit
        self.counts: dict[Any, int] = {}
        self.follows: dict[Key, Follows] = {}
        self.sums: dict[int, tuple[Key, int]] = {}  # additions, by number, with a use and the dim of its outputs
        self.streams: dict[Key, Moments] = {}
        self.mode = ""
        self.gates: dict[str, Tensor] = {}

    def _site(self, batch: Batch) -> None:
        """Find the uses of weights on the first batch."""
        self.found.sites = find_sites(self.model, self.graph, batch.run)
        if "gram" in self.needs:
            self.follows = find_followers(self.model, batch.run).of
        for axis in self.graph.axes:
            for key, at in consumers(self.found.sites, axis):
                self.axes.setdefault(key, {})[axis] = at

    def batch(self, batch: Batch) -> None:
        """Run one batch and add what it says."""
        if not self.found.batches:
            self._site(batch)
        watch = _Collecting(self, batch)
        backward = bool(self.needs & {"gates", "gradients", "sensitivity"})
        with torch.set_grad_enabled(backward):
            with watch:
                output = batch.run(self.model)
            watch.flush()
            self._check(watch, batch)
            if "sensitivity" in self.needs:
                self.mode = "sensitivity"
                drawn = drawn_loss(output, batch.target, self.generator)
                self._gradients(drawn, keep=bool(self.needs & LABELLED))
            if self.needs & LABELLED:
                self._derive(output, batch)
        self.found.samples += batch.samples
        self.found.batches += 1

    def _check(self, watch: "_Collecting", batch: Batch) -> None:
        bad = [key for key, inputs in watch.seen.items() if not bool(inputs.square.isfinite().all())]
        if bad:
            raise DataError(
                f"batch {batch.number} of the {batch.batches.name} gives NaN or infinite activations, first at the "
                f"input of {bad[0][0]}: drop the batch, or find out why the model fails on it"
            )
        for key, inputs in watch.seen.items():
            known = self.found.inputs.get(key)
            self.found.inputs[key] = inputs if known is None else known + inputs

    def _gradients(self, value: Tensor, *, keep: bool) -> Sequence[Tensor | None]:
        try:
            return torch.autograd.grad(value, self.weights, retain_graph=keep, allow_unused=True)
        except RuntimeError as error:
            raise ScoreError(
                f"no gradients for {self.asking}: {type(self.model).__name__} gives none ({error})"
            ) from error

    def _derive(self, output: Any, batch: Batch) -> None:
        """Gates and gradients of the loss."""
        self.mode, self.gates = "gates", {}
        grads = self._gradients(batch.loss(output, self.loss, self.asking) * batch.samples, keep=False)
        for axis, values in self.gates.items():  # (B, U)
            _add(self.found.gate, axis, wide(values.sum(0)))
            _add(self.found.gate_magnitude, axis, wide(values.abs().sum(0)))
            _add(self.found.gate_square, axis, wide(values.square().sum(0)))
        if "gradients" in self.needs:
            for weight, grad in zip(self.weights, grads, strict=True):
                if grad is not None:
                    _add(
                        self.found.gradients,
                        self.names[id(weight)],
                        grad.detach().to(torch.promote_types(grad.dtype, torch.float32)),
                    )

    def finish(self) -> None:
        """Make sums means."""
        found = self.found
        for table in (found.gate, found.gate_magnitude, found.gate_square, found.gradients, found.sensitivity):
            for key in table:
                table[key] = table[key] / found.samples  # type: ignore[index]
        for axis in found.softmax:
            found.softmax[axis] /= self.counts["softmax", axis]
        for key in found.grams:
            found.grams[key] /= self.counts["gram", key]
        for key in found.means:
            found.means[key] /= self.counts["gram", key]
        found.streams = self.streams


class _Collecting(Watch):
    """Collects statistics at every use of a weight in one batch."""

    def __init__(self, work: _Pass, batch: Batch) -> None:
        super().__init__(work.model)
        self.work, self.batch = work, batch
        self.seen: dict[Key, Inputs] = {}
        self.pending: tuple[Key, Contraction, Tensor] | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.flush()
        return super().__torch_dispatch__(func, types, args, kwargs)

    def used(self, key: Key, number: int, found: Contraction, compute: Callable[[], Tensor]) -> Tensor:
        site = self.work.found.sites.get(key)
        known = site is not None and key in self.work.axes and found.x.shape[found.x_dim] == site.features.size
        if known and found.x.numel():
            with torch.no_grad():
                self._forward(key, found)
        out = compute()
        if known and torch.is_grad_enabled():
            self.pending = key, found, out
        return out

    def _forward(self, key: Key, use: Contraction) -> None:
        work = self.work
        work.found.matrices.setdefault(key, use.matrix().detach())
        work.found.windows[key] = use.window
        self.seen[key] = Inputs.of(use.x, use.x_dim)
        if "softmax" in work.needs:
            for axis, at in work.axes[key].items():
                units = use.x.movedim(use.x_dim, -1).float()[..., at.to(use.x.device)].mean(-1)
                shares = units.softmax(-1).flatten(0, -2)
                _add(work.found.softmax, axis, wide(shares.sum(0)))
                work.counts["softmax", axis] = work.counts.get(("softmax", axis), 0) + len(shares)
        if "gram" in work.needs and work.found.matrices[key].shape[1] <= WIDEST:
            self._gram(key, use)

    def ran(self, number: int, said: Signature, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
        key, dim = self.work.sums.get(number, (None, 0))
        if key is not None and said.plain == "aten::add":
            with torch.no_grad():
                self.work.streams.setdefault(key, Moments()).add(out, dim)

    def _follow(self, key: Key, use: Contraction) -> None:
        """Note what becomes of the output."""
        work, follow = self.work, self.work.follows.get(key, Follows())
        shape = work.found.matrices[key].shape
        work.found.slopes[key] = follow.slope(work.tensors, use.x.new_ones(shape[0] * shape[2])).reshape(shape[0], -1)
        if follow.sum is not None:
            work.sums[follow.sum] = key, 1 if isinstance(use, Convolution) else -1

    def _gram(self, key: Key, use: Contraction) -> None:
        if key not in self.work.found.slopes:
            self._follow(key, use)
        rows = use.rows(use.pick(self.work.rows, self.batch.number)).transpose(0, 1)  # (G, R, K)
        follow = self.work.follows.get(key, Follows())
        constant = use.bias is not None or follow.bias is not None or follow.norm is not None  # can be made up for
        for start in range(0, rows.shape[1], CHUNK):
            part = rows[:, start : start + CHUNK].float()
            self._grow(key, part.transpose(1, 2) @ part)
            if constant:
                _add(self.work.found.means, key, wide(part.sum(1)))
        self.work.counts["gram", key] = self.work.counts.get(("gram", key), 0) + rows.shape[1]

    def _grow(self, key: Key, products: Tensor) -> None:
        """Add to a Gram matrix in place: it may be large."""
        grams = self.work.found.grams
        if key in grams:
            grams[key].add_(products.to(grams[key].device))
        else:
            grams[key] = wide(products)

    def flush(self) -> None:
        """Listen to the gradients of the use whose output has just got its place in autograd's graph."""
        if self.pending is None:
            return
        (key, use, out), self.pending = self.pending, None
        node = out.grad_fn
        if node is not None:
            place = 1 if type(node).__name__.startswith("Addmm") else 0  # of x among the operands
            node.register_hook(lambda into, outof: self._backward(key, use, into[place], outof[0]))

    def _backward(self, key: Key, use: Contraction, into: Tensor | None, outof: Tensor | None) -> None:
        work = self.work
        with torch.no_grad():
            if work.mode == "sensitivity" and outof is not None:
                squares = wide(outof.float().square().movedim(use.out_dim, -1).flatten(0, -2).sum(0))
                _add(work.found.sensitivity, key, squares.reshape(use.groups, -1))
            elif work.mode == "gates" and "gates" in work.needs and into is not None:
                product = (use.x.float() * into.float()).movedim(use.x_dim, -1)
                samples = self._by_sample(product)
                for axis, at in work.axes[key].items():
                    _add(work.gates, axis, samples[:, at.to(samples.device)].sum(-1))

    def _by_sample(self, rows: Tensor) -> Tensor:
        """Sums over the rows of each sample, (B, F). Rows are in the order of the samples, as everywhere but in
        recurrent code with time first; where their number is no multiple of B, nobody knows whose they are.
        """
        features, count = rows.shape[-1], self.batch.samples
        flat = rows.reshape(-1, features)
        if len(flat) % count == 0:
            return flat.reshape(count, -1, features).sum(1)
        return torch.cat([flat.sum(0, keepdim=True), flat.new_zeros(count - 1, features)])


def _add(table: dict[Any, Tensor], key: Any, value: Tensor) -> None:
    table[key] = table[key] + value if key in table else value
