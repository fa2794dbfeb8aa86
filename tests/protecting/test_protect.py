"""``sc.prune(..., protect=)``: what is kept, what is reported, what is refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import secateur as sc
from secateur.errors import DataError, PlanError, ScoreError
from secateur.protecting import Protect, settled
from secateur.protecting.judging import behaviours
from secateur.reporting import Report, render_page

X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))


class Two(nn.Module):
    """Four hidden units: two look at the first half of the inputs, and speak louder, two at the second half."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4, bias=False), nn.Linear(4, 3, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(4))
            self.last.weight.copy_(torch.tensor([[2.0, 0, 1, 0], [0, 2.0, 0, 1], [-2.0, -2.0, -1, -1]]))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.last(torch.relu(self.first(x)))


GENERAL = X * torch.tensor([1.0, 1.0, 0.05, 0.05])
RARE = X * torch.tensor([0.05, 0.05, 1.0, 1.0])
BATCHES = [GENERAL[:32], GENERAL[32:]]
AXIS = "first.weight:0"


def labels(x: Tensor) -> Tensor:
    """The network's own answers."""
    with torch.no_grad():
        return Two()(x).argmax(1)


def pruned(**given: Any) -> sc.Result:
    settings: dict[str, Any] = {"keep": 0.5, "data": BATCHES, "importance": "reconstruction", **given}
    return sc.prune(Two().eval(), X[:1], **settings)


def kept(result: sc.Result) -> list[int]:
    return list(result.plan.axes[AXIS].kept)


def test_units_that_matter_where_it_is_protected_are_kept_and_the_report_says_so() -> None:
    assert kept(pruned()) == [0, 1]
    result = pruned(protect=Protect([RARE], share=0.9))
    assert kept(result) == [2, 3]
    found = result.report["protected"]
    assert result.protection is not None
    assert found == Report({"protected": result.protection.to_dict()})["protected"]
    assert (found["samples"], found["share"], found["kept"], found["seen"]) == (64, 0.9, 2, ["protected", "general"])
    assert found["axes"] == [{"axis": AXIS, "kept": 2, "gone": 2}]
    protected, general = found["figures"]["protected"], found["figures"]["general"]
    assert protected["dense"] == {"samples": 64, "agreement": 1.0, "divergence": pytest.approx(0, abs=1e-9)}
    assert protected["with"]["divergence"] < 0.1 * protected["without"]["divergence"]
    assert general["with"]["divergence"] > general["without"]["divergence"]
    assert found["costs"]["with"] == found["costs"]["without"] == {"params": 14, "macs": 14}
    assert found["costs"]["dense"] == {"params": 28, "macs": 28}
    assert result.scores[AXIS][2] > result.scores[AXIS][0]


def test_a_share_of_nothing_changes_nothing() -> None:
    plain, other = pruned(), pruned(protect=Protect([RARE], share=0.0))
    assert plain.plan == other.plan
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), other.model.parameters(), strict=True))
    assert other.report["protected"]["kept"] == 0


@pytest.mark.parametrize(
    "given",
    [RARE, (RARE, labels(RARE)), {"x": RARE}, [RARE[:10], RARE[10:]], iter([RARE]), [(RARE, labels(RARE))]],
    ids=["tensor", "pair", "mapping", "batches", "iterator", "pairs"],
)
def test_forms_of_data(given: Any) -> None:
    result = pruned(protect=Protect(given, share=0.9))
    assert kept(result) == [2, 3]
    assert result.report["protected"]["samples"] == 64
    bare = pruned(protect=[RARE])
    assert bare.report["protected"]["share"] == 0.5


@pytest.mark.parametrize(
    "target",
    [X, torch.zeros(64, 3, 5, dtype=torch.int64), torch.zeros(64, 1), torch.zeros(64), torch.zeros(64).int()],
    ids=["the inputs", "masks", "(N, 1)", "floats", "int32"],
)
def test_one_batch_with_any_target_is_one(target: Tensor) -> None:
    made = settled((RARE, target), Two(), None)
    assert made is not None
    assert [tuple(map(id, batch)) for batch in made.batches] == [(id(RARE), id(target))]


def test_one_batch_whose_inputs_are_a_vector() -> None:
    net = nn.Sequential(nn.Unflatten(0, (-1, 1)), nn.Linear(1, 3))
    for batch in ((torch.rand(6), torch.zeros(6).long()), (torch.rand(6), torch.rand(6))):
        made = settled(batch, net, None)
        assert made is not None
        assert len(made.batches) == 1


def test_several_batches_stay_several() -> None:
    for given in ([RARE, RARE], (RARE[:10], RARE[10:]), ((RARE, X), (RARE, X)), (RARE, RARE, RARE)):
        made = settled(given, Two(), None)
        assert made is not None
        assert len(made.batches) == len(given)


