"""Width from where it is worth least to where it is worth most."""

import random
from collections.abc import Iterator
from itertools import combinations, pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import PlanError, SurgeryError
from secateur.graph import Graph
from secateur.planning.choosing import lane
from secateur.planning.moving import Move, shared, units
from support.networks import Cnn, Normed, example


def badly() -> nn.Module:
    """A starved layer before a bloated one."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 3), nn.ReLU(), nn.Linear(3, 60), nn.ReLU(), nn.Linear(60, 9)).eval()


def batch() -> Tensor:
    return torch.randn(256, 16, generator=torch.Generator().manual_seed(1))


def macs(model: nn.Module) -> int:
    return sc.trace(model, torch.zeros(1, 16)).cost()["macs"]


# ---------------------------------------------------------------------- by hand


def test_copies_go_to_the_largest_score_each() -> None:
    """6 shares 3 and 3, 4 shares 2 and 2, 6 again 2, 2 and 2; the dead unit is replaced."""
    assert shared(torch.tensor([6.0, 1.0, 4.0, 0.0]), 6).tolist() == [0, 0, 0, 1, 2, 2]
    assert shared(torch.tensor([6.0, 1.0, 4.0]), 4).tolist() == [0, 0, 1, 2]
    assert shared(torch.zeros(2), 3).tolist() == [0, 0, 1]


def two_lanes(first: list[float], second: list[float], target: float) -> tuple[Move, Graph]:
    """Lanes of a network of 4 inputs, two layers of hidden units, and 2 outputs."""
    net = nn.Sequential(
        nn.Linear(4, len(first)), nn.ReLU(), nn.Linear(len(first), len(second)), nn.ReLU(), nn.Linear(len(second), 2)
    )
    graph = sc.trace(net, torch.zeros(1, 4))
    scores = {"0.weight:0": torch.tensor(first), "2.weight:0": torch.tensor(second)}
    lanes = [lane({n: len(s)}, scores, [1], [1], k) for k, (n, s) in enumerate(scores.items())]
    move = Move(lanes=lanes, costs=graph.costs, kind="macs", target=target, most=[2 * ln.sizes[0] for ln in lanes])
    return move, graph


def test_units_move_to_where_they_are_worth_more_at_the_same_cost() -> None:
    """4 -> 3 -> 8 -> 2 costs 12 + 24 + 16 = 52; useless units leave the 8, and the 3 get more."""
    move, graph = two_lanes([5.0, 5.0, 5.0], [9.0, 9.0, 9.0, 0.0, 0.0, 0.0, 0.0, 0.0], 52)
    assert graph.cost()["macs"] == 52
    first, second = move.run()
    assert first > 3
    assert second < 8
    assert 0.99 * 52 <= 4 * first + first * second + 2 * second <= 52


def test_nothing_moves_where_all_is_worth_alike() -> None:
    """One unit of either layer costs 4 + 4 = 8 and 4 + 4 = 8, and each is worth 1."""
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    graph = sc.trace(net, torch.zeros(1, 4))
    scores = {"0.weight:0": torch.ones(4), "2.weight:0": torch.ones(4)}
    lanes = [lane({n: 4}, scores, [1], [1], k) for k, n in enumerate(scores)]
    assert Move(lanes=lanes, costs=graph.costs, kind="macs", target=48, most=[8, 8]).run() == [4, 4]
    assert units(lanes, [4, 4], scores) == {}
    assert {n: at.tolist() for n, at in units(lanes, [3, 5], scores).items()} == {
        "0.weight:0": [0, 1, 2],
        "2.weight:0": [0, 0, 1, 2, 3],
    }


def test_what_came_goes_again_where_the_budget_is_passed() -> None:
    """1 -> 2 -> 5 -> 40 costs 2 + 10 + 200. One unit more of the second layer, which has all the worth, costs 42, and
    the first, which has a unit to give, saves 7: so it stays as it is.
    """
    net = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 5), nn.Linear(5, 40))
    graph = sc.trace(net, torch.zeros(1, 1))
    scores = {"0.weight:0": torch.tensor([1e-6, 1e-6]), "1.weight:0": torch.full((5,), 9.0)}
    lanes = [lane({n: len(s)}, scores, [1], [1], k) for k, (n, s) in enumerate(scores.items())]
    assert Move(lanes=lanes, costs=graph.costs, kind="macs", target=212, most=[8, 20]).run() == [2, 5]


def random_move(seed: int) -> Move:
    """Two to four layers of random widths and scores, some of which go and come in steps, and a random budget."""
    rng = random.Random(seed)
    widths = [rng.randint(3, 24) for _ in range(rng.randint(2, 4))]
    sizes = [rng.randint(2, 12), *widths, rng.randint(2, 10)]
    net = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(sizes)))
    graph = sc.trace(net, torch.zeros(1, sizes[0]))
    generator = torch.Generator().manual_seed(seed)
    scores = {
        f"{k}.weight:0": torch.rand(w, generator=generator) * 10 ** rng.uniform(-2, 2) for k, w in enumerate(widths)
    }
    steps = [rng.choice([1, 1, 1, 2, 4]) for _ in widths]
    lanes = [
        lane({name: size}, scores, [max(1, size - int(0.75 * size))], [step], k)
        for k, ((name, size), step) in enumerate(zip(zip(scores, widths, strict=True), steps, strict=True))
    ]
    kind = rng.choice(["macs", "params"])
    most = [4 * size if step == 1 else size for size, step in zip(widths, steps, strict=True)]
    target = graph.cost()[kind] * rng.choice([1.0, 0.9, 0.8, 0.7, 0.6, 0.5])
    return Move(lanes=lanes, costs=graph.costs, kind=kind, target=target, most=most)


def neighbours(move: Move) -> Iterator[list[int]]:
    """The widths with one lane's changed to any that it may have, and with those of two by up to twelve units."""
    allowed = [{*ln.sizes, *range(ln.sizes[0], most + 1)} for ln, most in zip(move.lanes, move.most, strict=True)]
    for k, widths in enumerate(allowed):
        for width in widths:
            yield [width if j == k else w for j, w in enumerate(move.widths)]
    for (i, j), a, b in product(combinations(range(len(allowed)), 2), range(-12, 13), range(-12, 13)):
        changed = {i: move.widths[i] + a, j: move.widths[j] + b}
        if all(width in allowed[k] for k, width in changed.items()):
            yield [changed.get(k, w) for k, w in enumerate(move.widths)]


