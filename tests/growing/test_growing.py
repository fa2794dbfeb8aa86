"""Wider axes, the same function."""

import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.changes import change_from_dict
from secateur.errors import ArtifactError, NotGrowable, PlanError, SurgeryError
from secateur.growing import repeated
from support.growable import (
    Decoder,
    Recurrent,
    Square,
    Unit,
    Weighted,
    gated,
    group_norm,
    grouped,
    inputs,
    spectral_norm,
    transposed,
    weight_norm,
)
from support.networks import Cnn, LiteralNet, Mlp, Residual, Tied, example

HARD: dict[str, Callable[[], nn.Module]] = {
    "grouped": grouped,
    "group norm": group_norm,
    "transposed": transposed,
    "gated": gated,
    "weight norm": weight_norm,
    "spectral norm": spectral_norm,
    "lstm": Recurrent,
    "bidirectional lstm": partial(Recurrent, bidirectional=True),
    "gru": partial(Recurrent, nn.GRU),
    "square": Square,
    "weighted sum": Weighted,
    "decoder": Decoder,
    "normed queries": partial(Decoder, normed=True),
    "explicit attention": partial(Decoder, explicit=True),
}


def difference(a: nn.Module, b: nn.Module, x: Any) -> float:
    """Largest difference of two models' outputs, by the outputs' size, in float64."""
    a, b = (copy.deepcopy(m).eval().double() for m in (a, b))
    x = x.double() if x.is_floating_point() else x
    with torch.no_grad():
        first, second = a(x), b(x)
    return float((first - second).abs().max() / first.abs().max())


def furthest(a: nn.Module, b: nn.Module) -> float:
    """Largest difference of two models' parameters."""
    pairs = zip(a.named_parameters(), b.named_parameters(), strict=True)
    return max(float((p - q).detach().abs().max()) for (_, p), (_, q) in pairs)


def wider(info: Any) -> int:
    return info.size * 2 if info.normalising else info.size + info.size // 2


def pair(seed: int = 0) -> nn.Module:
    """2 inputs, 2 hidden units, 1 output, with weights to calculate with."""
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        net[0].bias.copy_(torch.tensor([5.0, 6.0]))
        net[2].weight.copy_(torch.tensor([[8.0, 9.0]]))
    return net


def test_by_hand() -> None:
    """Each unit twice: rows are copied, columns are halved."""
    wide = sc.grow(pair(), torch.ones(1, 2), {"0.weight:0": 4}).model
    assert wide[0].weight.tolist() == [[1, 2], [1, 2], [3, 4], [3, 4]]
    assert wide[0].bias.tolist() == [5, 5, 6, 6]
    assert wide[2].weight.tolist() == [[4.0, 4.0, 4.5, 4.5]]
    assert (wide[0].out_features, wide[2].in_features) == (4, 4)


def test_a_seed_chooses_which_units_come_once_more() -> None:
    found = {tuple(repeated(4, 6, seed).tolist()) for seed in range(20)}
    assert all(sorted(set(units)) == [0, 1, 2, 3] and list(units) == sorted(units) for units in found)
    assert len(found) > 3
    assert repeated(4, 11, 0).bincount().tolist().count(3) == 3  # 11 = 2 * 4 + 3


@pytest.mark.parametrize("name", HARD)
def test_every_axis_of_hard_networks(name: str) -> None:
    torch.manual_seed(0)
    model = HARD[name]().eval()
    x = inputs(model)
    graph = sc.trace(model, x)
    assert graph.axes
    for axis, info in graph.axes.items():
        tied = [n for tie in graph.ties if axis in tie for n in tie]
        new = max([wider(info), *(2 * info.size for n in tied if graph.axes[n].normalising)])
        result = sc.grow(model, x, {axis: new}, noise=0.1, seed=1)
        assert result.proof.status == "proved"
        assert result.proof.dtype == "float64"
        assert difference(model, result.model, x) < 1e-5
        assert {row["name"]: row["after"] for row in result.axes}[axis] == new
        back = sc.merge_copies(result)
        assert difference(model, back, x) < 1e-5
        assert [p.shape for p in back.parameters()] == [p.shape for p in model.parameters()]
        if "norm" not in name:  # lengths and directions may share their weight in another way
            assert furthest(model, back) < 1e-5
        assert str(back) == str(model)


