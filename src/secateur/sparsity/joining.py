"""What makes a model sparse while it trains: taking part in ``sc.tune`` or in a loop of one's own."""

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from secateur.errors import PatternError, TrainingError
from secateur.sparsity.criteria import WeightCriterion, WeightView, criterion, needs, scored, within_rows
from secateur.sparsity.layers import Layer, check_weights, find_layers, listed
from secateur.sparsity.patterns import Pattern, check_pattern
from secateur.tuning.callbacks import Callback, Run
from secateur.zeros import note_sparse


class MaskedTraining(Callback):
    """Puts masks on weights while a model trains; see `GradualSparsity` and `StraightThrough`.

    Args:
        pattern: which weights may go together.
        importance: a criterion that needs no data: a name of `secateur.sparsity.names`, or any callable.
        only, ignore: names of parameters or modules, or globs, as for `secateur.sparsify`.
        seed: of "random".

    Attributes:
        layers: the weights, by name; empty before `attach`.
    """

    def __init__(
        self,
        *,
        pattern: Pattern,
        importance: str | WeightCriterion,
        only: Iterable[str],
        ignore: Iterable[str],
        seed: int,
    ) -> None:
        check_pattern(pattern)
        self.pattern, self.only, self.ignore = pattern, listed(only), listed(ignore)
        self.rate = criterion("magnitude" if importance == "auto" else importance, seed)
        if lacking := needs(self.rate):
            raise TrainingError(
                f"{self.rate!r} needs {', '.join(sorted(lacking))}, and masks are chosen again and again while the "
                "model trains: give a criterion of the weights alone, such as 'magnitude'"
            )
        self.layers: dict[str, Layer] = {}
        self._model: nn.Module | None = None

    def attach(self, model: nn.Module) -> Self:
        """Begin, on a model that is about to train; for loops of one's own. Make the optimizer before or after.

        Raises:
            TrainingError: it was begun already.
            SparsityError, PatternError, ModelError: there is no weight to prune, none fits the pattern, or one is NaN.
        """
        if self._model is not None:
            raise TrainingError(f"this {type(self).__name__} takes part in a training already: make another one")
        self.layers = self._find(model)
        check_weights(self.layers)
        self._model = model
        self._begin()
        return self

    def _find(self, model: nn.Module) -> dict[str, Layer]:
        """The weights that are asked for and fit the pattern."""
        found = find_layers(model, self.only, self.ignore).chosen
        odd = {name: why for name, layer in found.items() if (why := self.pattern.misfit(layer.pattern_shape))}
        if len(odd) == len(found):
            said = "; ".join(f"{name}: {why}" for name, why in list(odd.items())[:5])
            raise PatternError(f"{self.pattern!r} fits no weight: {said}")
        return {name: layer for name, layer in found.items() if name not in odd}

    def detach(self) -> None:
        """End: zeros are in the weights, nothing else is left, and the model remembers that it is sparse."""
        model, self._model = self._model, None
        if model is not None:
            self._finish()
            note_sparse(model, self.layers, self.pattern, way=type(self).__name__, zeros=self.zeros)

    @contextmanager
    def on(self, model: nn.Module) -> Generator[Self]:
        """`attach`, and `detach` in the end."""
        self.attach(model)
        try:
            yield self
        finally:
            self.detach()

    @property
    def attached(self) -> bool:
        """Whether it has begun and not ended."""
        return self._model is not None

    @property
    def zeros(self) -> int:
        """How many weights are removed."""
        return sum(int((~mask).sum()) for mask in self.masks.values())

    @property
    def sparsity(self) -> float:
        """Share of the weights that is removed, in [0, 1]."""
        return self.zeros / max(sum(layer.parameter.numel() for layer in self.layers.values()), 1)

    @property
    def masks(self) -> Mapping[str, Tensor]:
        """By name, bool, True = stays."""
        raise NotImplementedError

    def _begin(self) -> None:
        raise NotImplementedError

    def _finish(self) -> None:
        raise NotImplementedError

    def scores(self, layer: Layer, matrix: Tensor) -> Tensor:
        """Scores of a weight's numbers, as a matrix, by what they are now."""
        wide = matrix if matrix.dtype == torch.float64 else matrix.float()
        return scored(self.rate, WeightView(name=layer.name, weight=wide, groups=layer.groups))

    def choose(self, scores: Tensor, **amount: Any) -> Tensor:
        """The mask for scores, both as matrices."""
        return self.pattern.mask(scores, **amount, within_rows=within_rows(self.rate))

    # ------------------------------------------------------------------ in sc.tune

    def on_start(self, run: Run) -> None:
        if getattr(getattr(run, "processes", None), "sharded", False):
            raise TrainingError("masks can't be put on weights that FSDP shards: train with DDP")
        self.attach(run.model)

    @torch.no_grad()
    def before_validation(self, run: Run) -> None:
        """Averages of weights whose masks changed have no zeros: the present masks are put on them."""
        masks = self.masks if self.attached else {}
        for name, mask in masks.items():
            self.layers[name].parameter.masked_fill_(~mask, 0)

    def on_end(self, run: Run) -> None:
        self.detach()
