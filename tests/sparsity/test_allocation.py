"""How much each layer loses: by hand, and exact in total."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import secateur as sc
from secateur.sparsity import allocation


def test_erk_by_hand():
    # raw densities: (4 + 4) / 16 = 0.5 and (8 + 8) / 64 = 0.25; half of 80 weights: 40 = scale * (8 + 16)
    found = allocation.erk({"a": (4, 4), "b": (8, 8)}, 0.5)
    assert found["a"] == pytest.approx(1 - 0.5 * 40 / 24)
    assert found["b"] == pytest.approx(1 - 0.25 * 40 / 24)


def test_erk_counts_the_window_of_a_convolution():
    found = allocation.erk({"conv": (4, 4, 3, 3), "other": (4, 4, 3, 3)}, 0.75)
    assert found == {"conv": pytest.approx(0.75), "other": pytest.approx(0.75)}
    # (4 + 4 + 3 + 3) / 144 and (12 + 12) / 144, so densities are as 14 to 24
    found = allocation.erk({"conv": (4, 4, 3, 3), "linear": (12, 12)}, 0.75)
    assert (1 - found["conv"]) / (1 - found["linear"]) == pytest.approx(14 / 24)


def test_erk_leaves_whole_what_would_be_denser_than_dense():
    found = allocation.erk({"thin": (2, 4), "square": (8, 8)}, 0.5)
    assert found == {"thin": 0.0, "square": 0.5625}  # 36 of 72 go, all from the 64


def test_owl_by_hand():
    share = {"a": 0.0, "b": 0.1, "c": 0.2}
    count, own = dict.fromkeys(share, 10), {name: name for name in share}
    found = allocation.owl(share, count, own, 0.5)
    assert found == {"a": pytest.approx(0.58), "b": pytest.approx(0.5), "c": pytest.approx(0.42)}


def test_owl_gives_a_block_one_sparsity_and_stays_within_bounds():
    share = {"a": 0.0, "b": 0.2, "c": 0.0}
    blocks = {"a": "one", "b": "one", "c": "two"}
    found = allocation.owl(share, dict.fromkeys(share, 10), blocks, 0.95)
    assert found["a"] == found["b"] < found["c"] <= 1
    assert sum(found.values()) / 3 == pytest.approx(0.95)
    assert allocation.owl(dict.fromkeys("ab", 0.1), dict.fromkeys("ab", 1), {"a": "a", "b": "b"}, 0.3) == {
        "a": 0.3,
        "b": 0.3,
    }


def test_one_ranking_by_hand():
    scores = {"a": torch.tensor([[1.0, 5.0]]), "b": torch.tensor([[2.0, 3.0]])}
    assert allocation.ranked(scores, sc.Unstructured(), 0.5) == {"a": 1, "b": 1}
    assert allocation.ranked(scores, sc.Unstructured(), 0.75) == {"a": 1, "b": 2}
    assert allocation.ranked(scores, sc.Block(1, 2), 0.5) == {"a": 0, "b": 2}  # means 3 and 2.5
    alike = {"a": torch.ones(1, 2), "b": torch.ones(1, 2)}
    assert allocation.ranked(alike, sc.Unstructured(), 0.75) == {"a": 2, "b": 1}


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5), st.floats(0.01, 0.99))
def test_totals_are_exact(shapes: list[tuple[int, int]], sparsity: float):
    named = {str(k): shape for k, shape in enumerate(shapes)}
    total = sum(r * c for r, c in shapes)
    for sparsities in (
        dict.fromkeys(named, sparsity),
        allocation.erk(named, sparsity),
        allocation.owl(
            {n: k / 10 for k, n in enumerate(named)},
            {n: r * c for n, (r, c) in named.items()},
            {n: n for n in named},
            sparsity,
        ),
    ):
        found = allocation.counts(sparsities, named, sc.Unstructured(), sparsity)
        assert sum(found.values()) == round(sparsity * total)
        assert all(0 <= found[n] <= r * c for n, (r, c) in named.items())
        assert all(abs(found[n] - sparsities[n] * r * c) < 1.001 for n, (r, c) in named.items())


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.floats(0, 1))
def test_one_ranking_is_exact_with_ties(values: list[int], sparsity: float):
    scores = {"a": torch.tensor([values]).float(), "b": torch.tensor([values]).float() + 1}
    found = allocation.ranked(scores, sc.Unstructured(), sparsity)
    assert sum(found.values()) == round(sparsity * 2 * len(values))


def test_blocks_come_as_wholes():
    found = allocation.counts({"a": 0.5, "b": 0.5}, {"a": (4, 6), "b": (2, 6)}, sc.Block(2, 2), 0.5)
    assert found == {"a": 12, "b": 4} or found == {"a": 12, "b": 8}
    assert sum(found.values()) == 4 * round(0.5 * 9)