@pytest.mark.parametrize(
    "reach",
    [
        {"keep": None, "budget": sc.Budget(macs=0.5)},
        {"keep": None, "threshold": 0.9},
        {"keep": 0.5, "compensate": None},
        {"keep": 0.5, "compensate": "mean"},
        {"keep": 0.5, "importance": "flap"},
        {"keep": 0.5, "importance": "wanda"},
    ],
)
def test_ways_to_say_what_goes(reach: Mapping[str, Any]) -> None:
    assert kept(pruned(**reach)) == [0, 1]
    result = pruned(**reach, protect=Protect([RARE], share=0.95))
    assert kept(result) == [2, 3]
    assert result.report["protected"]["kept"] == 2


def test_a_criterion_on_labels_and_accuracy() -> None:
    data = [(x, labels(x)) for x in BATCHES]
    guard = Protect([(RARE, labels(RARE))], share=0.95)
    result = pruned(importance="fisher", data=data, protect=guard)
    found = result.report["protected"]["figures"]["protected"]
    assert found["dense"]["accuracy"] == 1.0
    assert found["with"]["accuracy"] > found["without"]["accuracy"]
    assert found["with"]["accuracy"] == found["with"]["agreement"]


def test_with_a_bound_it_is_compared_at_the_same_cost() -> None:
    data = [(x, labels(x)) for x in BATCHES]
    result = pruned(keep=None, max_drop=60.0, validate=data, data=data, protect=Protect([RARE], share=0.9))
    costs = result.report["protected"]["costs"]
    assert costs["without"]["macs"] <= costs["with"]["macs"] < costs["dense"]["macs"]


def test_hints_are_tried_on_both() -> None:
    result = pruned(importance="auto", protect=Protect([RARE[:32], RARE[32:]], share=0.9))
    assert result.trial is not None
    assert set(result.trial.distances) == {"reconstruction", "flap"}  # l2 looks at weights alone
    assert (result.trial.judged, result.trial.protected) == (32, 32)
    assert result.report["trial"]["protected"] == 32
    alone = pruned(importance="auto")
    assert alone.trial is not None
    assert "protected" not in alone.report["trial"]


def test_data_of_their_own_to_measure_on() -> None:
    guard = Protect([RARE[:32]], test=[RARE[32:40]], general_test=[GENERAL[:8], GENERAL[8:20]])
    found = pruned(protect=guard).report["protected"]
    assert found["seen"] == []
    assert {name: rows["with"]["samples"] for name, rows in found["figures"].items()} == {"protected": 8, "general": 20}


