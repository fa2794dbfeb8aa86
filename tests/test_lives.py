"""The pruned model lives on: whatever people do with a model, they do with the smaller one."""

import copy
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import secateur as sc
from secateur.examples import SimpleNet
from support.networks import Residual, llama

COMPILERS = [name for name in ("g++", "clang++", "c++") if shutil.which(name)]
BACKENDS = [
    "aot_eager",
    pytest.param(
        "inductor",
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(not COMPILERS, reason="the inductor backend needs a C++ compiler: g++ or clang++"),
        ],
    ),
]


@dataclass
class Life:
    """A pruned model with what it was pruned on."""

    dense: nn.Module
    small: nn.Module
    inputs: dict[str, Tensor]

    def run(self, model: Callable[..., Any], times: int = 1) -> Tensor:
        """The model's output, on the inputs repeated along the batch."""
        out = model(**{name: torch.cat([t] * times) for name, t in self.inputs.items()}, **self.options)
        return out if isinstance(out, Tensor) else out.logits

    @property
    def options(self) -> dict[str, Any]:
        return {"use_cache": False} if "input_ids" in self.inputs else {}

    def gradients(self, model: Callable[..., Any]) -> list[Tensor]:
        """The gradients of the smaller model's parameters after a pass through something that holds it."""
        self.small.zero_grad()
        self.run(model).square().mean().backward()
        return [p.grad.clone() for p in self.small.parameters() if p.grad is not None]

    @property
    def batches(self) -> dict[str, Any]:
        """A dynamic batch for every tensor among the inputs, for export."""
        batch = torch.export.Dim("batch", min=1, max=64)
        return {**{name: {0: batch} for name in self.inputs}, **dict.fromkeys(self.options)}


def cnn() -> tuple[nn.Module, dict[str, Tensor]]:
    return Residual(), {"x": torch.randn(2, 3, 8, 8)}


def literal() -> tuple[nn.Module, dict[str, Tensor]]:
    return SimpleNet(), {"x": torch.randn(2, 1, 10, 10)}


def language() -> tuple[nn.Module, dict[str, Tensor]]:
    return llama(), {"input_ids": torch.randint(64, (2, 7))}


@pytest.fixture(scope="module", params=[cnn, literal, language], ids=["cnn", "rewritten cnn", "llama"])
def pruned(request: pytest.FixtureRequest) -> Life:
    torch.manual_seed(0)
    model, inputs = request.param()
    result = sc.prune(model, inputs, keep=0.5)
    assert (result.rewritten is not None) == (request.param is literal)
    assert isinstance(result.model, type(model)) != (request.param is literal)
    return Life(model, result.model, inputs)


@pytest.fixture
def life(pruned: Life) -> Life:
    """The pruned model once more, as it was: in evaluation mode, without gradients."""
    return Life(pruned.dense, copy.deepcopy(pruned.small).eval(), pruned.inputs)


def assert_same(got: list[Tensor], expected: list[Tensor]) -> None:
    assert expected
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


# ---------------------------------------------------------------------- compiled and exported


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch's own, at the import of inductor
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_it_computes_the_same_and_trains(life: Life, backend: str) -> None:
    import torch._inductor.config as inductor

    torch._dynamo.reset()
    with inductor.patch(compile_threads=1):
        compiled = torch.compile(life.small, backend=backend)
        assert_same([life.run(compiled)], [life.run(life.small)])
        assert_same(life.gradients(compiled), life.gradients(life.small))
    torch._dynamo.reset()


def test_exported_it_takes_any_batch(life: Life) -> None:
    program = torch.export.export(
        life.small, (), {**life.inputs, **life.options}, dynamic_shapes=life.batches, strict=False
    )
    for times in (1, 3):
        assert_same([life.run(program.module(), times)], [life.run(life.small, times)])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_onnx_runtime_computes_the_same(life: Life, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="torch.onnx exports through onnxscript")
    runtime = pytest.importorskip("onnxruntime", reason="runs what was exported")
    program = torch.onnx.export(
        life.small, (), kwargs={**life.inputs, **life.options}, dynamo=True, dynamic_shapes=life.batches, verbose=False
    )
    assert program is not None
    program.save(tmp_path / "small.onnx")
    session = runtime.InferenceSession(tmp_path / "small.onnx")
    for times in (1, 3):
        feed = {name: torch.cat([t] * times).numpy() for name, t in life.inputs.items()}
        assert_same([torch.from_numpy(session.run(None, feed)[0])], [life.run(life.small, times)])