@pytest.mark.parametrize("make", [Mlp, Cnn, Residual, Tied, LiteralNet])
def test_all_axes_at_once(make: type[nn.Module], tmp_path: Path) -> None:
    """And the plan replays, from its file too, and the wider model loads."""
    torch.manual_seed(0)
    model = make().eval()
    x = example(model)
    widths = {name: wider(info) for name, info in sc.trace(model, x).axes.items()}
    result = sc.grow(model, x, widths, noise=0.2)
    assert difference(model, result.model, x) < 1e-5
    result.plan.save(tmp_path / "plan.json")
    again = sc.Plan.load(tmp_path / "plan.json")
    assert again == result.plan
    other = make().eval()
    assert difference(other, again.apply(other), x) < 1e-5
    sc.save(result, tmp_path / "wide")
    loaded = sc.load(tmp_path / "wide", model=make())
    assert furthest(loaded, result.model) == 0
    back = sc.merge_copies(loaded)
    assert difference(model, back, x) < 1e-5
    sc.save(back, tmp_path / "back")
    assert difference(model, sc.load(tmp_path / "back", model=make()), x) < 1e-5


def test_a_pruned_model_grows_and_is_saved(tmp_path: Path) -> None:
    model = Cnn().eval()
    small = sc.prune(model, example(model), keep=0.5)
    wide = sc.grow(small.model, example(model), {"conv1.weight:0": 7})
    assert difference(small.model, wide.model, example(model)) < 1e-5
    sc.save(wide, tmp_path / "wide")
    assert furthest(sc.load(tmp_path / "wide", model=Cnn()), wide.model) == 0


def test_the_class_is_replaced_where_it_holds_a_size() -> None:
    model = LiteralNet().eval()
    (axis,) = [n for n, info in sc.trace(model, example(model)).axes.items() if info.rewrite]
    assert sc.grow(model, example(model), {axis: 9}).rewritten is not None
    with pytest.raises(NotGrowable, match="keep_class"):
        sc.grow(model, example(model), {axis: 9}, keep_class=True)


def test_in_place() -> None:
    model = Cnn().eval()
    old = copy.deepcopy(model)
    sc.grow(model, example(model), {"conv1.weight:0": 11}).apply_(model)
    assert model.conv1.out_channels == model.bn1.num_features == model.conv2.in_channels == 11
    assert difference(old, model, example(model)) < 1e-5


def test_a_member_names_its_axis() -> None:
    model = Cnn()
    assert sc.grow(model, example(model), {"bn1.running_mean:0": 9}).model.conv1.out_channels == 9


# ---------------------------------------------------------------------- what can't grow


def test_a_norm_wants_whole_multiples() -> None:
    model = Decoder()
    with pytest.raises(NotGrowable, match=r"embed.weight:1: 24 is no multiple of 16.*Choose 32"):
        sc.grow(model, inputs(model), {"embed.weight:1": 24})
    with pytest.raises(NotGrowable, match="no multiple of 2.*Choose 2 or 4|Choose 4"):
        norm = group_norm()
        sc.grow(norm, inputs(norm), {"0.weight:0/channels": 3})


def test_a_length_over_an_axis_is_refused() -> None:
    model = Unit()
    with pytest.raises(NotGrowable, match=r"first.weight:0: its units can't be repeated: aten::linalg_vector_norm"):
        sc.grow(model, inputs(model), {"first.weight:0": 12})


