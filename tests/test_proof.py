"""The proof: right prunings pass, wrong ones don't, and what code hides is found and frozen."""

import copy
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.errors import ModelError, NothingToPrune, ProofFailed, TraceError
from secateur.inputs import as_call
from secateur.modules import named_tensors
from secateur.planning import make_plan
from secateur.proof import prove, silenced
from support.networks import (
    Attention,
    Chunked,
    Cnn,
    Grouped,
    LiteralNet,
    Mlp,
    Normed,
    Residual,
    Tied,
    Transposed,
    example,
)


def pruned(model: nn.Module, keep: float = 0.5, **settings: Any) -> tuple[nn.Module, sc.Graph, sc.Plan, Any]:
    args = example(model)
    graph = sc.trace(model, args)
    plan = sc.plan(graph, sc.score(model, graph), keep=keep, **settings)
    return plan.apply(model), graph, plan, args


# ---------------------------------------------------------------------- what passes


@pytest.mark.parametrize("make", [Mlp, Cnn, Residual, Grouped, Transposed, LiteralNet, Chunked, Attention, Tied])
def test_a_pruning_proves(make: type[nn.Module]) -> None:
    model = make()
    small, graph, plan, args = pruned(model)
    proof = prove(model, small, graph, plan, args)
    assert (proof.status, proof.dtype, proof.normalised) == ("proved", "float64", ())
    assert proof.ratio < 1e-12
    assert proof.scale > 0


def test_silencing_by_hand() -> None:
    """Weights and outputs of a network whose removed units are zeroed."""
    model = Mlp()
    graph = sc.trace(model, torch.zeros(1, 4))
    plan = make_plan(graph, {"0.weight:0": torch.tensor([1, 4])})
    x = torch.randn(3, 4)
    by_hand = copy.deepcopy(model).double()
    gone = [0, 2, 3, 5, 6, 7]
    with torch.no_grad():
        by_hand[0].weight[gone] = 0
        by_hand[0].bias[gone] = 0
    (out,), normalised = silenced(model, graph, plan, (x.double(),), {}, dtype=torch.float64)
    torch.testing.assert_close(out, by_hand(x.double()), rtol=0, atol=1e-15)
    assert normalised == ()


NORMS = [nn.LayerNorm(8), nn.RMSNorm(8), nn.GroupNorm(2, 8), nn.LayerNorm(8, elementwise_affine=False)]


@pytest.mark.parametrize("norm", NORMS, ids=lambda n: str(n)[:9])
def test_norms_are_compared_over_the_kept_units(norm: nn.Module) -> None:
    torch.manual_seed(1)
    for p in norm.parameters():
        nn.init.normal_(p)
    model = Normed(norm)
    small, graph, plan, args = pruned(model, only=["residual"])
    proof = prove(model, small, graph, plan, args)
    assert proof.status == "proved"
    assert proof.ratio < 1e-12
    (axis,) = (name for name, info in graph.axes.items() if info.normalising)
    assert proof.normalised == (axis,)


def test_a_normalised_axis_is_not_proved_by_chance() -> None:
    """Removed units of a norm change what the others get, so the original as it is must differ."""
    model = Normed(nn.LayerNorm(8))
    small, graph, plan, args = pruned(model, only=["residual"])
    blind = copy.copy(graph)
    zeroed = copy.deepcopy(model)
    with torch.no_grad():
        for name, dims in plan.kept.items():
            for dim, at in dims.items():
                gone = [k for k in range(8) if k not in at.tolist()]
                named_tensors(zeroed)[name].index_fill_(dim, torch.tensor(gone), 0)
    assert not torch.allclose(zeroed(args), small(args), atol=1e-3)
    assert prove(model, small, blind, plan, args).ratio < 1e-12


# ---------------------------------------------------------------------- what does not


def swap(small: nn.Module) -> None:
    with torch.no_grad():
        small.conv1.weight.copy_(small.conv1.weight.flip(0))


def shift_bias(small: nn.Module) -> None:
    with torch.no_grad():
        small.fc.bias[0] += 1e-4


def wrong_slice(small: nn.Module) -> None:
    with torch.no_grad():
        small.fc.weight.copy_(small.fc.weight.roll(9, 1))


def wrong_statistics(small: nn.Module) -> None:
    small.bn1.running_mean.fill_(0.5)


