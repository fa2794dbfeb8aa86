"""A linear head on features that stay as they are: multinomial logistic regression, which has one best answer.

Shape letters: N samples, D features, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.adapting.known import Known
from secateur.data.splitting import stratified

DECAYS = (10.0, 1.0, 0.1, 0.01, 0.001)  # of weights on features of unit variance, from the strongest on
KIN_DECAYS = (0.1, 0.01, 0.001, 0.0001)  # of the weights of scores, of which there are few
ITERATIONS = 100  # of L-BFGS for each of them, at most
HELD_OUT = 0.2  # share of the samples that choose among decays where no others are given
LEAST = 1e-6  # of a feature's spread, as a share of the largest; below, it is a constant

Samples = tuple[Tensor, Tensor]
"""Features (N, D) and labels (N,), of which -100 does not count."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to fit a head: what its scores are made of, and how much each part decays.

    Attributes:
        kin: known classes whose scores it starts from; none where it knows nothing.
        kin_decay: of the weights of these scores.
        decay: of the weights of features; None where these are not looked at beyond the scores of kin.
    """

    kin: tuple[int, ...] = ()
    kin_decay: float | None = None
    decay: float | None = None

    def __str__(self) -> str:
        parts = [f"the scores of known classes {', '.join(map(str, self.kin))}"] if self.kin else []
        parts += [f"features, with a decay of {self.decay:g}"] if self.decay is not None else []
        return "logistic regression on " + " and ".join(parts)


def fit_head(
    layer: nn.Linear, train: Samples, validate: Samples | None, *, seed: int, known: Known | None = None
) -> Way | None:
    """Put the weights of lowest cross-entropy into a linear layer, in the way that suits the validation samples.

    The cross-entropy of ``train`` plus ``decay / 2`` times the squared weights on features of unit variance is convex:
    neither the start, a learning rate nor the number of epochs matters, and no class is ever infinitely certain.

    With few samples of many features most of what a trained head knows is lost so. So there are three ways: features
    alone; the scores of the known classes that are akin to the new ones, which are as few as these; and both, the
    weights of features being added to what the scores say. In each, decays are tried from the strongest on, until the
    validation loss rises.

    Args:
        layer: D inputs and C outputs; changed in place, unless what it holds has a lower validation loss.
        validate: samples to choose by; None holds out a fifth of ``train``, and fits on all of it in the end.
        seed: of what is held out.
        known: what another head knows on the same features.

    Returns:
        The way; None where the layer was kept.

    Example:
        >>> layer = nn.Linear(1, 2)
        >>> samples = torch.tensor([[-1.0], [-2.0], [1.0], [2.0]]), torch.tensor([0, 0, 1, 1])
        >>> way = fit_head(layer, samples, samples, seed=0)
        >>> layer(samples[0]).argmax(1).tolist()
        [0, 0, 1, 1]
    """
    own: Any = layer.bias  # torch's types deny that it may be None
    given = [_counted(samples) for samples in (train, validate) if samples is not None]
    fitting, judge = given if len(given) == 2 else _held_out(given[0], seed)
    fitter = _Fitter(fitting, judge, layer.out_features, bias=own is not None, known=known)
    found = fitter.search()
    if len(given) == 2 and _loss(layer.weight, own, judge) <= found.loss:
        return None
    best = found if len(given) == 2 else replace(fitter, train=given[0]).fit(found.way)
    with torch.no_grad():
        layer.weight.copy_(best.weight)
        if own is not None:
            own.copy_(best.bias)
    return found.way


@dataclass(frozen=True)
class _Found:
    """A head (weight (C, D), bias (C,), float64), how it was fitted, and its loss on the samples that judge."""

    way: Way
    weight: Tensor
    bias: Tensor
    loss: float
    path: Tensor  # the last solution as `logistic` gave it


@dataclass(frozen=True)
class _Fitter:
    """Fits a head in one way or another, and finds the best one."""

    train: Samples
    judge: Samples
    classes: int
    bias: bool
    known: Known | None

    def search(self) -> _Found:
        """The best way by the loss of the samples that judge."""
        found = [self._along([Way(decay=decay) for decay in DECAYS])]
        kin = () if self.known is None else self.known.kin(*self.train, self.classes)
        if kin:
            base = self._along([Way(kin=kin, kin_decay=decay) for decay in KIN_DECAYS])
            found += [base, self._along([replace(base.way, decay=decay) for decay in DECAYS], base)]
        return min(found, key=lambda one: one.loss)

    def fit(self, way: Way, base: _Found | None = None, start: Tensor | None = None) -> _Found:
        """Fit in one way.

        Args:
            base: what the kin's scores alone give, where that is known already.
            start: a solution that is near.
        """
        features, labels = self.train
        if way.decay is None:
            assert self.known is not None
            rows, shift = self.known.rows(way.kin)
            scores = features.double() @ rows.T + (shift if self.bias else 0)
            assert way.kin_decay is not None
            path = logistic(scores, labels, self.classes, way.kin_decay, bias=self.bias, start=start)
            weight, bias = _plain(path, scores, bias=self.bias)
            return self._found(way, weight @ rows, weight @ shift + bias if self.bias else bias, path)
        if way.kin and base is None:
            base = self.fit(replace(way, decay=None))
        offset = None if base is None else features.double() @ base.weight.T + base.bias
        path = logistic(features, labels, self.classes, way.decay, bias=self.bias, start=start, offset=offset)
        weight, bias = _plain(path, features, bias=self.bias)
        return self._found(way, *((weight, bias) if base is None else (base.weight + weight, base.bias + bias)), path)

    def _along(self, ways: Sequence[Way], base: _Found | None = None) -> _Found:
        """The best of some ways, of which each decays less than the one before, until the loss rises."""
        best = last = self.fit(ways[0], base)
        for way in ways[1:]:
            this = self.fit(way, base, last.path)
            best = this if this.loss < best.loss else best
            if this.loss > last.loss:
                break
            last = this
        return best

    def _found(self, way: Way, weight: Tensor, bias: Tensor, path: Tensor) -> _Found:
        return _Found(way, weight, bias, _loss(weight, bias, self.judge), path)


def logistic(
    features: Tensor,
    labels: Tensor,
    classes: int,
    decay: float,
    *,
    bias: bool = True,
    start: Tensor | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    """The weights (C, D + 1) of least mean cross-entropy plus ``decay / 2`` times their squares, by L-BFGS.

    They are for features of unit variance (and, with a bias, of mean zero); the last column is the bias, which does not
    decay. Without one it stays zero.

    Args:
        features: (N, D).
        labels: (N,), in [0, C).
        start: where to begin.
        offset: (N, C), scores that are added to those of the features.
    """
    mean, spread = _standard(features, bias=bias)
    inputs = (features.double() - mean) / spread
    inputs = torch.cat([inputs, torch.full((len(inputs), 1), float(bias), dtype=inputs.dtype)], 1)
    with torch.inference_mode(False), torch.enable_grad():
        weights = torch.zeros(classes, inputs.shape[1], dtype=inputs.dtype) if start is None else start.clone()
        weights.requires_grad_(True)
        solver = torch.optim.LBFGS([weights], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            solver.zero_grad()
            scores = inputs @ weights.T if offset is None else torch.addmm(offset, inputs, weights.T)
            loss = F.cross_entropy(scores, labels) + decay / 2 * weights[:, :-1].square().sum()
            loss.backward()
            return loss

        solver.step(closure)  # type: ignore[arg-type]
    return weights.detach()


def _standard(features: Tensor, *, bias: bool) -> tuple[Tensor, Tensor]:
    """Mean and spread of each feature, (D,) each, float64. Without a bias nothing can take the place of a mean."""
    wide = features.double()
    spread = wide.std(0, correction=0) if bias else wide.square().mean(0).sqrt()
    spread = torch.where(spread > LEAST * spread.max().clamp_min(torch.finfo(spread.dtype).tiny), spread, 1.0)
    return (wide.mean(0) if bias else torch.zeros_like(spread)), spread


def _plain(weights: Tensor, features: Tensor, *, bias: bool) -> tuple[Tensor, Tensor]:
    """Weight (C, D) and bias (C,) on the features as they are, float64."""
    mean, spread = _standard(features, bias=bias)
    weight = weights[:, :-1] / spread
    return weight, weights[:, -1] - weight @ mean


def _loss(weight: Tensor, bias: Tensor | None, samples: Samples) -> float:
    features, labels = samples
    with torch.no_grad():
        own = None if bias is None else bias.detach().cpu().double()
        return float(F.cross_entropy(F.linear(features.double(), weight.detach().cpu().double(), own), labels))


def _counted(samples: Samples) -> Samples:
    features, labels = samples
    return features[labels >= 0].cpu(), labels[labels >= 0].cpu()


def _held_out(samples: Samples, seed: int) -> tuple[Samples, Samples]:
    """Samples to fit, and to choose by; all of them for both where a fifth is none."""
    features, labels = samples
    first, second = stratified(labels.tolist(), (1 - HELD_OUT,), seed)
    if not first or not second:
        return samples, samples
    return (features[first], labels[first]), (features[second], labels[second])
