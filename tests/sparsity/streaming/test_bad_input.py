"""Shards that are missing, truncated or of another model, full disks: clear errors, and nothing half-written."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import secateur as sc
from secateur.errors import ArtifactError, DataError, ModelError, OutputError, SecateurError, SparsityError
from secateur.sparsity.streaming.tensors import opened, read
from support.streamed import contents, model_of, prune, written

INDEX = "model.safetensors.index.json"


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    written(model_of("llama"), tmp_path / "dense")
    return tmp_path


def shards(folder: Path) -> list[Path]:
    return sorted((folder / "dense").glob("*.safetensors"))


def fails(folder: Path, kind: type[SecateurError], match: str, **settings: Any) -> None:
    """The call fails so, leaves the source as it was, and no result."""
    before = contents(folder / "dense")
    with pytest.raises(kind, match=match):
        prune(folder, **settings)
    assert contents(folder / "dense") == before
    assert not (folder / "sparse").exists()


def test_missing_shards_are_all_named(dense: Path):
    first, second, *rest = shards(dense)
    first.unlink()
    second.unlink()
    fails(dense, ArtifactError, rf"2 of the {len(rest) + 2} files .* {first.name}, {second.name}")


def test_a_truncated_shard(dense: Path):
    shard = shards(dense)[1]
    shard.write_bytes(shard.read_bytes()[:-2])
    fails(dense, ArtifactError, rf"{shard.name}' has [\d,]+ bytes, and its header speaks of [\d,]+: it is truncated")


@pytest.mark.parametrize("length", [0, 5, 40])
def test_a_shard_that_ends_in_its_header(dense: Path, length: int):
    shard = shards(dense)[0]
    shard.write_bytes(shard.read_bytes()[:length])
    fails(dense, ArtifactError, "no whole safetensors file")


def test_a_header_that_contradicts_itself(dense: Path):
    shard = shards(dense)[0]
    raw = shard.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    name = next(n for n in header if n != "__metadata__")
    header[name]["shape"] = [1, 1]
    changed = json.dumps(header).encode()
    shard.write_bytes(len(changed).to_bytes(8, "little") + changed + raw[8 + length :])
    fails(dense, ArtifactError, r"of shape \[1, 1\], .* contradicts itself")


def test_an_index_that_names_what_is_not_there(dense: Path):
    file = dense / "dense" / INDEX
    index = json.loads(file.read_text())
    index["weight_map"]["model.ghost.weight"] = shards(dense)[0].name
    del index["weight_map"]["model.norm.weight"]
    file.write_text(json.dumps(index))
    fails(dense, ArtifactError, r"names 1 that are not there: model.ghost.weight .*leaves out 1 that are: model.norm")


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}'])
def test_an_index_that_is_none(dense: Path, text: str):
    (dense / "dense" / INDEX).write_text(text)
    fails(dense, ArtifactError, "can't read the index")


def test_an_index_that_leads_elsewhere(dense: Path):
    file = dense / "dense" / INDEX
    index = json.loads(file.read_text())
    index["weight_map"]["model.norm.weight"] = "../away.safetensors"
    file.write_text(json.dumps(index))
    fails(dense, ArtifactError, "outside its folder: ../away.safetensors")


def test_no_checkpoint_at_all(tmp_path: Path):
    with pytest.raises(ArtifactError, match="is no folder"):
        sc.sparsify(tmp_path / "nowhere", output=tmp_path / "out")
    (tmp_path / "bare").mkdir()
    with pytest.raises(ArtifactError, match=r"no config\.json"):
        sc.sparsify(tmp_path / "bare", output=tmp_path / "out")
    (tmp_path / "bare" / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"neither model\.safetensors nor"):
        sc.sparsify(tmp_path / "bare", output=tmp_path / "out")


def edited(folder: Path, name: str, change: Any) -> None:
    """Change one tensor of the checkpoint."""
    for shard in shards(folder):
        tensors = load_file(shard)
        if name in tensors:
            tensors[name] = change(tensors[name])
            save_file(tensors, shard, metadata={"format": "pt"})


UP = "model.layers.1.mlp.up_proj.weight"


def test_weights_of_other_dtypes_are_all_named(dense: Path):
    edited(dense, UP, lambda t: t.to(torch.float8_e4m3fn))
    edited(dense, "model.layers.2.mlp.up_proj.weight", lambda t: t.half())
    fails(dense, ArtifactError, r"must be float32.* 2 are not: .*layers.1.mlp.up_proj.weight is F8_E4M3, .*is F16")


def test_other_tensors_may_have_other_dtypes(dense: Path):
    edited(dense, "model.layers.1.input_layernorm.weight", lambda t: t.double())
    prune(dense)
    after = [load_file(f) for f in (dense / "sparse").glob("*.safetensors")]
    assert (
        next(
            t["model.layers.1.input_layernorm.weight"]
            for t in after
            if UP in t or "model.layers.1.input_layernorm.weight" in t
        ).dtype
        == torch.float64
    )


def test_shapes_of_another_model(dense: Path):
    edited(dense, UP, lambda t: t[:-1].contiguous())
    fails(
        dense,
        ArtifactError,
        rf"does not fit LlamaForCausalLM: 1 have other shapes \({UP} is \[23, 16\], not \[24, 16\]",
    )


def test_tensors_that_the_model_needs(dense: Path):
    file = dense / "dense" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_hidden_layers": 4}))
    fails(dense, ArtifactError, r"it lacks 9 \(model.layers.3")


def test_a_configuration_that_nobody_knows(dense: Path):
    (dense / "dense" / "config.json").write_text('{"model_type": "nobody_knows", "architectures": ["Nobody"]}')
    fails(dense, ModelError, "can't build the model")


def test_nan_in_a_weight(dense: Path):
    edited(dense, UP, lambda t: t.index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(torch.nan)))
    fails(dense, ModelError, f"NaN or infinite weights in {UP}")


def test_nan_among_activations(dense: Path):
    edited(dense, "model.embed_tokens.weight", lambda t: t * torch.inf)
    fails(dense, DataError, "NaN or infinite")


def test_a_full_disk_at_the_start(dense: Path, monkeypatch: pytest.MonkeyPatch):
    def full(handle: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        fails(dense, OutputError, "No space left on device; the disk is full")
    prune(dense)


def test_too_little_room_is_seen_before_anything_is_written(dense: Path, monkeypatch: pytest.MonkeyPatch):
    import shutil

    usage = shutil.disk_usage(dense)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    fails(dense, OutputError, r"takes [\d,]+ bytes, and .* has 1,000 free")


@pytest.mark.parametrize("writes", [3, 40])
def test_a_disk_that_fills_up_on_the_way(dense: Path, monkeypatch: pytest.MonkeyPatch, writes: int):
    """The same call goes on when there is room again, to the same bytes."""
    prune(dense, "whole")
    left, write = [writes], os.pwrite

    def filling(handle: int, data: Any, start: int) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(handle, data[: max(len(data) // 2, 1)], start)  # and in pieces, as systems may

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", filling)
        fails(dense, OutputError, "the disk is full: make room, and call again")
    prune(dense)
    assert contents(dense / "sparse") == contents(dense / "whole")


def test_arguments_that_a_checkpoint_does_not_go_with(dense: Path):
    fails(
        dense, SparsityError, "needs gradients, which run through the whole model", importance="taylor", compensate=None
    )
    for allocation in ("global", "owl"):
        fails(dense, SparsityError, "looks at all weights of the dense model", allocation=allocation)
    fails(dense, SparsityError, "give one of 'memory', 'disk'", activations="tape")
    fails(dense, SparsityError, "lm_head.weight lie outside", only=["lm_head", "model.layers.0"])
    fails(
        dense,
        SparsityError,
        "18 weights can't be pruned as asked: .*q_proj.weight: shape",
        pattern=sc.NM(5, 6),
        strict=True,
    )
    fails(dense, DataError, "holds no sample", data=[])
    with pytest.raises(SparsityError, match="pruned to output="):
        sc.sparsify(dense / "dense")  # pyright: ignore[reportCallIssue, reportArgumentType]
    with pytest.raises(SparsityError, match="output= is for a checkpoint"):
        sc.sparsify(torch.nn.Linear(2, 2), output="away")  # pyright: ignore[reportCallIssue, reportArgumentType]


def test_weights_that_blocks_share(tmp_path: Path):
    model = model_of("llama")
    layers: Any = model.get_submodule("model.layers")
    layers[1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight
    from secateur.sparsity.layers import find_layers
    from secateur.sparsity.streaming.building import find_blocks
    from secateur.sparsity.streaming.tasks import check_apart

    chosen = find_layers(model).chosen
    blocks = find_blocks(model, {n: 1 for n in chosen if "layers" in n})
    with pytest.raises(SparsityError, match=r"0.mlp.up_proj.weight = model.layers.1.mlp.up_proj.weight"):
        check_apart(chosen, blocks)


def test_a_file_that_is_cut_off_while_it_is_read(dense: Path):
    shard = shards(dense)[0]
    file = opened(shard)
    shard.write_bytes(shard.read_bytes()[: file.data])
    with pytest.raises(ArtifactError, match="cut off while it was read"):
        read(next(iter(file.entries.values())))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int16, torch.bool, torch.float8_e5m2])
def test_tensors_are_read_as_they_were_written(dtype: torch.dtype, tmp_path: Path):
    tensors = {
        "a": torch.randn(3, 5).to(dtype),
        "empty": torch.zeros(0, 2).to(dtype),
        "one": torch.tensor(2.0).to(dtype),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    found = opened(tmp_path / "x.safetensors")
    for name, tensor in tensors.items():
        got = read(found.entries[name])
        assert got.dtype == dtype
        assert torch.equal(got.float(), tensor.float())
