"""Earlier plans on new weights: what is carried out, what is compared, and what does not fit."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import ArtifactError, PlanError, SurgeryError
from secateur.inputs import run
from support.networks import Cnn, LiteralNet, Mlp, Residual, example


@torch.no_grad()
def changed(model: nn.Module, share: float = 0.05) -> nn.Module:
    """The same architecture with weights that are a little different."""
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.add_(share * parameter.abs().mean() * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture
def cnn() -> tuple[nn.Module, sc.Result]:
    model = Cnn().eval()
    return model, sc.prune(model, example(model), keep=0.5)


@pytest.mark.parametrize("make", [Mlp, Cnn, LiteralNet])
@pytest.mark.parametrize("form", ["result", "plan", "file", "saved"])
def test_every_form_of_a_plan_gives_the_same_network(make: Any, form: str, tmp_path: Path) -> None:
    dense = make().eval()
    result = sc.prune(dense, example(dense), keep=0.5)
    new, inputs = changed(dense), example(dense)
    before = copy.deepcopy(new.state_dict())
    sc.save(result, tmp_path / "saved")
    result.plan.save(tmp_path / "file.json")
    what = {"result": result, "plan": result.plan, "file": tmp_path / "file.json", "saved": tmp_path / "saved"}[form]
    again = sc.replay(new, what, inputs)
    wanted = result.plan.apply(new).eval()
    assert torch.equal(run(again.model.eval(), inputs), run(wanted, inputs))
    assert again.proof is not None
    assert again.proof.status == "proved"
    assert again.changes == (result.plan,)
    assert all(torch.equal(t, before[n]) for n, t in new.state_dict().items())
    sc.save(again.model, tmp_path / "again")
    assert torch.equal(run(sc.load(tmp_path / "again", model=make()), inputs), run(again.model.eval(), inputs))


def test_the_same_weights_agree_wholly(cnn: tuple[nn.Module, sc.Result]) -> None:
    dense, result = cnn
    found = sc.replay(dense, result, example(dense)).stability
    assert found.importance == "l2"
    assert found.scores == "saved"
    assert found.correlation == pytest.approx(1.0)


def test_reordered_units_are_noticed(cnn: tuple[nn.Module, sc.Result]) -> None:
    """The same function, its channels the other way round: with distinct scores no order is more wrong."""
    dense, _ = cnn
    with torch.no_grad():  # the score of channel k is about k
        dense.conv1.weight.copy_(torch.arange(1.0, 9).sqrt().reshape(8, 1, 1, 1).expand_as(dense.conv1.weight))  # type: ignore[union-attr]
    result = sc.prune(dense, example(dense), budget=sc.Budget(macs=0.5), only=["conv1"])
    new = copy.deepcopy(dense)
    with torch.no_grad():
        for tensor in (new.conv1.weight, new.conv1.bias, *new.bn1.parameters(), *new.bn1.buffers()):  # type: ignore[union-attr]
            if tensor.dim():
                tensor.copy_(tensor.flip(0))
        new.conv2.weight.copy_(new.conv2.weight.flip(1))  # type: ignore[union-attr]
    again = sc.replay(new, result, example(dense))
    assert again.stability.correlation == pytest.approx(-1.0)
    assert again.verdict.status == "prune afresh"
    assert "rank correlation" in again.verdict.advice


def test_old_scores_that_are_not_known(cnn: tuple[nn.Module, sc.Result]) -> None:
    dense, result = cnn
    new = changed(dense)
    bare = sc.replay(new, result.plan, example(dense)).stability
    assert bare.correlation is None
    assert bare.left_out == "the scores of the old weights are not known"
    assert bare.overlap is not None
    again = sc.replay(new, result.plan, example(dense), old=dense).stability
    assert again.scores == "old weights"
    assert again.correlation == pytest.approx(sc.replay(new, result, example(dense)).stability.correlation)
    other = sc.replay(new, result, example(dense), importance="l1").stability
    assert other.left_out == "the old weights were scored by l2, the new ones by l1"
    assert other.correlation is None


def test_data_refits_and_results_decide(cnn: tuple[nn.Module, sc.Result]) -> None:
    dense, result = cnn
    new = changed(dense)
    images = torch.randn(64, *example(dense).shape[1:])
    labelled = [(images, new(images).argmax(1))]
    again = sc.replay(new, result, example(dense), data=[images], validate=labelled)
    assert again.compensation is not None
    assert again.compensation.distance[1] < again.compensation.distance[0]
    assert again.verdict.dense["accuracy"] == 1.0
    assert again.fresh is not None
    assert again.verdict.fresh["accuracy"] >= 0
    report = again.report
    assert report["pruned"]["metrics"] == again.verdict.replayed
    assert report["replay"]["status"] == again.verdict.status
    assert "The plan was made for other weights." in str(report)


def test_all_changes_of_a_saved_result(tmp_path: Path) -> None:
    dense = Residual().eval()
    first = sc.prune(dense, example(dense), budget=sc.Budget(params=0.8))
    second = sc.prune(first.model, example(dense), budget=sc.Budget(params=0.8))
    sc.save(second, tmp_path / "twice")
    new = changed(dense)
    again = sc.replay(new, tmp_path / "twice")
    wanted = second.plan.apply(first.plan.apply(new)).eval()
    assert len(again.changes) == 2
    inputs = example(dense)
    assert torch.equal(run(again.model.eval(), inputs), run(wanted, inputs))
    kept = {row["name"]: row["after"] for row in again.report["axes"]}
    assert {axis.name: axis.kept for axis in again.stability.axes}.items() <= kept.items()
    assert sum(p.numel() for p in again.model.parameters()) == again.report["pruned"]["params"]


class Other(Cnn):
    """A convolution has more channels, a layer is new, another is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2, self.bn2 = nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16)
        self.new = nn.Linear(2, 2, bias=False)
        self.conv1.bias = None


