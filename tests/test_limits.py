"""A floor of robustness, alone, with a budget, and with a bound on the metric without attacks.

The network adds 40 units of the input, unit k weighing k; its robustness is made to hang on the first coordinate alone.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import DataError, PlanError, UnreachableBound
from secateur.heldout import Bound, bounds
from secateur.limits import Limits
from secateur.safety.adversarial import Adversarial

ATTACK = Adversarial(eps=0.5, bounds=(-4.0, 4.0), steps=1, validation_steps=8)
HELD = [(torch.tensor([[1.0, 0.0], [0.2, 0.0], [-0.2, 0.0], [-1.0, 0.0]]), torch.tensor([0, 0, 1, 1]))]


class Straight(nn.Module):
    """Scores (x, -x) of the first coordinate."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[:, 0], -x[:, 0]], 1)


def robust(**settings: Any) -> Bound:
    return Bound(setting="max_robust_drop", amount=1.0, batches=HELD, attack=ATTACK, **settings)


def test_robust_accuracy_by_hand() -> None:
    """Samples at 0.2 from the boundary fall to an attack of 0.5, those at 1 don't."""
    clean = Bound(setting="max_drop", amount=1.0, batches=HELD)
    assert clean.measure(Straight()) == 100.0
    assert robust().measure(Straight()) == 50.0
    assert (robust().name, robust().unit) == ("robust accuracy", "points")


def test_a_metric_of_ones_own_sees_attacked_batches() -> None:
    def nearest(model: nn.Module, batches: Any) -> float:
        return float(min(x[:, 0].abs().min() for x, _ in batches))

    limit = robust(metric=nearest)
    assert limit.measure(Straight()) == pytest.approx(0.3)
    assert (limit.name, limit.unit) == ("robust nearest", "")


def test_measuring_draws_from_a_stream_of_its_own() -> None:
    state, limit = torch.get_rng_state(), robust(seed=3)
    assert limit.measure(Straight()) == limit.measure(Straight())
    assert torch.equal(state, torch.get_rng_state())


def test_attacks_that_can_not_be_made_name_the_batch() -> None:
    outside = [(HELD[0][0] * 10, HELD[0][1])]
    with pytest.raises(DataError, match="batch 0 of validate=: inputs lie between -10"):
        Bound(setting="max_robust_drop", amount=1.0, batches=outside, attack=ATTACK).measure(Straight())


def test_reading_stops_at_the_first_bound_that_is_broken() -> None:
    values = iter([80.0, 40.0, 79.5, 39.0, 70.0, 79.9, 38.9])
    plain = Bound(setting="max_drop", amount=1.0, batches=[], metric=lambda model, _: next(values))
    floor = Bound(
        setting="max_robust_drop", amount=1.0, batches=[], metric=lambda model, _: next(values), attack=ATTACK
    )
    limits = Limits([plain, floor], Straight())
    assert limits.dense == [80.0, 40.0]
    assert [(r.value, r.met) for r in limits.read(Straight())] == [(79.5, True), (39.0, True)]
    assert [(r.value, r.met) for r in limits.read(Straight())] == [(70.0, False)]
    found = limits.read(Straight())
    assert [r.met for r in found] == [True, False]
    assert found[1].worse == pytest.approx(1.1)


# ---------------------------------------------------------------------- the search


def staircase() -> nn.Sequential:
    """40 units of which unit k adds k to the output."""
    model = nn.Sequential(nn.Linear(2, 40), nn.ReLU(), nn.Linear(40, 1))
    with torch.no_grad():
        model[0].weight.fill_(0.0)
        model[0].bias.fill_(1.0)
        model[2].weight.copy_(torch.arange(1.0, 41.0)[None])
        model[2].bias.fill_(0.0)
    return model


def total(model: nn.Module, batches: Any) -> float:
    return float(model(torch.zeros(1, 2)))


