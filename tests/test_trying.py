"""Hints are tried, and the one is taken whose model is nearest to the original."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import SurgeryError
from secateur.importance import Scores
from secateur.provenance import recall
from secateur.trying import FITTED, HINTS, JUDGED, parts, try_hints


def batches(count: int, size: int = 16, *, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(count * size, 6, generator=generator).split(size))


def half_idle() -> nn.Sequential:
    """Eight hidden units, of which the last four have the largest weights and never say anything."""
    torch.manual_seed(0)
    first, last = nn.Linear(6, 8), nn.Linear(8, 3)
    with torch.no_grad():
        first.weight[4:] *= 30
        first.bias[4:] = -1e4
        last.weight *= 10
    return nn.Sequential(first, nn.ReLU(), last).eval()


def keep_half(graph: sc.Graph) -> Any:
    return lambda scores: sc.plan(graph, scores, keep=0.5)


@pytest.mark.parametrize(
    ("count", "size", "fitted", "judged"),
    [
        (4, 10, 2, 2),  # 20 of 40 samples, and 20
        (3, 10, 2, 1),  # 15 of 30 need two batches, and then one is left
        (2, 10, 1, 1),
        (100, 64, FITTED // 64, JUDGED // 64),
    ],
)
def test_data_are_cut_into_a_part_to_fit_and_one_to_judge_by(count: int, size: int, fitted: int, judged: int) -> None:
    data = [torch.full((size, 6), float(k)) for k in range(count)]
    found = parts(nn.Linear(6, 2), data, None)
    assert found is not None
    assert [int(b[0, 0]) for b in found[0]] == list(range(fitted))
    assert [int(b[0, 0]) for b in found[1]] == list(range(fitted, fitted + judged))


@pytest.mark.parametrize("count", [0, 1])
def test_one_batch_can_not_be_cut(count: int) -> None:
    assert parts(nn.Linear(6, 2), batches(count) if count else [], None) is None


def test_the_hint_is_taken_whose_model_is_nearest() -> None:
    net = half_idle()
    graph = sc.trace(net, torch.zeros(1, 6))
    by_size = Scores({"0.weight:0": torch.arange(8.0)})  # keeps the idle ones
    by_use = Scores({"0.weight:0": torch.arange(8.0).flip(0)})
    trial = try_hints(net, graph, {"size": by_size, "use": by_use}, keep_half(graph), batches(4), batches(2, seed=1))
    assert trial.chosen == "use"
    assert trial.measure == "divergence"
    assert trial.distances["use"] == pytest.approx(0.0, abs=1e-6)
    assert trial.distances["size"] > 0.01
    assert (trial.fitted, trial.judged) == (64, 32)


def test_divergence_by_hand() -> None:
    """Whatever is kept of hidden units that say nothing, all that is left is the last bias: zero scores."""
    first, last = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.eye(2))
        last.weight.copy_(torch.tensor([[math.log(3), 0.0], [0.0, 0.0]]))
    net = nn.Sequential(first, last)
    graph = sc.trace(net, torch.zeros(1, 2))
    data = [torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]])]  # the second unit is dead
    keep = {"first": torch.tensor([1.0, 0.0]), "second": torch.tensor([0.0, 1.0])}
    scores = {name: Scores({"0.weight:0": values}) for name, values in keep.items()}
    trial = try_hints(net.eval(), graph, scores, keep_half(graph), data[:1], data[1:])
    # The original gives (3/4, 1/4). With the dead unit only, nothing can be refitted, and it is (1/2, 1/2).
    assert trial.distances["first"] == pytest.approx(0.0, abs=1e-6)
    assert trial.distances["second"] == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-4)


def test_numbers_are_compared_as_numbers() -> None:
    net = half_idle()
    graph = sc.trace(net, torch.zeros(1, 6))
    scores = {"use": Scores({"0.weight:0": torch.arange(8.0).flip(0)})}
    data: list[Any] = [(x, torch.zeros(len(x), 3)) for x in batches(4)]
    assert try_hints(net, graph, scores, keep_half(graph), data[:2], data[2:]).measure == "difference"
    single = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1)).eval()
    graph = sc.trace(single, torch.zeros(1, 6))
    trial = try_hints(single, graph, scores, keep_half(graph), batches(2), batches(2, seed=1))
    assert trial.measure == "difference"
    assert trial.distances["use"] > 0


def test_a_hint_whose_model_does_not_come_about_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    net = half_idle()
    graph = sc.trace(net, torch.zeros(1, 6))
    good, bad = (sc.plan(graph, {"0.weight:0": torch.arange(8.0)}, keep=share) for share in (0.5, 0.25))
    apply = sc.Plan.apply
    monkeypatch.setattr(sc.Plan, "apply", lambda made, model: _refuse() if made is bad else apply(made, model))
    scores = {name: Scores({"0.weight:0": torch.full((8,), float(k))}) for k, name in enumerate(("bad", "good"))}
    pick = lambda found: good if float(found["0.weight:0"][0]) else bad  # noqa: E731
    trial = try_hints(net, graph, scores, pick, batches(2), batches(2, seed=1))
    assert trial.chosen == "good"
    assert math.isnan(trial.distances["bad"])


def _refuse() -> None:
    raise SurgeryError("no")


def test_prune_takes_the_hint_that_won() -> None:
    net, data = half_idle(), batches(8)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    drawn = torch.get_rng_state()
    result = sc.prune(net, torch.zeros(1, 6), keep=0.5, data=data)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert result.trial is not None
    assert list(result.trial.distances) == list(HINTS)
    assert result.trial.distances["l2"] > min(result.trial.distances.values())  # magnitudes keep the idle units
    assert result.hint == result.trial.chosen != "l2"
    same = sc.prune(net, torch.zeros(1, 6), keep=0.5, data=data, importance=result.trial.chosen)
    assert same.plan.axes == result.plan.axes
    assert same.trial is None
    assert result.report["trial"] == result.trial.to_dict()
    assert f"Units chosen by {result.trial.chosen}: of 3 hints" in " ".join(str(result).split())
    assert recall(result.model, "history")[-1]["importance"] == result.trial.chosen


@pytest.mark.parametrize(
    "settings",
    [
        {"data": batches(1)},  # nothing to judge by
        {"data": batches(8), "compensate": None},
        {"data": batches(8), "compensate": "mean"},
        {"data": batches(8), "importance": "reconstruction"},
    ],
)
def test_where_nothing_can_be_tried_it_is_reconstruction(settings: dict[str, Any]) -> None:
    result = sc.prune(half_idle(), torch.zeros(1, 6), keep=0.5, **settings)
    assert result.trial is None
    assert result.hint == "reconstruction"
    assert "trial" not in result.report


def test_a_threshold_is_never_tried_with_several_scales() -> None:
    assert sc.prune(half_idle(), torch.zeros(1, 6), threshold=0.5, data=batches(8)).trial is None


def test_batches_that_come_once_are_enough() -> None:
    again = sc.prune(half_idle(), torch.zeros(1, 6), keep=0.5, data=iter(batches(8)))
    assert again.trial is not None
    assert again.plan.axes == sc.prune(half_idle(), torch.zeros(1, 6), keep=0.5, data=batches(8)).plan.axes
