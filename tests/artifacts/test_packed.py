"""Saved results with zeros in their weights: smaller, the same to the bit, and plain where that is asked for."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import secateur as sc
from secateur.artifacts import open_saved, read_record, read_tensors
from secateur.cli import main
from secateur.config import ModelSettings
from secateur.errors import ArtifactError
from secateur.models import build_model
from secateur.modules import named_tensors
from secateur.packed import HEADER
from support.networks import Mlp

HIDDEN = 2048
BUILD = {"callable": "support.networks:Mlp", "args": {"hidden": HIDDEN}}
ENDINGS = {"directory": "", "file": ".safetensors"}
ending = pytest.mark.parametrize("ending", ENDINGS.values(), ids=list(ENDINGS))


def sparse(zeros: float = 0.8) -> tuple[nn.Module, sc.Result]:
    """A dense network, and what pruning its units and then single weights made of it."""
    net = Mlp(HIDDEN)
    result = sc.prune(net, torch.ones(1, 4), keep=0.5)
    with torch.no_grad():
        for layer in (result.model[0], result.model[2]):  # type: ignore[index]
            layer.weight.masked_fill_(torch.rand_like(layer.weight) < zeros, 0.0)
        result.model[0].weight[0] = torch.tensor([-0.0, 1e-42, 0.0, 0.0])  # type: ignore[index]
    return net, result


def same(a: nn.Module, b: nn.Module) -> bool:
    first, second = named_tensors(a), named_tensors(b)
    return first.keys() == second.keys() and all(
        torch.equal(t.detach().reshape(-1).view(torch.uint8), second[n].detach().reshape(-1).view(torch.uint8))
        for n, t in first.items()
    )


def size(path: Path) -> int:
    return (path / "model.safetensors" if path.is_dir() else path).stat().st_size


@ending
def test_smaller_and_the_same(ending: str, tmp_path: Path) -> None:
    net, result = sparse()
    path, plain = tmp_path / f"packed{ending}", tmp_path / f"plain{ending}"
    sc.save(result, path, BUILD)
    sc.save(result, plain, BUILD, plain=True)
    assert size(path) < size(plain) * (0.5 if not ending else 0.9)
    assert [read_record(p)["version"] for p in (path, plain)] == [3, 2]
    for saved in (path, plain):
        assert same(sc.load(saved), result.model)
        assert same(sc.load(saved, model=net), result.model)
    stem = "model/" if ending else ""
    assert f"{stem}{HEADER}" in load_file(path if ending else path / "model.safetensors")
    assert f"{stem}0.weight" in load_file(plain if ending else plain / "model.safetensors")


@ending
def test_a_network_without_zeros_is_written_as_ever(ending: str, tmp_path: Path) -> None:
    result = sc.prune(Mlp(HIDDEN), torch.ones(1, 4), keep=0.5)
    for name, plain in (("a", False), ("b", True)):
        sc.save(result, tmp_path / f"{name}{ending}", plain=plain)
    assert read_record(tmp_path / f"a{ending}")["version"] == 2
    files = [tmp_path / f"{name}{ending}" for name in "ab"]
    held = [load_file(p if ending else p / "model.safetensors") for p in files]
    assert held[0].keys() == held[1].keys()
    if not ending:
        assert (
            files[0].joinpath("model.safetensors").read_bytes() == files[1].joinpath("model.safetensors").read_bytes()
        )


def test_tensors_are_in_memory_of_their_own(tmp_path: Path) -> None:
    _, result = sparse()
    sc.save(result, tmp_path / "packed")
    found = open_saved(tmp_path / "packed").tensors("model.safetensors")
    assert len({t.untyped_storage().data_ptr() for t in found.values()}) == len(found)
    assert all(t.is_contiguous() and t.data_ptr() % 16 == 0 for t in found.values())


def test_tied_weights(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).relu())

    net = Net()
    with torch.no_grad():
        net.first.weight.masked_fill_(torch.rand(64, 64) < 0.7, 0.0)
    sc.save(net, tmp_path / "tied", args=torch.randn(2, 64))
    assert read_record(tmp_path / "tied")["version"] == 3
    loaded = sc.load(tmp_path / "tied", model=Net())
    assert same(loaded, net)
    assert loaded.first.weight is loaded.second.weight


def test_half_precision(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64)).bfloat16()
    with torch.no_grad():
        net[0].weight.masked_fill_(torch.rand(128, 64) < 0.5, 0.0)
    sc.save(net, tmp_path / "half", args=torch.randn(2, 64).bfloat16())
    assert read_record(tmp_path / "half")["version"] == 3
    assert same(sc.load(tmp_path / "half", model=nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))), net)


@ending
def test_undoing_and_further_tensors(ending: str, tmp_path: Path) -> None:
    """What undoing needs is packed, too; other tensors and the probe are as they were given."""
    net = Mlp(HIDDEN)
    with torch.no_grad():
        net[0].weight.masked_fill_(torch.rand(HIDDEN, 4) < 0.8, 0.0)
        net[2].weight.masked_fill_(torch.rand(2, HIDDEN) < 0.8, 0.0)
    wanted = named_tensors(net)
    result = sc.prune(net, torch.zeros(64, 4), keep=0.5)
    path = tmp_path / f"kept{ending}"
    sc.save(result, path, BUILD, keep_removed=True, extra={"more": {"z": torch.zeros(5000)}})
    sc.artifacts.add_tensors(path, "later", {"v": torch.zeros(5000)})
    assert read_record(path)["version"] == 3
    assert read_tensors(path, "more")["z"].numel() == 5000
    raw = load_file(path if ending else path / "removed.safetensors")
    assert ("removed/" * bool(ending) + HEADER) in raw
    assert ("later/v" in raw) == bool(ending)
    undone = named_tensors(sc.undo(path))
    assert all(torch.equal(undone[name], tensor) for name, tensor in wanted.items())
    assert same(sc.load(path), result.model)


def test_what_is_added_to_a_plain_result_stays_plain(tmp_path: Path) -> None:
    _, result = sparse()
    sc.save(result, tmp_path / "plain", plain=True)
    sc.artifacts.add_tensors(tmp_path / "plain", "removed", {"u": torch.zeros(5000)})
    assert read_record(tmp_path / "plain")["version"] == 2
    assert load_file(tmp_path / "plain" / "removed.safetensors").keys() == {"u"}


def test_differences_are_of_weights_and_not_of_files(tmp_path: Path) -> None:
    _, result = sparse()
    sc.save(result, tmp_path / "packed")
    sc.save(result, tmp_path / "plain", plain=True)
    sc.save(result, tmp_path / "file.safetensors")
    assert sc.diff(tmp_path / "packed", tmp_path / "plain").same_weights
    assert sc.diff(tmp_path / "plain", tmp_path / "file.safetensors").same_weights
    with torch.no_grad():
        result.model[2].bias += 1  # type: ignore[index]
    sc.save(result, tmp_path / "other")
    assert not sc.diff(tmp_path / "other", tmp_path / "plain").same_weights


def test_weights_for_the_command_line_may_be_packed(tmp_path: Path) -> None:
    net = Mlp(HIDDEN)
    with torch.no_grad():
        net[0].weight.masked_fill_(torch.rand(HIDDEN, 4) < 0.8, 0.0)
    sc.save(net, tmp_path / "net", args=torch.ones(1, 4))
    settings = ModelSettings(
        model="support.networks:Mlp", model_args={"hidden": HIDDEN}, weights=tmp_path / "net" / "model.safetensors"
    )
    assert same(build_model(settings), net)


def test_plain_weights_for_other_tools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _, result = sparse()
    sc.save(result, "small", BUILD)
    assert main(["export", "small", "--format", "safetensors", "--trust"]) == 0
    assert "the weights alone" in capsys.readouterr().out
    found = load_file("small.safetensors")
    assert found.keys() == result.model.state_dict().keys()
    assert all(torch.equal(found[n], t) for n, t in result.model.state_dict().items())
    assert found["0.weight"][0].view(torch.int32).tolist()[0] == -(2**31), "a negative zero"
    written = sc.export(result, "again.safetensors")
    assert (written.format, written.size_bytes) == ("safetensors", Path("small.safetensors").stat().st_size)


def test_bounds_count_what_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that needs more than its small file may ask for, but no more than its weights may."""
    seen: list[int] = []
    limits = sc.artifacts.bounds.Limits
    whole = limits.of_probe
    monkeypatch.setattr(limits, "of_probe", staticmethod(lambda size: (seen.append(size), whole(size))[1]))
    net = nn.Sequential(nn.Linear(256, 256))
    with torch.no_grad():
        net[0].weight.masked_fill_(torch.rand(256, 256) < 0.98, 0.0)
    sc.save(net, tmp_path / "net", args=torch.ones(1, 256))
    sc.load(tmp_path / "net", model=nn.Sequential(nn.Linear(256, 256)))
    assert seen == [4 * (256 * 256 + 256)]


