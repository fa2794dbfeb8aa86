"""How few units an axis may keep, and in which steps."""

from secateur.axes import Algebra, Axis, concat, product
from secateur.tracing.limits import fewest, steps


def axes(*sizes: int) -> list[Axis]:
    algebra = Algebra()
    return [algebra.fresh(size) for size in sizes]


def test_the_largest_demand_on_an_axis_counts() -> None:
    (a,) = axes(8)
    assert fewest([(a, 2), (a, 3), (a, 1)], ()) == {a.order: 3}


def test_a_product_needs_no_more_of_its_last_axis_than_it_must() -> None:
    groups, inside = axes(4, 8)
    assert fewest([(product([groups, inside]), 6)], ()) == {inside.order: 6}
    assert fewest([(groups, 2), (inside, 2), (product([groups, inside]), 6)], ()) == {groups.order: 2, inside.order: 3}
    assert fewest([(product([groups, inside]), 20)], ()) == {groups.order: 3, inside.order: 8}


def test_a_sum_counts_all_its_parts_and_frozen_ones_in_full() -> None:
    left, right = axes(3, 5)
    assert fewest([(concat([left, right]), 6)], ()) == {right.order: 5}  # and at least one of the left
    assert fewest([(concat([left, right]), 6)], {left.order}) == {right.order: 3}


def test_demands_hold_after_axes_have_split() -> None:
    algebra = Algebra()
    whole = algebra.fresh(12)
    halves = algebra.split(whole, 3)
    assert halves is not None
    assert fewest([(whole, 4)], ()) == {halves[1].order: 4}  # type: ignore[union-attr]


def test_steps_are_those_of_every_demand_and_never_more_than_the_size_allows() -> None:
    a, b, c = axes(24, 12, 10)
    assert steps([(a, 4), (a, 6), (b, 8), (c, 4)]) == {a.order: 12, b.order: 4, c.order: 2}


def test_one_axis_of_a_product_keeps_the_step_and_all_parts_of_a_sum() -> None:
    a, b, c, d = axes(4, 8, 8, 16)
    assert steps([(product([a, b]), 8)]) == {b.order: 8}
    assert steps([(concat([c, d]), 8)]) == {c.order: 8, d.order: 8}
