"""Compensation on models: what can be recovered is, what can't be touched is left, and nothing else changes."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.compensation import Compensation, compensate_
from secateur.errors import DataError, PlanError
from secateur.planning import Plan, make_plan


def kept_by_hand(model: nn.Module, x: Any, kept: dict[str, list[int]]) -> tuple[Plan, nn.Module, sc.Graph]:
    graph = sc.trace(model, x)
    plan = make_plan(graph, {axis: torch.tensor(units) for axis, units in kept.items()})
    return plan, plan.apply(model), graph


@torch.no_grad()
def compensated(
    model: nn.Module, data: list[Any], kept: dict[str, list[int]], **settings: Any
) -> tuple[nn.Module, Compensation]:
    batch = data[0]
    plan, small, graph = kept_by_hand(model, batch, kept)

    return small, compensate_(model, small, graph, plan, data, **settings)


class Twins(nn.Module):
    """A linear, a convolution or a grouped convolution, whose units from 4 on are combinations of the first 4."""

    def __init__(self, first: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.first, self.last = first, last
        torch.manual_seed(1)
        weight: Any = first.weight
        bias: Any = first.bias
        groups = getattr(last, "groups", 1)
        units = len(weight) // groups
        with torch.no_grad():
            for start in range(0, len(weight), units):
                mix = torch.randn(units - 4, 4)
                rows = weight[start : start + 4]
                weight[start + 4 : start + units] = (mix @ rows.flatten(1)).reshape(-1, *rows.shape[1:])
                bias[start + 4 : start + units] = mix @ bias[start : start + 4]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x))


def twins(kind: str) -> tuple[nn.Module, list[Tensor], dict[str, list[int]]]:
    torch.manual_seed(0)
    if kind == "linear":
        model, shape = Twins(nn.Linear(5, 8), nn.Linear(8, 3)), (5,)
    elif kind == "conv":
        model, shape = Twins(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, stride=2)), (3, 9, 9)
    else:
        model, shape = Twins(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 6, 3, groups=2, dilation=2)), (3, 9, 9)
    data = [torch.randn(64, *shape) for _ in range(3)]
    graph = sc.trace(model, data[0])
    axis = next(name for name, info in graph.axes.items() if info.size == 8)
    return model.eval(), data, {axis: [0, 1, 2, 3]}


@pytest.mark.parametrize("kind", ["linear", "conv", "grouped"])
def test_removed_units_that_are_combinations_of_kept_ones_are_recovered_to_float_tolerance(kind: str) -> None:
    model, data, kept = twins(kind)
    small, done = compensated(model, data, kept)
    fresh = torch.randn(16, *data[0].shape[1:])
    want = model(fresh)
    torch.testing.assert_close(small(fresh), want, rtol=1e-3, atol=2e-4 * float(want.abs().max()))
    assert [r.name for r in done.refits] == ["last.weight"]
    assert done.distance[1] < 1e-4 < 0.05 < done.distance[0]


def test_the_mean_of_removed_units_goes_into_the_bias_by_hand() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        model[0].bias.copy_(torch.tensor([0.0, 0.0, 5.0]))
        model[1].weight.copy_(torch.tensor([[1.0, 1.0, 2.0]]))
        model[1].bias.fill_(0.5)
    data = [torch.tensor([[1.0, 2.0], [3.0, 4.0]])]  # the third unit gives 8 and 12: mean 10, times 2
    small, done = compensated(model, data, {"0.weight:0": [0, 1]}, how="mean")
    assert small[1].bias.item() == pytest.approx(20.5)
    torch.testing.assert_close(small[1].weight, torch.tensor([[1.0, 1.0]]))
    assert done.refits[0].ridge == 0


def test_a_bias_that_is_added_by_itself_takes_the_constant() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 8), nn.Parameter(torch.randn(8, 3))
            self.bias = nn.Parameter(torch.randn(3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.sigmoid(self.up(x)) @ self.down + self.bias

    torch.manual_seed(0)
    model = Net()
    data = [torch.randn(200, 4)]
    small, done = compensated(model, data, {"down:0": [0, 1, 2, 3]}, how="mean")
    torch.testing.assert_close(small(data[0]).mean(0), model(data[0]).mean(0), rtol=1e-4, atol=1e-4)
    assert not done.biases
    assert not torch.equal(small.bias, model.bias)


def test_a_layer_without_a_bias_gets_one_that_plan_and_file_know_of(tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Sigmoid(), nn.Linear(8, 3, bias=False))
    data = [torch.randn(50, 6)]
    result = sc.prune(model, data[0], keep=0.5, data=data, compensate="mean")
    assert result.plan.biases == ("2.bias",)
    assert result.model[2].bias is not None
    assert result.report["pruned"]["params"] == sum(p.numel() for p in result.model.parameters())
    torch.testing.assert_close(result.model(data[0]).mean(0), model(data[0]).mean(0), rtol=1e-4, atol=1e-5)
    sc.save(result, tmp_path / "saved")
    loaded = sc.load(tmp_path / "saved", model=copy.deepcopy(model))
    assert torch.equal(loaded(data[0]), result.model(data[0]))
    assert result.plan.apply(model)[2].bias.tolist() == [0, 0, 0]


def test_least_squares_gives_no_layer_a_bias() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Sigmoid(), nn.Linear(8, 3, bias=False))
    small, done = compensated(model, [torch.randn(50, 6)], {"0.weight:0": [0, 1, 2, 3]})
    assert small[2].bias is None
    assert not done.biases
    assert done.distance[1] < done.distance[0]


def test_merging_folds_a_removed_unit_into_its_twin() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    with torch.no_grad():
        model[0].weight[3] = 2 * model[0].weight[1]
        model[0].bias[3] = 2 * model[0].bias[1]
    data = [torch.randn(8, 2, 9, 9)]
    small, _ = compensated(model, data, {"0.weight:0": [0, 1, 2]}, how="merge")
    torch.testing.assert_close(small(data[0]), model(data[0]), rtol=1e-3, atol=1e-4)
    expected = model[2].weight[:, 1] + 2 * model[2].weight[:, 3]
    torch.testing.assert_close(small[2].weight[:, 1], expected, rtol=1e-3, atol=1e-4)


class Residual(nn.Module):
    """Two residual blocks of convolution, norm and ReLU, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.up = nn.ModuleList(nn.Conv2d(8, 12, 3, padding=1, bias=False) for _ in range(2))
        self.norm = nn.ModuleList(nn.BatchNorm2d(12) for _ in range(2))
        self.down = nn.ModuleList(nn.Conv2d(12, 8, 1, bias=False) for _ in range(2))
        self.after = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(2))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for up, norm, down, after in zip(self.up, self.norm, self.down, self.after, strict=True):
            x = x + after(down(F.relu(norm(up(x)))))
        return self.head(x.mean((2, 3)))