@pytest.mark.parametrize("how", ["another version", "a bomb", "a place too many", "no values"])
@ending
def test_damage_with_hashes_that_fit(how: str, ending: str, tmp_path: Path) -> None:
    from support.damage import Parts

    _, result = sparse()
    sc.save(result, tmp_path / "whole", BUILD)
    parts = Parts.of(tmp_path / "whole")
    held = parts.tensors["model.safetensors"]
    header = json.loads(bytes(held[HEADER].numpy()))
    if how == "another version":
        header["version"] = 2
    if how == "a bomb":
        header["tensors"]["0.weight"]["shape"] = [2**30, 2**20]
    if how == "no values":
        del held["0.weight#values"]
    if how == "a place too many":
        held["2.weight#places"][0] ^= 1
    held[HEADER] = torch.frombuffer(bytearray(json.dumps(header).encode()), dtype=torch.uint8)
    parts.write(tmp_path / f"damaged{ending}")
    said: dict[str, Any] = {
        "another version": "this secateur reads version 1",
        "a bomb": r"0\.weight is said to have the shape .* which its bytes can't hold",
        "a place too many": r"2\.weight has places for .* values, but",
        "no values": r"0\.weight#values is missing",
    }
    with pytest.raises(ArtifactError, match=said[how]):
        sc.load(tmp_path / f"damaged{ending}")
