"""What one pass over the data finds, against direct computation with hooks, sample by sample."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.calibration import statistics
from secateur.calibration.statistics import NEEDS, Statistics, collect
from secateur.errors import DataError, ScoreError
from support.networks import Attention, Cnn, Grouped, Mlp, Residual, Tied, bert, example, llama


def squared(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().flatten(1).sum(1).mean()


def passed(model: nn.Module, data: Any, *needs: str, **more: Any) -> Statistics:
    return collect(model, sc.trace(model, example(model)), data, needs or NEEDS, loss=squared, **more)


def batches(model: nn.Module) -> list[Any]:
    """Three batches, the last one smaller, with something to aim at."""
    inputs = [example(model), example(model), example(model)[:1]]
    return [(x, torch.randn_like(model.eval()(x))) for x in inputs]


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a.double(), b.double(), rtol=1e-4, atol=1e-5)


def inputs_of(model: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    with torch.no_grad():
        model.eval()(x)
    hook.remove()
    return torch.cat(seen)


# ---------------------------------------------------------------------- inputs and Gram matrices


def test_inputs_by_hand() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    graph = sc.trace(model, torch.zeros(1, 2))
    found = collect(model, graph, [torch.tensor([[1.0, -2.0], [3.0, 4.0]]), torch.tensor([[0.0, 0.0]])], ["inputs"])
    seen = found.inputs["2.weight", 0]
    assert (found.samples, found.batches, seen.rows) == (3, 2, 3)
    assert seen.total.tolist() == [4.0, 4.0]
    assert seen.square.tolist() == [10.0, 16.0]
    assert seen.positive.tolist() == [2.0, 1.0]
    assert found.dead(graph) == {}


def test_dead_units_are_counted() -> None:
    model = Mlp()
    with torch.no_grad():
        model[0].weight[:3] = 0
        model[0].bias[:3] = -1
    graph = sc.trace(model, torch.zeros(1, 4))
    x = torch.randn(500, 4)
    assert collect(model, graph, [x], ["inputs"]).dead(graph) == {"0.weight:0": 3}
    assert sc.score(model, graph, "activation", [x]).dead == {"0.weight:0": 3}
    assert sc.score(model, graph, "activation", [x])["0.weight:0"][:3].tolist() == [0.0, 0.0, 0.0]


def test_gram_of_a_strided_padded_convolution_is_that_of_its_patches() -> None:
    model = Cnn()
    data = [example(model), example(model)[:1]]
    found = passed(model, data, "gram")
    x = torch.cat([inputs_of(model, model.conv2, b) for b in data])
    patches = F.unfold(x, 3, stride=2).transpose(1, 2).flatten(0, 1)
    close(found.grams["conv2.weight", 0][0], patches.T @ patches / len(patches))
    close(found.inputs["conv2.weight", 0].square, x.square().sum((0, 2, 3)))
    close(found.matrices["conv2.weight", 0][0], model.conv2.weight.detach().flatten(1).T)


def test_gram_of_padding_and_dilation() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=2, dilation=2, stride=(1, 2)))
    x = torch.randn(2, 2, 7, 6)
    found = collect(model, sc.trace(model, x), [x], ["gram"])
    patches = F.unfold(inputs_of(model, model[2], x), 3, padding=2, dilation=2, stride=(1, 2))
    rows = patches.transpose(1, 2).flatten(0, 1)
    close(found.grams["2.weight", 0][0], rows.T @ rows / len(rows))


def test_gram_of_each_group() -> None:
    model = Grouped()
    x = example(model)
    found = passed(model, [x], "gram")
    parts = inputs_of(model, model.grouped, x).chunk(4, 1)
    rows = [F.unfold(part, 3).transpose(1, 2).flatten(0, 1) for part in parts]
    close(found.grams["grouped.weight", 0], torch.stack([r.T @ r / len(r) for r in rows]))
    assert ("depthwise.weight", 0) not in found.grams, "it passes its channels on, and consumes none"


def test_gram_matrices_too_wide_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "WIDEST", 71)
    model = Cnn()
    found = passed(model, [example(model)], "gram")
    assert set(found.grams) == set()
    assert set(found.inputs) == {("conv2.weight", 0), ("fc.weight", 0)}


def test_rows_are_picked_where_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "ROWS", 40)
    model = Residual()
    data = [example(model), example(model)]
    one, two = (passed(model, data, "gram").grams["blocks.0.3.weight", 0] for _ in range(2))
    assert torch.equal(one, two)
    whole = inputs_of(model, model.blocks[0][3], data[0]).square().mean()
    assert 0.3 < float(one[0].diagonal().mean() / whole) < 3


# ---------------------------------------------------------------------- gradients, sample by sample


def gates_by_hand(model: nn.Module, layers: list[nn.Module], data: list[Any], dim: int) -> Tensor:
    """The derivative of each sample's loss by a factor on each feature that layers are given, (samples, features)."""
    rows = []
    for x, y in data:
        for k in range(len(x)):
            size = inputs_of(model, layers[0], x).shape[dim]
            factor = torch.ones(size, requires_grad=True)
            shape = [1] * inputs_of(model, layers[0], x).dim()
            shape[dim] = size
            hooks = [
                layer.register_forward_pre_hook(lambda _, g, f=factor, s=shape: g[0] * f.view(s)) for layer in layers
            ]
            value = squared(model.eval()(x[k : k + 1]), y[k : k + 1])
            rows.append(torch.autograd.grad(value, factor)[0])
            for hook in hooks:
                hook.remove()
    return torch.stack(rows)


