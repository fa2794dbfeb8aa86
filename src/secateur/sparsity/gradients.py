"""A pass of data forth and back through a model as it is: what the loss makes of each number.

Shape letters: G groups, R rows, K features of a group with the window, N outputs of a group.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateur.calibration.batches import Batch
from secateur.calibration.contraction import Contraction
from secateur.calibration.watching import Key, Watch
from secateur.errors import ScoreError
from secateur.objectives import Loss
from secateur.progress import Advance
from secateur.sparsity.layers import Layer
from secateur.sparsity.matrices import to_matrix
from secateur.sparsity.passing import by_place, check_sound, evaluated, is_whole
from secateur.sparsity.statistics import Statistics, absorb
from secateur.tracing.surroundings import seed_draws


def derive(
    model: nn.Module,
    layers: Mapping[str, Layer],
    batches: Sequence[Batch],
    needs: frozenset[str],
    *,
    loss: Loss | None,
    asking: str,
    step: Advance = lambda done=None, total=None: None,
) -> dict[str, Statistics]:
    """What the loss makes of each number, in the model as it is.

    Of a weight that is used several times, squares of the gradients by each use are added up.

    Args:
        needs: "gradients", "fisher".
        loss: ``(output, target) -> scalar``, a mean over the batch; None takes the model's own, else cross-entropy.
        asking: the criterion, for errors.
        step: called after each batch.

    Raises:
        ScoreError: there is no loss, or no gradient comes from it.
        DataError: NaN or infinite gradients.
    """
    found = {name: Statistics() for name in layers}
    with evaluated(model) as copy, torch.enable_grad():
        weights = dict(copy.named_parameters(remove_duplicate=False))
        for parameter in weights.values():
            parameter.requires_grad_(parameter.is_floating_point())
        for batch in batches:
            seed_draws()
            watch = _Squaring(copy, layers, batch.samples, "fisher" in needs)
            with watch:
                output = batch.run(copy)
            watch.flush()
            value = batch.loss(output, loss, asking) * batch.samples
            _count(found, layers, weights, watch, value, batch.samples)
            check_sound(found, f"batch {batch.number}")
            step()
    return found


def _count(
    found: Mapping[str, Statistics],
    layers: Mapping[str, Layer],
    weights: Mapping[str, Tensor],
    watch: "_Squaring",
    value: Tensor,
    samples: int,
) -> None:
    try:
        given: Any = torch.autograd.grad(value, [weights[name] for name in layers], allow_unused=True)
    except RuntimeError as error:
        raise ScoreError(f"no gradients come from the loss: {error}") from error
    slopes: Sequence[Tensor | None] = given
    for (name, layer), slope in zip(layers.items(), slopes, strict=True):
        own = to_matrix((layer.parameter * 0 if slope is None else slope).detach(), transposed=layer.transposed)
        squares = watch.squares.get(name, own * 0) if watch.fisher else None
        absorb(found[name], own, samples=samples, fisher=squares)


class _Squaring(Watch):
    """Adds up the squares of each sample's gradient by each weight."""

    def __init__(self, model: nn.Module, layers: Mapping[str, Layer], samples: int, fisher: bool) -> None:
        super().__init__(model)
        self.layers, self.samples, self.fisher = layers, samples, fisher
        self.squares: dict[str, Tensor] = {}
        self.pending: tuple[str, Contraction, Tensor] | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.flush()
        return super().__torch_dispatch__(func, types, args, kwargs)

    def used(self, key: Key, number: int, found: Contraction, compute: Callable[[], Tensor]) -> Tensor:
        out = compute()
        layer = self.layers.get(key[0])
        if self.fisher and layer is not None and is_whole(found, layer):
            self.pending = key[0], found, out
        return out

    def flush(self) -> None:
        """Listen to the gradient of the output that has just got its place in autograd's graph."""
        if self.pending is None:
            return
        (name, use, out), self.pending = self.pending, None
        if out.requires_grad:
            node: Any = out.grad_fn
            node.register_hook(lambda into, outof: self._square(name, use, outof[0]))

    def _square(self, name: str, use: Contraction, slope: Tensor | None) -> None:
        if slope is None:
            return
        with torch.no_grad():
            rows, slopes = by_place(use.rows(), use.window).float(), use.outputs(slope).float()  # (R, G, K), (R, G, N)
            each = self.samples if len(rows) % self.samples == 0 else 1
            for x, y in zip(rows.chunk(each), slopes.chunk(each), strict=True):
                own = torch.einsum("rgn,rgk->gnk", y, x).flatten(0, 1).square()
                self.squares[name] = self.squares[name].add_(own) if name in self.squares else own
