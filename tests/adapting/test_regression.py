"""Logistic regression on features: its optimum by hand, and what chooses the decay."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.adapting.known import Known, known_by
from secateur.adapting.regression import DECAYS, KIN_DECAYS, Samples, Way, fit_head, logistic


def test_the_optimum_by_hand() -> None:
    """Two samples at -1 and +1, of unit spread: by symmetry w = (-a, a), and the loss log(1 + exp(-2a)) + decay a^2 is
    least where 2 / (1 + exp(2a)) = 2 decay a; for a = 0.5 that is decay = 2 / (1 + e).
    """
    decay = 2 / (1 + math.e)
    weights = logistic(torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1]), 2, decay)
    assert weights.flatten().tolist() == pytest.approx([-0.5, 0.0, 0.5, 0.0], abs=1e-5)


def test_the_gradient_vanishes_on_features_of_any_scale() -> None:
    features = torch.randn(40, 5) * torch.tensor([1.0, 100.0, 0.01, 1.0, 0.0]) + 3
    labels = torch.randint(3, (40,))
    weights = logistic(features, labels, 3, 0.1).requires_grad_()
    wide = features.double()
    inputs = (wide - wide.mean(0)) / torch.where(wide.std(0, correction=0) > 1e-6, wide.std(0, correction=0), 1.0)
    scores = inputs @ weights[:, :-1].T + weights[:, -1]
    (F.cross_entropy(scores, labels) + 0.05 * weights[:, :-1].square().sum()).backward()
    assert weights.grad is not None
    assert float(weights.grad.abs().max()) < 1e-5


@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_gives_what_was_fitted(bias: bool) -> None:
    features = torch.randn(60, 4) + 1
    labels = (features[:, 0] > features[:, 1]).long()
    layer = nn.Linear(4, 2, bias=bias)
    way = fit_head(layer, (features, labels), (features, labels), seed=0)
    assert way is not None
    assert way.decay in DECAYS
    assert str(way) == f"logistic regression on features, with a decay of {way.decay:g}"
    assert (layer(features).argmax(1) == labels).float().mean() > 0.9


def test_labels_that_do_not_count_are_left_out() -> None:
    features, labels = torch.randn(30, 3), torch.randint(2, (30,))
    first, second = nn.Linear(3, 2), nn.Linear(3, 2)
    second.load_state_dict(first.state_dict())
    fit_head(first, (features[:20], labels[:20]), None, seed=0)
    labels[20:] = -100
    fit_head(second, (features, labels), None, seed=0)
    assert torch.equal(first.weight, second.weight)


def test_what_validates_better_stays() -> None:
    """The validation samples are of the other classes than the training samples say: nothing fitted is any good."""
    features = torch.tensor([[-1.0], [1.0]] * 4)
    labels = torch.tensor([0, 1] * 4)
    layer = nn.Linear(1, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        layer.bias.zero_()
    before = layer.weight.clone()
    assert fit_head(layer, (features, labels), (features, 1 - labels), seed=0) is None
    assert torch.equal(layer.weight, before)


def test_labels_without_meaning_get_a_strong_decay() -> None:
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(60, 40, generator=generator), torch.randint(2, (60,), generator=generator)
    assert fit_head(nn.Linear(40, 2), (features, labels), None, seed=0) == Way(decay=DECAYS[0])


# ---------------------------------------------------------------------- what another head knows


def test_an_offset_is_added_to_the_scores() -> None:
    """Scores that say all leave nothing to the features: of two samples at -1 and +1, with odds of e^40 for the right
    class, the gradient is zero at zero weights.
    """
    right = torch.tensor([[20.0, -20.0], [-20.0, 20.0]], dtype=torch.float64)
    weights = logistic(torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1]), 2, 0.1, offset=right)
    assert weights.abs().max() < 1e-9
    against = logistic(torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1]), 2, 0.1, offset=-right)
    assert against[1, 0] > 0.5, "what is wrong is corrected"


def test_kin_by_hand() -> None:
    """The known classes a, b, c. Two samples of new class 0: (8, 4, 4) / 16 and
    (8, 6, 2) / 16, in the mean (0.5, 0.3125, 0.1875); one of class 1: (8, 0.5, 7.5) / 16. So a says nothing, though it
    is said most of both; b rises for class 0, and c for class 1.
    """
    layer = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(3))
    features = torch.tensor([[8.0, 4.0, 4.0], [8.0, 6.0, 2.0], [8.0, 0.5, 7.5]]).log()
    known = Known.of(layer)
    assert known.kin(features, torch.tensor([0, 0, 1]), 2) == (1, 2)
    assert known.kin(features, torch.tensor([0, 0, 3]), 4) == (1, 2), "classes without samples have none"
    assert known.weight.sum(0).abs().max() < 1e-12, "what all scores gain alike tells no classes apart"


def _task(many: int) -> tuple[Known, Samples, Samples]:
    """A known head of 10 classes on 100 features, of which class 7 is the new class 0, and class 2 the new class 1."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(100, 10)
    with torch.no_grad():
        layer.weight.normal_(generator=generator)
        layer.bias.normal_(generator=generator)
    features = torch.randn(10 * (many + 500), 100, generator=generator)
    said = layer(features).argmax(1)
    features, said = (t[(said == 7) | (said == 2)][: many + 500] for t in (features, said))
    labels = (said == 2).long()
    return Known.of(layer), (features[:many], labels[:many]), (features[many:], labels[many:])