def test_another_architecture_is_told_in_full(cnn: tuple[nn.Module, sc.Result], tmp_path: Path) -> None:
    dense, result = cnn
    sc.save(result, tmp_path / "saved")
    with pytest.raises(SurgeryError, match="another architecture") as caught:
        sc.replay(Other(), tmp_path / "saved", example(dense))
    said = str(caught.value)
    assert "conv1.bias is missing" in said
    assert "conv2.weight is [16, 8, 3, 3] and was [12, 8, 3, 3]" in said
    assert "new.weight [2, 2] is new" in said
    with pytest.raises(SurgeryError, match=r"0\.weight is missing; 0\.bias is missing; 2\.weight is missing\. B"):
        sc.replay(Cnn(), sc.prune(Mlp(), torch.randn(1, 4), keep=0.5).plan, example(dense))


class Frozen(Cnn):
    """The same tensors; but the code looks at the first channel."""

    def forward(self, x: Any) -> Any:
        return super().forward(x) + self.conv1(x)[:, 0].mean()


def test_other_code_with_the_same_tensors(cnn: tuple[nn.Module, sc.Result]) -> None:
    dense, result = cnn
    with pytest.raises(SurgeryError, match=r"the code of Frozen is not the code .*conv1\.weight:0 is frozen now"):
        sc.replay(Frozen().eval(), result, example(dense))


def test_what_is_missing_or_no_plan(cnn: tuple[nn.Module, sc.Result], tmp_path: Path) -> None:
    dense, result = cnn
    with pytest.raises(PlanError, match="no example inputs are known"):
        sc.replay(dense, result.plan)
    (tmp_path / "text.txt").write_text("x")
    for place, words in ((tmp_path / "text.txt", "neither a plan"), (tmp_path, "no saved result")):
        with pytest.raises(ArtifactError, match=words):
            sc.replay(dense, place, example(dense))
    (tmp_path / "plan.json").write_text('{"kind": "magic"}')
    with pytest.raises(ArtifactError, match="kind 'magic'"):
        sc.replay(dense, tmp_path / "plan.json", example(dense))


def test_a_plan_that_removes_nothing() -> None:
    dense = Mlp().eval()
    nothing = sc.Plan(axes={}, tensors={}, model="Mlp")
    again = sc.replay(dense, nothing, torch.randn(1, 4))
    assert again.stability.left_out == "the plan removes nothing of the dense network's axes"
    assert again.verdict.status == "doubtful"
