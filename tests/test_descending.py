"""The smallest model within a bound on held-out data."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.descending import Descent, restored, still_free
from secateur.errors import PlanError, UnreachableBound, UnreachableBudget
from secateur.heldout import Bound
from secateur.importance import Scores
from secateur.planning import make_plan
from secateur.planning.planning import choose
from secateur.pruning import without
from secateur.rounds import Round
from support.networks import Chunked, Residual, llama

HIDDEN = "0.weight:0"


def staircase(units: int = 40) -> nn.Module:
    """Hidden unit k adds k to the output, so that the output says how many are gone, and L1 ranks them by k."""
    model = nn.Sequential(nn.Linear(1, units, bias=False), nn.ReLU(), nn.Linear(units, 1, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[2].weight.copy_(torch.arange(units, dtype=torch.float32)[None])
    return model


def total(model: nn.Module, batches: Any) -> float:
    """What the staircase gives for 1: the sum of the units that are left."""
    return float(model(next(iter(batches))).detach())


ONE = [torch.ones(1, 1)]


def pruned(model: nn.Module, **settings: Any) -> sc.Result:
    return sc.prune(model, ONE[0], validate=ONE, importance="l1", **settings)


# ---------------------------------------------------------------------- by hand


@pytest.mark.parametrize("allowed", [1, 10, 66, 100, 300])
def test_the_search_ends_just_within_the_bound(allowed: int) -> None:
    """The k least units are worth k (k - 1) / 2; the last step is a sixteenth of a tenth, here at most one unit."""
    best = max(k for k in range(40) if k * (k - 1) / 2 <= allowed)
    result = pruned(staircase(), max_drop=allowed, metric=total)
    assert list(result.plan.axes[HIDDEN].kept) == list(range(best, 40))
    found = result.report["held_out"]
    assert found["dense"] == 780.0
    assert found["worse"] == best * (best - 1) / 2 <= allowed
    assert total(result.model, ONE) == found["pruned"] == 780.0 - found["worse"]
    assert result.proof.status == "proved"


def test_the_rounds_by_hand() -> None:
    """10 % of the 80 MACs a round; the first that breaks the bound is halved four times, each with new scores."""
    rows: list[Round] = []
    result = pruned(staircase(), max_drop=60, metric=total, on_round=rows.append)
    gone = [round(40 * (1 - row.cost)) for row in rows]
    assert gone == [4, 8, 12, 10, 11]  # 66 is too much, 45 is not; then 11 (55): half of half a tenth
    assert [row.met for row in rows] == [True, True, False, True, True]
    assert [row.worse for row in rows] == [6, 28, 66, 45, 55]
    assert [row.number for row in rows] == [1, 2, 3, 4, 5]
    found = result.report["held_out"]
    assert (found["rounds"], found["met"], found["setting"], found["bound"]) == (5, 4, "max_drop", 60.0)
    assert (found["metric"], found["unit"], found["interrupted"]) == ("total", "", False)
    assert rows[2].describe() == "round 3: 70.0 % of the cost, total 66 worse, taken back"


def test_a_metric_that_gets_better_goes_on_to_the_end() -> None:
    """Drops are negative, and the smallest model is the best."""
    result = pruned(staircase(), max_drop=0.0, metric=lambda model, batches: -total(model, batches))
    assert list(result.plan.axes[HIDDEN].kept) == [39]
    assert result.report["held_out"]["worse"] == 39.0 - 780.0
    assert "better, within max_drop=0" in str(result)


def test_nothing_can_go_within_the_bound() -> None:
    model = staircase()
    with torch.no_grad():
        model[2].weight.fill_(10.0)
    message = (
        r"max_drop=5 can't be kept to: the least harm of \d rounds is total 390 on the held-out data, 10 worse than "
        r"the original's 400, for 2.5% of the macs. Allow more"
    )
    with pytest.raises(UnreachableBound, match=message) as caught:
        pruned(model, max_drop=5, metric=total)
    assert isinstance(caught.value, PlanError)


def test_nothing_may_go_at_all() -> None:
    with pytest.raises(UnreachableBudget, match="raise max_share"):
        pruned(staircase(), max_drop=5, metric=total, max_share=0.01)


def test_a_model_without_the_cost_to_bring_down() -> None:
    ids = torch.zeros(3, dtype=torch.long)

    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 8)

        def forward(self, ids: Tensor) -> Tensor:
            return self.table(ids).sum(-1)

    same = {"max_drop": 1.0, "metric": lambda model, batches: 1.0, "validate": [ids]}
    with pytest.raises(UnreachableBudget, match="Embedded has 0 macs, of which none can go: try another reduce="):
        sc.prune(Embedded(), ids, **same)  # type: ignore[arg-type]
    assert sc.prune(Embedded(), ids, reduce="params", **same).plan.sizes == {"table.weight:1": 1}  # type: ignore[arg-type]


def test_limits_hold_in_every_round() -> None:
    result = pruned(staircase(), max_drop=1e6, metric=total, max_share=0.5)
    assert result.plan.sizes == {HIDDEN: 20}
    result = pruned(staircase(), max_drop=60, metric=total, multiple_of=8)
    assert result.plan.sizes == {HIDDEN: 32}


def test_of_equal_units_the_later_go_and_twice_is_the_same() -> None:
    model = staircase()
    with torch.no_grad():
        model[2].weight.fill_(1.0)
    plans = [pruned(model, max_drop=7, metric=total).plan for _ in range(2)]
    assert plans[0] == plans[1]
    assert list(plans[0].axes[HIDDEN].kept) == list(range(33))


def test_units_are_scored_anew_in_every_round() -> None:
    """Two layers: what is left of one changes what the units of the other weigh."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 2))
    graph = sc.trace(model, torch.zeros(1, 3))
    seen: list[dict[str, Tensor]] = []

    def pick(graph: sc.Graph, scores: Any, *, budget: sc.Budget, within: Any) -> sc.Plan:
        seen.append(dict(scores))
        return make_plan(graph, choose(graph, scores, budget=budget, within=within))

    search = Descent(
        model,
        model,
        [Bound(setting="max_drop", amount=1.0, batches=[torch.zeros(1, 3)], metric=lambda model, _: 0.0)],
        sc.score(model, graph),
        pick=pick,
        rescore=lambda small, plan: sc.score(small, sc.trace(small, torch.zeros(1, 3))),
    )
    made = search.plan(graph)
    assert {n: len(a.kept) for n, a in made.axes.items()} == {"0.weight:0": 1, "2.weight:0": 1}
    weights = model[2].weight.detach().square().sum(1) + model[2].bias.detach().square()
    weights += model[4].weight.detach().square().sum(0)
    torch.testing.assert_close(seen[0]["2.weight:0"], weights)
    (first, *_) = search.rounds
    assert first.met
    later = seen[4]["2.weight:0"]
    kept = later < weights.double() - 1e-6  # they have lost the weights from units that are gone
    assert kept.any()