def test_it_is_kept_in_files_and_printed(tmp_path: Path) -> None:
    result = pruned(protect=Protect([RARE], share=0.9))
    result.report.save(tmp_path / "report.json")
    again = Report.load(tmp_path)
    assert again["protected"] == result.report["protected"]
    said = "It kept 2 units that would have gone without it, on 1 axis (most on first.weight:0 2), and 2 others went."
    console = Console(width=600, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(again)
    text = capture.get()
    assert "Protected: 64 samples, 90.0 % by weight of all that scores and refits saw." in text
    assert said in text
    assert "unprotected" in text
    assert "The figures of the protected data and of the general data are on samples that" in text
    page = render_page(again)
    assert '<section id="protected"' in page
    assert said in page
    assert max(map(len, str(again).splitlines())) <= 100
    sc.save(result, tmp_path / "small")
    assert torch.equal(sc.load(tmp_path / "small", model=Two())(RARE), result.model(RARE))


def test_scores_that_are_kept_are_the_general_ones() -> None:
    """A replay scores new weights on general data, so that is what it compares with."""
    from secateur.provenance import recall

    result = pruned(protect=Protect([RARE], share=0.9))
    held = recall(result.model, "scores")
    assert torch.equal(held.axes[AXIS], recall(pruned().model, "scores").axes[AXIS])


def test_without_protection_a_report_has_nothing_of_it() -> None:
    result = pruned()
    assert result.protection is None
    assert "protected" not in result.report
    assert "Protected" not in str(result)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([], DataError, "protect= holds no sample"),
        ([torch.zeros(0, 4)], DataError, "protect= holds no sample"),
        ("digits", DataError, "protect= is a str: give batches such as"),
        (3, DataError, "protect= is a int: give batches such as"),
        ([torch.zeros(2, 7)], DataError, r"Two fails on batch 0 of the data of protect=, inputs \(2, 7\)"),
        ([torch.full((2, 4), torch.nan)], DataError, "batch 0 of the data of protect= holds NaN"),
        ([RARE, (RARE, 1, 2)], DataError, "batch 1 of the data of protect=: a batch is a tensor, a mapping"),
        (Protect([RARE], test=[]), DataError, "test= holds no sample"),
        (Protect([RARE], general_test=[torch.zeros(1, 7)]), DataError, "fails on batch 0 of the data of general_test="),
    ],
)
def test_bad_data(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pruned(protect=given)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_out_of_range(share: float) -> None:
    with pytest.raises(PlanError, match=r"give the weight of the protected data among all .* in \[0, 1\)"):
        Protect([RARE], share=share)


@pytest.mark.parametrize("importance", ["l2", "random", "bn_scale", lambda member: member.weight.abs().sum(1)])
def test_a_criterion_of_weights_alone_is_refused(importance: Any) -> None:
    with pytest.raises(ScoreError, match="looks at weights alone.*take importance= of taylor, .*reconstruction"):
        pruned(importance=importance, protect=[RARE])


def test_protection_takes_general_data() -> None:
    with pytest.raises(ScoreError, match=r"there are no general data: pass data=\[batch, \.\.\.\], too"):
        pruned(data=None, protect=[RARE])


def test_a_later_batch_that_does_not_fit_is_named() -> None:
    with pytest.raises(DataError, match=r"fails on batch 1 of the protected data, inputs \(2, 7\)"):
        pruned(protect=[RARE, torch.zeros(2, 7)])


# ---------------------------------------------------------------------- how far a model behaves like another


class Answers(nn.Module):
    """Gives fixed class scores, one row a sample."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.tensor(rows))

    def forward(self, x: Tensor) -> Tensor:
        return self.rows[x.long().flatten()].reshape(*x.shape, -1) if x.dim() > 1 else self.rows[x.long()]


def test_behaviour_by_hand() -> None:
    """Scores (ln 3, 0) are probabilities (3/4, 1/4), (0, 0) are halves: the divergence is that of one sample in two."""
    dense, other = Answers([[3.0**0.5, 0.0], [0.0, 1.0]]), Answers([[3.0**0.5, 0.0], [1.0, 0.0]])
    with torch.no_grad():
        dense.rows[1] = torch.tensor([0.0, torch.log(torch.tensor(3.0))])
        other.rows[1] = torch.tensor([0.0, 0.0])
    data = [(torch.tensor([0, 1]), torch.tensor([0, 1]))]
    own, seen = behaviours(dense, [other], data, None)
    assert (own.accuracy, own.agreement, own.divergence) == (1.0, 1.0, pytest.approx(0, abs=1e-7))
    assert (seen.accuracy, seen.agreement) == (0.5, 0.5)
    wanted = 0.75 * torch.log(torch.tensor(0.75 / 0.5)) + 0.25 * torch.log(torch.tensor(0.25 / 0.5))
    assert seen.divergence == pytest.approx(float(wanted) / 2, abs=1e-6)
    assert seen.difference is None


def test_places_without_a_label_do_not_count() -> None:
    """A language model: (B, T) tokens, (B, T, C) scores, and a place whose label is -100."""
    dense, other = Answers([[1.0, 0.0], [0.0, 1.0]]), Answers([[1.0, 0.0], [1.0, 0.0]])
    tokens, targets = torch.tensor([[0, 1, 0]]), torch.tensor([[0, -100, 0]])
    assert behaviours(dense, [other], [(tokens, targets)], None)[1].agreement == 1.0
    assert behaviours(dense, [other], [tokens], None)[1].agreement == pytest.approx(2 / 3)
    assert behaviours(dense, [other], [(tokens, targets)], None)[1].accuracy is None


def test_outputs_that_are_no_classes_are_compared_as_numbers() -> None:
    dense, other = Answers([[2.0], [0.0]]), Answers([[1.0], [0.0]])
    seen = behaviours(dense, [other], [torch.tensor([0, 1])], None)[1]
    assert (seen.agreement, seen.difference) == (None, 0.5)
    wide, near = Answers([[2.0, 0.0]]), Answers([[1.0, 0.0]])
    data = [(torch.tensor([0]), torch.tensor([[2.0, 0.0]]))]
    assert behaviours(wide, [near], data, None)[1].to_dict() == {"samples": 1, "difference": 0.5}


def test_the_model_stays_as_it_was() -> None:
    net = Two().train()
    before, drawn = [p.clone() for p in net.parameters()], torch.get_rng_state()
    settled([RARE], net, None)
    sc.prune(net, X[:1], keep=0.5, data=BATCHES, protect=[RARE], importance="reconstruction")
    assert net.training
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert torch.equal(drawn, torch.get_rng_state())
