"""Carrying out plans: what changes, and what must not."""

import copy

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import register_parametrization

import secateur as sc
from secateur.errors import SurgeryError
from secateur.inputs import run
from secateur.modules import named_tensors
from secateur.planning import make_plan
from support.networks import Attention, Cnn, Grouped, LiteralNet, Mlp, Normed, Residual, Tied, Transposed, example

MAKERS = [Mlp, Cnn, Residual, Grouped, Transposed, Attention, Tied, LiteralNet]


def planned(model: nn.Module, keep: float = 0.5, **settings: object) -> sc.Plan:
    graph = sc.trace(model, example(model))
    return sc.plan(graph, sc.score(model, graph), keep=keep, **settings)  # type: ignore[arg-type]


def attributes(model: nn.Module) -> dict[str, object]:
    """Every plain attribute of every module."""
    return {
        f"{path}.{name}": copy.copy(value)
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if not name.startswith("_")
    }


def sliced(model: nn.Module, plan: sc.Plan) -> dict[str, Tensor]:
    """The tensors of a model, sliced by hand."""
    state = {}
    for name, tensor in named_tensors(model).items():
        for dim, at in plan.kept.get(name, {}).items():
            tensor = tensor.index_select(dim, at)
        state[name] = tensor.detach()
    return state


# ---------------------------------------------------------------------- a new module


@pytest.mark.parametrize("make", MAKERS)
def test_the_model_given_is_untouched(make: type[nn.Module]) -> None:
    model = make()
    args = example(model)
    before, names, ids = copy.deepcopy(model), attributes(model), {n: id(t) for n, t in named_tensors(model).items()}
    small = planned(model).apply(model)
    assert str(model) == str(before)
    assert attributes(model) == names
    assert {n: id(t) for n, t in named_tensors(model).items()} == ids
    assert all(torch.equal(t, named_tensors(before)[n]) for n, t in named_tensors(model).items())
    assert torch.equal(run(model.eval(), args), run(before.eval(), args))
    memory = {t.data_ptr() for t in named_tensors(model).values()}
    assert not memory & {t.data_ptr() for t in named_tensors(small).values()}


def test_a_literal_by_literal_print() -> None:
    model = Grouped()
    graph = sc.trace(model, example(model))
    units = {"conv.weight:0": [0, 3, 5], "mix.weight:0/groups": [1, 2], "grouped.weight:0/channels": [0, 1]}
    small = make_plan(graph, {axis: torch.tensor(at) for axis, at in units.items()}).apply(model)
    assert str(small) == (
        "Grouped(\n"
        "  (conv): Conv2d(3, 3, kernel_size=(1, 1), stride=(1, 1))\n"
        "  (depthwise): Conv2d(3, 3, kernel_size=(3, 3), stride=(1, 1), groups=3)\n"
        "  (mix): Conv2d(3, 4, kernel_size=(1, 1), stride=(1, 1))\n"
        "  (grouped): Conv2d(4, 4, kernel_size=(3, 3), stride=(1, 1), groups=2)\n"
        "  (head): Conv2d(4, 5, kernel_size=(1, 1), stride=(1, 1))\n"
        ")"
    )
    assert small.grouped.weight.shape == (4, 2, 3, 3)


