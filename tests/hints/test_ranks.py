"""Rank correlation, by hand."""

import math

import pytest
import torch

from secateur.hints.ranks import agreement, ranks, reliability, spearman


def test_ranks_share_ties() -> None:
    assert ranks(torch.tensor([3.0, 1.0, 3.0, 3.0, 9.0])).tolist() == [3, 1, 3, 3, 5]
    assert ranks(torch.tensor([[2.0, 1.0], [1.0, 1.0]])).tolist() == [[2, 1], [1.5, 1.5]]
    assert ranks(torch.tensor([0.0, math.inf, math.inf])).tolist() == [1, 2.5, 2.5]


def test_spearman_by_hand() -> None:
    # ranks 1 2 3 4 5 against 2 1 4 3 5: 1 - 6 (1 + 1 + 1 + 1 + 0) / (5 (25 - 1)) = 0.8
    a, b = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]), torch.tensor([20.0, 10.0, 40.0, 30.0, 1000.0])
    assert float(spearman(a, b)) == pytest.approx(0.8)
    assert float(spearman(a, -b)) == pytest.approx(-0.8)
    assert float(spearman(a, a.exp())) == pytest.approx(1.0)


def test_spearman_with_ties_by_hand() -> None:
    # ranks 1 2.5 2.5 4 against 1 2 3 4: covariance 4.5, variances 4.5 and 5
    a, b = torch.tensor([1.0, 2.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert float(spearman(a, b)) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert math.isnan(float(spearman(a, torch.ones(4))))


def test_agreement_within_and_over_axes() -> None:
    truth = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0, 30.0]), torch.ones(3), torch.ones(2)]
    scores = [torch.tensor([100.0, 200.0, 300.0]), torch.tensor([3.0, 2.0, 1.0]), torch.rand(3), torch.rand(2)]
    found = agreement(truth, scores, [float(s.sum()) for s in scores])
    assert found.axes == (pytest.approx(1.0), pytest.approx(-1.0), None, None)
    assert found.mean == pytest.approx(0.0)
    assert found.mean_error is not None
    assert found.mean_error > 0
    assert found == agreement(truth, scores, [float(s.sum()) for s in scores])


def test_overall_by_hand() -> None:
    # all units: ranks 4 5 6 3 2 1 against 1 2 3 4 5 6: 1 - 6 (9 + 9 + 9 + 1 + 9 + 25) / (6 (36 - 1))
    truth = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0, 30.0])]
    found = agreement(truth, [torch.tensor([100.0, 200.0, 300.0]), torch.tensor([3.0, 2.0, 1.0])], [600.0, 6.0])
    assert found.overall == pytest.approx(1 - 6 * 62 / 210)


def test_shares_make_axes_comparable() -> None:
    truth = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.5, 2.5, 3.5])]
    scores = [torch.tensor([100.0, 200.0, 300.0]), torch.tensor([1.5, 2.5, 3.5])]
    found = agreement(truth, scores, [600.0, 7.5])
    assert found.mean == pytest.approx(1.0)
    assert found.shares is not None
    assert found.overall is not None
    assert found.shares > found.overall


def test_a_hint_that_ranks_nothing_counts_as_zero() -> None:
    found = agreement([torch.tensor([1.0, 2.0, 3.0])], [torch.ones(3)], [3.0])
    assert found.axes == (0.0,)
    assert found.overall == 0.0


def test_reliability_by_hand() -> None:
    a, b = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), torch.tensor([2.0, 1.0, 4.0, 3.0, 5.0])
    assert reliability([a], [b]) == pytest.approx(2 * 0.8 / 1.8)
    assert reliability([a], [-a]) == 0.0
    assert reliability([torch.ones(2)], [torch.ones(2)]) is None
