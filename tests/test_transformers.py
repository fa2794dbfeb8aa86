"""Models of transformers pruned uniformly: their config says it, and a plain checkpoint loads without secateur."""

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.configs import per_layer
from secateur.modules import named_tensors
from secateur.tracing.running import tensors_in

transformers: Any = pytest.importorskip("transformers")

VOCABULARY = 64
Inputs = dict[str, Tensor]
DECODER = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
ENCODER = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip


def ids(*names: str) -> Callable[[], Inputs]:
    return lambda: {name: torch.randint(3, VOCABULARY, (2, 7)) for name in ("input_ids", *names)}


def pixels() -> Inputs:
    return {"pixel_values": torch.randn(2, 3, 16, 16)}


MODELS: dict[str, tuple[str, str, dict[str, Any], Callable[[], Inputs], dict[str, int]]] = {
    "llama": (
        "LlamaForCausalLM", "LlamaConfig", DECODER, ids(),
        {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4},
    ),
    "llama-tied": (
        "LlamaForCausalLM", "LlamaConfig", {**DECODER, "tie_word_embeddings": True}, ids(),
        {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4},
    ),
    "mistral": (
        "MistralForCausalLM", "MistralConfig", DECODER, ids(),
        {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4},
    ),
    "qwen2": (
        "Qwen2ForCausalLM", "Qwen2Config", DECODER, ids(),
        {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4},
    ),
    "gpt2": (
        "GPT2LMHeadModel", "GPT2Config",
        {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "bos_token_id": 1,
         "eos_token_id": 2},
        ids(), {"n_embd": 16, "n_head": 2, "n_inner": 64},
    ),
    "bert": (
        "BertForSequenceClassification", "BertConfig", ENCODER, ids(),
        {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24},
    ),
    "vit": (
        "ViTForImageClassification", "ViTConfig",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 16,
         "patch_size": 8, "num_labels": 5},
        pixels, {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24},
    ),
    "t5": (
        "T5ForConditionalGeneration", "T5Config",
        {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
         "decoder_start_token_id": 0},
        ids("decoder_input_ids"), {"d_model": 32, "d_ff": 24},
    ),
    "opt": (
        "OPTForCausalLM", "OPTConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
         "eos_token_id": 2},
        ids(), {"hidden_size": 16, "word_embed_proj_dim": 16, "num_attention_heads": 2, "ffn_dim": 24},
    ),
    "mixtral": (
        "MixtralForCausalLM", "MixtralConfig", {**DECODER, "num_local_experts": 4, "num_experts_per_tok": 2}, ids(),
        {"hidden_size": 16, "intermediate_size": 24, "num_local_experts": 2, "num_key_value_heads": 2},
    ),
}  # fmt: skip


def build(name: str) -> tuple[Any, Inputs]:
    torch.manual_seed(0)
    model, config, values, inputs, _ = MODELS[name]
    return getattr(transformers, model)(getattr(transformers, config)(**values)).eval(), inputs()


def outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    with torch.no_grad():
        return tensors_in(model(**inputs))


@pytest.mark.parametrize("name", MODELS)
def test_a_plain_checkpoint_of_a_uniform_result_loads_plainly(name: str, tmp_path: Path) -> None:
    model, inputs = build(name)
    config, generation = model.config.to_dict(), model.generation_config.to_dict() if model.can_generate() else None
    result = sc.prune(model, inputs, keep=0.5, uniform=True)
    small: Any = result.model
    assert type(small) is type(model)
    assert {key: getattr(small.config, key) for key in MODELS[name][4]} == MODELS[name][4]
    assert model.config.to_dict() == config
    small.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert {n: t.shape for n, t in named_tensors(loaded).items()} == {
        n: t.shape for n, t in named_tensors(small).items()
    }
    for there, here in zip(outputs(loaded, inputs), outputs(small, inputs), strict=True):
        assert torch.equal(there, here)
    if generation is not None:
        assert small.generation_config.to_dict() == generation
        assert len(loaded.generate(inputs["input_ids"], max_new_tokens=2, do_sample=False)) == 2


LOADING = """
import json, sys
sys.modules["secateur"] = None  # importing it fails, wherever it is installed
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
ids = torch.tensor(json.loads(sys.argv[2]))
print(json.dumps(model(ids).logits.tolist()))
print(json.dumps(model.generate(ids, max_new_tokens=4, do_sample=False).tolist()))
"""


def test_a_llama_in_a_process_without_secateur_gives_the_same_logits(tmp_path: Path) -> None:
    model, inputs = build("llama")
    result = sc.prune(model, inputs, budget=sc.Budget(params=0.5), uniform=True)
    small: Any = result.model
    assert result.graph.cost(result.plan.sizes)["params"] <= 0.5 * result.graph.cost()["params"]
    assert small.config.num_attention_heads % small.config.num_key_value_heads == 0
    small.save_pretrained(tmp_path)
    ids = inputs["input_ids"]
    command = [sys.executable, "-c", LOADING, str(tmp_path), json.dumps(ids.tolist())]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    logits, tokens = map(json.loads, done.stdout.strip().splitlines()[-2:])
    with torch.no_grad():
        here = small(ids).logits
    assert (torch.tensor(logits) - here).abs().max() <= 1e-6 * here.abs().max()
    assert tokens == small.generate(ids, max_new_tokens=4, do_sample=False).tolist()


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    model, inputs = build("llama-tied")
    small: Any = sc.prune(model, inputs, keep=0.5, uniform=True).model
    assert small.lm_head.weight is small.model.embed_tokens.weight
    small.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("name", "axis", "reason"),
    [
        ("llama", "model.layers.0.self_attn.v_proj.weight:0/head_dim", "says it as head_dim, .*inv_freq"),
        ("gpt2", "transformer.h.0.attn.c_attn.weight:1/head_dim1", "computes something else: it sets .*scaling to 0.5"),
        ("bert", "bert.encoder.layer.0.attention.self.value.weight:0/head_dim", "it sets .*scaling to 0.5, not 0.3536"),
    ],
)
def test_head_sizes_stay_whole_where_a_table_or_factor_is_computed_from_them(name: str, axis: str, reason: str) -> None:
    model, inputs = build(name)
    result = sc.prune(model, inputs, keep=0.5, uniform=True)
    assert axis in result.graph.frozen
    assert re.search(reason, result.graph.frozen[axis].frozen[0])
    assert axis in sc.trace(model, inputs).axes


