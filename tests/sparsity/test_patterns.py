"""Masks of patterns, by hand: counts, ties, rows, blocks, and what does not fit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import secateur as sc
from secateur.errors import PatternError
from secateur.sparsity.matrices import from_matrix, to_matrix

SCORES = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])


def test_the_least_go_whatever_row_they_are_in():
    mask = sc.Unstructured().mask(SCORES, 0.5)
    assert mask.tolist() == [[False] * 4, [True] * 4]


def test_within_rows_every_row_loses_as_many():
    mask = sc.Unstructured().mask(SCORES, 0.5, within_rows=True)
    assert mask.tolist() == [[False, False, True, True]] * 2


def test_what_does_not_divide_goes_from_the_row_with_the_least_next():
    mask = sc.Unstructured().mask(SCORES, remove=3, within_rows=True)  # one each, then 2 or 6
    assert mask.tolist() == [[False, False, True, True], [False, True, True, True]]


def test_of_equals_the_earlier_goes_first():
    assert sc.Unstructured().mask(torch.ones(1, 4), remove=1).tolist() == [[False, True, True, True]]
    assert sc.NM(1, 3).mask(torch.ones(1, 3)).tolist() == [[False, False, True]]


def test_n_of_m_stay():
    mask = sc.NM(1, 2).mask(torch.tensor([[1.0, 2.0, 8.0, 7.0]]))
    assert mask.tolist() == [[False, True, True, False]]
    assert sc.NM(4, 8).fixed == 0.5
    assert sc.NM(1, 4).removed((3, 8)) == 18
    assert sc.NM(1, 3).removed((3, 6), 2 / 3) == 12  # 1 - 1 / 3 is another number


def test_blocks_are_compared_by_their_means():
    scores = torch.tensor([[0.0, 9.0, 3.0, 3.0], [0.0, 0.0, 3.0, 3.0]])  # means 2.25 and 3
    assert sc.Block(2, 2).mask(scores, 0.5).tolist() == [[False, False, True, True]] * 2
    assert sc.Block(2, 2).removed((4, 4), 0.3) == 4  # one of four blocks


def test_blocks_within_rows_of_blocks():
    mask = sc.Block(1, 2).mask(SCORES, 0.5, within_rows=True)
    assert mask.tolist() == [[False, False, True, True]] * 2


@given(st.integers(1, 6), st.integers(1, 7), st.floats(0, 1), st.booleans(), st.integers(0, 3))
def test_counts_are_exact_with_ties_and_without(rows: int, cols: int, share: float, within: bool, levels: int):
    scores = torch.randint(0, levels + 1, (rows, cols), generator=torch.Generator().manual_seed(rows)).float()
    mask = sc.Unstructured().mask(scores, share, within_rows=within)
    assert int((~mask).sum()) == round(share * rows * cols) == sc.Unstructured().removed((rows, cols), share)
    if within:
        gone = (~mask).sum(1)
        assert int(gone.max() - gone.min()) <= 1
    elif mask.any() and not mask.all():
        assert scores[mask].min() >= scores[~mask].max()


def test_what_is_not_possible_is_refused():
    with pytest.raises(PatternError, match="6 inputs are no multiple of 4"):
        sc.NM(2, 4).mask(torch.ones(2, 6))
    with pytest.raises(PatternError, match="3 outputs are no multiple of 2, 5 inputs are no multiple of 4"):
        sc.Block(2, 4).mask(torch.ones(3, 5), 0.5)
    with pytest.raises(PatternError, match="NaN"):
        sc.Unstructured().mask(torch.tensor([[float("nan")]]), 0.5)
    with pytest.raises(PatternError, match="has a sparsity of 0.5, not of 0.7"):
        sc.NM(2, 4).mask(torch.ones(2, 4), 0.7)
    with pytest.raises(PatternError, match="share of the weights that goes"):
        sc.Unstructured().mask(SCORES)
    with pytest.raises(PatternError, match="one of the two"):
        sc.Unstructured().mask(SCORES, 0.5, remove=1)
    with pytest.raises(PatternError, match="a multiple of 4"):
        sc.Block(2, 2).mask(SCORES, remove=2)
    with pytest.raises(PatternError, match="shape \\(8,\\)"):
        sc.Unstructured().mask(torch.ones(8), 0.5)
    for wrong in (lambda: sc.NM(4, 4), lambda: sc.NM(0, 4), lambda: sc.Block(0, 1)):
        with pytest.raises(PatternError, match="whole numbers"):
            wrong()


def test_columns_of_a_convolution_go_through_channels_first():
    weight = torch.arange(24).reshape(2, 3, 2, 2)  # (out, in, height, width)
    matrix = to_matrix(weight)
    assert matrix[0].tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    assert torch.equal(from_matrix(matrix, weight), weight)
    assert torch.equal(
        from_matrix(to_matrix(weight[0, 0], transposed=True), weight[0, 0], transposed=True), weight[0, 0]
    )