@pytest.mark.parametrize("kind", [Mlp, Cnn, Residual])
def test_gates_are_those_of_each_sample(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model: Any = kind()
    data = batches(model)
    axis, layers, dim = {
        "Mlp": ("0.weight:0", lambda: [model[2]], 1),
        "Cnn": ("conv1.weight:0", lambda: [model.conv2], 1),
        "Residual": ("stem.weight:0", lambda: [model.blocks[0][0], model.blocks[1][0], model.head], 1),
    }[kind.__name__]
    found = passed(model, data, "gates")
    if kind is Residual:  # one factor on the unit at all its uses: maps and vectors take it in different shapes
        by_hand = sum(gates_by_hand(model, [layer], data, dim) for layer in layers())
    else:
        by_hand = gates_by_hand(model, layers(), data, dim)
    close(found.gate[axis], by_hand.mean(0))
    close(found.gate_magnitude[axis], by_hand.abs().mean(0))
    close(found.gate_square[axis], by_hand.square().mean(0))


def test_gates_of_heads() -> None:
    torch.manual_seed(0)
    model = Attention(heads=4, width=6)
    data = batches(model)
    found = passed(model, data, "gates")
    by_hand = gates_by_hand(model, [model.out], data, 2).unflatten(1, (4, 6))
    close(found.gate_square["qkv.weight:0/heads"], by_hand.sum(2).square().mean(0))
    close(found.gate_square["qkv.weight:0/head_dim2"], by_hand.sum(1).square().mean(0))
    assert "qkv.weight:0/head_dim1" not in found.gate


def test_gradients_are_the_mean_over_all_samples() -> None:
    torch.manual_seed(0)
    model = Cnn()
    data = batches(model)
    found = passed(model, data, "gradients")
    x, y = (torch.cat([b[k] for b in data]) for k in (0, 1))
    squared(model.eval()(x), y).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        close(found.gradients[name], parameter.grad)


def test_gradients_of_a_tied_weight_count_once() -> None:
    torch.manual_seed(0)
    model = Tied()
    ids = example(model)
    found = collect(model, sc.trace(model, ids), [(ids, ids)], ["gradients"])
    F.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
    assert model.embed.weight.grad is not None
    close(found.gradients["embed.weight"], model.embed.weight.grad)
    assert "head.weight" not in found.gradients


def test_sensitivity_is_fishers_information_of_the_outputs() -> None:
    """Of class scores z the information is diag(p) - p p^T; drawn answers come near it."""
    torch.manual_seed(0)
    model = Mlp()
    x = torch.randn(4000, 4)
    found = collect(model, sc.trace(model, x[:1]), x.split(500), ["sensitivity"])
    p = model(x).softmax(1)
    torch.testing.assert_close(
        found.sensitivity["2.weight", 0][0].float(), (p * (1 - p)).mean(0).detach(), rtol=0.1, atol=0
    )


def test_sensitivity_of_numbers_that_are_no_classes() -> None:
    torch.manual_seed(0)
    model = Mlp()
    x = torch.randn(4000, 4)
    found = collect(model, sc.trace(model, x[:1]), [(x, torch.randn(4000, 2))], ["sensitivity"])
    assert (found.sensitivity["2.weight", 0] - 1).abs().max() < 0.1


def test_softmax_by_hand() -> None:
    torch.manual_seed(0)
    model = Cnn()
    data = [example(model), example(model)[:1]]
    x = torch.cat([inputs_of(model, model.conv2, b) for b in data])
    close(passed(model, data, "softmax").softmax["conv1.weight:0"], x.softmax(1).mean((0, 2, 3)))


# ---------------------------------------------------------------------- models as people write them


class Looped(nn.Module):
    """One layer used as often as the data say, with changes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x), inplace=True)
        for _ in range(1 + int(x.sum() > 0)):
            x = x + F.relu(self.again(x), inplace=True)
        x += 1
        return self.last(x)


def test_a_weight_used_several_times() -> None:
    model = Looped()
    x = torch.rand(3, 4)
    found = collect(model, sc.trace(model, x), [(x, torch.tensor([0, 1, 2]))], NEEDS)
    assert set(found.inputs) == {("again.weight", 0), ("again.weight", 1), ("last.weight", 0)}
    assert found.gate.keys() == {"first.weight:0"}


@dataclass
class Answer:
    logits: Tensor
    loss: Tensor | None = None


class Wrapped(nn.Module):
    """Returns a dataclass, a mapping or a tuple; computes its own loss from labels."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.net, self.form = Mlp(), form

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        scores = self.net(x)
        loss = None if labels is None else F.cross_entropy(scores, labels)
        match self.form:
            case "dataclass":
                return Answer(scores, loss)
            case "mapping":
                return {"logits": scores, **({} if loss is None else {"loss": loss})}
            case _:
                return scores, x


@pytest.mark.parametrize("form", ["dataclass", "mapping", "tuple"])
def test_outputs_of_any_form(form: str) -> None:
    torch.manual_seed(0)
    model = Wrapped(form)
    x, y = torch.randn(5, 4), torch.randint(2, (5,))
    batch = (x, y) if form == "tuple" else {"x": x, "labels": y}
    found = collect(model, sc.trace(model, x), [batch], NEEDS)
    plain = collect(model.net, sc.trace(model.net, x), [(x, y)], NEEDS)
    close(found.gate_square["net.0.weight:0"], plain.gate_square["0.weight:0"])
    assert found.sensitivity.keys() == {("net.2.weight", 0)}


@pytest.mark.parametrize("make", [llama, bert])
def test_language_models(make: Any) -> None:
    model = make()
    inputs = example(model)
    graph = sc.trace(model, inputs)
    if make is llama:
        scores = sc.importance.score_all(
            model, graph, {n: n for n in sc.importance.names()}, [{**inputs, "labels": inputs["input_ids"]}]
        )
    else:
        scores = sc.importance.score_all(model, graph, {"w": "wanda", "r": "reconstruction"}, [inputs])
    assert all(bool(v.isfinite().all()) for table in scores.values() for v in table.values())


def test_bfloat16_and_batches_of_unlike_shape() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 3))
    model.bfloat16()
    data = [(torch.randn(b, 2, n).bfloat16(), torch.randint(3, (b,))) for b, n in ((4, 9), (3, 12), (1, 7))]
    found = collect(model, sc.trace(model, data[0][0]), data, NEEDS)
    assert found.samples == 8
    assert all(v.dtype == torch.float64 and bool(v.isfinite().all()) for v in found.grams.values())


