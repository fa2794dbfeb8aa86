"""The methods, one by one, with numbers worked out by hand."""

import math
from typing import Any

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.disinfecting import ChannelLipschitz, Inversion, NeuronPerturbation, Perturbation, Trigger
from secateur.disinfecting.clean import Clean, attack_success, gather
from secateur.disinfecting.followers import factors, followers
from secateur.disinfecting.gates import gated, gates, ones
from secateur.disinfecting.mending import Lessons
from secateur.disinfecting.perturbation import adversary
from secateur.disinfecting.selecting import most, removing, suspects
from secateur.disinfecting.verdict import anomaly, judge
from secateur.errors import DataError, NothingToPrune, PlanError


def _trigger(target: int, norm: float, success: float = 1.0) -> Trigger:
    empty = torch.zeros(1, 1, 1)
    return Trigger(target=target, form="patch", norm=norm, success=success, mask=empty, pattern=empty)


def test_anomaly_by_hand() -> None:
    # logarithms to base 2: 0, 2, 3, 3, 4; median 3, deviations 3, 1, 0, 0, 1, their median 1
    index, ratio = anomaly(torch.tensor([1.0, 4.0, 8.0, 8.0, 16.0]))
    assert index == pytest.approx(3 / 1.4826)
    assert ratio == pytest.approx(4.0)
    # alike norms: the deviation counts as 0.1
    index, ratio = anomaly(torch.tensor([math.exp(-0.05), 1.0, 1.0, 1.0]))
    assert (index, ratio) == (pytest.approx(0.5, abs=1e-5), pytest.approx(math.exp(0.05)))


def test_a_class_is_suspected_only_by_index_ratio_and_success_together() -> None:
    norms = [8.0, 1.0, 8.5, 9.0, 7.5]
    assert judge({"patch": [_trigger(k, n) for k, n in enumerate(norms)]}).target == 1
    near = [8.0, 5.2, 8.5, 9.0, 7.5]  # an index above 2, but the next is only 1.44 times as large
    assert anomaly(torch.tensor(near))[0] > 2
    assert not judge({"patch": [_trigger(k, n) for k, n in enumerate(near)]}).found
    assert [t.target for t in judge({"patch": [_trigger(k, n) for k, n in enumerate(near)]}).least] == [1]
    weak = judge({"patch": [_trigger(k, n, 0.7) for k, n in enumerate(norms)]})
    assert not weak.found
    assert weak.suspected == weak.least == []
    # logarithms to base 2: median 2, deviations 2, 0.8, 0, 0.6, 1, their median 0.8
    less = [2.0**power for power in (0, 1.2, 2, 2.6, 3)]
    assert anomaly(torch.tensor(less))[0] == pytest.approx(2 / (1.4826 * 0.8))
    one, other = ([_trigger(k, n) for k, n in enumerate(norms)] for norms in (less, [n / 9 for n in less]))
    turned = [_trigger(k, n) for k, n in enumerate(less[::-1])]
    assert not judge({"patch": one}).found
    assert judge({"patch": one, "blend": other}).target == 0
    assert not judge({"patch": one, "blend": turned}).found
    wide = [1.0, 3.0, 30.0, 300.0, 3000.0]  # a ratio of 3, but norms differ by more all over
    assert not judge({"patch": [_trigger(k, n) for k, n in enumerate(wide)]}).found


def test_attack_success_counts_samples_of_other_classes() -> None:
    model = nn.Identity()
    clean = Clean(x=torch.eye(3), y=torch.tensor([0, 1, 2]))
    assert attack_success(model, clean, lambda x: x * 0 + torch.tensor([1.0, 0.0, 0.0]), 0) == 1.0
    assert attack_success(model, clean, lambda x: x, 0) == 0.0
    with pytest.raises(DataError, match="keep their shape"):
        attack_success(model, clean, lambda x: x[:, :2], 0)
    with pytest.raises(DataError, match="all clean samples are of class 0"):
        attack_success(model, clean.at(torch.tensor([0])), lambda x: x, 0)


def test_clean_samples_are_gathered_or_refused() -> None:
    x, y = torch.rand(4, 2), torch.tensor([0, 1, 0, 1])
    assert len(gather([(x, y), (x, y)], "cpu")) == 8
    for bad, why in (
        ((x.long(), y), "not one tensor"),
        ((x, y.float()), "has labels"),
        (({"input": x}, y), "not one tensor"),
        ((x * math.nan, y), "NaN or infinity"),
    ):
        with pytest.raises(DataError, match=why):
            gather([bad], "cpu")
    with pytest.raises(DataError, match="several shapes"):
        gather([(x, y), (x[:, :1], y)], "cpu")
    with pytest.raises(DataError, match="data is a Tensor"):
        gather(x, "cpu")


