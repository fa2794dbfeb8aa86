"""Curves through timed samples, and the stairs that are found in them."""

from collections.abc import Sequence
from math import nan

import pytest

from secateur.axes import Leaf
from secateur.timing.curves import Stair, fit, levels, points, power_below
from secateur.timing.operations import Operand, Operation, as_call
from secateur.timing.stopwatch import Timer
from support.clocks import by_work, in_blocks


def matmul(inside: int = 256, outside: int = 512) -> Operation:
    a, b = Leaf("a", inside), Leaf("b", outside)
    arguments = [
        ("self", Operand((Leaf(None, 10), a), "float32", (0, 1))),
        ("mat2", Operand((a, b), "float32", (0, 1))),
    ]
    return as_call("aten::mm", arguments, [[Leaf(None, 10), b]], {"a", "b"}).operation


def sampled(operation: Operation, timer: Timer, *, coarse: bool = False) -> dict[tuple[int, ...], float]:
    return {sizes: timer(operation, sizes) for sizes in points(operation, coarse=coarse)}


@pytest.mark.parametrize(
    ("dense", "wanted"),
    [
        (512, (32, 128, 256, 384, 512)),
        (768, (48, 192, 384, 576, 768)),
        (50, (3, 12, 24, 32, 50)),
        (3, (1, 2, 3)),
        (1, (1,)),
    ],
)
def test_levels_are_round(dense: int, wanted: Sequence[int]) -> None:
    assert levels(dense) == wanted


def test_powers() -> None:
    assert [power_below(n) for n in (0.3, 1, 1.9, 2, 63, 64)] == [1, 1, 1, 2, 32, 64]


def test_a_curve_goes_through_its_samples() -> None:
    operation = matmul()
    samples = sampled(operation, by_work)
    curve = fit(operation, samples)
    assert not curve.by_elements
    for k, inside in enumerate(curve.levels[0]):
        for j, outside in enumerate(curve.levels[1]):
            assert curve.values[k, j].item() == samples[inside, outside]
    assert curve.stairs == (Stair(), Stair())


@pytest.mark.parametrize("step", [2, 8, 16, 32])
def test_stairs_are_found(step: int) -> None:
    curve = fit(matmul(), sampled(matmul(), in_blocks(step)))
    assert [stair.step for stair in curve.stairs] == [step, step]
    assert [stair.penalty for stair in curve.stairs] == pytest.approx([0, 0], abs=0.02)


def test_blocks_that_are_not_full_cost_more() -> None:
    curve = fit(matmul(), sampled(matmul(), in_blocks(16, penalty=0.3)))
    assert curve.stairs[1].step == 16
    assert curve.stairs[1].penalty == pytest.approx(0.26, abs=0.05)


def test_noise_makes_no_stairs() -> None:
    operation, draws = matmul(), iter(range(10**6))

    def noisy(op: Operation, sizes: Sequence[int]) -> float:
        return by_work(op, sizes) * (1 + 0.01 * (next(draws) * 7919 % 13) / 13)

    assert fit(operation, sampled(operation, noisy)).stairs == (Stair(), Stair())


def test_few_points_where_an_operation_hardly_counts() -> None:
    operation = matmul()
    assert len(points(operation, coarse=True)) == 3
    curve = fit(operation, sampled(operation, by_work, coarse=True), coarse=True)
    assert curve.by_elements
    assert curve.levels[0][-1] == operation.elements(operation.dense)


def test_sizes_that_do_not_run_are_left_out() -> None:
    operation = matmul()
    samples = {
        sizes: value if sizes == operation.dense else nan for sizes, value in sampled(operation, by_work).items()
    }
    curve = fit(operation, samples)
    assert curve.by_elements
    assert curve.levels == ((operation.elements(operation.dense),),)
    assert fit(operation, dict.fromkeys(samples, nan)).values.tolist() == [0.0]
