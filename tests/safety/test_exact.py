"""Statistics of paired outcomes: numbers by hand, and against counting all cases."""

import itertools
import math

import pytest
import torch

from secateur.safety.exact import holm, mcnemar, mean_interval, paired_interval, pays_more


def test_mcnemar_by_hand() -> None:
    assert mcnemar(5, 0) == 2 / 32
    assert mcnemar(1, 8) == pytest.approx(2 * (1 + 9) / 512)
    assert mcnemar(0, 0) == 1
    assert mcnemar(3, 3) == 1
    assert mcnemar(8, 1) == mcnemar(1, 8)


def test_paired_interval_by_hand() -> None:
    # (10.5 - 30.5) / 502, and 1.96 sqrt(41 - 20^2 / 502) / 502
    low, high = paired_interval(30, 10, 500)
    middle, reach = -20 / 502, 1.959964 * math.sqrt(41 - 400 / 502) / 502
    assert (low, high) == pytest.approx((middle - reach, middle + reach))
    low, high = paired_interval(0, 0, 100)
    assert low < 0 < high  # no change among 100 samples does not mean that there is none


def test_interval_covers_what_it_says() -> None:
    """Two networks that differ by -2 points: about 95 of 100 intervals hold it."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(2000, 300, generator=generator)
    lost, won = (drawn < 0.05).sum(1), (drawn > 0.97).sum(1)
    held = [low <= -0.02 <= high for low, high in (paired_interval(int(a), int(b), 300)
            for a, b in zip(lost, won, strict=True))]  # fmt: skip
    assert 0.93 <= sum(held) / len(held) <= 0.975


def test_mean_interval_by_hand() -> None:
    low, high = mean_interval(torch.tensor([-0.2, 0.0, 0.0, 0.2]))
    reach = 1.959964 * math.sqrt(0.08 / 3) / 2
    assert (low, high) == pytest.approx((-reach, reach))
    assert mean_interval(torch.tensor([0.5])) == (-1.0, 1.0)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_pays_more_counts_all_ways() -> None:
    changes = torch.tensor([-1, -1, -1, 0, 0, 0, 1, 1])
    members = torch.tensor([1, 1, 0, 1, 0, 0, 0, 0]).bool()
    net = int(changes[members].sum())
    sums = [sum(chosen) for chosen in itertools.combinations(changes.tolist(), 3)]
    assert pays_more(changes, members) == pytest.approx(sum(s <= net for s in sums) / len(sums))
    assert pays_more(changes, ~torch.zeros(8).bool()) == pytest.approx(1)


def test_false_alarms_are_as_rare_as_said() -> None:
    """Where nobody pays more, a group is named in about 5 of 100 comparisons or fewer."""
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(200) % 10
    alarms = 0
    for _ in range(200):
        drawn = torch.rand(200, generator=generator)
        changes = (drawn > 0.95).int() - (drawn < 0.1).int()
        alarms += min(holm([pays_more(changes, groups == k) for k in range(10)])) < 0.05
    assert alarms <= 0.08 * 200