def test_samples_without_a_label_are_left_out() -> None:
    x, y = torch.rand(4, 2), torch.tensor([0, -1, 1, -100])
    found = gather([(x, y), (x, y - 200)], "cpu")
    assert torch.equal(found.x, x[[0, 2]])
    assert found.y.tolist() == [0, 1]
    with pytest.raises(DataError, match="the clean data hold no sample with a label"):
        gather([(x, y - 200)], "cpu")


@pytest.mark.parametrize("method", ["anp", "clp", "fine-pruning", "random"])
@pytest.mark.parametrize("where", ["data", "test"])
def test_labels_that_the_network_does_not_know_are_refused(method: Any, where: str) -> None:
    net, x, y = _net().eval(), torch.rand(30, 1, 4, 4), torch.arange(3).repeat(10)
    given: dict[str, Any] = {"data": [(x, y)], where: [(x, y + 1)]}
    said = f"the samples of {where}= have labels up to 3, and the model tells 3 classes apart: count classes from 0"
    with pytest.raises(DataError, match=said):
        sc.disinfect(net, **given, method=method, find=False)


def test_masks_are_learnt_on_labels_that_the_network_knows() -> None:
    net, x = _net().eval(), torch.rand(6, 1, 4, 4)
    with pytest.raises(DataError, match="have labels up to 3"):
        NeuronPerturbation.learn(net, sc.trace(net, x[:1]), [(x, torch.arange(6) % 4)])


def test_inversion_finds_the_input_that_a_class_hangs_on() -> None:
    model = nn.Linear(6, 4)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.zero_()
        model.weight[:, :4] = 3 * torch.eye(4)  # each class has an input of its own
        model.weight[2, 5] = 40.0  # and class 2 a backdoor
    y = torch.arange(4).repeat(20)
    x = torch.cat([torch.eye(4)[y], torch.zeros(80, 2)], 1)
    verdict = sc.find_backdoor(model, [(x, y)], forms=["patch"], bounds=(0.0, 1.0), how=Inversion(steps=150))
    assert verdict.target == 2
    assert verdict.trigger is not None
    assert verdict.trigger.mask.argmax() == 5
    assert verdict.trigger(torch.zeros(1, 6))[0, 5] > 0.05
    assert float(verdict.norms["patch"][2]) < 0.5


def test_a_channel_bound_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 2, bias=False), nn.BatchNorm2d(3, eps=0.0), nn.ReLU(), nn.Conv2d(3, 2, 1))
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].weight[0, 0, 0, 0] = 3.0  # as a matrix (inputs, window) of rank 2: singular values 4 and 3
        net[0].weight[0, 1, 0, 1] = 4.0
        net[0].weight[1, 0] = 1.0  # (1, 1, 1, 1) and zeros: 2
        net[0].weight[2, 1, 1, 1] = 1.0
        net[1].weight.copy_(torch.tensor([2.0, -1.0, 1.0]))
        net[1].running_var.copy_(torch.tensor([4.0, 0.25, 1.0]))
    image = torch.zeros(1, 2, 4, 4)
    assert followers(net, image) == {"0": "1"}
    assert factors(net, {"0": "1"})["0.weight"].tolist() == [1.0, 2.0, 1.0]
    scores = sc.score(net, sc.trace(net, image), ChannelLipschitz.of(net, image))["0.weight:0"]
    # bounds 4, 4, 1: mean 3, deviation sqrt(3)
    assert scores.tolist() == pytest.approx([-1 / 3**0.5, -1 / 3**0.5, 2 / 3**0.5])
    unfolded = sc.score(net, sc.trace(net, image), ChannelLipschitz())["0.weight:0"]
    assert unfolded.argmin() == 0  # bounds 4, 2, 1
    sc.importance.check_importance(_OfLinear())


class _OfLinear(ChannelLipschitz):
    """The criterion on members that `check_importance` makes, which are of a norm."""

    def of_axis(self, axis: sc.importance.AxisView) -> torch.Tensor:
        return -torch.stack([m.weight.norm(dim=1) for m in axis.members]).amax(0)