@pytest.mark.parametrize(
    ("model", "lines"),
    [
        (Cnn(), ["Conv2d(3, 4, ", "BatchNorm2d(4, ", "Conv2d(4, 6, ", "BatchNorm2d(6, ", "Linear(in_features=54, "]),
        (
            Transposed(),
            ["Conv2d(3, 4, ", "ConvTranspose2d(4, 4, ", "ConvTranspose2d(4, 2, ", "groups=2", "Conv2d(2, 3, "],
        ),
        (Tied(), ["Embedding(11, 4)", "Linear(in_features=4, out_features=8", "Linear(in_features=4, out_features=11"]),
        (Normed(nn.LayerNorm(8)), ["LayerNorm((4,), ", "Linear(in_features=4, out_features=6"]),
        (Normed(nn.RMSNorm(8)), ["RMSNorm((4,), "]),
        (Normed(nn.GroupNorm(4, 8)), ["GroupNorm(2, 2, "]),
        (LiteralNet(), ["Conv2d(1, 3, ", "BatchNorm2d(3, ", "Linear(in_features=48, out_features=5"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_print_tells_the_truth(model: nn.Module, lines: list[str]) -> None:
    text = str(planned(model).apply(model))
    assert [line for line in lines if line not in text] == []


def test_attributes_of_the_users_own() -> None:
    model = Attention(heads=4)
    small = planned(model, only=["heads"]).apply(model)
    assert (small.heads, model.heads, small.scale) == (2, 4, model.scale)


@pytest.mark.parametrize("make", MAKERS)
def test_training_goes_on(make: type[nn.Module]) -> None:
    model = make()
    small = planned(model).apply(model).train()
    run(small, example(model)).square().mean().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_flags_and_types_are_kept() -> None:
    model = Cnn().double().train()
    model.conv1.weight.requires_grad_(False)
    model.register_buffer("table", torch.arange(3), persistent=False)
    model.bn1.eval()
    small = planned_double(model).apply(model)
    assert [n for n, p in small.named_parameters() if not p.requires_grad] == ["conv1.weight"]
    assert {t.dtype for n, t in small.state_dict().items() if "num_batches" not in n} == {torch.float64}
    assert "table" in dict(small.named_buffers())
    assert "table" not in small.state_dict()
    assert (small.training, small.conv1.training, small.bn1.training) == (True, True, False)


def planned_double(model: nn.Module) -> sc.Plan:
    args = example(model).double()
    graph = sc.trace(model, args)
    return sc.plan(graph, sc.score(model, graph), keep=0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_kept(dtype: torch.dtype) -> None:
    model = Mlp().to(dtype)
    graph = sc.trace(model, torch.zeros(1, 4, dtype=dtype))
    small = sc.plan(graph, sc.score(model, graph), keep=0.5).apply(model)
    assert {p.dtype for p in small.parameters()} == {dtype}


def test_tied_parameters_stay_tied() -> None:
    model = Tied()
    small = planned(model).apply(model)
    assert small.head.weight is small.embed.weight
    assert small.head.weight.shape == (11, 4)
    assert model.head.weight is model.embed.weight
    small = planned(model).apply_(copy.deepcopy(model))
    assert small.head.weight is small.embed.weight


def test_a_shared_layer_stays_shared() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)
            self.again = self.inner

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.again(torch.relu(self.inner(self.first(x)))))

    model = Twice()
    small = planned(model).apply(model)
    assert small.again is small.inner
    assert small.inner.weight.shape == (4, 4)
    assert small(torch.zeros(1, 4)).shape == (1, 2)


def test_a_parametrised_weight() -> None:
    class Squared(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight.square()

    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    register_parametrization(model[0], "weight", Squared())
    result = sc.prune(model, torch.randn(3, 4), keep=0.5)
    assert "out_features=4" in str(result.model)
    assert result.model[0].weight.shape == (4, 4)
    assert result.proof.status == "proved"


# ---------------------------------------------------------------------- in place


def test_in_place() -> None:
    model = Cnn()
    plan = planned(model, only=["conv2"])
    wanted = plan.apply(model)
    before = dict(model.named_parameters())
    assert plan.apply_(model) is model
    now = dict(model.named_parameters())
    assert {name for name in now if now[name] is before[name]} == now.keys() - plan.kept.keys()
    assert str(model) == str(wanted)
    assert all(torch.equal(t, wanted.state_dict()[n]) for n, t in model.state_dict().items())


def test_in_place_equals_a_copy_everywhere() -> None:
    for make in MAKERS[:-1]:
        model = make()
        plan = planned(model)
        small = plan.apply(model)
        args = example(model)
        assert torch.equal(run(small.eval(), args), run(plan.apply_(model).eval(), args))


def test_a_rewrite_can_not_happen_in_place() -> None:
    model = LiteralNet()
    plan = planned(model)
    with pytest.raises(
        SurgeryError, match=r"replaces the class LiteralNet by its graph \(view\(96\) at .*keep_class=True"
    ):
        plan.apply_(model)
    assert model.conv.weight.shape[0] == 6
    planned(model, keep_class=True).apply_(model)
    assert model.fc2.in_features == 5


# ---------------------------------------------------------------------- plans that do not fit


@pytest.mark.parametrize("method", ["apply", "apply_"])
def test_another_architecture(method: str) -> None:
    plan, other = planned(Cnn()), Residual()
    before = str(other)
    message = (
        r"the plan was made for another architecture \(Cnn\) than this Residual: "
        r"conv1\.weight is missing, planned for \[8, 3, 3, 3\]; .* and \d+ more\. Apply it to a model of the original"
    )
    with pytest.raises(SurgeryError, match=message):
        getattr(plan, method)(other)
    assert str(other) == before


def test_other_sizes() -> None:
    with pytest.raises(
        SurgeryError, match=r"0\.weight is \[9, 4\], planned for \[8, 4\]; 0\.bias is \[9\], planned for \[8\]"
    ):
        planned(Mlp()).apply(Mlp(hidden=9))


def test_a_plan_fits_only_once() -> None:
    model = Mlp()
    plan = planned(model)
    with pytest.raises(SurgeryError, match=r"0\.weight is \[4, 4\], planned for \[8, 4\]"):
        plan.apply(plan.apply(model))


def test_the_same_tensors_cut_otherwise_by_the_code() -> None:
    plan = planned(Attention(heads=4, width=6))
    with pytest.raises(SurgeryError, match=r"heads is 2, planned for 4"):
        plan.apply(Attention(heads=2, width=12))


# ---------------------------------------------------------------------- replay


@pytest.mark.parametrize("make", MAKERS)
def test_a_plan_replays_on_other_weights(make: type[nn.Module]) -> None:
    model = make()
    plan = planned(model)
    torch.manual_seed(1)
    retrained = make()
    wanted = sliced(retrained, plan)
    small = plan.apply(retrained)
    got = named_tensors(small)
    assert all(torch.equal(got[name], wanted[name]) for name in got)
    assert got.keys() == wanted.keys()


# ---------------------------------------------------------------------- rewritten graphs


@pytest.fixture
def rewritten() -> tuple[LiteralNet, fx.GraphModule]:
    model = LiteralNet()
    small = planned(model, only=["conv"]).apply(model)
    assert isinstance(small, fx.GraphModule)
    return model, small


def test_a_rewritten_graph_has_the_names_and_the_new_size(rewritten: tuple[LiteralNet, fx.GraphModule]) -> None:
    model, small = rewritten
    assert type(small).__name__ == "LiteralNet"
    assert small.state_dict().keys() == model.state_dict().keys()
    assert "view(-1, 48)" in small.code
    for batch in (1, 5):
        assert small(torch.zeros(batch, 1, 6, 6)).shape == (batch, 4)


def test_a_rewritten_graph_switches_with_train_and_eval(rewritten: tuple[LiteralNet, fx.GraphModule]) -> None:
    _, small = rewritten
    x = torch.randn(16, 1, 6, 6)
    small.eval()
    assert torch.equal(small(x), small(x))
    statistics = small.bn.running_mean.clone()
    small.train()
    assert not torch.equal(small(x), small(x))
    assert not torch.equal(small.bn.running_mean, statistics)
    assert not torch.equal(copy.deepcopy(small)(x), copy.deepcopy(small)(x))


def test_a_rewritten_graph_computes_what_a_smaller_class_would(rewritten: tuple[LiteralNet, fx.GraphModule]) -> None:
    _model, small = rewritten
    own = LiteralNet()
    own.conv, own.bn, own.fc1 = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Linear(48, 10)
    own.load_state_dict(small.state_dict())
    x = torch.randn(4, 1, 6, 6)
    by_hand = own.fc2(torch.relu(own.fc1(torch.relu(own.eval().bn(own.conv(x))).flatten(1))))
    torch.testing.assert_close(small.eval()(x), by_hand)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_a_rewritten_graph_is_that_of_the_model(training: bool) -> None:
    model = LiteralNet().train(training)
    model.bn.eval()
    small = planned(model).apply(model)
    assert (small.training, small.fc1.training, small.bn.training) == (training, training, False)
    assert (model.training, model.fc1.training, model.bn.training) == (training, training, False)