def test_what_finishes_the_small_model_is_measured() -> None:
    """Compensation is slotted in: here it makes up for all that is lost."""

    def finish(model: nn.Module, small: nn.Module, plan: sc.Plan) -> str:
        with torch.no_grad():
            small[2].weight.mul_(780 / float(small[2].weight.sum()))
        return "scaled"

    model = staircase()
    graph = sc.trace(model, ONE[0])
    search = Descent(
        model,
        model,
        [Bound(setting="max_drop", amount=0.1, batches=ONE, metric=total)],
        sc.score(model, graph, "l1"),
        pick=lambda graph, scores, **reach: make_plan(graph, choose(graph, scores, **reach)),
        rescore=lambda small, plan: {},
        finish=finish,
        kind="params",
    )
    made = search.plan(graph)
    small, finished = search.result(made)
    assert made.sizes == {HIDDEN: 1}
    assert (total(small, ONE), finished) == (780.0, "scaled")


@pytest.mark.parametrize("scope", ["global", "local", "isomorphic"])
def test_every_scope_and_every_cost(scope: Any) -> None:
    torch.manual_seed(1)
    model, x = Residual().eval(), torch.randn(40, 3, 8, 8)
    held_out = [(x, model(x).argmax(1))]
    for reduce in ("macs", "params", "bytes"):
        rows: list[Round] = []
        result = sc.prune(
            model,
            x[:2],
            max_drop=10.0,
            validate=held_out,
            scope=scope,
            reduce=reduce,  # type: ignore[arg-type]
            on_round=rows.append,
        )
        cost = result.graph.cost(result.plan.sizes)[reduce] / result.graph.cost()[reduce]
        assert cost == min(row.cost for row in rows if row.met) < 1
        assert result.report["held_out"]["worse"] <= 10.0


def test_equal_widths_that_a_config_says() -> None:
    model, ids = llama(), torch.randint(64, (4, 9))
    held_out = [{"input_ids": ids, "labels": ids}]
    result = sc.prune(model, ids[:1], max_loss_increase=0.02, validate=held_out, uniform=True)
    assert result.plan.sizes
    assert 0 < result.report["held_out"]["pruned"] <= result.report["held_out"]["dense"] + 0.02
    with torch.no_grad():
        assert float(result.model.eval()(**held_out[0]).loss) == pytest.approx(result.report["held_out"]["pruned"])


def test_a_bar_on_the_error_stream_of_a_terminal_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned(staircase(), max_drop=60, metric=total)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")
    pruned(staircase(), max_drop=60, metric=total)
    out, err = capsys.readouterr()
    assert out == ""
    assert "Removing within max_drop=60" in err
    assert "round 5: 72.5 % of the cost, total 55 worse" in err