@pytest.mark.parametrize("corrupt", [swap, shift_bias, wrong_slice, wrong_statistics])
def test_corrupted_weights_fail(corrupt: Callable[[nn.Module], None]) -> None:
    model = Cnn()
    small, graph, plan, args = pruned(model)
    corrupt(small)
    with pytest.raises(
        ProofFailed, match=r"differs from the silenced original by .* above the tolerance of 1e-05 of that in f"
    ):
        prove(model, small, graph, plan, args)


def test_other_units_than_planned_fail() -> None:
    model = Mlp()
    _small, graph, _, args = pruned(model)
    other = make_plan(graph, {"0.weight:0": torch.arange(4)})
    swapped = make_plan(graph, {"0.weight:0": torch.arange(4, 8)})
    with pytest.raises(ProofFailed, match="differs from the silenced original"):
        prove(model, other.apply(model), graph, swapped, args)
    assert prove(model, other.apply(model), graph, other, args).status == "proved"


def test_an_attribute_left_behind_fails() -> None:
    model = Attention(heads=4)
    small, graph, plan, args = pruned(model, only=["heads"])
    small.heads = 4  # 12 features as 4 heads of 3 instead of 2 of 6: it runs all the same
    with pytest.raises(ProofFailed, match="differs from the silenced original"):
        prove(model, small, graph, plan, args)


def test_a_smaller_model_that_does_not_run() -> None:
    model = Mlp()
    small, graph, plan, args = pruned(model)
    small[2] = nn.Linear(5, 2)
    with pytest.raises(ProofFailed, match="the smaller model does not run: RuntimeError: mat1 and mat2"):
        prove(model, small, graph, plan, args)


def test_outputs_of_other_shapes() -> None:
    model = Mlp()
    small, graph, plan, args = pruned(model)
    with pytest.raises(ProofFailed, match=r"gives outputs of shapes \[\(2, 3\)\], the original \[\(2, 2\)\]"):
        prove(model, nn.Sequential(small[0], small[1], nn.Linear(4, 3)), graph, plan, args)


def test_a_wrong_attention_scale_fails() -> None:
    """Small random weights make attention nearly uniform, so a wrong scale is far below what float32 can tell."""
    model = Attention(heads=4, width=6)
    with torch.no_grad():
        model.qkv.weight.mul_(0.1)
    small, graph, plan, args = pruned(model, only=["head_dim"])
    assert prove(model, small, graph, plan, args).ratio < 1e-12
    small.scale = 3**-0.5
    with pytest.raises(ProofFailed, match="differs from the silenced original"):
        prove(model, small, graph, plan, args)


def test_nan_of_the_smaller_model_fails() -> None:
    model = Mlp()
    small, graph, plan, args = pruned(model)
    with torch.no_grad():
        small[2].bias[0] = float("nan")
    with pytest.raises(ProofFailed, match="differs from the silenced original by inf"):
        prove(model, small, graph, plan, args)


# ---------------------------------------------------------------------- what no trace sees


class Hidden(nn.Module):
    """Divides by the root of a hidden size, in plain Python."""

    def __init__(self, power: float = 0.5) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 8), nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = x / int(x.shape[-1]) ** 0.5
        return self.last(F.relu(self.second(x)))


def test_a_size_in_disguise_is_found_and_frozen() -> None:
    model = Hidden()
    result = sc.prune(model, torch.randn(3, 4), keep=0.5)
    assert result.plan.sizes == {"second.weight:0": 6}
    assert result.proof.status == "proved"
    (reason,) = result.graph.frozen["first.weight:0"].frozen
    assert reason.startswith("the proof fails when it is pruned: the smaller model differs")
    assert [row["after"] for row in result.axes] == [6]


def test_sigmoid_sums_are_found_and_frozen() -> None:
    """A silenced unit is a half after a sigmoid, so a sum over it sees its removal."""

    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.out = nn.Linear(4, 8), nn.Linear(4, 6)
            self.last = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(F.relu(self.out(x))) + self.hidden(x).sigmoid().sum(-1, keepdim=True)

    result = sc.prune(Summed(), torch.randn(3, 4), keep=0.5)
    assert result.plan.sizes == {"out.weight:0": 3}
    assert "the proof fails" in result.graph.frozen["hidden.weight:0"].frozen[0]


def test_when_every_axis_fails() -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.hidden(x))
            return self.last(x) * float(int(x.shape[-1]))

    with pytest.raises(
        NothingToPrune, match="every axis that could be pruned fails the proof; the last failure: the smaller"
    ):
        sc.prune(Counted(), torch.randn(3, 4), keep=0.5)


