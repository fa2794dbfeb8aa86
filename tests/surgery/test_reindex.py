"""Which positions of a dim stay, against brute force."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.axes import Expr, Leaf, concat, product
from secateur.surgery import index
from secateur.surgery.reindex import take
from support.expressions import SIZES, brute_force, exprs

subsets = st.fixed_dictionaries({n: st.sets(st.integers(0, s - 1), min_size=1) for n, s in SIZES.items()})


@given(exprs(), subsets, st.sets(st.sampled_from(list(SIZES))))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_positions_that_stay(expr: Expr, units: dict[str, set[int]], changed: set[str]) -> None:
    units = {name: units[name] for name in changed}
    wanted = [
        at
        for at, row in enumerate(brute_force(expr))
        if all(unit in units[name] for _, name, unit in row if name in units)
    ]
    assert index(expr, {n: torch.tensor(sorted(u)) for n, u in units.items()}).tolist() == wanted


def test_by_hand() -> None:
    heads, width = Leaf("h", 2), Leaf("w", 3)
    fused = concat([product((heads, width)), Leaf(None, 2)])
    assert index(fused, {"w": torch.tensor([0, 2])}).tolist() == [0, 2, 3, 5, 6, 7]
    assert index(fused, {"h": torch.tensor([1])}).tolist() == [3, 4, 5, 6, 7]
    assert index(fused, {}).tolist() == list(range(8))


def test_an_order_and_repeats_are_followed() -> None:
    """Growing an axis is the same operation with positions repeated."""
    assert index(Leaf("h", 3), {"h": torch.tensor([2, 0, 0])}).tolist() == [2, 0, 0]


def test_taking_gives_memory_of_its_own() -> None:
    tensor = torch.arange(12.0).view(3, 4).requires_grad_()
    for kept in ({}, {0: torch.tensor([0, 2]), 1: torch.tensor([1])}):
        out = take(tensor, kept)
        assert not out.requires_grad
        out.zero_()
    assert tensor.sum() == 66
    assert take(tensor, {0: torch.tensor([0, 2]), 1: torch.tensor([1])}).tolist() == [[1.0], [9.0]]
