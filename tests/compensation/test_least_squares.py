"""Ridge regression from sums: by hand, against torch's own least squares, and its choice of strength."""

import pytest
import torch
from torch import Tensor

from secateur.compensation.least_squares import CHUNK, RIDGES, Sums, solve


def halves(x: Tensor, t: Tensor) -> tuple[Sums, Sums]:
    sums = Sums(), Sums()
    half = len(x) // 2
    sums[0].add(x[:half], t[:half])
    sums[1].add(x[half:], t[half:])
    return sums


def test_sums_by_hand() -> None:
    sums = Sums()
    sums.add(torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]), torch.tensor([[[1.0]], [[-1.0]]]))
    assert sums.rows == 2
    assert sums.parts["x"].tolist() == [[4.0, 6.0]]
    assert sums.parts["xx"].tolist() == [[[10.0, 14.0], [14.0, 20.0]]]
    assert sums.parts["xt"].tolist() == [[[-2.0], [-2.0]]]
    assert sums.parts["tt"].tolist() == [[2.0]]


def test_sums_do_not_depend_on_how_rows_are_split() -> None:
    torch.manual_seed(0)
    x, t = torch.randn(CHUNK + 37, 1, 3), torch.randn(CHUNK + 37, 1, 2)
    whole, parts = Sums(), Sums()
    whole.add(x, t)
    parts.add(x[:5], t[:5])
    parts.add(x[5:], t[5:])
    for name in whole.parts:
        torch.testing.assert_close(whole.parts[name], parts.parts[name], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("intercept", [False, True])
def test_an_exact_relation_is_found(intercept: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 2, 5) + 3 * intercept
    matrix, offset = torch.randn(2, 5, 3), torch.randn(2, 3) * intercept
    targets = torch.einsum("rgk,gkn->rgn", x, matrix) + offset
    fit = solve(halves(x, targets), intercept=intercept)
    torch.testing.assert_close(fit.change.float(), matrix, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fit.offset.float(), offset, rtol=1e-3, atol=2e-3)
    assert fit.after < 1e-6 * fit.before


def test_noise_that_features_say_nothing_of_leaves_the_matrix_alone_or_nearly_so() -> None:
    torch.manual_seed(0)
    x, targets = torch.randn(60, 1, 25), torch.randn(60, 1, 4)
    fit = solve(halves(x, targets), intercept=True)
    assert fit.ridge in (0.0, max(RIDGES))
    assert fit.change.abs().max() < 0.3


def test_without_strengths_only_the_mean_is_made_up_for() -> None:
    x, targets = torch.ones(10, 1, 2), torch.full((10, 1, 1), 2.5)
    fit = solve(halves(x, targets), intercept=True, ridges=())
    assert not fit.change.any()
    assert fit.offset.tolist() == [[2.5]]
    assert (fit.before, fit.after) == (6.25, 0.0)


def test_features_that_are_always_zero_do_no_harm() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 1, 4)
    x[:, :, 2] = 0
    matrix = torch.tensor([[[1.0], [2.0], [0.0], [-1.0]]])
    fit = solve(halves(x, x @ matrix[0]), intercept=False)
    torch.testing.assert_close(fit.change.float(), matrix, rtol=1e-4, atol=1e-4)