# ---------------------------------------------------------------------- trained


def test_under_autocast_it_computes_and_trains_in_bfloat16(life: Life) -> None:
    exact = life.run(life.small)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = life.run(life.small)
        gradients = life.gradients(life.small)
    assert rounded.dtype == torch.bfloat16
    assert (rounded - exact).abs().max() < 0.02 * exact.abs().max() + 0.02
    assert all(g.isfinite().all() for g in gradients)
    assert any(g.any() for g in gradients)


def test_distributed_data_parallel_gives_the_same_gradients(life: Life, tmp_path: Path) -> None:
    expected = life.gradients(life.small)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert_same(life.gradients(nn.parallel.DistributedDataParallel(life.small)), expected)
    finally:
        torch.distributed.destroy_process_group()


PROCESS = """
import os, sys, torch, secateur as sc
folder, rank = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
model = torch.nn.parallel.DistributedDataParallel(sc.load(f"{folder}/small"))
batch = torch.load(f"{folder}/batch.pt").chunk(2)[rank]
model(batch).square().mean().backward()
if rank == 0:
    torch.save([p.grad for p in model.parameters()], f"{folder}/gradients.pt")
torch.distributed.barrier()
del model  # it holds the group
torch.distributed.destroy_process_group()
os._exit(0)  # gloo's threads may abort a process that takes the interpreter down: not ours to test
"""


@pytest.mark.slow
def test_two_processes_average_their_gradients(tmp_path: Path) -> None:
    """Each loads the saved graph, which needs no source code, and takes half of the batch."""
    result = sc.prune(SimpleNet(), torch.randn(2, 1, 10, 10), keep=0.5)
    sc.save(result, tmp_path / "small")
    batch = torch.randn(6, 1, 10, 10)
    torch.save(batch, tmp_path / "batch.pt")
    running = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(tmp_path), str(rank)], stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], errors
    result.model.eval()(batch).square().mean().backward()
    assert_same(torch.load(tmp_path / "gradients.pt"), [p.grad for p in result.model.parameters()])  # type: ignore[misc]


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_it_gives_the_same_gradients(life: Life, reentrant: bool) -> None:
    started = torch.zeros((), requires_grad=True)  # a reentrant checkpoint wants an input with a gradient

    def call(**inputs: Any) -> Any:
        def run(_: Tensor) -> Tensor:
            out = life.small(**inputs)
            return out if isinstance(out, Tensor) else out.logits

        return checkpoint(run, started, use_reentrant=reentrant)

    assert_same(life.gradients(call), life.gradients(life.small))


# ---------------------------------------------------------------------- copied and stored


