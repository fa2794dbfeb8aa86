"""Plans as plain data."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import ArtifactError
from secateur.planning import make_plan
from support.networks import Attention, Chunked, Cnn, Grouped, LiteralNet, Mlp, Tied, example


def made(model: nn.Module, keep: float = 0.5) -> sc.Plan:
    graph = sc.trace(model, example(model))
    return sc.plan(graph, sc.score(model, graph), keep=keep)


@pytest.mark.parametrize("make", [Mlp, Cnn, Grouped, LiteralNet, Chunked, Attention, Tied])
def test_json_round_trip(make: type[nn.Module], tmp_path: Path) -> None:
    plan = made(make())
    plan.save(tmp_path / "plan.json")
    again = sc.Plan.load(tmp_path / "plan.json")
    assert again == plan
    assert again.to_dict() == json.loads((tmp_path / "plan.json").read_text()) == plan.to_dict()
    assert all(torch.equal(at, plan.kept[name][dim]) for name, dims in again.kept.items() for dim, at in dims.items())


def test_kept_by_hand() -> None:
    model = Cnn()
    graph = sc.trace(model, example(model))
    plan = make_plan(graph, {"conv2.weight:0": torch.tensor([1, 11])})
    got = {name: {dim: at.tolist() for dim, at in dims.items()} for name, dims in plan.kept.items()}
    assert got == {
        "conv2.weight": {0: [1, 11]},
        "conv2.bias": {0: [1, 11]},
        "bn2.weight": {0: [1, 11]},
        "bn2.bias": {0: [1, 11]},
        "bn2.running_mean": {0: [1, 11]},
        "bn2.running_var": {0: [1, 11]},
        "fc.weight": {1: [*range(9, 18), *range(99, 108)]},
    }
    assert plan.kept["fc.weight"][1].dtype == torch.long


def test_kept_heads_by_hand() -> None:
    model = Attention(heads=4, width=6)
    plan = make_plan(sc.trace(model, example(model)), {"qkv.weight:0/heads": torch.tensor([0, 2])})
    rows = [*range(6), *range(12, 18)]
    assert plan.kept["out.weight"][1].tolist() == rows
    assert plan.kept["qkv.bias"][0].tolist() == [part * 24 + row for part in range(3) for row in rows]


def test_tied_tensors_are_kept_under_each_name() -> None:
    kept = made(Tied()).kept
    assert torch.equal(kept["head.weight"][1], kept["embed.weight"][1])


def test_an_axis_that_keeps_all_is_not_in_the_plan() -> None:
    model = Mlp()
    plan = make_plan(sc.trace(model, example(model)), {"0.weight:0": torch.arange(8)})
    assert (plan.axes, plan.tensors, plan.kept, plan.settings) == ({}, {}, {}, ())


def test_plans_print_well() -> None:
    text = str(made(Cnn()))
    assert "conv1.weight:0" in text
    assert "plan for Cnn" in text


# ---------------------------------------------------------------------- what is refused

AXIS = {"kind": "hidden", "before": 8, "kept": [0, 2]}


def _set(*path: Any, to: Any) -> Any:
    def change(data: dict[str, Any]) -> None:
        *before, last = path
        inner: Any = data
        for key in before:
            inner = inner[key]
        inner[last] = to

    return change


def _drop(key: str) -> Any:
    return lambda data: data.pop(key)


NESTED: Any = 1
for _ in range(3000):
    NESTED = {"product": [NESTED, 2]}

HOSTILE = {
    "another version": _set("version", to=99),
    "no version": _drop("version"),
    "no axes": _drop("axes"),
    "axes as a list": _set("axes", to=[1]),
    "an axis as a number": _set("axes", "0.weight:0", to=5),
    "no kept units": _set("axes", "0.weight:0", "kept", to=[]),
    "unsorted units": _set("axes", "0.weight:0", "kept", to=[2, 0]),
    "repeated units": _set("axes", "0.weight:0", "kept", to=[2, 2]),
    "a unit below 0": _set("axes", "0.weight:0", "kept", to=[-1, 2]),
    "a unit past the end": _set("axes", "0.weight:0", "kept", to=[2, 8]),
    "units as text": _set("axes", "0.weight:0", "kept", to="12"),
    "units as fractions": _set("axes", "0.weight:0", "kept", to=[0.0, 1.0]),
    "units as truths": _set("axes", "0.weight:0", "kept", to=[False, True]),
    "a size as text": _set("axes", "0.weight:0", "before", to="8"),
    "a size beyond memory": _set("axes", "0.weight:0", to={"kind": "hidden", "before": 10**30, "kept": [10**29]}),
    "a size that no dim has": _set("axes", "0.weight:0", "before", to=9),
    "tensors as a list": _set("tensors", to=[]),
    "names as text": _set("tensors", "0.weight", "names", to="0.weight"),
    "no names": _set("tensors", "0.weight", "names", to=[]),
    "names as numbers": _set("tensors", "0.weight", "names", to=[3]),
    "dims as text": _set("tensors", "0.weight", "dims", to="48"),
    "a negative dim": _set("tensors", "0.weight", "dims", to=[-1, 4]),
    "an unknown expression": _set("tensors", "0.weight", "dims", to=[{"power": [2, 3]}, 4]),
    "an empty sum": _set("tensors", "0.weight", "dims", to=[{"sum": []}, 4]),
    "a deep expression": _set("tensors", "0.weight", "dims", to=[NESTED, 4]),
    "settings as text": _set("settings", to="none"),
    "a setting without a value": _set("settings", to=[{"module": "", "attribute": "x", "index": None, "before": 3}]),
    "a setting of text": _set(
        "settings", to=[{"module": "", "attribute": "x", "index": None, "before": 3, "value": "7"}]
    ),
    "a setting at a list": _set("settings", to=[{"node": "view", "path": [[1]], "before": 3, "value": 7}]),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=list(HOSTILE))
def test_altered_plans(change: Any, tmp_path: Path) -> None:
    data = copy.deepcopy(made(Mlp()).to_dict())
    change(data)
    with pytest.raises(ArtifactError, match=r"not a plan that secateur wrote|a plan of version"):
        sc.Plan.from_dict(data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "can't be read as a plan"),
        (b'{"version": 1, "axes"', "can't be read as a plan"),
        (b"\xff\xfe\x00", "can't be read as a plan"),
        (b"[1, 2]", "is JSON, but no plan"),
        (b'{"version": 1, "model": "A", "model": "B"}', "can't be read as a plan: a key is repeated"),
        (b'{"version": 1, "noise": NaN}', "can't be read as a plan: NaN is no number of JSON"),
        (b"{}", "a plan of version None; this secateur reads version 1"),
        (b'{"version": 1}', "not a plan that secateur wrote: KeyError"),
        (b"[" * 100_000, "can't be read as a plan"),
    ],
)
def test_files_that_are_no_plan(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        sc.Plan.load(tmp_path / "plan.json")


def test_a_plan_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"none\.json can't be read as a plan"):
        sc.Plan.load(tmp_path / "none.json")
