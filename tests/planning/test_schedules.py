"""Schedules, by hand."""

from typing import Any

import pytest
import torch

import secateur as sc
from secateur.errors import PlanError
from secateur.planning.schedules import Cubic, Geometric, Linear, budgets, names, schedule
from support.networks import Cnn, example


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("linear", [0.775, 0.55, 0.325, 0.1]),
        ("cubic", [0.1 + 0.9 * 27 / 64, 0.1 + 0.9 / 8, 0.1 + 0.9 / 64, 0.1]),
        ("geometric", [10**-0.25, 10**-0.5, 10**-0.75, 0.1]),
    ],
)
def test_what_is_left_by_hand(name: str, wanted: list[float]) -> None:
    follow = schedule(name)
    assert [follow(k, 4, 0.1) for k in range(1, 5)] == pytest.approx(wanted, abs=1e-11)
    assert follow(0, 4, 0.1) == 1.0
    assert [b.macs for b in budgets(sc.Budget(macs=0.1), name, steps=4)] == pytest.approx(wanted, abs=1e-11)


def test_names_and_objects() -> None:
    assert names() == ["linear", "cubic", "geometric"]
    assert [schedule(name) for name in names()] == [Linear(), Cubic(), Geometric()]
    assert budgets(sc.Budget(macs=0.25), Geometric(), steps=2)[0] == sc.Budget(macs=0.5)
    assert budgets(sc.Budget(macs=0.25), lambda k, n, final: 0.7, steps=2) == [
        sc.Budget(macs=0.7),
        sc.Budget(macs=0.25),
    ]
    assert sc.schedules.budgets is budgets


def test_several_costs_at_once_and_the_last_is_what_was_asked_for() -> None:
    final = sc.Budget(macs=0.5, params=0.2)
    assert budgets(final, "linear", steps=2) == [sc.Budget(macs=0.75, params=0.6), final]
    assert budgets(final, steps=1) == [final]


def test_absolute_budgets() -> None:
    dense = {"params": 1000, "macs": 80_000, "bytes": 4000}
    steps = budgets(sc.Budget(macs="20k", params=0.5), "geometric", steps=2, dense=dense)
    assert steps == [sc.Budget(macs=40_000, params=707), sc.Budget(macs=20_000, params=500)]
    assert budgets(sc.Budget(macs="1G"), "linear", steps=2, dense=dense) == [sc.Budget(macs=80_000)] * 2


def test_latency() -> None:
    assert budgets(sc.Budget(latency=0.5), "linear", steps=2) == [sc.Budget(latency=0.75), sc.Budget(latency=0.5)]
    steps = budgets(sc.Budget(latency="2ms"), "linear", steps=2, dense={"latency": 8_000_000})
    assert steps == [sc.Budget(latency="5000000ns"), sc.Budget(latency="2000000ns")]


def test_the_steps_can_be_planned() -> None:
    """One graph for all steps; each plan lands on its budget."""
    net = torch.nn.Sequential(torch.nn.Linear(4, 50), torch.nn.ReLU(), torch.nn.Linear(50, 2))
    graph = sc.trace(net, torch.zeros(1, 4))
    scores = sc.score(net, graph)
    shares = [
        graph.cost(sc.plan(graph, scores, budget=b).sizes)["macs"] / 300 for b in budgets(sc.Budget(macs=0.2), steps=3)
    ]
    assert shares == pytest.approx([0.42, 0.22, 0.2])  # of 0.437, 0.230 and 0.2, in units of 0.02


def test_pruning_bit_by_bit() -> None:
    """Each step prunes the model that the last one left, so budgets are absolute; training goes in between."""
    model: torch.nn.Module = Cnn()
    x = example(model)
    dense = sc.trace(model, x).cost()
    params: list[int] = []
    for budget in budgets(sc.Budget(params=0.3), "geometric", steps=3, dense=dense):
        result = sc.prune(model, x, budget=budget)
        model = result.model
        params.append(sum(p.numel() for p in model.parameters()))
        assert params[-1] <= int(str(budget.params))
    assert params == sorted(params, reverse=True)
    assert 0.2 * dense["params"] < params[-1] <= 0.3 * dense["params"] < params[0]


@pytest.mark.parametrize(
    ("final", "settings", "message"),
    [
        (sc.Budget(macs=0.5), {"choice": "cubik", "steps": 2}, "no schedule is called 'cubik'.*Did you mean 'cubic'"),
        (sc.Budget(macs=0.5), {"choice": 3, "steps": 2}, "no schedule is called 3; known are linear, cubic, geometric"),
        (sc.Budget(macs=0.5), {"steps": 0}, "steps=0: give the number of steps, from 1"),
        (sc.Budget(macs=0.5), {"steps": 2.0}, "steps=2.0: give"),
        (sc.Budget(macs="2G", params=5), {"steps": 2}, "params=5 and macs='2G': steps towards an absolute budget need"),
        (sc.Budget(latency="5ms"), {"steps": 2}, r'dense=graph.cost\(\) \| {"latency": nanoseconds}'),
        (sc.Budget(latency=0.5), {"steps": 2, "dense": {"params": 5}}, 'pass .* and its "latency" in nanoseconds'),
        (sc.Budget(macs=0.5), {"steps": 2, "dense": {"params": 5}}, "lacks macs, which the budget is of"),
        (sc.Budget(macs=0.5), {"choice": lambda k, n, f: 0.3, "steps": 2}, r"leaves \[0.3, 0.5\].*never rise"),
        (sc.Budget(macs=0.5), {"choice": lambda k, n, f: 1.3, "steps": 2}, r"must lie in \(0, 1\]"),
        (sc.Budget(macs=0.5), {"choice": lambda k, n, f: float("nan"), "steps": 2}, r"must lie in \(0, 1\]"),
    ],
)
def test_schedules_that_make_no_sense(final: sc.Budget, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        budgets(final, **settings)
