"""How narrow an axis may become, and plans that go on from earlier ones."""

from typing import Any

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import PlanError, UnreachableBudget
from secateur.importance import Scores
from secateur.planning.planning import choose
from support.networks import Chunked, Cnn, Residual, example

BLOCKS = ("stem.weight:0", "blocks.0.0.weight:0", "blocks.1.0.weight:0")


def scored(model: nn.Module) -> tuple[sc.Graph, dict[str, torch.Tensor]]:
    graph = sc.trace(model, example(model))
    return graph, sc.score(model, graph)


@pytest.mark.parametrize(
    ("keep", "limits", "widths"),
    [
        (0.1, {"max_share": 1.0}, (1, 2, 1)),
        (0.1, {"max_share": 0.5}, (4, 8, 6)),
        (0.1, {"max_share": 0.3}, (6, 12, 9)),  # 2 of 8, 4 of 16, 3 of 12
        (0.9, {"max_share": 0.5}, (7, 14, 11)),
        (0.1, {"max_share": 0.01}, (8, 16, 12)),
        (0.1, {"max_share": 1}, (1, 2, 1)),
        (0.1, {"max_share": {"channels": 0.5, "blocks.1.0.weight:0": 0.25}}, (1, 8, 9)),
        (0.1, {"max_share": {"blocks.1.0.weight:0": 0.25}}, (1, 2, 9)),
        (0.1, {"max_share": 0.5, "min_units": 7}, (7, 8, 7)),
        (0.1, {"min_units": {"channels": 5, "blocks.1.0.weight:0": 3}}, (1, 5, 3)),
        (0.1, {"max_share": 0.5, "multiple_of": 3}, (6, 9, 6)),
    ],
)
def test_the_largest_share_and_the_fewest_units(keep: float, limits: dict[str, Any], widths: tuple[int, ...]) -> None:
    graph, scores = scored(Residual())
    sizes = sc.plan(graph, scores, keep=keep, **limits).sizes
    assert tuple(sizes.get(name, graph.axes[name].size) for name in BLOCKS) == widths


@pytest.mark.parametrize("scope", ["global", "local", "isomorphic"])
def test_a_budget_respects_the_largest_share(scope: Any) -> None:
    graph, scores = scored(Residual())
    sizes = sc.plan(graph, scores, budget=sc.Budget(macs=0.35), scope=scope, max_share=0.5).sizes
    assert all(sizes[name] >= graph.axes[name].size / 2 for name in sizes)
    with pytest.raises(UnreachableBudget, match="min_units=1 and multiple_of, raise max_share, or ignore less"):
        sc.plan(graph, scores, budget=sc.Budget(macs=0.35), scope=scope, max_share=0.2)


def test_the_largest_share_of_tied_axes_is_that_of_the_strictest() -> None:
    graph, scores = scored(Chunked())
    first, second = graph.ties[0]
    assert set(sc.plan(graph, scores, keep=0.1, max_share={first: 0.25, second: 0.5}).sizes.values()) == {6}


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_share": 0}, r"max_share=0: give the largest share of an axis that may be removed, in \(0, 1\]"),
        ({"max_share": 1.5}, "max_share=1.5: give the largest share"),
        ({"max_share": float("nan")}, "max_share=nan: give"),
        ({"max_share": True}, "max_share=True: give"),
        ({"max_share": {"hidden": 2.0}}, r"max_share=\{'hidden': 2.0\}: give"),
        ({"max_share": {"stemm": 0.5}}, "'stemm' name no axis.*Did you mean 'stem'"),
        ({"min_units": {"stem": 0}}, r"min_units=\{'stem': 0\}, multiple_of=1: both must be whole numbers from 1"),
        ({"min_units": {"stemm": 2}}, "'stemm' name no axis"),
    ],
)
def test_limits_that_make_no_sense(limits: dict[str, Any], message: str) -> None:
    graph, scores = scored(Residual())
    with pytest.raises(PlanError, match=message):
        sc.plan(graph, scores, keep=0.5, **limits)


# ---------------------------------------------------------------------- going on from an earlier plan


@pytest.mark.parametrize("scope", ["global", "local", "isomorphic"])
@pytest.mark.parametrize("make", [Cnn, Residual, Chunked])
@pytest.mark.parametrize(("shift", "comparable"), [(0.0, False), (-3.0, False), (0.0, True)])
def test_plans_are_nested_whatever_the_new_scores_say(
    scope: Any, make: type[nn.Module], shift: float, comparable: bool
) -> None:
    graph, _ = scored(make())
    kept: dict[str, torch.Tensor] = {}
    for share in (0.8, 0.6, 0.45):
        drawn = {name: torch.rand(info.size) + shift for name, info in graph.axes.items()}
        scores = Scores(drawn, comparable=comparable)
        new = choose(graph, scores, budget=sc.Budget(params=share), scope=scope, within=kept)
        assert graph.cost({n: len(k) for n, k in new.items()})["params"] <= share * graph.cost()["params"]
        assert all(set(new[name].tolist()) <= set(before.tolist()) for name, before in kept.items())
        kept = new


def test_going_on_for_the_same_budget_changes_nothing() -> None:
    graph, scores = scored(Residual())
    kept = choose(graph, scores, budget=sc.Budget(macs=0.5))
    same = choose(graph, {n: torch.zeros_like(s) for n, s in scores.items()}, budget=sc.Budget(macs=0.5), within=kept)
    assert {n: k.tolist() for n, k in same.items()} == {n: k.tolist() for n, k in kept.items()}


def test_of_equal_scores_the_later_units_go_in_each_round() -> None:
    graph = sc.trace(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.zeros(1, 4))
    even = {"0.weight:0": torch.ones(6)}
    kept = choose(graph, {"0.weight:0": torch.tensor([1.0, 0, 1, 1, 0, 1])}, budget=sc.Budget(macs=0.7))
    assert kept["0.weight:0"].tolist() == [0, 2, 3, 5]
    assert choose(graph, even, budget=sc.Budget(macs=0.4), within=kept)["0.weight:0"].tolist() == [0, 2]
