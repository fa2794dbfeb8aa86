"""How far two plans agree, and the verdict, with numbers worked out by hand."""

import pytest
import torch
from torch import Tensor

from secateur.replaying import AxisAgreement, Stability, stability, verdict

NEW = {"a": torch.tensor([10.0, 30.0, 20.0, 40.0]), "b": torch.tensor([1.0, 2.0, 3.0]), "c": torch.ones(5)}


def units(*kept: int) -> Tensor:
    return torch.tensor(kept)


def test_overlap_and_agreement_beyond_chance() -> None:
    """a: 2 of 4 and 2 of 4 units, one in both; b: whole, and 1 of 3; c is whole in both."""
    found = stability({"a": units(0, 1)}, {"a": units(1, 2), "b": units(0)}, NEW, importance="l2")
    assert [axis.name for axis in found.axes] == ["a", "b"]
    assert [axis.alike for axis in found.axes] == [2, 1]  # unit 1 stays and unit 3 goes; unit 0 stays
    assert [axis.by_chance for axis in found.axes] == [2.0, 1.0]  # (2 * 2 + 2 * 2) / 4; (3 * 1 + 0 * 2) / 3
    assert found.overlap == (1 + 1) / (2 + 3)
    assert found.agreement == 0.0
    again = stability({"a": units(0, 1)}, {"a": units(0, 1), "b": units(0)}, NEW, importance="l2")
    assert again.agreement == (4 + 1 - 3) / (7 - 3)
    same = stability({"a": units(0, 1)}, {"a": units(0, 1)}, NEW, importance="l2")
    assert same.overlap == same.agreement == 1.0
    opposite = stability({"a": units(0, 1)}, {"a": units(2, 3)}, NEW, importance="l2")
    assert (opposite.overlap, opposite.agreement) == (0.0, -1.0)


def test_correlation_is_the_mean_of_the_axes() -> None:
    """Ranks 1 2 3 4 against 1 3 2 4 correlate by 0.8, 1 2 3 against 3 2 1 by -1; equal scores say nothing."""
    kept = {"a": units(0), "b": units(0), "c": units(0)}
    old = {"a": torch.tensor([1.0, 2, 3, 4]), "b": torch.tensor([3.0, 2, 1]), "c": torch.arange(5.0)}
    found = stability(kept, kept, NEW, old, importance="l2", origin="saved")
    assert [axis.correlation for axis in found.axes] == [pytest.approx(0.8), pytest.approx(-1.0), None]
    assert found.correlation == pytest.approx(-0.1)
    assert found.to_dict()["scores"] == "saved"


def test_scores_of_other_sizes_and_few_units_do_not_count() -> None:
    kept = {"a": units(0), "d": units(0)}
    new, old = {"a": torch.rand(4), "d": torch.rand(2)}, {"a": torch.rand(5), "d": torch.rand(2)}
    assert stability(kept, kept, new, old, importance="l2").correlation is None


def test_nothing_to_compare() -> None:
    found = stability({}, {}, NEW, importance="l2", left_out="no scores")
    assert found.overlap is found.agreement is found.correlation is None
    judged = verdict(found)
    assert judged.status == "doubtful"
    assert "nothing to judge by. no scores" in judged.advice


def figures(correlation: float | None, agreement: float) -> Stability:
    """An axis of 20 units of which both plans keep 10: m in both agree by (m - 5) / 5 beyond chance."""
    both = round(5 + 5 * agreement)
    axis = AxisAgreement(name="a", units=20, kept=10, fresh=10, both=both, correlation=correlation)
    found = Stability(axes=(axis,), importance="l2")
    assert found.agreement == pytest.approx(agreement)
    return found


@pytest.mark.parametrize(
    ("correlation", "agreement", "status"),
    [
        (0.8, 0.6, "still good"),
        (None, 0.6, "still good"),
        (0.79, 0.8, "doubtful"),
        (0.9, 0.4, "doubtful"),
        (None, 0.4, "doubtful"),
        (0.5, 0.6, "doubtful"),
        (0.49, 0.8, "prune afresh"),
        (0.9, 0.2, "prune afresh"),
    ],
)
def test_without_results_every_figure_must_do(correlation: float | None, agreement: float, status: str) -> None:
    assert verdict(figures(correlation, agreement)).status == status


@pytest.mark.parametrize(
    ("replayed", "fresh", "status", "words"),
    [
        (
            {"accuracy": 0.80},
            {"accuracy": 0.81},
            "still good",
            "same cost (1.0 points); up to 1 point behind counts as",
        ),
        ({"accuracy": 0.80}, {"accuracy": 0.81}, "still good", "is 80.0 %, 10.0 points less than the dense network's."),
        ({"accuracy": 0.80}, {"accuracy": 0.82}, "prune afresh", "(2.0 points), and more than 1 point is too much."),
        ({"accuracy": 0.85}, {"accuracy": 0.82}, "still good", "it is ahead of a network pruned afresh"),
        ({"accuracy": 0.90}, {"accuracy": 0.90}, "still good", "it is as good as a network pruned afresh to the same"),
        ({"accuracy": 0.90}, {"accuracy": 0.90}, "still good", "is 90.0 %, the same as the dense network's."),
        ({"loss": 1.02}, {"loss": 1.0}, "still good", "a loss of 1.02 instead of 1.00"),
        ({"loss": 1.03}, {"loss": 1.0}, "prune afresh", "more than 2.0 % is too much. Its loss on the validation data"),
    ],
)
def test_results_decide(replayed: dict[str, float], fresh: dict[str, float], status: str, words: str) -> None:
    """Whatever the figures say."""
    judged = verdict(figures(-1.0, -1.0), {"accuracy": 0.9, "loss": 0.9}, {"loss": 0.0, **replayed}, fresh)
    assert judged.status == status
    assert words in judged.advice
    assert verdict(figures(1.0, 1.0), {"loss": 0.9}, {"loss": 0.0, **replayed}, fresh).status == status