# ---------------------------------------------------------------------- unfit models


def test_nan_weights_and_nan_outputs_are_refused() -> None:
    model = Mlp()
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"NaN or infinite weights in 0\.weight"):
        sc.prune(model, torch.randn(1, 4))
    with pytest.raises(ModelError, match="the model's own outputs hold NaN on the example inputs"):
        sc.prune(Mlp(), torch.full((1, 4), float("nan")))
    with pytest.raises(ModelError, match="the model's own outputs hold NaN"):
        sc.prune(Mlp(), torch.randn(1, 4), data=[torch.full((1, 4), float("nan"))])


def test_a_model_without_weights_in_memory() -> None:
    with torch.device("meta"):
        model = Mlp()
    graph = sc.trace(model, torch.zeros(1, 4, device="meta"))
    plan = make_plan(graph, {"0.weight:0": torch.arange(4)})
    with pytest.raises(ProofFailed, match="a model on the meta device has no weights to run"):
        prove(model, plan.apply(model), graph, plan, torch.zeros(1, 4))


def test_a_model_that_insists_on_float32() -> None:
    class Strict(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.float())

    proof = sc.prune(Strict(), torch.randn(2, 4), keep=0.5).proof
    assert (proof.dtype, proof.tolerance, proof.status) == ("float32", 1e-4, "proved")


# ---------------------------------------------------------------------- the model is left as it was found


def state_of(model: nn.Module) -> dict[str, Any]:
    """All that a call could leave behind: on the model, and in torch."""
    modules = dict(model.named_modules())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")
    plain = (str, int, float, bool, tuple, list, dict, type(None))
    return {
        "modes": {n: m.training for n, m in modules.items()},
        "attributes": {
            (n, k): (type(v), repr(v))
            for n, m in modules.items()
            for k, v in vars(m).items()
            if isinstance(v, plain)
            if not k.startswith("_")
        },
        "hooks": {(n, h): list(getattr(m, h).values()) for n, m in modules.items() for h in hooks},
        "ids": {n: (id(t), t.requires_grad, t._version) for n, t in named_tensors(model).items()},
        "values": {n: t.detach().clone() for n, t in named_tensors(model).items()},
        "grads": {n: p.grad for n, p in model.named_parameters()},
        "rng": torch.get_rng_state(),
        "flags": (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.backends.mha.get_fastpath_enabled(),
            torch._C._get_mkldnn_enabled(),
            torch.get_default_dtype(),
            torch.are_deterministic_algorithms_enabled(),
        ),
    }


def check_as_found(before: dict[str, Any], after: dict[str, Any]) -> None:
    for key in ("modes", "attributes", "hooks", "ids", "flags"):
        assert before[key] == after[key], key
    assert torch.equal(before["rng"], after["rng"])
    assert torch.backends.mha.get_fastpath_enabled()  # as torch starts
    assert torch._C._get_mkldnn_enabled()
    for key in ("values", "grads"):
        assert before[key].keys() == after[key].keys()
        assert all(v is after[key][n] or torch.equal(v, after[key][n]) for n, v in before[key].items())


