"""Plans for a latency, on tables whose times are made up."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import PlanError, UnreachableBudget
from secateur.importance import Scores
from secateur.planning import make_plan
from secateur.planning.fast import duration
from secateur.planning.planning import choose
from secateur.timing import LatencyTable, latency_table
from secateur.timing.operations import Operation
from secateur.timing.stopwatch import Timer
from support.clocks import by_work, in_blocks
from support.networks import Attention, Cnn, Grouped, Residual, example


def setup(model: nn.Module, timer: Timer, inputs: Any = None) -> tuple[sc.Graph, dict[str, Tensor], LatencyTable]:
    inputs = example(model) if inputs is None else inputs
    graph = sc.trace(model.eval(), inputs)
    return graph, sc.score(model, graph), latency_table(model, graph, inputs, timer=timer, whole=1e-3)


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 16))


def share(graph: sc.Graph, table: LatencyTable, plan: sc.Plan) -> float:
    predictor = table.compiled(graph.costs.order, graph.costs.dense)
    return predictor.value(graph.costs.vector(plan.sizes)).item() / predictor.value(graph.costs.dense).item()


@pytest.mark.parametrize("scope", ["global", "local", "isomorphic"])
@pytest.mark.parametrize("target", [0.9, 0.5, 0.2])
def test_a_budget_is_met_to_a_unit(target: float, scope: Any) -> None:
    graph, scores, table = setup(wide(), by_work, torch.zeros(1, 16))
    plan = sc.plan(graph, scores, budget=sc.Budget(latency=target), scope=scope, latency=table)
    assert target * 0.985 <= share(graph, table, plan) <= target


@pytest.mark.parametrize("model", [Cnn(), Residual(), Grouped(), Attention()], ids=lambda m: type(m).__name__)
def test_networks_of_all_kinds(model: nn.Module) -> None:
    graph, scores, table = setup(model, by_work)
    plan = sc.plan(graph, scores, budget=sc.Budget(latency=0.8), latency=table)
    assert 0.6 <= share(graph, table, plan) <= 0.8
    plan.apply(model)(example(model))


def test_an_absolute_budget() -> None:
    graph, scores, table = setup(wide(), by_work, torch.zeros(1, 16))
    plan = sc.plan(graph, scores, budget=sc.Budget(latency="500us"), latency=table)
    assert share(graph, table, plan) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("comparable", [False, True])
def test_a_plan_that_goes_on_from_an_earlier_one(comparable: bool) -> None:
    graph, found, table = setup(wide(), in_blocks(16), torch.zeros(1, 16))
    scores = Scores(found, comparable=comparable)
    odd = {name: torch.arange(info.size)[::7] for name, info in graph.axes.items()}  # 37 units, no width of a block
    kept = choose(graph, scores, budget=sc.Budget(latency=0.1), latency=table, within=odd)
    assert all(set(units.tolist()) <= set(odd[name].tolist()) for name, units in kept.items())
    larger = choose(graph, scores, budget=sc.Budget(latency=0.7), latency=table)
    smaller = choose(graph, scores, budget=sc.Budget(latency=0.4), latency=table, within=larger)
    assert all(set(smaller[name].tolist()) <= set(larger[name].tolist()) for name in larger)
    assert share(graph, table, make_plan(graph, smaller)) <= 0.4


def test_scores_in_one_unit_are_weighed_by_the_time_that_they_save() -> None:
    """Of two alike layers, the one whose units are worth a hundredth goes first; normalised, they are on a par."""
    graph, _, table = setup(wide(), by_work, torch.zeros(1, 16))
    first, second = graph.axes
    flat = {first: torch.linspace(1, 2, 256), second: torch.linspace(0.01, 0.02, 256)}
    budget = sc.Budget(latency=0.7)
    alike = sc.plan(graph, flat, budget=budget, latency=table).sizes
    assert alike[first] == pytest.approx(alike[second], rel=0.3)
    sizes = sc.plan(graph, Scores(flat, comparable=True), budget=budget, latency=table).sizes
    assert first not in sizes
    assert sizes[second] < 0.8 * 256


def test_with_another_budget_beside_it() -> None:
    graph, scores, table = setup(wide(), by_work, torch.zeros(1, 16))
    plan = sc.plan(graph, scores, budget=sc.Budget(latency=0.9, macs=0.3), latency=table)
    assert graph.cost(plan.sizes)["macs"] <= 0.3 * graph.cost()["macs"]
    assert share(graph, table, plan) <= 0.9


def test_in_blocks_it_lands_within_one_step() -> None:
    graph, scores, table = setup(wide(), in_blocks(16), torch.zeros(1, 16))
    plan = sc.plan(graph, scores, budget=sc.Budget(latency=0.5), latency=table)
    assert all(size % 16 == 0 for size in plan.sizes.values())
    assert 0.5 - 16 / 256 <= share(graph, table, plan) <= 0.5


def test_a_lane_that_seems_to_save_nothing_at_first_is_not_emptied() -> None:
    """Of two alike layers, one takes no less time until it has lost a quarter: both lose alike in the end."""

    def timer(operation: Operation, sizes: Sequence[int]) -> float:
        if operation.name == "aten::addmm" and operation.dense == (256,) and operation.results(sizes)[0][1] != 16:
            return 1e-9 * (min(192, sizes[0]) * 4 / 3)
        return 1e-9 * operation.elements(sizes) / 100

    graph, scores, table = setup(wide(), timer, torch.zeros(1, 16))
    flat = dict.fromkeys(scores, torch.linspace(1, 2, 256))
    sizes = sc.plan(graph, flat, budget=sc.Budget(latency=0.6), latency=table).sizes
    assert min(sizes.get(name, 256) for name in graph.axes) > 32


def test_uniform_blocks_and_tied_lanes() -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16)) for _ in range(3)))
    graph, scores, table = setup(model, in_blocks(8), torch.zeros(1, 16))
    plan = sc.plan(graph, scores, budget=sc.Budget(latency=0.5), latency=table, uniform=True)
    assert len({size for name, size in plan.sizes.items() if ".0.weight" in name}) == 1


# ---------------------------------------------------------------------- multiple_of="auto"


@pytest.mark.parametrize(("step", "wanted"), [(1, 1), (8, 8), (16, 16), (32, 32)])
@pytest.mark.parametrize("how", [{"keep": 0.473}, {"threshold": 1.0}, {"budget": sc.Budget(macs=0.5)}])
def test_auto_finds_the_step(how: dict[str, Any], step: int, wanted: int) -> None:
    graph, scores, table = setup(wide(), in_blocks(step, 0.2 if step > 1 else 0), torch.zeros(1, 16))
    sizes = sc.plan(graph, scores, multiple_of="auto", latency=table, **how).sizes
    assert sizes
    assert all(size % wanted == 0 for size in sizes.values())
    assert step > 1 or any(size % 2 for size in sizes.values())


def test_auto_beside_limits_of_each_axis() -> None:
    graph, scores, table = setup(wide(), in_blocks(16, 0.2), torch.zeros(1, 16))
    first, second = graph.axes
    limits: dict[str, Any] = {"min_units": {first: 100, "hidden": 10}, "max_share": {second: 0.3}}
    sizes = sc.plan(graph, scores, keep=0.1, multiple_of="auto", latency=table, **limits).sizes
    assert sizes == {first: 32, second: 192}
    limits["min_units"] = {"hidden": 10, first: 100}
    sizes = sc.plan(graph, scores, budget=sc.Budget(latency=0.4), multiple_of="auto", latency=table, **limits).sizes
    assert sizes[first] >= 112
    assert sizes[second] >= 192
    assert all(size % 16 == 0 for size in sizes.values())


def test_a_cut_that_makes_an_operation_slower_is_not_made() -> None:
    """Blocks of 32 that are not full take half as long again: with keep, the width nearest above that is full."""
    graph, scores, table = setup(wide(), in_blocks(32, 0.5), torch.zeros(1, 16))
    assert set(sc.plan(graph, scores, keep=0.97).sizes.values()) == {248}
    assert set(sc.plan(graph, scores, keep=0.97, latency=table).sizes.values()) == set(), "248 is slower than 256"
    assert set(sc.plan(graph, scores, keep=0.86, latency=table).sizes.values()) == {224}


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"budget": sc.Budget(latency=0.5)}, r"budget=Budget\(latency=0.5\) needs the times"),
        ({"keep": 0.5, "multiple_of": "auto"}, 'multiple_of="auto" needs the times'),
    ],
)
def test_without_times(settings: dict[str, Any], said: str) -> None:
    graph, scores, _ = setup(Cnn(), by_work)
    with pytest.raises(PlanError, match=said + r".*use sc.prune, which takes them, or pass latency=secateur.timing"):
        sc.plan(graph, scores, **settings)


def test_what_cannot_be_reached() -> None:
    graph, scores, table = setup(wide(), by_work, torch.zeros(1, 16))
    with pytest.raises(
        UnreachableBudget,
        match=r"latency=1us of 1ms is below the smallest that Sequential can get, [0-9.]+us .*holds it: aten::addmm",
    ):
        sc.plan(graph, scores, budget=sc.Budget(latency="1us"), latency=table)


@pytest.mark.parametrize("multiple_of", ["fast", 0, {"hidden": "auto"}])
def test_multiples_that_are_none(multiple_of: Any) -> None:
    graph, scores, table = setup(wide(), by_work, torch.zeros(1, 16))
    with pytest.raises(PlanError, match='must be whole numbers from 1; multiple_of may also be "auto"'):
        sc.plan(graph, scores, keep=0.5, multiple_of=multiple_of, latency=table)


def test_durations() -> None:
    assert [duration(n) for n in (2e9, 5.25e6, 1e3, 12.0)] == ["2s", "5.25ms", "1us", "12ns"]
