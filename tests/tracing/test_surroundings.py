"""What a trace finds outside the model stays as it was, whatever ``forward`` does to it; and it does not matter where
``sc.prune`` is called from.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import ModelError, TraceError
from secateur.tracing.surroundings import FLAGS, quiet_backends
from support.networks import Cnn, LiteralNet, example

X = torch.randn(5, 4)


class Net(nn.Module):
    """What it does on the way is up to the test."""

    def __init__(self, on_the_way: Callable[["Net", Tensor], Tensor] = lambda net, x: x) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 12), nn.Linear(12, 3)
        self.drop, self.count = nn.Dropout(0.5), 0
        self.__dict__["on_the_way"] = on_the_way

    def forward(self, x: Tensor) -> Tensor:
        x = self.__dict__["on_the_way"](self, self.a(x).relu())
        return self.c(self.b(x).relu())


def surroundings() -> dict[str, Any]:
    """All that a forward pass might change outside its model."""
    found: dict[str, Any] = {getattr(get, "__name__", str(get)): get() for get, _ in FLAGS}
    found |= {
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "exporting": torch.compiler.is_exporting(),
        "torch draws": torch.random.get_rng_state().tolist(),
        "python draws": random.getstate(),
        "numpy draws": np.random.get_state()[1].tolist(),  # type: ignore[index,union-attr]  # noqa: NPY002
    }
    return found


@pytest.fixture
def flags_put_back() -> Iterator[None]:
    """Flags are put back after the test even if it fails."""
    flags = [get() for get, _ in FLAGS]
    yield
    for (_, put), value in zip(FLAGS, flags, strict=True):
        put(value)


def meddle(net: Net, x: Tensor) -> Tensor:
    """Change everything that can be changed."""
    net.train()
    net.count, net.extra = net.count + 1, x
    net.a.weight.requires_grad_(False)
    net.b.register_forward_hook(lambda *_: None)
    net.register_buffer("late", torch.zeros(3))
    torch.rand(1), random.random(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(7)
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
    torch.backends.mha.set_fastpath_enabled(False)
    torch.set_grad_enabled(True)
    return x


def meddle_and_fail(net: Net, x: Tensor) -> Tensor:
    meddle(net, x)
    with torch.no_grad():
        net.b.weight.mul_(2)
    raise ValueError("part-way")


def state(net: nn.Module) -> Any:
    """The model, to the last attribute."""
    return (
        {path: (part.training, sorted(vars(part)), len(part._forward_hooks)) for path, part in net.named_modules()},
        {name: (id(t), t.requires_grad, t.grad, t.tolist()) for name, t in net.named_parameters()},
        dict(net.named_buffers()),
        vars(net)["count"],
    )


@pytest.mark.usefixtures("flags_put_back")
@pytest.mark.parametrize("call", [sc.trace, lambda m, x: sc.prune(m, x, keep=0.5)], ids=["trace", "prune"])
@pytest.mark.parametrize("what", [meddle, meddle_and_fail])
def test_model_and_surroundings_stay_as_they_were(call: Any, what: Any) -> None:
    model = Net(what)
    model.a.eval()  # a mixture of modes
    model.b.weight.requires_grad_(False)
    before, around = state(model), surroundings()
    fails = pytest.raises(TraceError, match="ValueError: part-way") if what is meddle_and_fail else nullcontext()
    with fails:
        call(model, X)
    assert state(model) == before
    assert surroundings() == around


def test_an_error_says_where_it_was_raised() -> None:
    with pytest.raises(TraceError, match=rf"ValueError: part-way \(at {__file__}:\d+\)"):
        sc.trace(Net(meddle_and_fail), X)


def test_python_and_numpy_draws_are_the_same_in_both_models() -> None:
    def noisy(net: Net, x: Tensor) -> Tensor:
        return x * random.random() + float(np.random.rand())  # noqa: NPY002

    result = sc.prune(Net(noisy), X, keep=0.5, only=["b"])
    assert result.proof.status == "proved"
    assert result.model.b.out_features == 6  # type: ignore[union-attr]


def test_backends_are_quiet_inside_and_not_after() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        with quiet_backends():
            assert not torch.is_autocast_enabled("cpu")
            assert not torch.is_grad_enabled()
            assert not torch.backends.mha.get_fastpath_enabled()
            assert not torch._C._get_mkldnn_enabled()
        assert torch.is_autocast_enabled("cpu")
    assert torch.is_grad_enabled()
    assert torch.backends.mha.get_fastpath_enabled()


# ---------------------------------------------------------------------- called from anywhere

CONTEXTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "device": lambda: torch.device("cpu"),
}


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
@pytest.mark.parametrize("build", [Cnn, LiteralNet])
def test_the_result_is_the_same_and_trains(build: Callable[[], nn.Module], context: Any) -> None:
    model = build()
    x = example(model)
    outside = sc.prune(model, x, keep=0.5)
    with context():
        inside = sc.prune(model, x, keep=0.5)
        assert sc.trace(model, x).axes == outside.graph.axes
    assert inside.proof == outside.proof
    assert torch.equal(inside.model.eval()(x), outside.model.eval()(x))
    inside.model.train()(x).sum().backward()
    assert all(p.grad is not None and not p.is_inference() for p in inside.model.parameters())


def test_a_model_built_in_inference_mode_becomes_one_that_trains() -> None:
    with torch.inference_mode():
        small = sc.prune(LiteralNet(), torch.randn(2, 1, 6, 6), keep=0.5).model
    small.train()(torch.randn(2, 1, 6, 6)).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("build", [Cnn, LiteralNet])
def test_low_precision_is_proved_in_a_high_one_and_kept(build: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    model = build().to(dtype)
    result = sc.prune(model, example(model).to(dtype), keep=0.5)
    assert result.proof.dtype == "float64"
    assert {p.dtype for p in result.model.parameters()} == {dtype}
    assert result.model.eval()(example(model).to(dtype)).dtype == dtype


def test_code_that_insists_on_a_low_precision_is_proved_in_a_high_one() -> None:
    model = Net(lambda net, x: x.to(torch.bfloat16) * 2).to(torch.bfloat16)
    result = sc.prune(model, X.to(torch.bfloat16), keep=0.5)
    assert (result.proof.status, result.proof.dtype) == ("proved", "float64")
    assert set(result.plan.axes) == {"a.weight:0", "b.weight:0"}


# ---------------------------------------------------------------------- without weights


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("build", [Cnn, LiteralNet])
def test_a_model_on_the_meta_device_is_traced_planned_and_made_smaller(
    build: Callable[[], nn.Module], device: str
) -> None:
    full = build()
    x = example(full)
    graph = sc.trace(build().to("meta"), x.to(device))
    assert graph.axes == sc.trace(full, x).axes
    plan = sc.plan(graph, {name: torch.arange(axis.size) + 1.0 for name, axis in graph.axes.items()}, keep=0.5)
    small = plan.apply(build().to("meta"))
    assert {p.device.type for p in small.parameters()} == {"meta"}
    assert small(x.to("meta")).shape == full(x).shape
    assert plan.apply(full).eval()(x).shape == full(x).shape  # and the same plan, later, with weights


def test_without_weights_nothing_is_pruned_and_the_error_says_what_to_do() -> None:
    with pytest.raises(ModelError, match="on the meta device.* the weights must be loaded"):
        sc.prune(Cnn().to("meta"), torch.randn(2, 3, 8, 8))


def test_code_that_needs_values_needs_weights() -> None:
    def picky(net: Net, x: Tensor) -> Tensor:
        return 2 * x if x.sum() > 0 else x

    assert "a.weight:0" in sc.trace(Net(picky), X).axes
    with pytest.raises(TraceError, match=rf"depends on values .*{__file__}:\d+.*Load its weights"):
        sc.trace(Net(picky).to("meta"), X)


# ---------------------------------------------------------------------- on inputs that do not fit

IMAGE = torch.randn(2, 3, 8, 8)
UNFIT: list[tuple[nn.Module, Tensor]] = [
    (nn.Linear(5, 8), X),
    (nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(7)), X),
    (nn.Conv2d(4, 8, 3), IMAGE),
    (nn.Conv2d(3, 8, 9), IMAGE),
    (nn.ConvTranspose2d(4, 8, 3), IMAGE),
    (nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(7)), IMAGE),
    (nn.Embedding(4, 8), X),
    (Net(lambda net, h: torch.cat([h, h[:1]], 1)), X),
    (Net(lambda net, h: torch.bmm(h[None], h[None])), X),
    (Net(lambda net, h: h @ h), X),
    (Net(lambda net, h: h + torch.ones(3)), X),
    (Net(lambda net, h: h.view(3, 3)), X),
    (Net(lambda net, h: torch.nn.functional.scaled_dot_product_attention(h[None], h[None, :, :3], h[None])), X),
]


@pytest.mark.parametrize(("model", "x"), UNFIT)
def test_a_trace_says_that_they_do_not(model: nn.Module, x: Tensor) -> None:
    """Shapes are worked out without running operations, which would else not be noticed."""
    with pytest.raises(TraceError, match="does not run on the example inputs"):
        sc.trace(model, x)
