"""Training under a mask that is chosen anew at every step: the forward pass is sparse, what trains is dense."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from secateur.errors import TrainingError
from secateur.sparsity.criteria import WeightCriterion
from secateur.sparsity.joining import MaskedTraining
from secateur.sparsity.layers import Layer
from secateur.sparsity.matrices import to_matrix
from secateur.sparsity.patterns import NM, Pattern, is_number
from secateur.sparsity.stepping import Closure, listen
from secateur.tuning.callbacks import Run


class StraightThrough(MaskedTraining):
    """SR-STE: w <- w - lr (g(mask w) + decay (1 - mask) w), the mask being that of w at every step.

    Zhou et al. 2021, "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch", arXiv:2102.04010,
    equation 9. The network computes with the masked weights; their gradient goes straight through to the dense ones, of
    which removed ones are drawn to zero by ``decay``, so that masks come to rest. With ``decay=0`` it is the plain
    straight-through estimator. Differs: any pattern; with an optimizer that is not SGD the decay goes through its
    moments as gradients do.

    Between two steps the model holds the masked weights, so that at any moment it is exactly sparse: in validation,
    checkpoints and copies. The dense ones are put in its parameters for the optimizer's step alone; a closure that is
    given to the step runs on the masked ones. It has no parametrization, and nothing is left of it in the end. In
    `secateur.tune` it is a callback; in a loop of your own, whatever the optimizer, unless it searches along a line:

    >>> net = torch.nn.Linear(8, 4)
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> with StraightThrough(NM(2, 4)).on(net):
    ...     for _ in range(3):
    ...         net(torch.randn(2, 8)).square().sum().backward()
    ...         optimizer.step()
    ...         optimizer.zero_grad()
    >>> (net.weight.unflatten(1, (2, 4)) != 0).sum(-1).unique()
    tensor([2])

    Args:
        pattern: `NM`, or another one with ``sparsity``.
        sparsity: share of the weights that goes from each layer, for patterns that do not fix it.
        decay: lambda_W, at least 0; 2e-4 as published for SGD.
        importance: see `MaskedTraining`.
        only, ignore: which weights, as for `secateur.sparsify`.
        seed: of "random".

    Raises:
        TrainingError: a setting out of its range; at a step of L-BFGS, which searches along a line.
        SparsityError, PatternError: it is no pattern, fixes another sparsity, or needs one.
    """

    def __init__(
        self,
        pattern: Pattern = NM(2, 4),  # noqa: B008
        *,
        sparsity: float | None = None,
        decay: float = 2e-4,
        importance: str | WeightCriterion = "magnitude",
        only: Iterable[str] = (),
        ignore: Iterable[str] = (),
        seed: int = 0,
    ) -> None:
        super().__init__(pattern=pattern, importance=importance, only=only, ignore=ignore, seed=seed)
        pattern.removed((1, 1), sparsity)  # says what is wrong with it
        if not (is_number(decay) and 0 <= decay < float("inf")):
            raise TrainingError(f"decay={decay!r} must be at least 0")
        self.amount, self.decay = sparsity, decay
        self.dense: dict[str, Tensor] = {}
        self._gone: dict[str, Tensor] = {}
        self._moving: set[str] = set()  # in a step, which may be made within another one of the same weights
        self._saved: Mapping[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    @property
    def weights(self) -> Mapping[str, nn.Parameter]:
        """The parameters, by name."""
        return {name: layer.parameter for name, layer in self.layers.items()}

    @property
    def masks(self) -> Mapping[str, Tensor]:
        """By name, bool, True = stays."""
        return {name: ~gone for name, gone in self._gone.items()}

    def before(self, optimizer: torch.optim.Optimizer, names: list[str], closure: Closure | None) -> Closure | None:
        """Put the dense weights in, and add the decay of removed ones to their gradients, which a closure may make."""
        if isinstance(optimizer, torch.optim.LBFGS):
            raise TrainingError(
                "L-BFGS searches along a line, and a straight-through gradient is not the slope there: train with SGD "
                "or Adam"
            )
        for name in names:
            self.layers[name].parameter.copy_(self.dense[name])
        if closure is not None:
            self._moving.update(names)
            return self._on_masked(names, closure)
        self._draw([name for name in names if name not in self._moving])
        self._moving.update(names)
        return None

    def after(self, optimizer: torch.optim.Optimizer, names: list[str]) -> None:
        """Keep the dense weights, choose the mask, and leave the masked ones."""
        for name in [name for name in names if name in self._moving]:
            layer = self.layers[name]
            self.dense[name] = layer.parameter.detach().clone()
            self._mask(layer)
        self._moving.difference_update(names)

    def frees(self, model: nn.Module) -> Collection[str]:
        """Of the weights that it chooses masks for, any may come back."""
        return set(self._find(model))

    def settled(self, run: Run) -> bool:
        """Whether the model is sparse."""
        return self.attached

    def state_dict(self) -> dict[str, Any]:
        return {"dense": dict(self.dense)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._saved = state["dense"]

    @torch.no_grad()
    def _begin(self) -> None:
        self._gone, self._moving = {}, set()
        for name, layer in self.layers.items():
            own = layer.parameter.detach()
            self.dense[name] = self._saved[name].to(own, copy=True) if name in self._saved else own.clone()
            self._mask(layer)
        self._saved = {}
        self._handles = [listen(self)]

    @torch.no_grad()
    def _finish(self) -> None:
        for handle in self._handles:
            handle.remove()
        for name, weight in self.weights.items():  # a step that raised may have left the dense ones
            weight.masked_fill_(self._gone[name], 0)
        self.dense = {}

    def _on_masked(self, names: list[str], closure: Closure) -> Closure:
        """A step's closure that finds the masked weights; where it raises they stay, as between two steps."""

        def run() -> Any:
            with torch.no_grad():  # by the weights as they are now: an optimizer may have moved them
                aside = {name: self.layers[name].parameter[self._gone[name]] for name in names}
                for name in names:
                    self.layers[name].parameter.masked_fill_(self._gone[name], 0)
            result = closure()
            with torch.no_grad():
                for name, removed in aside.items():
                    self.layers[name].parameter[self._gone[name]] = removed
                self._draw(names)
            return result

        return run

    def _draw(self, names: list[str]) -> None:
        """Add the decay of removed weights, which are in the model now, to their gradients."""
        for name in names:
            weight = self.layers[name].parameter
            if weight.grad is not None:
                weight.grad.add_(torch.where(self._gone[name], weight, 0).to(weight.grad), alpha=self.decay)

    @torch.no_grad()
    def _mask(self, layer: Layer) -> None:
        dense = self.dense[layer.name]
        matrix = to_matrix(dense, transposed=layer.transposed)
        gone = ~layer.unfold(self.choose(self.scores(layer, matrix), sparsity=self.amount))
        self._gone[layer.name] = gone
        layer.parameter.copy_(dense.masked_fill(gone, 0))