def cost(move: Move, widths: list[int]) -> float:
    sizes = {name: width for ln, width in zip(move.lanes, widths, strict=True) for name in ln.axes}
    return float(move.costs.kinds[move.kind].value(move.costs.vector(sizes)))


@pytest.mark.parametrize("seed", range(60))
def test_it_is_near_the_budget_wherever_a_move_more_gets_there(seed: int) -> None:
    move = random_move(seed)
    move.run()
    if cost(move, [ln.sizes[-1] for ln in move.lanes]) <= move.target:
        assert move.cost <= move.target
    if not 0.99 * move.target <= move.cost:
        assert not [w for w in neighbours(move) if 0.99 * move.target <= cost(move, w) <= move.target]


# ---------------------------------------------------------------------- whole


@pytest.mark.parametrize("budget", [None, sc.Budget(macs=0.8), sc.Budget(params=1.0)])
def test_at_the_budget_and_proved(budget: Any) -> None:
    model = badly()
    result = sc.reallocate(model, batch(), data=[batch()], budget=budget)
    kind = next(iter(budget.given)) if budget else "macs"
    share = result.graph.cost(result.plan.sizes)[kind] / result.graph.cost()[kind]
    wanted = 0.8 if budget and budget.given.get("macs") else 1.0
    assert 0.99 * wanted <= share <= wanted
    assert result.proof.status == "proved"
    starved, bloated = result.rows
    assert starved["after"] > 3
    assert bloated["after"] < 60
    assert starved["importance"] > bloated["importance"]
    assert result.model[0].out_features == starved["after"]


def test_one_plan_drops_and_repeats(tmp_path: Path) -> None:
    model = badly()
    result = sc.reallocate(model, batch(), data=[batch()])
    starved, bloated = (axis.kept for axis in result.plan.axes.values())
    assert len(set(starved)) < len(starved)
    assert len(set(bloated)) == len(bloated) < 60
    result.plan.save(tmp_path / "plan.json")
    assert sc.Plan.load(tmp_path / "plan.json") == result.plan
    sc.save(result, tmp_path / "moved")
    loaded = sc.load(tmp_path / "moved", model=badly())
    assert torch.equal(loaded(batch()), result.model(batch()))
    with pytest.raises(SurgeryError, match="removes units"):
        sc.merge_copies(result)


def test_it_prints_why() -> None:
    text = str(sc.reallocate(badly(), batch(), data=[batch()]))
    assert "importance of a unit" in text
    assert "before → reallocated" in text
    assert "1 of 2 axes are wider, 1 are narrower" in text


def test_limits_hold() -> None:
    result = sc.reallocate(badly(), batch(), data=[batch()], max_growth=2.0, max_share=0.5, budget=sc.Budget(macs=0.85))
    starved, bloated = result.rows
    assert starved["after"] <= 6
    assert bloated["after"] >= 30


def test_an_axis_that_is_normalised_over_does_not_grow() -> None:
    model = Normed(nn.LayerNorm(8)).eval()
    x = example(model)
    graph = sc.trace(model, x)
    result = sc.reallocate(model, x, importance="l2", budget=sc.Budget(params=0.9))
    stuck = {n for n, a in graph.axes.items() if a.normalising}
    assert all(r["after"] <= r["before"] for r in result.rows if r["name"] in stuck)


def test_the_optimizer_comes_along() -> None:
    model = badly()
    optimizer = torch.optim.Adam(model.parameters())
    model(batch()).sum().backward()
    optimizer.step()
    result = sc.reallocate(model, batch(), data=[batch()])
    result.remap_(optimizer)
    held = optimizer.param_groups[0]["params"]
    assert [p.shape for p in held] == [p.shape for p in result.model.parameters()]
    assert all(optimizer.state[p]["exp_avg"].shape == p.shape for p in held)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": sc.Budget(macs=0.5, params=0.5)}, "give one of macs"),
        ({"budget": sc.Budget(latency=0.5)}, "give one of macs"),
        ({"max_growth": 0.5}, "max_growth=0.5"),
        ({"max_share": 0.0}, "max_share=0.0"),
        ({"noise": -1.0}, "noise=-1.0"),
        ({"budget": sc.Budget(macs=0.01)}, "can't be met within 1 %"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        sc.reallocate(Cnn(), example(Cnn()), importance="l2", **settings)
