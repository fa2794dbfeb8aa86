"""Changes of depth are saved, done again, and combined with pruning of widths."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.artifacts.forms import fingerprint
from secateur.artifacts.record import seal
from secateur.errors import ArtifactError, SurgeryError
from secateur.examples import SimpleNet
from secateur.provenance import recall
from support.blocks import Literal, SmallResNet, Stack

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def comes_back(model: nn.Module, dense: nn.Module | None, x: torch.Tensor, place: Path) -> nn.Module:
    """The model loaded again, the same."""
    sc.save(model, place)
    again = sc.load(place, model=dense)
    assert torch.equal(again(x), model.eval()(x))
    assert [type(c) for c in recall(again, "plans")] == [type(c) for c in recall(model, "plans")]
    return again


def test_shorter_and_deeper_models_come_back(tmp_path: Path) -> None:
    short = sc.shorten(Stack(), X, blocks=2, importance="random")
    comes_back(short.model, Stack(), X, tmp_path / "short")
    deep = sc.deepen(short.model, "blocks.0", X)
    again = comes_back(deep.model, Stack(), X, tmp_path / "deep")
    assert len(again.blocks) == again.depth == 3


def test_a_trained_identity_comes_back(tmp_path: Path) -> None:
    net, x = SimpleNet(), torch.randn(2, 1, 10, 10)
    deep = sc.deepen(net, "fc1", x).model
    for p in deep.parameters():
        nn.init.normal_(p, std=0.1)
    comes_back(deep, SimpleNet(), x, tmp_path / "deep")


@pytest.mark.parametrize("first", ["depth", "widths"])
def test_before_and_after_pruning_of_widths(first: str, tmp_path: Path) -> None:
    model, x = SmallResNet().eval(), torch.randn(2, 3, 8, 8)

    def narrow(net: nn.Module) -> nn.Module:
        return sc.prune(net, x, keep=0.5).model

    def shorter(net: nn.Module) -> nn.Module:
        return sc.shorten(net, x, blocks=1, importance="random").model

    def deeper(net: nn.Module) -> nn.Module:
        return sc.deepen(net, "stage.0", x).model

    steps = (shorter, narrow, deeper) if first == "depth" else (narrow, deeper, shorter)
    small = model
    for step in steps:
        small = step(small)
    again = comes_back(small, SmallResNet(), x, tmp_path / "small")
    assert len(again.stage) == 3
    assert again.head.in_features == 4
    replayed: nn.Module = SmallResNet().eval()
    for change in recall(small, "plans"):
        replayed = change.apply(replayed)
    assert {n: p.shape for n, p in replayed.named_parameters()} == {n: p.shape for n, p in small.named_parameters()}
    assert replayed(x).shape == (2, 5)


def test_the_same_change_on_other_weights() -> None:
    result = sc.shorten(Stack(), X, importance=["blocks.2"])
    other = Stack()
    short = result.change.apply(other)
    x = other.embed(X)
    for k in (0, 1, 3):
        x = other.blocks[k](x)
    assert torch.equal(short(X), other.head(x))


def test_a_later_plan_that_rewrites_the_class(tmp_path: Path) -> None:
    x = torch.randn(3, 1, 6, 6)
    short = sc.shorten(Literal().eval(), x, blocks=1, importance="random").model
    small = sc.prune(short, x, keep=0.5)
    assert small.rewritten
    comes_back(small.model, None, x, tmp_path / "graph")  # from the stored graph
    again = sc.load(tmp_path / "graph", model=Literal())  # or from the class
    assert torch.equal(again(x), small.model(x))


def test_an_earlier_plan_that_rewrote_the_class_is_refused_in_words() -> None:
    x = torch.randn(3, 1, 6, 6)
    small = sc.prune(Literal().eval(), x, keep=0.5).model
    with pytest.raises(
        SurgeryError, match=r"sc\.shorten\(original, example, .*then sc\.prune\(short\.model, example\)"
    ):
        sc.shorten(small, x, blocks=1, importance="random")
    with pytest.raises(SurgeryError, match="prune with keep_class=True"):
        sc.deepen(small, "blocks.0.inner", x)


def test_what_the_refusal_advises_works() -> None:
    x = torch.randn(3, 1, 6, 6)
    short = sc.shorten(Literal().eval(), x, blocks=1, data=[x])
    assert sc.prune(short.model, x, keep=0.5).proof.status == "proved"
    kept = sc.prune(Literal().eval(), x, keep=0.5, keep_class=True)
    assert len(sc.shorten(kept.model, x, blocks=1, data=[x]).model.blocks) == 2


def test_a_file_that_was_tampered_with(tmp_path: Path) -> None:
    sc.save(sc.shorten(Stack(), X, blocks=1, importance="random"), tmp_path / "short")
    plan, record = tmp_path / "short/plan.json", tmp_path / "short/artifact.json"
    data = json.loads(plan.read_text())
    spec = {"after": "blocks.0", "kind": "block", "like": "blocks.0", "silenced": ["inner.bias"]}
    data["inserted"] = [{**spec, "relu": "", "wrap": False}] * 1000
    plan.write_text(json.dumps(data))
    sealed = json.loads(record.read_text())
    sealed["files"]["plan.json"] = fingerprint(plan)
    record.write_text(json.dumps(seal(sealed)))
    with pytest.raises(ArtifactError, match="64 times as large"):
        sc.load(tmp_path / "short", model=Stack())


def test_another_architecture_is_refused() -> None:
    change = sc.shorten(Stack(), X, blocks=1, importance="random").change
    with pytest.raises(SurgeryError, match="another architecture"):
        change.apply(SmallResNet())
