"""Changes of depth as data, and what hostile files may hold."""

import json
from typing import Any

import pytest
import torch
from torch import nn

from secateur.changes import change_from_dict
from secateur.depth import DepthChange, Insertion
from secateur.depth.containers import layout, set_children
from secateur.depth.counting import Counters
from secateur.errors import ArtifactError, SurgeryError
from support.blocks import Mixing, Stack


def names(*args: Any) -> list[tuple[str, str]]:
    return [(place.name, place.source) for place in layout(*args)]


def test_numbered_children_are_numbered_anew() -> None:
    found = names(["layer_1", "layer_2", "layer_3"], frozenset({"layer_2"}), {"layer_3": 1})
    assert found == [("layer_1", "layer_1"), ("layer_2", "layer_3"), ("layer_3", "layer_3")]


def test_other_children_keep_their_names_and_new_ones_get_free_ones() -> None:
    found = names(["a", "a_1", "b"], frozenset({"b"}), {"a": 2})
    assert found == [("a", "a"), ("a_2", "a"), ("a_3", "a"), ("a_1", "a_1")]


def test_numbers_with_gaps_are_names() -> None:
    assert names(["0", "2", "3"], frozenset({"2"}), {}) == [("0", "0"), ("3", "3")]


def test_no_sequence_is_left_empty() -> None:
    with pytest.raises(SurgeryError, match="nothing would be left"):
        set_children(nn.Sequential(nn.ReLU()), [], {})


def change() -> DepthChange:
    spec = Insertion(after="blocks.1", kind="block", like="blocks.1", silenced=("outer.weight", "outer.bias"))
    model = Stack()
    return Counters(model).counted(DepthChange(dropped=("blocks.3",), inserted=(spec, spec), model="Stack"))


def test_json_and_back() -> None:
    made = change()
    assert change_from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_indices_are_numbered_anew() -> None:
    counted, model = change(), Stack(4)
    assert {str(site): value for site, value in counted.settings} == {
        "blocks.2.index": 2,
        "blocks.3.index": 3,
        "blocks.4.index": 4,
    }
    new = counted.apply(model)
    assert [block.index for block in new.blocks] == [0, 1, 2, 3, 4]
    assert [block.index for block in model.blocks] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("version", 2),
        ("version", None),
        ("dropped", ["blocks.1", "blocks.1"]),
        ("dropped", ["blocks.__class__"]),
        ("dropped", [""]),
        ("dropped", ["a..b"]),
        ("dropped", "blocks.1"),
        ("dropped", [1]),
        ("dropped", ["x" * 1000]),
        ("dropped", [f"b.{k}" for k in range(2000)]),
        ("inserted", [{}]),
        ("inserted", [{"after": "a", "kind": "evil", "like": "a", "silenced": [], "relu": "", "wrap": False}]),
        ("inserted", [{"after": "a", "kind": "block", "like": "a", "silenced": [], "relu": "", "wrap": False}]),
        ("inserted", [{"after": "a", "kind": "layer", "like": "a", "silenced": ["b"], "relu": "", "wrap": False}]),
        ("inserted", [{"after": "a", "kind": "layer", "like": "a", "silenced": [], "relu": "up", "wrap": False}]),
        ("inserted", [{"after": "a", "kind": "layer", "like": "a", "silenced": [], "relu": "", "wrap": 1}]),
        ("inserted", [{"after": "", "kind": "layer", "like": "a", "silenced": [], "relu": "", "wrap": True}]),
        ("settings", [{"module": "", "attribute": "depth", "index": None, "before": 4, "value": True}]),
        ("settings", [{"module": "", "attribute": "depth", "index": None, "before": 4, "value": 1e3}]),
        ("settings", [{"module": "", "attribute": "__dict__", "index": None, "before": 4, "value": 3}]),
        ("settings", [{"module": "", "attribute": "depth", "index": None, "before": 4, "value": 2**40}]),
        ("lists", [{"module": "", "name": "a.__class__", "container": "b", "before": 2}]),
        ("model", 3),
    ],
)
def test_hostile_data_is_refused(key: str, value: Any) -> None:
    data = {**change().to_dict(), key: value}
    with pytest.raises(ArtifactError, match="change of depth"):
        change_from_dict(data)


@pytest.mark.parametrize("key", ["dropped", "inserted", "settings", "lists", "model"])
def test_missing_data_is_refused(key: str) -> None:
    data = change().to_dict()
    del data[key]
    with pytest.raises(ArtifactError, match="change of depth"):
        change_from_dict(data)


def test_repeated_insertions_are_bounded() -> None:
    spec = Insertion(after="blocks.1", kind="block", like="blocks", silenced=("0.outer.weight",))
    with pytest.raises(SurgeryError, match="64 times as large"):
        DepthChange(inserted=(spec,) * 1000).apply(Stack())


def test_insertions_in_a_row_are_bounded_together() -> None:
    model: nn.Module = nn.Sequential(Mixing(), nn.ReLU())
    spec = Insertion(after="0", kind="block", like="0", silenced=("outer.weight",), wrap=False)
    doubling = DepthChange(inserted=(spec,) * 20)
    with pytest.raises(SurgeryError, match="64 times as large"):
        for _ in range(10):
            model = doubling.apply(model)
    assert len(model) < 64 * 2


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (DepthChange(dropped=("blocks.9",)), "there is no blocks.9"),
        (DepthChange(dropped=("head",)), "head is in no nn.Sequential"),
        (DepthChange(dropped=("blocks.0", "blocks.0.inner")), "is in a block that goes"),
        (DepthChange(inserted=(Insertion(after="head", kind="layer", like="gone", wrap=True),)), "there is no gone"),
        (DepthChange(inserted=(Insertion(after="head", kind="layer", like="head"),)), "head is in no nn.Sequential"),
        (
            DepthChange(inserted=(Insertion(after="head", kind="layer", like="blocks", wrap=True),)),
            "there is no identity",
        ),
        (
            DepthChange(inserted=(Insertion(after="blocks.0", kind="block", like="blocks.0", silenced=("x",)),)),
            "has no x",
        ),
    ],
)
def test_a_change_for_another_architecture_is_refused(wrong: DepthChange, said: str) -> None:
    with pytest.raises(SurgeryError, match=said):
        wrong.apply(Stack())


def test_a_number_that_is_not_what_it_was_is_refused() -> None:
    made = change()
    model = Stack()
    model.blocks[2].index = 7
    with pytest.raises(SurgeryError, match="index is not 2"):
        made.apply(model)


def test_a_graph_is_refused() -> None:
    graph = torch.fx.symbolic_trace(nn.Sequential(Mixing(), Mixing()))
    with pytest.raises(SurgeryError, match="no blocks that could go or come"):
        DepthChange(dropped=("0",)).apply(graph)
