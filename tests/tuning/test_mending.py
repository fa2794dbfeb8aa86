"""Rates of range tests, tried out by short runs."""

import math
from collections.abc import Callable

import pytest

from secateur.tuning.mending import last_third, mend
from secateur.tuning.ranging import Point


def runs(best: float, asked: list[float], highest: float = math.inf) -> Callable[[float], list[Point]]:
    """Short runs of 9 steps whose last losses grow with the distance from the best rate; they explode beyond one."""

    def run(lr: float) -> list[Point]:
        asked.append(lr)
        if lr > highest:
            return [(lr, 9.0)] * 4
        return [(lr, abs(math.log(lr / best)) + noise / 1000) for noise in range(9)]

    return run


START = [5.0, 5.0, 5.0]


@pytest.mark.parametrize(
    ("best", "start", "chosen", "asked"),
    [
        (0.01, START, 0.01, [0.01]),  # the network learns
        (0.001, START, 0.01, [0.01]),  # it does, though it would learn better at a lower rate
        (0.001, [2.0, 2.0], 0.0033, [0.01, 0.0033]),  # |log 10| is more than 2, |log 3.3| is less
        (1.0, [2.0, 2.0], 0.01, [0.01, 0.0033]),  # a lower rate is worse; higher ones are not tried
        (1e-5, [0.0, 0.0], 0.00012, [0.01, 0.0033, 0.0011, 0.00037, 0.00012]),  # four times, and no more
    ],
)
def test_rates_are_lowered_while_nothing_is_learnt(
    best: float, start: list[float], chosen: float, asked: list[float]
) -> None:
    made: list[float] = []
    found = mend(runs(best, made), 0.01, start, 9)
    assert found.lr == chosen
    assert made == list(found.tried) == asked
    by_hand = abs(math.log(chosen / best)) + (6 + 7 + 8) / 3000
    assert found.tried[chosen] == pytest.approx(by_hand)


def test_rates_at_which_short_runs_explode_are_left() -> None:
    """Down three times through runs that explode; then one that does not."""
    made: list[float] = []
    found = mend(runs(0.01, made, highest=0.02), 0.3, START, 9)
    assert found.lr == 0.011
    assert made == [0.3, 0.1, 0.033, 0.011]
    assert [math.isinf(found.tried[lr]) for lr in made] == [True, True, True, False]


def test_the_last_third_by_hand() -> None:
    assert last_third([(0.1, float(k)) for k in range(9)], 9) == [6.0, 7.0, 8.0]
    assert last_third([(0.1, 1.0)] * 8, 9) == [math.inf]