class Secretive(nn.Module):
    """What it gives is multiplied by a variance over its units."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x) * x.var(-1, keepdim=True)


def test_the_proof_refuses_what_tracing_did_not_see() -> None:
    """A sample variance divides by one less than there are: no number of copies keeps it."""
    model = Secretive()
    with pytest.raises(NotGrowable, match=r"does not compute the same with more units of first.weight:0"):
        sc.grow(model, torch.randn(3, 4), {"first.weight:0": 16})


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({}, "no axis to grow"),
        ({"conv1.weight:0": 4}, "has 8 units: grow makes axes wider"),
        ({"conv1.weight:0": 8}, "the size that was asked for already"),
        ({"conv1.weight:0": 9.5}, "grow makes axes wider"),
        ({"conv7.weight:0": 9}, "'conv7.weight:0' is no axis of Cnn. There are .*conv1.weight:0"),
        ({"conv1.weight:9": 9}, "is no axis of Cnn"),
        ({"conv1.weight:0": 9, "bn1.weight:0": 10}, "are given different sizes"),
        ({"fc.weight:0": 9}, "must keep its size|of a fixed size"),
    ],
)
def test_widths_that_make_no_sense(widths: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        sc.grow(Cnn(), example(Cnn()), widths)


def test_noise_out_of_range() -> None:
    with pytest.raises(PlanError, match="noise=2"):
        sc.grow(Mlp(), example(Mlp()), {"0.weight:0": 9}, noise=2)


def test_only_a_growth_is_merged() -> None:
    model = Cnn()
    with pytest.raises(SurgeryError, match="no growth"):
        sc.merge_copies(model)
    with pytest.raises(SurgeryError, match="no growth"):
        sc.merge_copies(sc.prune(model, example(model), keep=0.5))


# ---------------------------------------------------------------------- noise and training


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(x).square().sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_noise_breaks_the_symmetry_of_copies() -> None:
    x = torch.randn(6, 4)
    torch.manual_seed(0)
    model = Mlp()
    for noise in (0.0, 0.3):
        found = gradients(sc.grow(model, x, {"0.weight:0": 16}, noise=noise).model, x)["0.weight"]
        apart = (found[0::2] - found[1::2]).abs().max() / found.abs().max()
        assert (float(apart) > 0.01) == bool(noise)


def test_parts_of_a_weight_differ_and_add_up() -> None:
    plain, noisy = (sc.grow(pair(), torch.ones(1, 2), {"0.weight:0": 4}, noise=n).model[2].weight for n in (0.0, 0.5))
    assert not torch.allclose(plain, noisy)
    assert torch.allclose(noisy.reshape(2, 2).sum(1), torch.tensor([8.0, 9.0]))


@pytest.mark.parametrize("make", [Cnn, Square, Decoder, Recurrent])
def test_gradients_are_carried_as_they_would_be(make: Callable[[], nn.Module]) -> None:
    """What `remap_` makes of first and second moments is what the wider model's own gradients give."""
    torch.manual_seed(0)
    model = make().double().eval()
    x = example(model) if make is Cnn else inputs(model)
    x = x.double() if x.is_floating_point() else x
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0, betas=(0.0, 0.0))  # the gradient, and its square
    gradients(model, x)
    optimizer.step()
    result = sc.grow(model, x, {name: wider(info) for name, info in sc.trace(model, x).axes.items()})
    result.remap_(optimizer)
    own, grown = gradients(result.model, x), dict(result.model.named_parameters())
    for name, gradient in own.items():
        state = optimizer.state[grown[name]]
        assert torch.allclose(state["exp_avg"], gradient, rtol=1e-6, atol=1e-9), name
        assert torch.allclose(state["exp_avg_sq"], gradient.square(), rtol=1e-6, atol=1e-9), name


def test_a_moving_average_grows_too() -> None:
    model = Cnn().eval()
    average = torch.optim.swa_utils.AveragedModel(copy.deepcopy(model))
    result = sc.grow(model, example(model), {"conv1.weight:0": 11})
    result.remap_(average)
    assert furthest(average.module, result.model) == 0


# ---------------------------------------------------------------------- files


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d["axes"]["0.weight:0"]["kept"].reverse(),
        lambda d: d["axes"]["0.weight:0"]["kept"].append(99),
        lambda d: d["splits"][0].update(tensor="nowhere"),
        lambda d: d["splits"][0].update(dim=7),
        lambda d: d["splits"][0].update(dim=-1),
        lambda d: d["splits"][0].update(dim=0),
        lambda d: d["splits"][0].update(axes=["other"]),
        lambda d: d["splits"][0].update(axes=[]),
        lambda d: d["splits"][0].update(positions=[[0, 99]]),
        lambda d: d["splits"][0].update(positions=[[3, 1]]),
        lambda d: d["splits"][0].update(positions=[]),
        lambda d: d.update(noise=float("nan")),
        lambda d: d.update(noise=2.0),
        lambda d: d.update(noise=0.5, seed="zero"),
    ],
)
def test_plans_that_were_altered(spoil: Callable[[Any], Any]) -> None:
    data = json.loads(json.dumps(sc.grow(Mlp(), example(Mlp()), {"0.weight:0": 12}).plan.to_dict()))
    assert sc.Plan.from_dict(data).repeats
    spoil(data)
    with pytest.raises(ArtifactError):
        sc.Plan.from_dict(data)


def test_merges_that_were_altered() -> None:
    plan = sc.prune(Mlp(), example(Mlp()), keep=0.5).plan
    for data in ({"kind": "merge"}, {"kind": "merge", "plan": 3}, {"kind": "merge", "plan": plan.to_dict()}):
        with pytest.raises(ArtifactError):
            change_from_dict(data)