def test_with_data_each_round_compensates_and_its_model_is_returned() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    x, held = torch.randn(256, 8), torch.randn(128, 8)
    held_out = [(held, model(held).argmax(1))]

    class Shuffled:
        def __iter__(self) -> Iterator[Tensor]:
            return iter(x[torch.randperm(len(x))].split(64))

    costs: list[float] = []
    for compensate in (None, "lstsq"):
        result = sc.prune(
            model, x[:2], max_drop=15.0, validate=held_out, data=Shuffled(), compensate=compensate, importance="l2"
        )
        hits = result.model.eval()(held).argmax(1) == held_out[0][1]
        assert 100 * float(hits.float().mean()) == pytest.approx(result.report["held_out"]["pruned"], abs=1e-4)
        assert (result.compensation is None) == (compensate is None)
        costs.append(result.graph.cost(result.plan.sizes)["macs"])
    assert costs[1] < costs[0]


# ---------------------------------------------------------------------- mapping between models


def test_scores_come_back_to_the_units_of_the_original() -> None:
    graph = sc.trace(Residual(), torch.randn(2, 3, 8, 8))
    before = {name: torch.arange(float(info.size)) for name, info in graph.axes.items()}
    plan = make_plan(graph, {"stem.weight:0": torch.tensor([1, 4]), "blocks.0.0.weight:0": torch.tensor([0, 2])})
    found = {"stem.weight:0": torch.tensor([10.0, 20.0]), "blocks.0.0.weight:0": torch.ones(3)}
    scores = restored(graph, plan, found, before)
    assert scores["stem.weight:0"].tolist() == [0, 10, 2, 3, 20, 5, 6, 7]
    assert torch.equal(scores["blocks.0.0.weight:0"], before["blocks.0.0.weight:0"])  # of another size: not found
    assert torch.equal(scores["blocks.1.0.weight:0"], before["blocks.1.0.weight:0"])
    assert not restored(graph, plan, found, before).comparable
    assert restored(graph, plan, found, Scores(before, comparable=True)).comparable


def test_what_is_kept_when_more_is_frozen() -> None:
    graph = sc.trace(Chunked(), torch.zeros(2, 4))
    first, second = graph.ties[0]
    plan = make_plan(graph, {first: torch.arange(4), second: torch.arange(4)})
    assert still_free(graph, plan).keys() == {first, second}
    assert still_free(without(graph, [first], "for a test"), plan) == {}


# ---------------------------------------------------------------------- with the proof, and Ctrl-C


class Hidden(nn.Module):
    """Divides by the root of a hidden size, in plain Python: only a failing proof finds that."""

    def __init__(self, breaks: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 8), nn.Linear(8, 12), nn.Linear(12, 3)
        self.breaks = breaks

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        if self.breaks and str(x.shape[-1]) != "8":
            raise RuntimeError("only 8")
        x = x / int(x.shape[-1]) ** 0.5
        return self.last(F.relu(self.second(x)))


@pytest.mark.parametrize("breaks", [False, True])
def test_a_size_in_disguise_is_frozen_and_the_search_goes_on(breaks: bool) -> None:
    model, x = Hidden(breaks), torch.randn(64, 4)
    rows: list[Round] = []
    result = sc.prune(
        model, x[:3], max_drop=20.0, validate=[(x, model(x).argmax(1))], min_units=2, on_round=rows.append
    )
    assert result.plan.sizes.keys() == {"second.weight:0"}
    assert "the proof fails" in result.graph.frozen["first.weight:0"].frozen[0]
    found = result.report["held_out"]
    hits = result.model(x).argmax(1) == model(x).argmax(1)
    assert found["pruned"] == pytest.approx(100 * float(hits.float().mean()))
    assert found["worse"] <= 20.0
    assert found["rounds"] == len(rows)


def test_a_metric_that_fails_on_smaller_models_is_the_users_to_mend() -> None:
    def picky(model: nn.Module, batches: Any) -> float:
        if model[0].out_features < 40:
            raise KeyError("forty")
        return 1.0

    with pytest.raises(KeyError, match="forty"):
        pruned(staircase(), max_drop=1.0, metric=picky)


class Stopping:
    """Data that Ctrl-C interrupts in its nth pass."""

    def __init__(self, passes: int) -> None:
        self.passes = passes

    def __iter__(self) -> Iterator[Tensor]:
        self.passes -= 1
        if self.passes == 0:
            raise KeyboardInterrupt
        return iter(ONE)


def test_ctrl_c_keeps_the_last_state_within_the_bound() -> None:
    result = sc.prune(staircase(), ONE[0], importance="l1", validate=Stopping(4), max_drop=60, metric=total)
    assert result.plan.sizes == {HIDDEN: 32}  # the dense model, 36, 32, and then
    assert result.report["held_out"]["interrupted"]
    assert result.proof.status == "proved"
    assert "stopped by Ctrl-C" in str(result)


@pytest.mark.parametrize("passes", [1, 2])
def test_ctrl_c_before_there_is_anything_to_keep(passes: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        sc.prune(staircase(), ONE[0], importance="l1", validate=Stopping(passes), max_drop=60, metric=total)


def test_the_model_and_the_random_state_are_left_as_they_were() -> None:
    model = staircase().train()
    before, weights = torch.get_rng_state(), [p.clone() for p in model.parameters()]
    result = pruned(model, max_drop=60, metric=total)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert model.training
    assert result.model.training
