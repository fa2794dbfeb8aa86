"""Networks by name, and weights that fit them."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from secateur.config import ModelSettings
from secateur.errors import ModelError
from secateur.examples import SimpleNet
from secateur.models import build_model


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of a user's."""
    (tmp_path / "users_networks.py").write_text(
        "from torch import nn\n"
        "def linear(width=3, *, name='x'):\n    return nn.Linear(2, width)\n"
        "def number():\n    return 3\n"
        "def broken():\n    raise KeyError('no such thing')\n"
        "CONSTANT = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "users_networks", raising=False)
    return "users_networks"


def test_the_example_and_a_users_own(networks: str) -> None:
    assert isinstance(build_model(ModelSettings()), SimpleNet)
    model = build_model(ModelSettings(model=f"{networks}:linear", model_args={"width": 5}))
    assert isinstance(model, nn.Linear)
    assert model.out_features == 5
    assert not model.training


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet", "unknown model 'resnet': it is 'simplenet' or 'package.module:callable'"),
        ("nowhere_at_all:net", "no module 'nowhere_at_all' can be imported"),
        (
            "torch.nn:modul",
            "has no 'modul'; did you mean 'Module'",
        ),  # and not the module `modules`, which is no callable
        ("users_networks:liner", "has no 'liner'; did you mean 'linear'"),
        ("users_networks:CONSTANT", "names a int"),
        ("users_networks:number", "gave a int; it must give a torch.nn.Module"),
        ("users_networks:broken", "failed: KeyError: 'no such thing'"),
    ],
)
def test_what_is_no_network(networks: str, spec: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_model(ModelSettings(model=spec))


def test_arguments_that_it_does_not_take(networks: str) -> None:
    with pytest.raises(ModelError, match=r"can't be called with .*'depth'.*--model-args.NAME"):
        build_model(ModelSettings(model=f"{networks}:linear", model_args={"depth": 5}))


@pytest.mark.parametrize("form", ["safetensors", "plain", "checkpoint", "parallel"])
def test_weights(tmp_path: Path, form: str) -> None:
    state = SimpleNet().state_dict()
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "safetensors":
        save_file(state, path)
    else:
        saved = {f"module.{name}": value for name, value in state.items()} if form == "parallel" else state
        torch.save({"state_dict": saved, "epoch": 3} if form == "checkpoint" else saved, path)
    model = build_model(ModelSettings(weights=path))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_weights_of_another_network(tmp_path: Path) -> None:
    state = SimpleNet().state_dict()
    state["fc3.weight"] = torch.zeros(5, 84)
    state["fc4.weight"] = state.pop("fc3.bias")
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ModelError) as caught:
        build_model(ModelSettings(weights=tmp_path / "w.safetensors"))
    for text in (
        "the file lacks fc3.bias",
        "the model has no fc4.weight",
        "fc3.weight is (5, 84) in the file, (10, 84) in the model",
    ):
        assert text in str(caught.value)


def test_weights_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no weights file"):
        build_model(ModelSettings(weights=tmp_path / "none.pt"))
    (tmp_path / "w.safetensors").write_bytes(b'\x08\x00\x00\x00\x00\x00\x00\x00{"a":')
    with pytest.raises(ModelError, match=r"can't read the weights.*truncated"):
        build_model(ModelSettings(weights=tmp_path / "w.safetensors"))
    torch.save([1, 2], tmp_path / "w.pt")
    with pytest.raises(ModelError, match="holds no state dict"):
        build_model(ModelSettings(weights=tmp_path / "w.pt"))


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    torch.save(SimpleNet(), tmp_path / "whole.pt")
    with pytest.raises(ModelError, match="could run code"):
        build_model(ModelSettings(weights=tmp_path / "whole.pt"))
