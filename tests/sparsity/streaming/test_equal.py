"""A checkpoint pruned from disk to disk becomes what the model becomes in memory, bit by bit."""

from pathlib import Path
from typing import Any

import pytest
import torch

import secateur as sc
from secateur.errors import ModelError
from support.streamed import contents, model_of, prune, tokens, written

WAYS: dict[str, dict[str, Any]] = {
    "wanda": {},
    "sparsegpt": {"compensate": "sparsegpt"},
    "2:4 refitted": {"pattern": sc.NM(2, 4), "compensate": "sparsegpt+alps"},
    "ria by size": {"importance": "ria", "allocation": "erk", "sparsity": 0.6},
    "random": {"importance": "random", "data": None, "seed": 3},
    "threshold": {"importance": "magnitude", "threshold": 0.5},
}


def check_equal(model: Any, folder: Path, **settings: Any) -> Any:
    """Prune both, and compare every tensor; gives what streaming gave."""
    settings = {"data": tokens(), **settings}
    kind = type(model)
    dense = kind.from_pretrained(written(model, folder / "dense"), dtype=model.dtype)
    streamed = sc.sparsify(folder / "dense", output=folder / "sparse", **settings)
    away = [n for n, why in streamed.report["sparsity"]["left"].items() if "outside" in why]
    whole = sc.sparsify(dense, **{**settings, "ignore": away})
    loaded = kind.from_pretrained(folder / "sparse", dtype=model.dtype).state_dict()
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(loaded[name], tensor), name
    for name, mask in whole.masks.items():
        assert not bool(loaded[name][~mask].any())
    assert streamed.sparsity == whole.sparsity > 0
    rows, others = (r.report["sparsity"]["layers"] for r in (streamed, whole))
    key = ("name", "shape", "weights", "zeros", "rows", "notes")
    assert [[r[k] for k in key] for r in rows] == [[r[k] for k in key] for r in sorted(others, key=_order(rows))]
    return streamed


def _order(rows: list[dict[str, Any]]) -> Any:
    places = {row["name"]: place for place, row in enumerate(rows)}
    return lambda row: places[row["name"]]


@pytest.mark.parametrize("way", WAYS)
def test_a_llama(way: str, tmp_path: Path):
    found = check_equal(model_of("llama"), tmp_path, **WAYS[way])
    assert found.report["sparsity"]["left"]["lm_head.weight"] == "it lies outside of the repeated blocks"


@pytest.mark.parametrize("kind", ["gpt2", "opt", "qwen", "bloom", "neox"])
def test_other_models(kind: str, tmp_path: Path):
    """Tied heads, Conv1D, windows that differ from block to block, masks of blocks' own, other names on disk."""
    check_equal(model_of(kind), tmp_path, compensate="sparsegpt")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, tmp_path: Path):
    check_equal(model_of("llama", dtype=dtype), tmp_path, compensate="sparsegpt")


def test_activations_on_disk_give_the_same(tmp_path: Path):
    written(model_of("llama"), tmp_path / "dense")
    for where in ("memory", "disk"):
        prune(tmp_path, where, activations=where)
    assert contents(tmp_path / "memory") == contents(tmp_path / "disk")
    assert {p.name for p in tmp_path.iterdir()} == {"dense", "memory", "disk"}


def test_the_inputs_of_a_block_are_those_of_the_pruned_model(tmp_path: Path):
    """Pruning with one block dense changes what is chosen behind it."""
    written(model_of("llama"), tmp_path / "dense")
    whole, part = (prune(tmp_path, to, ignore=ignore) for to, ignore in (("a", ()), ("b", ("model.layers.0",))))
    errors = [{r["name"]: r["error"] for r in found.report["sparsity"]["layers"]} for found in (whole, part)]
    assert errors[0]["model.layers.1.mlp.up_proj.weight"] != errors[1]["model.layers.1.mlp.up_proj.weight"]


def test_files_keep_their_layout_and_what_lies_outside_its_bytes(tmp_path: Path):
    source = written(model_of("llama"), tmp_path / "dense")
    before = contents(source)
    prune(tmp_path)
    after = contents(tmp_path / "sparse")
    assert contents(source) == before
    assert after.keys() == before.keys() - {"pytorch_model.bin"} | {"report.json"}
    shards = [name for name in before if name.endswith(".safetensors")]
    assert len(shards) > 2
    for name in before.keys() - {"pytorch_model.bin"} - set(shards):
        assert after[name] == before[name]
    for name in shards:
        length = 8 + int.from_bytes(before[name][:8], "little")
        assert after[name][:length] == before[name][:length]
        assert len(after[name]) == len(before[name])
    assert any(after[name] != before[name] for name in shards)


def test_one_file_without_an_index(tmp_path: Path):
    written(model_of("llama"), tmp_path / "dense", shard="1GB")
    found = prune(tmp_path)
    assert (tmp_path / "sparse" / "model.safetensors").exists()
    assert found.path == tmp_path / "sparse"
    assert found.report["pruned"]["peak_memory_bytes"] > 10**7
    assert "LlamaForCausalLM" in str(found)


def test_models_that_are_no_chain_of_blocks(tmp_path: Path):
    """T5's blocks take more from one another than activations, and stand in two lists."""
    import transformers

    config = transformers.T5Config(vocab_size=48, d_model=16, d_ff=24, num_layers=2, num_heads=4, d_kv=4)
    written(transformers.T5ForConditionalGeneration(config), tmp_path / "dense")
    data = [{"input_ids": torch.ones(1, 4).long(), "decoder_input_ids": torch.ones(1, 4).long()}]
    with pytest.raises(ModelError, match=r"several lists of blocks .*\(encoder.block, decoder.block\)"):
        prune(tmp_path, data=data)
    with pytest.raises(ModelError, match="takes more than the activations from the blocks before it"):
        prune(tmp_path, data=data, ignore=["decoder"])