class Caching(nn.Module):
    """Keeps a mask of its last call, counts its calls, and drops units at random while it trains."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.hidden, self.last, self.bn = nn.Linear(4, 8), nn.Linear(8, 2), nn.BatchNorm1d(8)
        self.fails, self.calls = fails, 0
        self.cache: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.train(self.training)
        x = F.dropout(self.bn(self.hidden(x)), training=True)
        self.cache = torch.ones_like(x)
        self.hidden.out_features = 99
        if self.fails:
            raise KeyError("part-way")
        return self.last(F.relu(x) * self.cache)


def with_history(model: nn.Module) -> nn.Module:
    """A model in the middle of its life: a hook, a gradient, mixed modes."""
    model.train()
    model.bn.eval()
    model.hidden.weight.requires_grad_(False)
    model.last.weight.grad = torch.ones(2, 8)
    model.hidden.register_forward_hook(lambda module, args, out: out)
    return model


def test_the_model_is_left_as_it_was_found() -> None:
    model, x = with_history(Caching()), torch.randn(3, 4)
    before = state_of(model)
    graph = sc.trace(model, x)
    sc.plan(graph, sc.score(model, graph), keep=0.5).apply(model)
    check_as_found(before, state_of(model))


def test_pruning_leaves_it_too_whether_it_works_or_not() -> None:
    x = torch.randn(3, 4)
    for model in (Normed(nn.LayerNorm(8)), Hidden(), with_history(Caching())):
        before = state_of(model)
        try:
            sc.prune(model, x, keep=0.5)
        except sc.SecateurError:
            assert isinstance(model, Caching)  # its dropout never stops, so no two runs agree
        check_as_found(before, state_of(model))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_failing_trace_leaves_it_too(context: Any) -> None:
    model, x = with_history(Caching(fails=True)), torch.randn(3, 4)
    before = state_of(model)
    with context():
        flags = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        with pytest.raises(TraceError, match=r"Caching does not run on the example inputs.*KeyError: 'part-way'"):
            sc.trace(model, x)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == flags
    check_as_found(before, state_of(model))


def test_a_literal_network_is_left_as_it_was_found() -> None:
    model = LiteralNet().train()
    args = example(model)
    before = state_of(model)
    sc.prune(model, args, keep=0.5)
    check_as_found(before, state_of(model))


def test_pruning_in_inference_mode_gives_a_model_that_trains() -> None:
    x = torch.randn(3, 4)
    with torch.inference_mode():
        result = sc.prune(Mlp(), x.clone(), keep=0.5)
    assert not any(p.is_inference() for p in result.model.parameters())


def test_modes_of_the_result_are_those_of_the_model() -> None:
    model = Cnn().train()
    model.bn1.eval()
    small = sc.prune(model, example(model), keep=0.5).model
    assert (small.training, small.bn1.training, small.bn2.training) == (True, False, True)


class Counting(Mlp):
    """Counts its calls in a buffer, in place, and looks at values where it is told to."""

    def __init__(self, looks: bool) -> None:
        super().__init__()
        self.looks = looks
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return super().forward(x.abs() if self.looks and bool(x.sum() > 0) else x)


@pytest.mark.parametrize("looks", [False, True])
def test_buffers_that_forward_writes_to_are_left_alone(looks: bool, tmp_path: Path) -> None:
    model = Counting(looks)
    result = sc.prune(model, torch.randn(3, 4), keep=0.5)
    sc.save(result, tmp_path)
    assert (model.count.item(), result.model.count.item()) == (0, 0)


class Answer:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


def test_outputs_in_objects_of_any_class_are_outputs() -> None:
    class Answering(Mlp):
        def forward(self, x: Tensor) -> Answer:  # type: ignore[override]
            return Answer(super().forward(x))

    result = sc.prune(Answering(), torch.randn(1, 4), keep=0.5)
    assert result.model(torch.randn(2, 4)).logits.shape == Mlp()(torch.randn(2, 4)).shape


def test_outputs_that_hide_their_tensors() -> None:
    class Hiding(Mlp):
        def forward(self, x: Tensor) -> object:  # type: ignore[override]
            y = super().forward(x)
            return lambda: y

    with pytest.raises(TraceError, match="Hiding gives a function in which no tensor can be found"):
        sc.prune(Hiding(), torch.randn(1, 4))


def test_values_out_of_range() -> None:
    with pytest.raises(TraceError, match=r"Tied does not run on the example inputs \(int64\[1, 3\]\): IndexError"):
        sc.prune(Tied(), torch.full((1, 3), 50))


def test_example_inputs_that_do_not_fit() -> None:
    with pytest.raises(
        TraceError, match=r"Mlp does not run on the example inputs \(float32\[1, 5\]\).*Pass inputs that"
    ):
        sc.prune(Mlp(), torch.zeros(1, 5))
    assert as_call(None, {"a": 1}) == ((), {"a": 1})


class Forgetting(nn.Module):
    """Takes down whether what it let go of is still held."""

    held: ClassVar[list[bool]] = []

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        reference = weakref.ref(hidden)
        hidden = hidden.relu()
        Forgetting.held.append(reference() is not None)
        return self.last(hidden)


def test_the_silenced_run_holds_no_tensor_that_the_model_lets_go_of() -> None:
    model, inputs = Forgetting().eval(), torch.randn(3, 4)
    graph = sc.trace(model, inputs)
    plan = sc.plan(graph, sc.score(model, graph), keep=0.5)
    Forgetting.held.clear()
    silenced(model, graph, plan, (inputs.double(),), {}, dtype=torch.float64)
    assert Forgetting.held == [False]
    assert prove(model, plan.apply(model), graph, plan, inputs).status == "proved"