def test_a_deep_copy_is_equal_and_independent(life: Life) -> None:
    before = life.run(life.small)
    twin = copy.deepcopy(life.small)
    assert torch.equal(life.run(twin), before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(life.run(life.small), before)
    assert not torch.equal(life.run(twin), before)


def test_a_state_dict_loads_strictly_into_a_copy_and_not_into_the_original(life: Life) -> None:
    other = copy.deepcopy(life.small)
    nn.init.normal_(next(other.parameters()))
    assert not torch.equal(life.run(other), life.run(life.small))
    assert str(other.load_state_dict(life.small.state_dict())) == "<All keys matched successfully>"
    assert torch.equal(life.run(other), life.run(life.small))
    with pytest.raises(RuntimeError, match="size mismatch"):
        life.dense.load_state_dict(life.small.state_dict())


def test_safetensors_keep_it(life: Life, tmp_path: Path) -> None:
    from safetensors.torch import load_model, save_model

    save_model(life.small, str(tmp_path / "small.safetensors"))
    other = copy.deepcopy(life.small)
    nn.init.normal_(next(other.parameters()))
    load_model(other, tmp_path / "small.safetensors", strict=True)
    assert torch.equal(life.run(other), life.run(life.small))


# ---------------------------------------------------------------------- transformers


@pytest.fixture(scope="module")
def small_llama() -> nn.Module:
    """Pruned on token ids alone, so that its attention ran without a mask."""
    torch.manual_seed(0)
    model, inputs = language()
    return sc.prune(model, inputs, keep=0.5).model


def generated(model: Any, inputs: dict[str, Tensor], **settings: Any) -> tuple[Tensor, Tensor]:
    """Greedily generated tokens, and the logits of each."""
    out = model.generate(
        **inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0, output_logits=True,
        return_dict_in_generate=True, **settings,
    )  # fmt: skip
    return out.sequences, torch.stack(out.logits)


@pytest.mark.parametrize("cache", [{"use_cache": True}, {"cache_implementation": "static", "disable_compile": True}])
def test_llama_generates_with_its_cache_what_it_generates_without(small_llama: nn.Module, cache: Any) -> None:
    ids = torch.randint(1, 64, (2, 7))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    tokens, logits = generated(small_llama.eval(), inputs, use_cache=False)
    cached_tokens, cached_logits = generated(small_llama, inputs, **cache)
    assert torch.equal(cached_tokens, tokens)
    torch.testing.assert_close(cached_logits, logits, rtol=1e-3, atol=1e-5)


def test_llama_takes_masks_and_kernels_that_it_was_not_traced_with(small_llama: Any) -> None:
    ids = torch.randint(64, (2, 7))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    outputs = {}
    for kernel in ("sdpa", "eager"):
        small_llama.set_attn_implementation(kernel)
        outputs[kernel] = small_llama.eval()(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    small_llama.set_attn_implementation("sdpa")
    torch.testing.assert_close(outputs["sdpa"], outputs["eager"], rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_llama_checkpoints_its_layers(small_llama: Any) -> None:
    ids = torch.randint(64, (2, 7))

    def gradients() -> list[Tensor]:
        small_llama.train().zero_grad()
        small_llama(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        return [p.grad.clone() for p in small_llama.parameters()]

    expected = gradients()
    small_llama.gradient_checkpointing_enable()
    assert small_llama.is_gradient_checkpointing
    assert_same(gradients(), expected)
    small_llama.gradient_checkpointing_disable()


@pytest.mark.parametrize("filled", [True, False])
def test_llama_is_pruned_on_a_cache_which_stays_as_it_was(filled: bool) -> None:
    """One step of decoding as the example."""
    from transformers import DynamicCache

    model, ids = llama(), torch.randint(64, (2, 7))
    cache = model(input_ids=ids, use_cache=True).past_key_values if filled else DynamicCache()
    length = cache.get_seq_length()
    result = sc.prune(model, {"input_ids": ids[:, :1], "past_key_values": cache}, keep=0.5)
    assert cache.get_seq_length() == length == (7 if filled else 0)
    axes = result.graph.select(["kv_groups", "head_dim"])
    assert bool(axes) != filled  # what is in the cache already keeps its heads
    assert "model.layers.0.mlp.gate_proj.weight:0" in result.plan.axes
    assert result.proof.status == "proved"


def t5() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
    )  # fmt: skip
    ids = torch.randint(1, 64, (2, 7))
    return T5ForConditionalGeneration(config), {"input_ids": ids}


def whisper() -> Any:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=64, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, pad_token_id=0,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, num_mel_bins=8, max_source_positions=16,
        max_target_positions=32, decoder_start_token_id=1, bos_token_id=1, eos_token_id=2, suppress_tokens=None,
        begin_suppress_tokens=None,
    )  # fmt: skip
    return WhisperForConditionalGeneration(config), {"input_features": torch.randn(2, 8, 32)}


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32, bos_token_id=1, eos_token_id=2)
    return GPT2LMHeadModel(config), {"input_ids": torch.randint(3, 64, (2, 7))}


def mamba() -> Any:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4, time_step_rank=4)
    return MambaForCausalLM(config), {"input_ids": torch.randint(3, 64, (2, 7))}


@pytest.mark.parametrize("build", [t5, whisper, gpt2, mamba])
def test_models_with_caches_are_traced_proved_and_go_on_generating(build: Callable[[], Any]) -> None:
    model, inputs = build()
    model.eval()
    example = dict(inputs)
    if model.config.is_encoder_decoder:
        example["decoder_input_ids"] = torch.randint(3, 64, (2, 5))
    assert model.config.use_cache
    out = model(**example)
    assert getattr(out, "past_key_values", None) is not None or out.cache_params is not None  # caches are on
    result = sc.prune(model, example, keep=0.5)
    assert result.proof.status == "proved"
    assert result.plan.axes.keys() == result.graph.axes.keys() == sc.trace(model, example).axes.keys()  # none was lost
    tokens, logits = generated(result.model, inputs, use_cache=False)
    cached_tokens, cached_logits = generated(result.model, inputs, use_cache=True)
    assert torch.equal(cached_tokens, tokens)
    torch.testing.assert_close(cached_logits, logits, rtol=1e-3, atol=1e-4)
