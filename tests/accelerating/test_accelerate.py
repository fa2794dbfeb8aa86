"""Layers with zeros by sparse kernels: the same outputs, and only where a stopwatch says that they are faster."""

import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.accelerating import Accelerated, LayerSpeed, accelerate
from secateur.accelerating.accelerate import has_zeros, share_of_zeros
from secateur.accelerating.kernels import TwoFourLinear, is_two_four, kernels, share_of_empty_blocks
from secateur.accelerating.timing import in_turns
from secateur.errors import ArtifactError, ExportError, MeasureError, ModelError

Times = Callable[[Mapping[str, Callable[[], Any]]], dict[str, float]]


def stopwatch(**seconds: float) -> Times:
    """Says what it is told, by the first word of a kernel's name; it calls everything once, as a clock has to."""

    def times(calls: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
        for call in calls.values():
            call()
        return {name: seconds.get(name.split()[0], 1.0) for name in calls}

    return times


def sparse(model: nn.Module, zeros: float = 0.9) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.weight.masked_fill_(torch.rand_like(layer.weight) < zeros, 0.0)
    return model.eval()


def mlp() -> nn.Module:
    return sparse(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8, bias=False)))


@pytest.mark.parametrize("rows", [(), (1,), (5,), (2, 3), (0,)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers(rows: tuple[int, ...], bias: bool) -> None:
    layer = nn.Linear(64, 128, bias=bias)
    with torch.no_grad():
        layer.weight.mul_(torch.eye(2).repeat_interleave(64, 0).repeat_interleave(32, 1))
    x = torch.randn(*rows, 64)
    made = dict(kernels(layer))
    assert list(made) == ["CSR", "BSR 32x32", "BSR 16x16", "BSR 8x8", "BSR 4x4"]
    for make in made.values():
        torch.testing.assert_close(make(layer)(x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "how",
    [
        {"kernel_size": 3, "padding": 1}, {"kernel_size": 1}, {"kernel_size": 1, "stride": 2}, {"kernel_size": (3, 2)},
        {"kernel_size": 3, "stride": 2, "padding": (1, 2), "bias": False}, {"kernel_size": 3, "dilation": 2},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("batch", [1, 3])
def test_convolutions(how: dict[str, Any], batch: int) -> None:
    layer = sparse(nn.Conv2d(8, 16, **how))
    x = torch.randn(batch, 8, 9, 10)
    for _, make in kernels(layer):
        torch.testing.assert_close(make(layer)(x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", [{"kernel_size": 3, "padding": 1}, {"kernel_size": 1}], ids=str)
@pytest.mark.parametrize("shape", [(8, 9, 10), (0, 8, 9, 10)], ids=str)
def test_convolutions_take_single_images_and_empty_batches(how: dict[str, Any], shape: tuple[int, ...]) -> None:
    layer, x = sparse(nn.Conv2d(8, 16, **how)), torch.randn(shape)
    for _, make in kernels(layer):
        torch.testing.assert_close(make(layer)(x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("layer", [nn.Linear(16, 16), nn.Conv2d(16, 16, 3)], ids=lambda layer: type(layer).__name__)
def test_autocast_asks_for_no_other_kernels(layer: nn.Module, kind: torch.dtype) -> None:
    dense, x = sparse(layer).to(kind), torch.randn(2, 16, 16, 16, dtype=kind)
    for _, make in kernels(dense):
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            got, wanted = make(dense)(x), dense(x)
            torch.testing.assert_close(got, wanted, rtol=4e-2, atol=4e-2)  # which compares types, too
            if kind == torch.float32:
                torch.testing.assert_close(make(dense)(x.bfloat16()), dense(x.bfloat16()), rtol=4e-2, atol=4e-2)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_linear_layers_take_nested_tensors() -> None:
    """An encoder makes them of inputs with padding."""
    net = sparse(nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2))
    inputs = (torch.randn(2, 4, 16), None, torch.tensor([[False] * 4, [False] * 3 + [True]]))
    for example in (inputs, inputs[0]):
        found = accelerate(net, example, stopwatch=stopwatch(CSR=0.5, sparse=0.5))
        assert [layer.kept for layer in found.layers] == ["CSR"] * 4
        with torch.no_grad():
            torch.testing.assert_close(found.model(*inputs), net(*inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 3, padding_mode="reflect", padding=1), nn.Conv1d(8, 8, 3),
        nn.Conv2d(8, 8, 3, padding="same"), nn.Embedding(8, 8), nn.ReLU(),
        type("Mine", (nn.Linear,), {})(8, 8),
    ],
    ids=lambda layer: type(layer).__name__,
)  # fmt: skip
def test_layers_that_are_left_alone(layer: nn.Module) -> None:
    assert list(kernels(layer)) == []


def test_what_is_slower_is_dropped() -> None:
    net, x = mlp(), torch.randn(4, 16)
    found = accelerate(net, x, stopwatch=stopwatch(dense=1.0, CSR=1.2))
    assert not found.faster
    assert found.model is net
    assert [(layer.name, layer.kept, layer.times_ms["CSR"]) for layer in found.layers] == [
        ("0", None, 1200.0), ("2", None, 1200.0)
    ]  # fmt: skip
    assert found.summary.endswith(
        "They make the file smaller, but save no time here: no sparse kernel is faster than dense ones (at best CSR in "
        "0, 0.83 times as fast)."
    )
    assert "of the parameters are zeros" in found.summary


def test_what_is_hardly_faster_is_dropped() -> None:
    """A kernel has to save 5 % of the time."""
    net, x = mlp(), torch.randn(4, 16)
    assert not accelerate(net, x, stopwatch=stopwatch(CSR=0.951)).faster
    assert accelerate(net, x, stopwatch=stopwatch(CSR=0.949, sparse=0.9)).faster


def test_what_is_faster_is_kept() -> None:
    net, x = mlp(), torch.randn(4, 16)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    found = accelerate(net, x, stopwatch=stopwatch(CSR=0.5, sparse=0.6))
    assert [layer.kept for layer in found.layers] == ["CSR", "CSR"]
    assert (found.dense_ms, found.sparse_ms) == (1000.0, 600.0)
    assert found.summary.endswith("run 2 of 2 layers faster here: 1e+03 ms become 600 ms with sc.accelerate.")
    torch.testing.assert_close(found.model(x), net(x), rtol=1e-5, atol=1e-5)
    assert "SparseLinear" in str(found.model)
    assert type(net[0]) is nn.Linear
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in before.items())


def test_only_layers_that_are_faster_are_replaced() -> None:
    net, x = mlp(), torch.randn(4, 16)
    seen: list[int] = []

    def second_is_faster(calls: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
        seen.append(len(calls))
        return {name: 0.5 if name != "dense" and len(seen) == 2 else 0.9 if name == "sparse" else 1.0 for name in calls}

    found = accelerate(net, x, stopwatch=second_is_faster)
    assert [layer.kept for layer in found.layers] == [None, "CSR"]
    assert type(found.model[0]) is nn.Linear  # type: ignore[index]
    assert found.model[0].weight is net[0].weight, "weights that stay dense are shared"  # type: ignore[index]


def test_the_whole_model_has_to_be_faster() -> None:
    net, x = mlp(), torch.randn(4, 16)
    found = accelerate(net, x, stopwatch=stopwatch(CSR=0.5, sparse=1.25))
    assert not found.faster
    assert found.model is net
    assert "layers are faster by themselves, but the model is 0.80 times as fast with them" in found.summary


def test_code_that_reads_a_weight_keeps_its_layers() -> None:
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + self.layer.weight.view(-1)[:16]

    net = sparse(Reading())
    found = accelerate(net, torch.randn(2, 16), stopwatch=stopwatch(CSR=0.5, sparse=0.5))
    assert not found.faster
    assert "the model does not run with sparse layers" in found.summary


@pytest.mark.parametrize("masked", [False, True])
def test_encoder_layers_leave_torchs_fused_path(masked: bool) -> None:
    """It takes the layers' weights, and has no kernel for sparse ones."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    net = sparse(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    mask = torch.tensor([[False] * 4, [False] * 3 + [True]]) if masked else None
    inputs = (torch.randn(2, 4, 16), None, mask)
    found = accelerate(net, inputs, stopwatch=stopwatch(CSR=0.5, sparse=0.5))
    assert [layer.kept for layer in found.layers] == ["CSR"] * 4
    with torch.no_grad():
        torch.testing.assert_close(found.model(*inputs), net(*inputs), rtol=1e-4, atol=1e-4)
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_errors_are_told_in_their_first_sentence() -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            if type(self.layer) is not nn.Linear:
                raise RuntimeError("torch 2.1 has no such kernel. This could be because of this. Or that\nor that.")
            return self.layer(x)

    found = accelerate(sparse(Failing()), torch.randn(2, 16), stopwatch=stopwatch(CSR=0.5, sparse=0.5))
    assert found.summary.endswith("does not run with sparse layers (RuntimeError: torch 2.1 has no such kernel).")


def test_wrong_kernels_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(layer: nn.Module) -> Any:
        yield "CSR", lambda layer: nn.Linear(layer.in_features, layer.out_features)
        yield "BSR", lambda layer: 1 / 0

    monkeypatch.setattr(sys.modules["secateur.accelerating.accelerate"], "kernels", wrong)
    found = accelerate(mlp(), torch.randn(2, 16), stopwatch=stopwatch(CSR=0.1, BSR=0.1, sparse=0.1))
    assert not found.faster
    assert [set(layer.failed) for layer in found.layers] == [{"CSR", "BSR"}] * 2
    assert "off by" in found.layers[0].failed["CSR"]
    assert found.layers[0].failed["BSR"] == "ZeroDivisionError: division by zero"
    assert "no sparse kernel can run these layers" in found.summary


def test_outputs_of_the_whole_model_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that agree by themselves to a tolerance may still be wrong for other calls of theirs."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x) + 100)

    class Wrong(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if float(x.abs().max()) < 50 else super().forward(x) + 9

    def make(layer: Any) -> nn.Module:
        made = Wrong(8, 8, bias=False)
        made.weight = layer.weight
        return made

    monkeypatch.setattr(sys.modules["secateur.accelerating.accelerate"], "kernels", lambda layer: [("CSR", make)])
    found = accelerate(sparse(Twice(), 0.5), torch.ones(2, 8), stopwatch=stopwatch(CSR=0.1, sparse=0.1))
    assert not found.faster
    assert "with sparse layers the model's outputs are off by" in found.summary


def test_layers_with_few_zeros_are_not_tried() -> None:
    net = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    with torch.no_grad():
        net[1].weight[:8] = 0
    found = accelerate(net, torch.randn(2, 16), stopwatch=stopwatch())
    assert [(layer.name, layer.zeros) for layer in found.layers] == [("1", 0.5)]
    assert accelerate(net, torch.randn(2, 16), least_zeros=0.6, stopwatch=stopwatch()).summary.endswith(
        "and no layer that a sparse kernel can run has enough of them to be tried."
    )
    with pytest.raises(MeasureError, match=r"least_zeros=0 must be in \(0, 1\]"):
        accelerate(net, torch.randn(2, 16), least_zeros=0)
    with pytest.raises(MeasureError, match="Sequential does not run on these inputs: RuntimeError"):
        accelerate(net, torch.randn(2, 17))


class Keyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(input=x)


class Functional(Keyword):
    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, self.f.weight)


def test_layers_that_are_called_by_keyword_are_tried() -> None:
    net, x = sparse(Keyword()), torch.randn(2, 16)
    found = accelerate(net, x, stopwatch=stopwatch(CSR=0.5, sparse=0.5))
    assert [layer.kept for layer in found.layers] == ["CSR"]
    torch.testing.assert_close(found.model(x), net(x), rtol=1e-4, atol=1e-4)


def test_layers_that_are_not_called_as_modules_are_named() -> None:
    net, x = sparse(Functional()), torch.randn(2, 16)
    found = accelerate(net, x, stopwatch=stopwatch())
    assert found.untried == ("f",)
    said = "layers with zeros (f) are not called as modules with one input, so no kernel was tried for them."
    assert found.summary.endswith(f"% of the parameters are zeros, and {said}")
    both = nn.Sequential(net, sparse(nn.Linear(16, 8)))
    found = accelerate(both, x, stopwatch=stopwatch(CSR=0.5, sparse=0.5))
    assert found.summary.endswith("with sc.accelerate. " + said.replace("layers", "Layers", 1).replace("(f)", "(0.f)"))
    assert "(0.f) are not called" in accelerate(both, x, stopwatch=stopwatch()).summary


def test_attention_with_zeros_is_named() -> None:
    net = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    with torch.no_grad():
        net.in_proj_weight[:40] = 0
    x = torch.randn(2, 3, 16)
    found = accelerate(net, (x, x, x), stopwatch=stopwatch())
    assert found.untried == ("",)
    assert "layers with zeros (the model) are not called as modules with one input" in found.summary
    assert has_zeros(net), "so that measure says this, too"


def test_layers_that_no_kernel_runs_have_no_times() -> None:
    net = sparse(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Linear(5, 5)).bfloat16())
    found = accelerate(net, torch.randn(1, 4, 7, 7).bfloat16(), stopwatch=stopwatch())
    assert [math.isnan(layer.dense_ms) for layer in found.layers] == [True, True]
    assert "nan" not in str(found)


def test_a_shared_layer_is_replaced_in_all_places() -> None:
    layer = nn.Linear(16, 16)
    net = sparse(nn.Sequential(layer, nn.ReLU(), layer))
    found = accelerate(net, torch.randn(2, 16), stopwatch=stopwatch(CSR=0.5, sparse=0.5))
    assert len(found.layers) == 1
    assert found.model[0] is found.model[2]  # type: ignore[index]
    single = accelerate(sparse(nn.Linear(16, 16)), torch.randn(2, 16), stopwatch=stopwatch(CSR=0.5, sparse=0.5))
    assert "SparseLinear" in str(single.model)


def test_the_model_is_left_as_it_was() -> None:
    net = sparse(nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Dropout())).train()
    before, state = torch.get_rng_state(), {n: t.clone() for n, t in net.state_dict().items()}
    accelerate(net, torch.randn(4, 16), stopwatch=stopwatch(CSR=0.5, sparse=0.5))
    torch.manual_seed(0)
    assert net.training
    assert all(torch.equal(net.state_dict()[n], t) for n, t in state.items())
    assert not any(module._forward_pre_hooks for module in net.modules())
    torch.set_rng_state(before)
    accelerate(net, torch.ones(4, 16), stopwatch=stopwatch())
    assert torch.equal(torch.get_rng_state(), before)


def test_shares_by_hand() -> None:
    x = torch.zeros(8, 8)
    x[0, 0] = x[7, 4] = 1.0
    assert share_of_empty_blocks(x, 4) == 0.5
    assert share_of_empty_blocks(x, 2) == 1 - 2 / 16
    assert share_of_empty_blocks(x, 3) == 0.0
    net = nn.Linear(8, 8, bias=False)
    with torch.no_grad():
        net.weight.copy_(x)
    assert share_of_zeros(net) == 62 / 64
    assert has_zeros(net)
    assert not has_zeros(nn.Linear(8, 8))
    half = torch.tensor([[1.0, 2.0, 0.0, 0.0, 0.0, 3.0, 0.0, 4.0]]).half()
    assert is_two_four(half)
    assert not is_two_four(half.float()), "torch has no such kernel in float32"
    assert not is_two_four(torch.tensor([[1.0, 2.0, 3.0, 0.0]]).half())
    assert not is_two_four(torch.zeros(4, 6).half())


def test_calls_that_are_far_slower_are_timed_once() -> None:
    counts = {"fast": 0, "slow": 0}

    def slow() -> None:
        counts["slow"] += 1
        sum(range(300_000))

    def fast() -> None:
        counts["fast"] += 1

    found = in_turns({"fast": fast, "slow": slow}, seconds=0.01)
    assert counts["slow"] == 2
    assert counts["fast"] > 2
    assert found["slow"] > found["fast"]


@pytest.mark.parametrize("whole", [True, False])
def test_accelerated_models_are_for_inference_only(whole: bool, tmp_path: Path) -> None:
    """Whether some weights stay dense, or none: then the copy has no parameters."""
    net, x = mlp(), torch.randn(4, 16)
    tried = net if whole else nn.Sequential(net, nn.Linear(8, 8)).eval()
    found = accelerate(tried, x, stopwatch=stopwatch(CSR=0.5, sparse=0.5))
    assert found.faster
    fast, layer = found.model, "0" if whole else r"0\.0"
    message = (
        rf"{layer} is a SparseLinear, so this is the copy that sc\.accelerate made for inference here: .* original"
    )
    with pytest.raises(ArtifactError, match=message):
        sc.save(fast, tmp_path / "saved", args=x)
    with pytest.raises(ArtifactError, match=message):
        sc.save(found, tmp_path / "saved", args=x)  # type: ignore[arg-type]
    with pytest.raises(ExportError, match=message):
        sc.export(fast, tmp_path / "net.safetensors")
    with pytest.raises(MeasureError, match=message):
        sc.measure(fast, x)
    for refused in (sc.prune, sc.trace, sc.accelerate):
        with pytest.raises(ModelError, match=message):
            refused(fast, x)
    assert not list(tmp_path.iterdir())


def test_semi_structured_layers_are_known_as_accelerated() -> None:
    layer = TwoFourLinear(4, 4)  # only CUDA has the weights that make one
    torch.testing.assert_close(layer(torch.eye(4)), nn.Linear.forward(layer, torch.eye(4)))
    with pytest.raises(ModelError, match="the model is a TwoFourLinear"):
        sc.trace(layer, torch.eye(4))


def test_the_table() -> None:
    layers = (
        LayerSpeed(name="fc", zeros=0.5, dense_ms=2.0, times_ms={"CSR": 4.0, "BSR 8x8": 1.0}, kept="BSR 8x8"),
        LayerSpeed(name="out", zeros=1.0, dense_ms=math.nan),
    )
    found = Accelerated(model=nn.ReLU(), layers=layers, zeros=0.6, dense_ms=3.0, sparse_ms=2.0)
    text = str(found)
    for part in ("fc", "50 %", "BSR 8x8", "Sparse kernels run 1 of 2 layers faster here: 3 ms become 2 ms"):
        assert part in text
    assert "nan" not in text
    assert layers[0].best == ("BSR 8x8", 2.0)
    assert layers[1].best is None


def test_measure_says_what_zeros_bring(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = mlp(), torch.randn(4, 16)
    how: dict[str, Any] = {"min_run_time": 0.01, "training": False, "memory": False}
    defaults = accelerate.__kwdefaults__
    monkeypatch.setitem(defaults, "stopwatch", stopwatch(CSR=2.0))
    found = sc.measure(net, x, **how)
    assert found.zeros == share_of_zeros(net)
    assert found.sparse_latency_ms is None
    assert "save no time here" in found.notes[0]
    assert "zeros" in found.to_dict()
    assert "sparse_latency_ms" not in found.to_dict()
    monkeypatch.setitem(defaults, "stopwatch", stopwatch(CSR=0.5, sparse=0.5))
    found = sc.measure(net, x, **how)
    assert found.sparse_latency_ms == 500.0
    assert "with sparse kernels" in str(found)
    assert sc.measure(net, x, sparse=False, **how).zeros is None
    dense = nn.Linear(16, 16)
    assert sc.measure(dense, x, **how).to_dict().keys().isdisjoint({"zeros", "sparse_latency_ms"})
    assert sc.measure(dense, x, sparse=True, **how).zeros == 0.0


def test_the_size_that_is_measured_is_the_packed_one() -> None:
    net = nn.Linear(256, 256, bias=False)
    dense = sc.measure(net, torch.ones(1, 256), min_run_time=0.01, training=False, memory=False, sparse=False)
    sparse(net, 0.75)
    small = sc.measure(net, torch.ones(1, 256), min_run_time=0.01, training=False, memory=False, sparse=False)
    assert small.size_bytes / dense.size_bytes == pytest.approx(0.25 + 1 / 32, abs=0.01)