def test_a_generator_of_batches_and_a_forward_of_ones_own() -> None:
    model = Mlp()
    made = []

    def stream() -> Iterator[Any]:
        for k in range(3):
            made.append(k)
            yield {"id": k, "image": torch.randn(4, 4), "class": torch.tensor([0, 1, 0, 1])}

    found = collect(
        model, sc.trace(model, torch.zeros(1, 4)), stream(), ["inputs"], forward=lambda net, batch: net(batch["image"])
    )
    assert (found.batches, found.samples, made) == (3, 12, [0, 1, 2])


# ---------------------------------------------------------------------- what is left behind, and what is refused


class Touchy(nn.Module):
    """Fails or is interrupted on its second batch, and counts its calls in a buffer."""

    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__()
        self.net, self.error, self.calls = Mlp(), error, 0
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        if len(x) == 3 and self.error is not None:
            raise self.error
        return self.net(x)


@pytest.mark.parametrize("error", [None, KeyboardInterrupt(), RuntimeError("no")])
def test_the_model_is_left_as_it_was(error: BaseException | None) -> None:
    model = Touchy(error)
    model.net[0].weight.requires_grad_(False)
    model.train()
    before = {n: (t, t.clone(), t.requires_grad) for n, t in model.state_dict(keep_vars=True).items()}
    graph = sc.trace(model, torch.zeros(1, 4))
    random = torch.get_rng_state()
    data = [(torch.randn(n, 4, generator=torch.Generator()), torch.zeros(n, dtype=torch.long)) for n in (2, 3)]
    try:
        collect(model, graph, data, NEEDS)
    except (KeyboardInterrupt, DataError):
        assert error is not None
    assert model.training
    assert all(m.training and not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    for name, tensor in model.state_dict(keep_vars=True).items():
        old, values, flag = before[name]
        assert tensor is old
        assert tensor.grad is None
        assert tensor.requires_grad == flag
        assert torch.equal(tensor, values)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_modes_around_the_call_change_nothing(mode: Any) -> None:
    torch.manual_seed(0)
    model = Mlp()
    graph, data = sc.trace(model, torch.zeros(1, 4)), [(torch.randn(6, 4), torch.zeros(6, dtype=torch.long))]
    wanted = sc.importance.score_all(model, graph, {"a": "fisher", "b": "taylor", "c": "wanda"}, data)
    with mode():
        inside = [(x * 1, y * 1) for x, y in data]
        found = sc.importance.score_all(model, graph, {"a": "fisher", "b": "taylor", "c": "wanda"}, inside)
    for name, scores in wanted.items():
        torch.testing.assert_close(found[name]["0.weight:0"], scores["0.weight:0"])


def test_an_embedding_that_renews_its_rows_keeps_them() -> None:
    model = nn.Sequential(nn.Embedding(5, 6, max_norm=0.5), nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.fill_(3.0)
    ids = torch.tensor([[0, 1], [2, 3]])
    collect(model, sc.trace(model, ids), [ids], ["inputs"])
    assert bool((model[0].weight == 3).all())


NAN = torch.full((2, 4), float("nan"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "data holds no sample"),
        (iter(()), "a generator that was used up is empty"),
        (torch.zeros(2, 4), r"an iterable of batches, and got a tensor of shape \(2, 4\): pass \[batch\]"),
        ({"x": torch.zeros(2, 4)}, "got a mapping"),
        ((torch.zeros(2, 4), torch.zeros(2).long()), r"got one pair \(inputs, target\)"),
        (5, "got a int"),
        (
            [torch.zeros(2, 4), torch.zeros(2, 5)],
            r"Mlp fails on batch 1 of the calibration data, inputs \(2, 5\): Runtime",
        ),
        ([torch.zeros(2, 4), NAN], "batch 1 of the calibration data holds NaN"),
        (
            [torch.full((2, 4), 1e38)],
            "batch 0 of the calibration data gives NaN or infinite activations, .* of 2.weight",
        ),
        (
            [(torch.zeros(2, 4), 1, 2)],
            "batch 0 of the calibration data: a batch is a tensor, .* got a sequence of 3 items; pass forward=",
        ),
        ([torch.zeros(0, 4)], "data holds no sample"),
    ],
)
def test_bad_data(data: Any, message: str) -> None:
    model = Mlp()
    with torch.no_grad():
        model[0].weight.fill_(5.0)
    graph = sc.trace(model, torch.zeros(1, 4))
    with pytest.raises(DataError, match=message):
        sc.score(model, graph, "activation", data)


X = torch.zeros(2, 4)


@pytest.mark.parametrize(
    ("data", "loss", "message"),
    [
        (None, None, r"Fisher\(\) can't be computed without data: pass data="),
        ([X], None, r"no loss for Fisher\(\): batch 0 has no target. Pass batches \(inputs, target\)"),
        (
            [(X, torch.zeros(3).long())],
            None,
            r"cross-entropy does not fit outputs \(2, 2\) and targets \(3,\) of torch.int64",
        ),
        ([(X, [1, 2])], None, "there is no cross-entropy between a Tensor and a list"),
        ([X], lambda o, t: o["no"], r"loss\(output, target\) fails on batch 0: "),
        ([X], lambda o, t: o.detach().sum(), "from which no gradient comes for"),
        ([X], lambda o, t: 3.0, "the loss of batch 0 is float"),
        ([X], lambda o, t: o.sum() / 0 * 0, "the loss of batch 0 is nan"),
    ],
)
def test_bad_losses(data: Any, loss: Any, message: str) -> None:
    model = Mlp()
    with pytest.raises(ScoreError, match=message):
        sc.score(model, sc.trace(model, X), "fisher", data, loss)


def test_one_batch_is_enough() -> None:
    model = Mlp()
    graph = sc.trace(model, X)
    data = [(torch.randn(1, 4), torch.tensor([1]))]
    scores = sc.importance.score_all(model, graph, {n: n for n in sc.importance.names()}, data)
    assert all(bool(table["0.weight:0"].isfinite().all()) for table in scores.values())