def residual() -> tuple[nn.Module, list[Tensor]]:
    torch.manual_seed(0)
    model = Residual()
    data = [torch.randn(32, 3, 8, 8) for _ in range(4)]
    model.train()
    with torch.no_grad():
        for batch in data:
            model(batch)  # running statistics
    return model.eval(), data


def test_each_way_does_better_than_the_one_before() -> None:
    model, data = residual()
    fresh = torch.randn(64, 3, 8, 8)
    errors = {}
    for how in (None, "mean", "merge", "lstsq"):
        small = sc.prune(model, data[0][:2], keep=0.5, only=["hidden", "channels"], data=data, compensate=how).model
        errors[how] = float((small(fresh) - model(fresh)).square().mean())
    assert errors["lstsq"] < errors["merge"] < errors[None]
    assert errors["lstsq"] < errors["mean"] < errors[None]


def test_the_constant_goes_into_the_batch_norm_that_follows() -> None:
    model, data = residual()
    small, _ = compensated(model, data, {"up.0.weight:0": list(range(6))})
    assert small.down[0].bias is None
    assert not torch.equal(small.after[0].running_mean, model.after[0].running_mean)
    assert torch.equal(small.after[0].running_var, model.after[0].running_var)


def test_the_original_and_all_around_it_stay_as_they_were() -> None:
    model, data = residual()
    model.train()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    small, _ = compensated(model, data, {"up.0.weight:0": list(range(6))})
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    assert model.training
    assert small.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(not m._forward_hooks for m in model.modules())


def test_the_same_data_give_the_same_bits() -> None:
    model, data = residual()
    a, _ = compensated(model, data, {"up.0.weight:0": list(range(6))})
    b, _ = compensated(model, data, {"up.0.weight:0": list(range(6))})
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_weights_that_serve_several_uses_are_left() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(11, 6)
            self.up, self.down = nn.Linear(6, 10), nn.Linear(10, 6)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.words(ids)
            for _ in range(2):
                x = x + self.down(F.gelu(self.up(x)))
            return x @ self.words.weight.T

    torch.manual_seed(0)
    model = Tied()
    data = [torch.randint(0, 11, (5, 7))]
    words = model.words.weight.detach().clone()
    small, done = compensated(model, data, {"up.weight:0": [0, 1, 2, 3, 4]})
    assert done.left["down.weight"] == "it is used several times in a run"
    assert "aten::embedding" in done.left["words.weight"]
    assert torch.equal(small.words.weight, words)