def test_blocks_without_uniform_have_widths_of_their_own() -> None:
    """Or the tests above would hold of anything."""
    model, inputs = build("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[:20] *= 0.01
    plan = sc.prune(model, inputs, threshold=0.9, only=["hidden"]).plan
    sizes = {plan.sizes.get(f"model.layers.{k}.mlp.gate_proj.weight:0", 48) for k in range(2)}
    assert len(sizes) == 2
    even = sc.prune(model, inputs, threshold=0.9, only=["hidden"], uniform=True)
    assert {even.plan.sizes.get(f"model.layers.{k}.mlp.gate_proj.weight:0", 48) for k in range(2)} == {
        even.model.config.intermediate_size  # type: ignore[union-attr]
    }


def test_what_a_config_leaves_open_is_written_only_where_it_is_needed() -> None:
    """Qwen2 computes its head size from its width and its heads, while neither changes."""
    model, inputs = build("qwen2")
    small: Any = sc.prune(model, inputs, keep=0.5, uniform=True, only=["hidden"]).model
    assert small.config.intermediate_size == 24
    assert getattr(small.config, "head_dim", None) is None
    small = sc.prune(model, inputs, keep=0.5, uniform=True, only=["residual"]).model
    assert (small.config.hidden_size, small.config.head_dim) == (16, 4)


def test_widths_agree_with_what_the_config_accepts() -> None:
    """A Llama's width has to be a multiple of its heads: 19 is none of 2."""
    model, inputs = build("llama")
    config: Any = sc.prune(model, inputs, keep=0.6, uniform=True).model.config
    assert (config.hidden_size, config.num_attention_heads) == (18, 2)


def test_multiples_and_patterns_hold_in_the_config() -> None:
    model, inputs = build("llama")
    multiple_of = {"residual": 8, "hidden": 16}
    result = sc.prune(model, inputs, keep=0.6, uniform=True, multiple_of=multiple_of, ignore=["heads"])
    config: Any = result.model.config
    assert (config.hidden_size, config.intermediate_size, config.num_attention_heads) == (24, 32, 4)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_results_that_no_config_says_load_through_secateur(name: str, tmp_path: Path) -> None:
    model, inputs = build(name)
    result = sc.prune(model, inputs, budget=sc.Budget(params=0.6))
    sc.save(result, tmp_path / "small")
    fresh, _ = build(name)
    loaded = sc.load(tmp_path / "small", model=fresh)
    for there, here in zip(outputs(loaded, inputs), outputs(result.model, inputs), strict=True):
        assert torch.equal(there, here)
    assert [p.shape for p in fresh.parameters()] == [p.shape for p in model.parameters()]


def uneven() -> tuple[Any, Inputs, sc.Plan, dict[int, int]]:
    """A Llama whose two blocks lose different shares of their hidden units, and the widths that are left."""
    model, inputs = build("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[:20] *= 0.01
    plan = sc.prune(model, inputs, threshold=0.9, only=["hidden"]).plan
    return model, inputs, plan, {k: plan.sizes[f"model.layers.{k}.mlp.gate_proj.weight:0"] for k in range(2)}


def test_blocks_of_their_own_widths_can_be_said_per_layer() -> None:
    model, inputs, plan, widths = uneven()
    assert len(set(widths.values())) == 2
    assert per_layer(model, plan, inputs) == {k: {"intermediate_size": w} for k, w in widths.items()}


def test_a_config_takes_what_is_said_per_layer() -> None:
    model, inputs, plan, widths = uneven()
    if not hasattr(model.config, "per_layer_config"):
        pytest.skip(f"transformers {transformers.__version__} has no per_layer_config")
    model.config.per_layer_config = per_layer(model, plan, inputs)
    again = type(model.config).from_dict(model.config.to_dict())
    assert {k: again.per_layer_config[k].intermediate_size for k in range(2)} == widths


def test_the_page_tells_the_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs/transformers.md").read_text()
    found = re.search(r"<!-- example -->\n```python\n(.*?)```\n+```text\n(.*?)```", page, re.DOTALL)
    assert found is not None
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(found[1], "transformers.md", "exec"), {"__name__": "page"})
    assert printed.getvalue() == found[2]


def test_per_layer_says_nothing_of_a_model_without_a_config() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    plan = sc.prune(model, torch.randn(2, 4), keep=0.5).plan
    assert per_layer(model, plan, torch.randn(2, 4)) == {}


def test_a_uniform_result_loads_through_secateur_too(tmp_path: Path) -> None:
    model, inputs = build("llama")
    result = sc.prune(model, inputs, keep=0.5, uniform=True)
    sc.save(result, tmp_path / "small")
    loaded: Any = sc.load(tmp_path / "small", model=build("llama")[0])
    assert loaded.config.hidden_size == 16
    for there, here in zip(outputs(loaded, inputs), outputs(result.model, inputs), strict=True):
        assert torch.equal(there, here)
