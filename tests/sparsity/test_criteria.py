"""Each formula by hand, and the public check: what passes it, and what does not."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

import secateur as sc
from secateur.errors import ScoreError, UnknownImportance
from secateur.sparsity.criteria import NAMED, WeightView, criterion
from secateur.sparsity.statistics import Statistics

W = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
X = torch.tensor([[3.0, 0.0], [4.0, 2.0]])  # two rows of data: mean squares 12.5 and 2


def view(**found: Any) -> WeightView:
    statistics = Statistics(**found)
    statistics.add(X[:, None], gram=False)
    return WeightView(name="layer.weight", weight=W, statistics=statistics)


def scores(name: str, **found: Any) -> list[list[float]]:
    return [[round(float(s), 5) for s in row] for row in criterion(name)(view(**found))]


def test_magnitude():
    assert scores("magnitude") == [[1, 2], [3, 4]]


def test_wanda_is_the_weight_times_the_size_of_its_input():
    a, b = 12.5**0.5, 2**0.5
    assert scores("wanda") == [[round(a, 5), round(2 * b, 5)], [round(3 * a, 5), round(4 * b, 5)]]
    assert sc.sparsity.Wanda.within_rows


def test_ria_is_shares_of_row_and_column_times_a_root():
    a, b = 12.5**0.25, 2**0.25
    shares = [[1 / 3 + 1 / 4, 2 / 3 + 2 / 6], [3 / 7 + 3 / 4, 4 / 7 + 4 / 6]]
    assert scores("ria") == [[round(s * n, 5) for s, n in zip(row, (a, b), strict=True)] for row in shares]


def test_ria_takes_columns_within_groups():
    statistics = Statistics()
    statistics.add(torch.ones(1, 2, 1), gram=False)
    grouped = WeightView(name="w", weight=torch.tensor([[1.0], [3.0]]), groups=2, statistics=statistics)
    assert sc.sparsity.Ria()(grouped).tolist() == [[2.0], [2.0]]  # each alone in its row and its column


def test_taylor_and_fisher_are_means_over_samples():
    slopes = torch.tensor([[2.0, 1.0], [0.0, -1.0]]).double()
    assert scores("taylor", gradient=slopes, samples=2) == [[1, 1], [0, 2]]
    squares = torch.tensor([[2.0, 1.0], [0.0, 4.0]]).double()
    assert scores("fisher", fisher=squares, samples=2) == [[0.5, 1], [0, 16]]


def test_random_is_by_name_and_seed():
    first, again, other = (sc.sparsity.Random(seed=seed)(view()) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", sc.sparsity.names())
def test_the_public_check_passes(name: str):
    sc.sparsity.check_criterion(criterion(name), uses_weight=name != "random")


@dataclass(frozen=True)
class Deaf:
    needs: ClassVar[frozenset[str]] = frozenset({"inputs"})

    def __call__(self, view: WeightView) -> torch.Tensor:
        return view.weight.abs()


def drawn(view: WeightView) -> torch.Tensor:
    return torch.rand_like(view.weight)


def changes(view: WeightView) -> torch.Tensor:
    return view.weight.mul_(2)


def breaks_on_zeros(view: WeightView) -> torch.Tensor:
    return view.weight / view.weight.abs().sum()


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        (Deaf(), "does not see what it says that it needs: other inputs"),
        (drawn, "not deterministic"),
        (changes, "changed the weights"),
        (breaks_on_zeros, "NaN"),
        (lambda view: view.weight.sum(1), "of shape"),
        (lambda view: view.weight > 0, "torch.bool"),
        (lambda view: torch.ones_like(view.weight), "does not see the weights"),
        (lambda view: view.input_norm * view.weight, None),
    ],
)
def test_the_public_check_fails(rate: Any, said: str | None):
    if said is None:
        sc.sparsity.check_criterion(rate)
        return
    with pytest.raises(ScoreError, match=said):
        sc.sparsity.check_criterion(rate)


def test_what_was_not_collected_is_missed_by_name():
    with pytest.raises(ScoreError, match=r"no gradients of layer.weight.*needs = frozenset"):
        criterion("taylor")(view())


def test_unknown_names_and_objects():
    with pytest.raises(UnknownImportance, match="'wandas': give 'auto', one of magnitude, wanda"):
        criterion("wandas")
    with pytest.raises(UnknownImportance, match="can't be called"):
        criterion(3)  # type: ignore[arg-type]

    class Asks:
        needs = frozenset({"weather"})

        def __call__(self, view: WeightView) -> torch.Tensor:
            return view.weight

    with pytest.raises(ScoreError, match="needs weather"):
        criterion(Asks())
    assert list(NAMED) == sc.sparsity.names()