def test_batches_of_unlike_shapes_and_keyword_inputs() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 12), nn.Linear(12, 2)

        def forward(self, x: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
            return {"y": self.down(F.relu(self.up(x))) * scale}

    torch.manual_seed(0)
    model = Net()
    data = [{"x": torch.randn(n, 3, 4), "scale": 2.0} for n in (5, 9, 2)]
    small, done = compensated(model, data, {"up.weight:0": list(range(8))})
    assert done.samples == 16
    assert done.distance[1] < done.distance[0]
    plan, again, graph = kept_by_hand(model, data[0], {"up.weight:0": list(range(8))})
    batches = [[d["x"]] for d in data]
    compensate_(model, again, graph, plan, batches, forward=lambda m, b: m(b[0], scale=2.0))
    torch.testing.assert_close(again.down.weight, small.down.weight)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "data holds no sample"),
        ([torch.full((2, 3, 8, 8), float("nan"))], "batch 0 of the calibration data holds NaN"),
        ([torch.randn(2, 4, 8, 8)], r"Residual fails on batch 0 .* inputs \(2, 4, 8, 8\)"),
    ],
)
def test_bad_data_is_refused_in_words(data: list[Tensor], words: str) -> None:
    model, good = residual()
    plan, small, graph = kept_by_hand(model, good[0], {"up.0.weight:0": list(range(6))})
    with pytest.raises(DataError, match=words):
        compensate_(model, small, graph, plan, data)


def test_one_sample_is_enough_to_go_on() -> None:
    model, _ = residual()
    small, done = compensated(model, [torch.randn(1, 3, 8, 8)], {"up.0.weight:0": list(range(6))})
    assert done.samples == 1
    assert torch.isfinite(small(torch.randn(2, 3, 8, 8))).all()


def test_unknown_ways_and_missing_data_are_refused() -> None:
    model, data = residual()
    with pytest.raises(PlanError, match="compensate='best': give None"):
        sc.prune(model, data[0], keep=0.5, data=data, compensate="best")
    with pytest.raises(PlanError, match="needs calibration data"):
        sc.prune(model, data[0], keep=0.5, compensate="lstsq")


def test_data_alone_are_enough_for_least_squares_and_the_report_says_so() -> None:
    model, data = residual()
    result = sc.prune(model, data[0], keep=0.5, only=["hidden", "channels"], data=data)
    assert result.compensation is not None
    assert result.compensation.how == "lstsq"
    report = result.report["compensation"]
    assert report["samples"] == 128
    assert report["distance"] < report["distance_before"]
    assert result.proof.status == "proved"


def test_units_that_no_data_wake_are_counted() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    model[0].weight[2:5] = 0
    model[0].bias[2:5] = -1
    data = [torch.randn(30, 4)]
    result = sc.prune(model, data[0], keep=5 / 8, data=data)
    assert result.report["dead_units"] == 3
    assert "3 units give zero on all of the data" in str(result)
    assert "Compensated by least squares on 30 samples" in str(result)
    torch.testing.assert_close(result.model(data[0]), model(data[0]), rtol=1e-3, atol=1e-4)


def test_runs_join_and_leave_as_there_is_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = residual()
    whole, done = compensated(model, data, {"up.0.weight:0": list(range(6))})
    monkeypatch.setattr("secateur.compensation.company.Company.__init__.__defaults__", (2**20,))
    part, less = compensated(model, data, {"up.0.weight:0": list(range(6))})
    assert (done.samples, less.samples) == (128, 128)
    assert done.distance[1] < done.distance[0]
    assert less.distance[1] < less.distance[0]
    assert not torch.equal(whole.down[0].weight, part.down[0].weight)


def test_attention_and_its_outputs() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    data = [torch.randn(8, 10, 16) for _ in range(4)]
    bare = sc.prune(model, data[0], keep=0.5, only=["heads", "hidden"], data=data, compensate=None)
    result = sc.prune(model, data[0], keep=0.5, only=["heads", "hidden"], data=data)
    fresh = torch.randn(8, 10, 16)
    errors = [float((r.model(fresh) - model(fresh)).square().mean()) for r in (bare, result)]
    assert errors[1] < 0.6 * errors[0]
    assert any("out_proj" in r.name for r in result.compensation.refits)  # type: ignore[union-attr]


def test_a_plan_compensates_where_it_is_replayed() -> None:
    model, data = residual()
    plan = sc.prune(model, data[0], keep=0.5, only=["hidden", "channels"]).plan
    for p in model.parameters():
        p.mul_(1.01)  # next month's weights
    fresh = torch.randn(64, 3, 8, 8)
    errors = [
        float((small(fresh) - model(fresh)).square().mean())
        for small in (plan.apply(model), plan.apply(model, compensate="auto", data=data))
    ]
    assert errors[1] < 0.5 * errors[0]
    with pytest.raises(PlanError, match="needs calibration data"):
        plan.apply(model, compensate="mean")