def test_a_stream_has_the_largest_excess_of_the_layers_that_make_it() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.a(x) + self.b(x))

    net = Two()
    with torch.no_grad():
        net.a.weight.copy_(torch.tensor([1.0, 1.0, 4.0])[:, None] * torch.eye(3, 4))
        net.b.weight.copy_(torch.tensor([4.0, 1.0, 1.0])[:, None] * torch.eye(3, 4))
    scores = sc.score(net, sc.trace(net, torch.zeros(1, 4)), ChannelLipschitz())["a.weight:0"]
    # 1, 1, 4: mean 2, deviation sqrt(3)
    assert scores.tolist() == pytest.approx([-2 / 3**0.5, 1 / 3**0.5, -2 / 3**0.5])


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


class _Stream(nn.Module):
    """A network whose only units are those of a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x).relu()
        return self.out((x + self.b(x).relu()).mean((2, 3)))


def test_gates_are_where_units_leave_their_axis() -> None:
    net, image = _net().eval(), torch.rand(2, 1, 4, 4)
    graph = sc.trace(net, image)
    doors = gates(net, graph, {"0"}, list(graph.axes))
    assert [(door.tensor, door.shift) for door in doors] == [("1.weight", False), ("1.bias", True)]
    weights = {name: p.detach() for name, p in net.named_parameters()}
    masks = {"0.weight:0": torch.tensor([1.0, 0.0, 0.5, 1.0])}
    new = gated(weights, doors, masks)
    assert new["1.weight"].tolist() == [1.0, 0.0, 0.5, 1.0]
    moved = gated({**weights, "1.bias": torch.ones(4)}, doors, masks, [torch.full((4,), 0.1), torch.full((4,), 0.2)])
    assert moved["1.weight"].tolist() == pytest.approx([1.1, 0.1, 0.6, 1.1])
    assert moved["1.bias"].tolist() == pytest.approx([1.2, 0.0, 0.6, 1.2])


def test_masks_at_zero_are_what_removal_leaves() -> None:
    net, image = _net().eval(), torch.rand(2, 1, 4, 4)
    with torch.no_grad():
        net[1].bias.uniform_()
    graph = sc.trace(net, image)
    masks = ones(graph)
    masks["0.weight:0"][2] = 0
    weights = {name: p.detach() for name, p in net.named_parameters()}
    silenced = torch.func.functional_call(net, gated(weights, gates(net, graph, {"0"}, list(masks)), masks), (image,))
    small = removing(graph, [("0.weight:0", 2)]).apply(net)
    assert torch.allclose(silenced, small(image), atol=1e-6)


def test_the_adversary_goes_up_the_loss_within_its_bound() -> None:
    net, image = _net().eval(), torch.rand(2, 1, 4, 4)
    doors = gates(net, sc.trace(net, image), {"0"}, ["0.weight:0"])
    slopes = torch.tensor([1.0, -1.0, 2.0, -3.0])
    moves = adversary(doors, lambda m: (m[0] * slopes - m[1] * slopes).sum(), 0.4, torch.Generator(), "cpu")
    # a random start within 0.4, then 0.4 along the sign of the slope, and no further than 0.4 from 0
    assert all(float(m.abs().max()) <= 0.4 + 1e-6 for m in moves)
    assert bool((moves[0] * slopes.sign() >= 0).all())
    assert bool((moves[1] * slopes.sign() <= 0).all())


def test_a_unit_that_only_serves_an_adversary_loses_its_mask() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
        net[0].bias.copy_(torch.tensor([0.0, 0.0, 0.3]))  # a constant that pushes to class 0
        net[2].weight.copy_(torch.tensor([[4.0, 0.0, 4.0], [0.0, 4.0, 0.0]]))
        net[2].bias.copy_(torch.tensor([-1.2, 0.0]))  # taken back on clean inputs
    x = torch.eye(2).repeat(20, 1) + 0.1
    data = [(x, x.argmax(1))]
    graph = sc.trace(net, x[:1])
    before = [p.clone() for p in net.parameters()]
    masks = NeuronPerturbation.learn(net, graph, data, how=Perturbation(steps=60, eps=0.6, trade_off=0.0))
    scores = sc.score(net, graph, masks)["0.weight:0"]
    assert scores.argmin() == 2
    assert bool(((scores >= 0) & (scores <= 1)).all())
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_suspects_leave_a_unit_on_every_axis_and_respect_only_and_ignore() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    graph = sc.trace(net, torch.zeros(1, 2))
    scores = {"0.weight:0": torch.tensor([0.1, 0.3, 0.2]), "2.weight:0": torch.tensor([0.9, 0.05, 0.8, 0.7])}
    assert suspects(graph, scores, 0.5) == [("2.weight:0", 1), ("0.weight:0", 0), ("0.weight:0", 2)]
    assert suspects(graph, scores, 0.5, only="0") == [("0.weight:0", 0), ("0.weight:0", 2)]
    assert suspects(graph, scores, 0.5, ignore=["0"]) == [("2.weight:0", 1)]
    with pytest.raises(PlanError, match="nothing_such"):
        suspects(graph, scores, 0.5, ignore="nothing_such")
    made = removing(graph, suspects(graph, scores, 0.5))
    assert {name: axis.kept for name, axis in made.axes.items()} == {"0.weight:0": (1,), "2.weight:0": (0, 2, 3)}
    assert not removing(graph, []).axes


def test_what_accuracy_hangs_on_is_passed_over() -> None:
    net = nn.Sequential(nn.Linear(2, 6, bias=False), nn.ReLU(), nn.Linear(6, 2))
    graph = sc.trace(net, torch.zeros(1, 2))
    marked = net[0].weight[3].clone()

    def judge_(small: nn.Module) -> float:
        first: nn.Module = small[0]  # pyright: ignore[reportIndexIssue]
        return float(any(torch.equal(row, marked) for row in first.weight))  # pyright: ignore

    order = [("0.weight:0", k) for k in (3, 1, 0, 2)]
    assert most(net, graph, order, judge_, 1.0) == [("0.weight:0", k) for k in (1, 0, 2)]
    assert most(net, graph, order, judge_, 2.0) == []
    assert most(net, graph, [], judge_, 1.0) == []


def test_lessons_carry_triggers_on_a_share_of_each_batch() -> None:
    stamp = Trigger(target=0, form="patch", norm=1.0, success=1.0, mask=torch.ones(2), pattern=torch.full((2,), 9.0))
    x, y = torch.zeros(100, 2), torch.eye(2).repeat(50, 1)
    lessons = Lessons(x, y, [stamp], 0.3, seed=0)
    first = [batch for batch, _ in lessons]
    assert [int((batch == 9).all(1).sum()) for batch in first] == [15, 15]
    assert all(not batch.any() for batch, _ in Lessons(x, y, [], 0.3, seed=0))
    half = Trigger(target=0, form="blend", norm=0.25, success=1.0, mask=torch.full((2,), 0.25), pattern=torch.ones(2))
    assert half(torch.zeros(3, 2), torch.tensor([1.0, 2.0, 8.0]))[:, 0].tolist() == [0.25, 0.5, 1.0]
    strengths = torch.cat([b[b > 0] for b, _ in Lessons(x, y, [half], 0.3, seed=0, strength=2.0)])
    assert 0.25 <= float(strengths.min()) < 0.3 < 0.45 < float(strengths.max()) <= 0.5
    lessons.set_epoch(0)
    assert all(torch.equal(a, b) for a, (b, _) in zip(first, lessons, strict=True))


def test_without_a_unit_to_perturb_nothing_is_suspected() -> None:
    net, x, y = _Stream().eval(), torch.rand(30, 1, 4, 4), torch.arange(3).repeat(10)
    result = sc.disinfect(net, data=[(x, y)], method="anp", find=False, tune=False)
    assert (result.method, result.report["disinfected"]["suspected"]) == ("anp", 0)
    assert all(bool((scores == 1).all()) for scores in result.scores.values())
    assert torch.equal(result.model(x), net(x))


@pytest.mark.parametrize("method", ["anp", "clp"])
def test_a_network_without_any_unit_is_said_to_have_none(method: Any) -> None:
    net, x, y = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), torch.rand(30, 1, 4, 4), torch.arange(3).repeat(10)
    with pytest.raises(NothingToPrune, match="no axis that can be pruned"):
        sc.disinfect(net, data=[(x, y)], method=method, find=False)


def test_masks_are_learnt_on_bfloat16() -> None:
    net, x = _net().bfloat16().eval(), torch.rand(30, 1, 4, 4).bfloat16()
    before = [p.clone() for p in net.parameters()]
    data = [(x, torch.arange(3).repeat(10))]
    masks = NeuronPerturbation.learn(net, sc.trace(net, x[:2]), data, how=Perturbation(steps=5))
    assert bool((masks.masks["0.weight:0"] < 1).any())
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