def _cut(samples: Samples, at: int) -> tuple[Samples, Samples]:
    features, labels = samples
    return (features[:at], labels[:at]), (features[at:], labels[at:])


def _accuracy(layer: nn.Linear, samples: Samples) -> float:
    return float((layer(samples[0]).argmax(1) == samples[1]).float().mean())


@pytest.mark.parametrize("held_out", [True, False])
def test_of_few_samples_what_is_known_says_more(held_out: bool) -> None:
    known, train, test = _task(40)
    few, validate = _cut(train, 30)
    alone, akin = nn.Linear(100, 2), nn.Linear(100, 2)
    given = (few, validate) if held_out else (train, None)
    fit_head(alone, *given, seed=0)
    way = fit_head(akin, *given, seed=0, known=known)
    assert way is not None
    assert way.kin == (7, 2)
    assert way.kin_decay in KIN_DECAYS
    assert str(way).startswith("logistic regression on the scores of known classes 7, 2")
    assert _accuracy(akin, test) > 0.95
    assert _accuracy(alone, test) < 0.85


def test_features_mend_what_is_known_by_half() -> None:
    """The new classes hang on what the known ones say, and on a feature of which these say nothing."""
    known, train, test = _task(400)
    known.weight[:, 0] = 0
    shifted = [(x, ((x @ known.weight[[7, 2]].T.float() + known.bias[[7, 2]].float()) @ torch.tensor([-1.0, 1.0])
                    + 20 * x[:, 0] > 0).long()) for x, _ in (train, test)]  # fmt: skip
    layer = nn.Linear(100, 2)
    train, validate = _cut(shifted[0], 300)
    way = fit_head(layer, train, validate, seed=0, known=known)
    assert way is not None
    assert (way.kin, way.decay is None) == ((7, 2), False)
    assert _accuracy(layer, shifted[1]) > 0.85


def test_what_is_known_of_something_else_is_left_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 6, generator=generator)
    labels = (features[:, 0] > 0).long()
    stranger = nn.Linear(6, 3)
    with torch.no_grad():
        stranger.weight.normal_(generator=generator)
        stranger.weight[:, 0] = 0
    layer = nn.Linear(6, 2, bias=False)
    way = fit_head(
        layer, (features[:100], labels[:100]), (features[100:], labels[100:]), seed=0, known=Known.of(stranger)
    )
    assert way is not None
    assert way.decay is not None
    assert _accuracy(layer, (features, labels)) > 0.95


def test_a_head_without_a_bias_stays_one() -> None:
    known, train, test = _task(200)
    layer = nn.Linear(100, 2, bias=False)
    fit_head(layer, train, test, seed=0, known=Known(known.weight, torch.zeros(10, dtype=torch.float64)))
    assert layer.bias is None  # pyright: ignore[reportUnnecessaryComparison]
    assert _accuracy(layer, test) > 0.8


def test_only_a_linear_head_is_known() -> None:
    net = nn.Sequential(nn.Conv1d(2, 3, 1), nn.Linear(4, 5))
    assert known_by(net, ("0",)) is None
    assert known_by(net, ("0", "1")) is None
    known = known_by(net, ("1",))
    assert known is not None
    assert known.weight.shape == (5, 4)
