"""A linear head on features that stay as they are: multinomial logistic regression, which has one best answer.

Shape letters: N samples, D features, C classes.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.data.splitting import stratified

DECAYS = (10.0, 1.0, 0.1, 0.01, 0.001)  # of weights on features of unit variance, from the strongest on
ITERATIONS = 100  # of L-BFGS for each of them, at most
HELD_OUT = 0.2  # share of the samples that choose among decays where no others are given
LEAST = 1e-6  # of a feature's spread, as a share of the largest; below, it is a constant

Samples = tuple[Tensor, Tensor]
"""Features (N, D) and labels (N,), of which -100 does not count."""


def fit_head(layer: nn.Linear, train: Samples, validate: Samples | None, *, seed: int) -> float | None:
    """Put the weights of lowest cross-entropy into a linear layer, with the decay that suits the validation samples.

    The cross-entropy of ``train`` plus ``decay / 2`` times the squared weights on features of unit variance is convex:
    neither the start, a learning rate nor the number of epochs matters, and no class is ever infinitely certain.
    Decays are tried from the strongest on, until the validation loss rises.

    Args:
        layer: D inputs and C outputs; changed in place, unless what it holds has a lower validation loss.
        validate: samples to choose by; None holds out a fifth of ``train``, and fits on all of it in the end.
        seed: of what is held out.

    Returns:
        The decay; None where the layer was kept.

    Example:
        >>> layer = nn.Linear(1, 2)
        >>> samples = torch.tensor([[-1.0], [-2.0], [1.0], [2.0]]), torch.tensor([0, 0, 1, 1])
        >>> decay = fit_head(layer, samples, samples, seed=0)
        >>> layer(samples[0]).argmax(1).tolist()
        [0, 0, 1, 1]
    """
    own: Any = layer.bias  # torch's types deny that it may be None
    given = [_counted(samples) for samples in (train, validate) if samples is not None]
    fitted, judge = given if len(given) == 2 else _held_out(given[0], seed)
    best, chosen, lowest = None, None, float("inf")
    if len(given) == 2:
        lowest = _loss(layer.weight, own, judge)
    path: Tensor | None = None
    before = float("inf")
    for decay in DECAYS:
        path = logistic(*fitted, layer.out_features, decay, bias=own is not None, start=path)
        weight, bias = _plain(path, fitted[0], layer.weight, bias=own is not None)
        loss = _loss(weight, bias, judge)
        if loss < lowest:
            best, chosen, lowest = (weight, bias), decay, loss
        if loss > before:
            break
        before = loss
    if best is not None and chosen is not None and len(given) == 1:
        path = logistic(*given[0], layer.out_features, chosen, bias=own is not None)
        best = _plain(path, given[0][0], layer.weight, bias=own is not None)
    if best is not None:
        with torch.no_grad():
            layer.weight.copy_(best[0])
            if own is not None:
                own.copy_(best[1])
    return chosen


def logistic(
    features: Tensor, labels: Tensor, classes: int, decay: float, *, bias: bool = True, start: Tensor | None = None
) -> Tensor:
    """The weights (C, D + 1) of least mean cross-entropy plus ``decay / 2`` times their squares, by L-BFGS.

    They are for features of unit variance (and, with a bias, of mean zero); the last column is the bias, which does not
    decay. Without one it stays zero.

    Args:
        features: (N, D).
        labels: (N,), in [0, C).
        start: where to begin.
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
            loss = F.cross_entropy(inputs @ weights.T, labels) + decay / 2 * weights[:, :-1].square().sum()
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


def _plain(weights: Tensor, features: Tensor, like: Tensor, *, bias: bool) -> tuple[Tensor, Tensor]:
    """Weight (C, D) and bias (C,) on the features as they are, of the kind of another tensor."""
    mean, spread = _standard(features, bias=bias)
    weight = weights[:, :-1] / spread
    return weight.to(like), (weights[:, -1] - weight @ mean).to(like)


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
