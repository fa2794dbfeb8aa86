"""Two saved results beside each other."""

from pathlib import Path

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import ArtifactError
from secateur.planning import make_plan
from support.networks import Cnn, Mlp, example


def kept(net: nn.Module, place: Path, units: list[int]) -> Path:
    """A result that keeps these units of the hidden layer."""
    graph = sc.trace(net, torch.ones(1, 4))
    small = make_plan(graph, {"0.weight:0": torch.tensor(units)}).apply(net)
    sc.save(
        small, place, args=torch.ones(1, 4), figures={"pruned": {"params": sum(p.numel() for p in small.parameters())}}
    )
    return place


def test_by_hand(tmp_path: Path) -> None:
    """3 of 8 and 4 of 8 units, two in both: 3 * 7 + 2 and 4 * 7 + 2 parameters."""
    net = Mlp()
    a, b = kept(net, tmp_path / "a", [0, 1, 2]), kept(net, tmp_path / "b.safetensors", [1, 2, 6, 7])
    found = sc.diff(a, b)
    assert [vars(axis) for axis in found.axes] == [
        {"name": "0.weight:0", "kind": "hidden", "dense": 8, "first": 3, "second": 4, "both": 2}
    ]
    assert found.alike == 0
    assert [column["params"] for column in found.figures] == [23, 30]
    assert found.architecture == ()
    assert found.same_parent is None, "nobody noted it"
    text = str(found)
    assert "1.30× more" in text
    assert "+1" in text
    assert "1 axis differs, 0 narrower axes keep the same units in both." in text
    assert sc.diff(b, a).axes[0].second == 3


def test_other_units_of_the_same_number(tmp_path: Path) -> None:
    net = Mlp()
    found = sc.diff(kept(net, tmp_path / "a", [0, 1]), kept(net, tmp_path / "b", [0, 5]))
    assert (found.axes[0].first, found.axes[0].second, found.axes[0].both) == (2, 2, 1)
    assert "other units" in str(found)


def test_the_same_result(tmp_path: Path) -> None:
    net = Mlp()
    result = sc.prune(net, torch.ones(1, 4), keep=0.5)
    sc.save(result, tmp_path / "a")
    with torch.no_grad():
        result.model[0].bias += 1.0
    sc.save(result, tmp_path / "b")
    assert sc.diff(tmp_path / "a", tmp_path / "a").same_weights
    found = sc.diff(tmp_path / "a", tmp_path / "b")
    assert found.axes == ()
    assert found.alike == 1
    assert found.same_parent is True
    assert not found.same_weights
    assert "They were made of the same dense weights." in str(found)


def test_different_architectures_are_said_so(tmp_path: Path) -> None:
    sc.save(sc.prune(Mlp(8), torch.ones(1, 4), keep=0.5), tmp_path / "a")
    sc.save(sc.prune(Mlp(6), torch.ones(1, 4), keep=0.5), tmp_path / "b")
    found = sc.diff(tmp_path / "a", tmp_path / "b")
    assert "0.weight is [8, 4] in the first, [6, 4] in the second" in found.architecture
    assert found.axes[0].dense is found.axes[0].both is None
    assert "The dense networks differ: " in str(found)
    cnn = Cnn().eval()
    sc.save(sc.prune(cnn, example(cnn), keep=0.5), tmp_path / "c")
    text = str(sc.diff(tmp_path / "a", tmp_path / "c"))
    assert "0.weight is in the first only" in text
    assert " more." in text


def test_a_plan_is_no_result(tmp_path: Path) -> None:
    result = sc.prune(Mlp(), torch.ones(1, 4), keep=0.5)
    result.plan.save(tmp_path / "plan.json")
    with pytest.raises(ArtifactError, match="is a plan alone: give two saved results"):
        sc.diff(tmp_path / "plan.json", tmp_path / "plan.json")
