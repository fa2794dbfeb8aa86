"""Results of every format version load for ever; those in ``formats/`` were written when theirs was the newest."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import secateur as sc
from secateur.artifacts import read_record, read_tensors
from secateur.errors import ArtifactError
from secateur.provenance import history, note_step
from support.networks import Mlp

FORMATS = Path(__file__).parent / "formats"
ENDINGS = {"directory": "", "file": ".safetensors"}


def check(version: int, name: str, ending: str) -> nn.Module:
    held = load_file(FORMATS / f"v{version}.safetensors")
    loaded = sc.load(FORMATS / f"v{version}-{name}{ending}")
    with torch.no_grad():  # written on another processor, where a convolution may add in another order
        torch.testing.assert_close(loaded(held[f"{name}.input"]), held[f"{name}.output"], rtol=1e-5, atol=1e-7)
    return loaded


@pytest.mark.parametrize("name", ["kept", "graph"])
def test_version_1(name: str, tmp_path: Path) -> None:
    loaded = check(1, name, "")
    record = read_record(FORMATS / f"v1-{name}")
    assert (record["version"], record["history"], record["about"], record["parent"]) == (1, [], {}, None)
    build = "support.networks:Mlp" if name == "kept" else None
    sc.save(loaded, tmp_path / "again.safetensors", build=build)
    assert read_record(tmp_path / "again.safetensors")["version"] == 2
    assert str(sc.load(tmp_path / "again.safetensors")) == str(loaded)


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=list(ENDINGS))
@pytest.mark.parametrize("name", ["kept", "graph"])
def test_version_2(name: str, ending: str) -> None:
    loaded = check(2, name, ending)
    path = FORMATS / f"v2-{name}{ending}"
    record = read_record(path)
    assert record["version"] == 2
    assert record["about"] == {"name": "A small net", "licence": "mit", "tags": ["test"]}
    assert [(done["step"], done["seed"]) for done in history(loaded)] == [("prune", 0), ("tune", 3)]
    assert (record["importance"], record["seed"], record["data"]) == ("l2", 3, "random numbers")
    assert record["parent"] == record["history"][0]["parent"]
    assert len(record["parent"]) == 64
    assert read_tensors(path, "removed")["x"].tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=list(ENDINGS))
def test_version_3(ending: str) -> None:
    """Weights with zeros, packed as a mask and as groups; they are whole numbers, whose sums are exact everywhere."""
    loaded = check(3, "kept", ending)
    record = read_record(FORMATS / f"v3-kept{ending}")
    assert (record["version"], record["about"]["name"]) == (3, "A sparse net")
    assert [int((loaded[k].weight == 0).sum()) for k in (0, 2)] == [3072, 1427]  # type: ignore[index]
    stored = load_file(FORMATS / f"v3-kept{ending}" if ending else FORMATS / "v3-kept" / "model.safetensors")
    assert {"0.weight#places", "2.weight#values", "secateur.packed", "2.bias"} <= {
        name.removeprefix("model/") for name in stored
    }


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=list(ENDINGS))
def test_history_goes_on(ending: str, tmp_path: Path) -> None:
    """What was loaded, tuned, pruned again and saved keeps its lineage, in copies too."""
    loaded = sc.load(FORMATS / f"v2-kept{ending}")
    note_step(loaded, "tune", figures={"params": 30}, seed=4)
    again = sc.prune(loaded, torch.randn(2, 4), keep=0.5, importance="l1", seed=5)
    sc.save(again, tmp_path / f"again{ending}", build="support.networks:Mlp")
    record = read_record(tmp_path / f"again{ending}")
    assert [done["step"] for done in record["history"]] == ["prune", "tune", "tune", "prune"]
    assert (record["importance"], record["seed"]) == ("l1", 5)
    assert record["parent"] == read_record(FORMATS / "v2-kept")["parent"], "the dense model of old"
    assert record["history"][-1]["parent"] != record["parent"]
    assert record["about"]["licence"] == "mit"
    assert [done["step"] for done in history(sc.load(tmp_path / f"again{ending}"))] == [
        "prune",
        "tune",
        "tune",
        "prune",
    ]


def test_the_parent_is_known_by_its_weights() -> None:
    net = Mlp()
    first, second = (history(sc.prune(net, torch.randn(2, 4), keep=0.5).model)[0]["parent"] for _ in range(2))
    assert first == second
    with torch.no_grad():
        net[2].bias[0] += 1e-6
    assert history(sc.prune(net, torch.randn(2, 4), keep=0.5).model)[0]["parent"] != first


def test_the_weights_hold_nothing_else(tmp_path: Path) -> None:
    """Equal models give equal bytes, wherever and whenever they are saved."""
    net, found = Mlp(), []
    for place in ("a", "b"):
        result = sc.prune(net, torch.ones(2, 4), keep=0.5)
        sc.save(result, tmp_path / place, about={"name": place}, figures={"pruned": {"latency_ms": len(found)}})
        found.append((tmp_path / place / "model.safetensors").read_bytes())
    assert found[0] == found[1]
    assert b"secateur" not in found[0]


def test_further_tensors(tmp_path: Path) -> None:
    for path in (tmp_path / "a", tmp_path / "a.safetensors"):
        sc.save(sc.prune(Mlp(), torch.ones(2, 4), keep=0.5), path, extra={"removed": {"w": torch.ones(2, 2)}})
        sc.artifacts.add_tensors(path, "more", {"v": torch.zeros(3).half()})
        sc.artifacts.add_tensors(path, "removed", {"u": torch.ones(1)})
        assert read_tensors(path, "removed").keys() == {"u"}
        assert read_tensors(path, "more")["v"].dtype == torch.float16
        sc.load(path, model=Mlp())
        with pytest.raises(ArtifactError, match=r"holds no nothing\.safetensors; it has .*model\.safetensors"):
            read_tensors(path, "nothing")
        for name in ("model", "probe", "../x", "a.b", ""):
            with pytest.raises(ArtifactError, match="use letters, digits, - and _, and no taken name"):
                sc.artifacts.add_tensors(path, name, {})


def test_further_tensors_are_checked(tmp_path: Path) -> None:
    sc.save(sc.prune(Mlp(), torch.ones(2, 4), keep=0.5), tmp_path / "a", extra={"removed": {"w": torch.ones(2)}})
    file = tmp_path / "a" / "removed.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x07")
    with pytest.raises(ArtifactError, match=r"removed\.safetensors is not the file that was saved"):
        sc.load(tmp_path / "a", model=Mlp())
    file.unlink()
    with pytest.raises(ArtifactError, match=r"removed\.safetensors is missing"):
        sc.load(tmp_path / "a", model=Mlp())


def test_single_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no such file"):
        sc.load(tmp_path / "nowhere.safetensors")
    shutil.copy(FORMATS / "v2-kept" / "model.safetensors", tmp_path / "weights.safetensors")
    with pytest.raises(ArtifactError, match="holds no saved result: weights alone, without what rebuilds their model"):
        sc.load(tmp_path / "weights.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(ArtifactError, match="can't be read"):
        sc.load(tmp_path / "text.safetensors")