def pruned(**settings: Any) -> sc.Result:
    """Of a sum of 820; the smallest units go first."""
    given = {"importance": "l1", "validate": HELD, "metric": total, "adversarial": ATTACK, **settings}
    return sc.prune(staircase(), torch.zeros(1, 2), **given)


def kept(result: sc.Result) -> int:
    return next(len(axis.kept) for axis in result.plan.axes.values())


def test_a_floor_alone() -> None:
    """1 + 2 + ... + 7 = 28 may go of 30, eight units would be 36."""
    result = pruned(max_robust_drop=30)
    found = result.report["held_out"]
    assert kept(result) == 33
    assert (found["setting"], found["dense"], found["pruned"]) == ("max_robust_drop", 820.0, 792.0)
    assert "budget" not in found
    assert "others" not in found


def test_a_budget_that_is_reached_first() -> None:
    result = pruned(max_robust_drop=400, budget=sc.Budget(params=0.75))
    found = result.report["held_out"]
    assert kept(result) == 29  # 4 units + 1 of at most 120 parameters
    assert (found["budget"], found["ended_by"]) == ({"params": 0.75}, "budget")
    assert "The budget params=0.75 was reached within that." in str(result.report)


def test_a_floor_that_is_reached_first() -> None:
    result = pruned(max_robust_drop=30, budget=sc.Budget(params=0.25))
    found = result.report["held_out"]
    assert kept(result) == 33
    assert found["ended_by"] == "max_robust_drop"
    assert "The budget params=0.25 was not reached: max_robust_drop would be broken." in " ".join(
        str(result.report).split()
    )


def test_with_a_bound_on_what_is_not_attacked() -> None:
    """The tighter of the two decides, whichever it is."""
    for drop, floor in ((10, 30), (30, 10)):
        result = pruned(max_robust_drop=floor, max_drop=drop)
        found = result.report["held_out"]
        assert kept(result) == 36  # 1 + 2 + 3 + 4
        assert found["setting"] == "max_drop"
        (other,) = found["others"]
        assert (other["setting"], other["worse"]) == ("max_robust_drop", 10.0)
    assert "robust total" in str(result.report)


def test_a_floor_that_nothing_keeps_to() -> None:
    with pytest.raises(UnreachableBound, match="max_robust_drop=0 can't be kept to: .* robust total"):
        pruned(max_robust_drop=0)


def test_rounds_say_both() -> None:
    rounds: list[Any] = []
    pruned(max_robust_drop=30, max_drop=300, on_round=rounds.append)
    good = [row for row in rounds if row.met]
    bad = [row for row in rounds if not row.met]
    assert good[0].others == ("robust total 10 worse",) or "robust total" in good[0].others[0]
    assert bad[0].metric == "robust total"
    assert "taken back" in bad[0].describe()
    assert "total" in bad[0].others[0]


def test_what_contradicts_itself() -> None:
    choices: dict[str, Any] = {"budget": None, "threshold": None, "keep": 0.5, "max_drop": None}
    common: dict[str, Any] = {"validate": HELD, "metric": None, "loss": None, "seed": 0}
    with pytest.raises(PlanError, match="got keep, which says by itself"):
        bounds(choices, 1.0, adversarial=ATTACK, **common)
    none = dict.fromkeys(choices)
    with pytest.raises(PlanError, match="needs to know the attack"):
        bounds(none, 1.0, adversarial=None, **common)
    with pytest.raises(PlanError, match="needs held-out data"):
        bounds(none, 1.0, adversarial=ATTACK, **{**common, "validate": None})
    with pytest.raises(PlanError, match="max_robust_drop=-1"):
        bounds(none, -1, adversarial=ATTACK, **common)
    with pytest.raises(PlanError, match="one of params, macs|one of macs, params"):
        pruned(max_robust_drop=1, budget=sc.Budget(macs=0.5, params=0.5))
    assert bounds(none, None, adversarial=None, validate=None, metric=None, loss=None, seed=0) == ()
