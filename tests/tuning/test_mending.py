"""Rates of range tests, tried out by short runs."""

import math

import pytest
import torch

from secateur.data import load_data
from secateur.examples import SimpleNet
from secateur.tuning import tune
from secateur.tuning.mending import better, last_third, mend
from secateur.tuning.ranging import Point, Reading


def reading(lr: float, stable: float) -> Reading:
    return Reading(lr=lr, stable=stable, lowest=0.0, error=0.0, risen=True, smoothed=[])


def runs(best: float, asked: list[float], highest: float = math.inf) -> object:
    """Short runs of 9 steps whose last losses grow with the distance from the best rate; they explode beyond one."""

    def run(lr: float) -> list[Point]:
        asked.append(lr)
        if lr > highest:
            return [(lr, 9.0)] * 4
        return [(lr, abs(math.log(lr / best)) + noise / 1000) for noise in range(9)]

    return run


@pytest.mark.parametrize(
    ("best", "stable", "chosen", "asked"),
    [
        (0.01, 1.0, 0.01, [0.01, 0.0033, 0.03]),  # neither side is better
        (0.001, 1.0, 0.0011, [0.01, 0.0033, 0.0011, 0.00037]),  # two factors of three down
        (0.1, 1.0, 0.09, [0.01, 0.0033, 0.03, 0.09, 0.27]),  # two up
        (0.1, 0.04, 0.03, [0.01, 0.0033, 0.03]),  # not beyond what was stable
    ],
)
def test_rates_move_to_where_short_runs_end_lowest(
    best: float, stable: float, chosen: float, asked: list[float]
) -> None:
    made: list[float] = []
    found = mend(runs(best, made), reading(0.01, stable), 9)  # pyright: ignore[reportArgumentType]
    assert found.lr == chosen
    assert made == asked
    assert list(found.tried) == asked
    by_hand = abs(math.log(chosen / best)) + (6 + 7 + 8) / 3000
    assert found.tried[chosen] == pytest.approx(by_hand)


def test_rates_at_which_short_runs_explode_are_left() -> None:
    """Down three times through runs that explode; then one that does not, below which nothing is better."""
    made: list[float] = []
    found = mend(runs(0.01, made, highest=0.02), reading(0.3, 1.2), 9)  # pyright: ignore[reportArgumentType]
    assert found.lr == 0.011
    assert made == [0.3, 0.1, 0.033, 0.011, 0.0037]
    assert [math.isinf(found.tried[lr]) for lr in made] == [True, True, True, False, False]


def test_higher_rates_must_be_better_by_two_standard_errors() -> None:
    """Gains of 1 and 0 and 0.5: mean 0.5, standard error 0.5 / sqrt(3) = 0.289."""
    assert better([1.0, 1.0, 1.0], [2.0, 1.0, 1.5])
    assert not better([1.0, 1.0, 1.0], [2.0, 1.0, 1.5], 2.0)
    assert last_third([(0.1, float(k)) for k in range(9)], 9) == [6.0, 7.0, 8.0]
    assert last_third([(0.1, 1.0)] * 8, 9) == [math.inf]


@pytest.mark.slow
def test_an_untrained_network_under_sgd_learns_at_the_rate_that_is_chosen() -> None:
    """The loss of a network without normalising layers is flat until the rate of the range test is high: the rate that
    is read from it is one at which training from the start gets nowhere.
    """
    torch.manual_seed(0)
    data = load_data("digits", batch_size=64, seed=0)
    model = SimpleNet()
    history = tune(model, data.train, data.validation, epochs=10, optimizer="sgd", device="cpu")
    assert history.choice is not None
    assert history.epochs[-1].validation_accuracy is not None
    assert history.epochs[-1].validation_accuracy > 0.9
