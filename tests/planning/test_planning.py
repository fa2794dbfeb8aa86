"""Which units stay, by hand on networks small enough for it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import NothingToPrune, PlanError, UnreachableBudget
from secateur.planning import make_plan
from support.networks import Attention, Chunked, Cnn, Grouped, LiteralNet, Mlp, Residual, bert, example

HIDDEN = "0.weight:0"


def kept(plan: sc.Plan, axis: str = HIDDEN) -> list[int]:
    return list(plan.axes[axis].kept)


def scored(model: nn.Module) -> tuple[sc.Graph, dict[str, Tensor]]:
    graph = sc.trace(model, example(model))
    return graph, sc.score(model, graph)


@pytest.fixture
def mlp() -> sc.Graph:
    """Of 4 hidden units."""
    return sc.trace(Mlp(hidden=4), torch.zeros(1, 4))


# ---------------------------------------------------------------------- threshold


@pytest.mark.parametrize(
    ("threshold", "wanted"),
    [(0.2, None), (0.5, [1, 2, 3]), (0.75, [2, 3]), (0.76, [3]), (2.5, [3]), (100.0, [3])],
)
def test_a_unit_goes_below_the_cutoff(mlp: sc.Graph, threshold: float, wanted: list[int] | None) -> None:
    """The mean is 4, so the cutoff is 4 x threshold; a score on the cutoff stays, and so does the best unit."""
    plan = sc.plan(mlp, {HIDDEN: torch.tensor([1.0, 2.0, 3.0, 10.0])}, threshold=threshold)
    assert plan.axes.keys() == (set() if wanted is None else {HIDDEN})
    assert wanted is None or kept(plan) == wanted


def test_the_cutoff_is_of_each_axis_alone() -> None:
    graph = sc.trace(Cnn(), torch.zeros(1, 3, 8, 8))
    scores = {"conv1.weight:0": torch.arange(8.0) * 1000, "conv2.weight:0": torch.arange(12.0)}
    plan = sc.plan(graph, scores, threshold=1.0)
    assert plan.sizes == {"conv1.weight:0": 4, "conv2.weight:0": 6}


def test_threshold_keeps_to_widths_that_are_allowed(mlp: sc.Graph) -> None:
    scores = {HIDDEN: torch.tensor([1.0, 2.0, 3.0, 10.0])}
    assert kept(sc.plan(mlp, scores, threshold=0.76, min_units=3)) == [1, 2, 3]
    assert kept(sc.plan(mlp, scores, threshold=0.76, multiple_of=2)) == [2, 3]


# ---------------------------------------------------------------------- keep


@pytest.mark.parametrize(
    ("keep", "settings", "widths"),
    [
        (0.5, {}, (4, 6)),
        (0.3, {}, (2, 4)),
        (0.01, {}, (1, 1)),
        (1.0, {}, (8, 12)),
        (0.3, {"min_units": 3}, (3, 4)),
        (0.3, {"min_units": 10}, (8, 10)),
        (0.5, {"multiple_of": 4}, (4, 8)),
        (0.5, {"multiple_of": 5}, (5, 10)),
        (0.1, {"multiple_of": 16}, (8, 12)),
    ],
)
def test_keep_a_share_of_every_axis(keep: float, settings: dict[str, int], widths: tuple[int, int]) -> None:
    graph, scores = scored(Cnn())
    sizes = sc.plan(graph, scores, keep=keep, **settings).sizes  # type: ignore[arg-type]
    assert (sizes.get("conv1.weight:0", 8), sizes.get("conv2.weight:0", 12)) == widths


def test_the_best_units_stay_and_of_equals_the_first(mlp: sc.Graph) -> None:
    assert kept(sc.plan(mlp, {HIDDEN: torch.tensor([1.0, 7.0, 3.0, 2.0])}, keep=0.5)) == [1, 2]
    assert kept(sc.plan(mlp, {HIDDEN: torch.tensor([2.0, 2.0, 2.0, 2.0])}, keep=0.5)) == [0, 1]
    assert kept(sc.plan(mlp, {HIDDEN: torch.tensor([2.0, 1.0, 1.0, 2.0])}, keep=0.75)) == [0, 1, 3]
    assert kept(sc.plan(mlp, {HIDDEN: torch.tensor([-1.0, -3.0, 0.0, -2.0])}, keep=0.5)) == [0, 2]


def test_plans_are_the_same_each_time() -> None:
    graph, scores = scored(Residual())
    plans = [sc.plan(graph, scores, budget=sc.Budget(macs=0.4)).to_dict() for _ in range(2)]
    assert plans[0] == plans[1]


# ---------------------------------------------------------------------- budget


def wide_cnn() -> nn.Module:
    layers = [nn.Conv2d(3, 48, 3), nn.BatchNorm2d(48), nn.ReLU(), nn.Conv2d(48, 500, 3), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(500 * 16, 5))


def wide_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 300), nn.ReLU(), nn.Linear(300, 200), nn.ReLU(), nn.Linear(200, 10))


def wide_residual() -> nn.Module:
    model = Residual()
    model.blocks[0] = nn.Sequential(nn.Conv2d(8, 300, 1), nn.ReLU(), nn.Conv2d(300, 8, 1))
    model.blocks[1] = nn.Sequential(nn.Conv2d(8, 200, 1), nn.ReLU(), nn.Conv2d(200, 8, 1))
    return model


WIDE: list[tuple[Any, tuple[int, ...]]] = [(wide_cnn, (1, 3, 8, 8)), (wide_mlp, (1, 16)), (wide_residual, (1, 3, 8, 8))]


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("kind", ["params", "macs", "bytes"])
@pytest.mark.parametrize(("make", "shape"), WIDE)
def test_a_budget_is_met_within_one_percent(make: Any, shape: tuple[int, ...], kind: str, scope: Any) -> None:
    model = make()
    graph = sc.trace(model, torch.zeros(shape))
    scores = sc.score(model, graph)
    for share in (0.9, 0.5, 0.2):
        plan = sc.plan(graph, scores, budget=sc.Budget(**{kind: share}), scope=scope)
        assert 0.99 * share <= graph.cost(plan.sizes)[kind] / graph.cost()[kind] <= share


def test_a_budget_of_coarse_units_is_never_exceeded() -> None:
    for model in (Cnn(), Grouped(), Attention(), Residual()):
        graph, scores = scored(model)
        for share in (0.8, 0.5, 0.3):
            plan = sc.plan(graph, scores, budget=sc.Budget(macs=share))
            assert 0.75 * share <= graph.cost(plan.sizes)["macs"] / graph.cost()["macs"] <= share


def test_absolute_and_joint_budgets() -> None:
    model = wide_cnn()
    graph = sc.trace(model, torch.zeros(1, 3, 8, 8))
    scores = sc.score(model, graph)
    cost = graph.cost(sc.plan(graph, scores, budget=sc.Budget(macs="700k")).sizes)
    assert 0.99 * 700e3 <= cost["macs"] <= 700e3
    cost = graph.cost(sc.plan(graph, scores, budget=sc.Budget(macs=0.5, params=20_000)).sizes)
    assert cost["macs"] <= 0.5 * graph.cost()["macs"]
    assert 0.99 * 20_000 <= cost["params"] <= 20_000


def test_a_budget_that_is_met_already_removes_nothing() -> None:
    graph, scores = scored(Cnn())
    assert sc.plan(graph, scores, budget=sc.Budget(macs=1.0)).axes == {}
    assert sc.plan(graph, scores, budget=sc.Budget(params="1G")).axes == {}


def test_a_model_without_macs_has_no_macs_to_save() -> None:
    model = nn.Sequential(nn.Embedding(5, 8), nn.LayerNorm(8))
    graph = sc.trace(model, torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(NothingToPrune, match="an output of the model"):
        sc.plan(graph, {}, budget=sc.Budget(macs=0.5))
    scaled = Embedded()
    graph = sc.trace(scaled, torch.zeros(3, dtype=torch.long))
    assert graph.cost()["macs"] == 0
    assert sc.plan(graph, sc.score(scaled, graph), budget=sc.Budget(macs=0.5)).axes == {}


class Embedded(nn.Module):
    """Sums an embedding: an axis that no operation multiplies along."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 8)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids).sum(-1)


def test_budgets_respect_widths() -> None:
    graph, scores = scored(wide_residual())
    plan = sc.plan(graph, scores, budget=sc.Budget(macs=0.4), min_units=6, multiple_of=8)
    assert plan.sizes
    assert all(size % 8 == 0 for size in plan.sizes.values())
    assert graph.cost(plan.sizes)["macs"] <= 0.4 * graph.cost()["macs"]


def test_an_unreachable_budget_says_how_small_it_gets_and_why() -> None:
    graph, scores = scored(Mlp())
    message = (
        r"params=2\.9 of 58 is below the smallest that Mlp can get, 9 \(0\.155 of the original\)\. "
        r"What holds it: .*2\.weight:0 4.*Raise the budget to at least params=0\.156, or lower min_units=1"
    )
    with pytest.raises(UnreachableBudget, match=message):
        sc.plan(graph, scores, budget=sc.Budget(params=0.05))
    with pytest.raises(UnreachableBudget, match="lower min_units=8 and multiple_of"):
        sc.plan(graph, scores, budget=sc.Budget(params=0.5), min_units=8)


def test_the_smallest_is_reachable() -> None:
    graph, scores = scored(Mlp())
    assert sc.plan(graph, scores, budget=sc.Budget(params=9)).sizes == {HIDDEN: 1}
    with pytest.raises(UnreachableBudget, match=r"params=8 of 58"):
        sc.plan(graph, scores, budget=sc.Budget(params=8))


# ---------------------------------------------------------------------- scope


def test_global_ranks_units_of_all_axes_and_local_shrinks_them_alike() -> None:
    model = nn.Sequential(nn.Linear(16, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 16))
    graph = sc.trace(model, torch.zeros(1, 16))
    dull = torch.ones(100)
    dull[50:] = 1e-6  # half of one axis is worth nothing
    scores = {"0.weight:0": dull, "2.weight:0": torch.ones(100)}
    everywhere = sc.plan(graph, scores, budget=sc.Budget(macs=0.5), scope="global").sizes
    alike = sc.plan(graph, scores, budget=sc.Budget(macs=0.5), scope="local").sizes
    assert everywhere["0.weight:0"] <= 50 < everywhere.get("2.weight:0", 100)
    assert abs(alike["0.weight:0"] - alike["2.weight:0"]) <= 1


def test_the_unit_of_a_score_does_not_matter() -> None:
    graph, scores = scored(Residual())
    scaled = {axis: values * 1000.0 ** (k - 1) for k, (axis, values) in enumerate(scores.items())}
    budget = sc.Budget(macs=0.5)
    assert sc.plan(graph, scores, budget=budget).sizes == sc.plan(graph, scaled, budget=budget).sizes


# ---------------------------------------------------------------------- only, ignore, ties


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("blocks.0.0.weight:0", {"blocks.0.0.weight:0"}),
        ("blocks.0.0.weight", {"stem.weight:0", "blocks.0.0.weight:0"}),
        ("blocks.0.1", {"blocks.0.0.weight:0"}),
        ("blocks.*.0.weight:0", {"blocks.0.0.weight:0", "blocks.1.0.weight:0"}),
        ("channels", {"blocks.0.0.weight:0", "blocks.1.0.weight:0"}),
        ("residual", {"stem.weight:0"}),
        ("blocks.1", {"stem.weight:0", "blocks.1.0.weight:0"}),
        ("stem", {"stem.weight:0"}),
    ],
)
def test_only_and_ignore_are_complements(pattern: str, wanted: set[str]) -> None:
    graph, scores = scored(Residual())
    assert sc.plan(graph, scores, keep=0.5, only=[pattern]).sizes.keys() == wanted
    assert sc.plan(graph, scores, keep=0.5, only=pattern).sizes.keys() == wanted
    if rest := graph.axes.keys() - wanted:
        assert sc.plan(graph, scores, keep=0.5, ignore=(pattern,)).sizes.keys() == rest


def test_ignore_wins_over_only() -> None:
    graph, scores = scored(Residual())
    assert sc.plan(graph, scores, keep=0.5, only=["*"], ignore=["stem", "blocks.0.0"]).sizes.keys() == {
        "blocks.1.0.weight:0"
    }


def test_ignoring_what_is_frozen_is_no_mistake() -> None:
    graph, scores = scored(Residual())
    assert len(sc.plan(graph, scores, keep=0.5, ignore=["head.weight:0"]).axes) == 3


@pytest.mark.parametrize("setting", ["only", "ignore"])
def test_a_pattern_that_names_nothing(setting: str) -> None:
    graph, scores = scored(Residual())
    with pytest.raises(
        PlanError, match=r"'stemm' name no axis, kind, module or tensor of Residual.*Did you mean 'stem'"
    ):
        sc.plan(graph, scores, keep=0.5, **{setting: ["stemm", "head"]})  # type: ignore[arg-type]
    with pytest.raises(PlanError, match=r"'qq', 'zz' name no .* Kinds here: channels, residual\."):
        sc.plan(graph, scores, keep=0.5, **{setting: ["qq", "zz"]})  # type: ignore[arg-type]


def test_nothing_left_by_the_patterns() -> None:
    graph, scores = scored(Mlp())
    with pytest.raises(NothingToPrune, match=r"ignore=\['hidden'\].*leave none of 1 axes to prune: 0.weight:0"):
        sc.plan(graph, scores, keep=0.5, ignore=["hidden"])


def test_halves_of_a_chunk_stay_equal() -> None:
    graph, scores = scored(Chunked())
    (tie,) = graph.ties
    assert len(tie) == 2
    scores = {tie[0]: torch.arange(8.0), tie[1]: torch.arange(8.0).flip(0)}
    assert [kept(sc.plan(graph, scores, keep=0.5), axis) for axis in tie] == [[4, 5, 6, 7], [0, 1, 2, 3]]
    scores[tie[0]] = torch.tensor([1.0, 1, 1, 1, 1, 9, 9, 9])  # five below the cutoff here, two there
    scores[tie[1]] = torch.tensor([1.0, 1, 9, 9, 9, 9, 9, 9])
    assert set(sc.plan(graph, scores, threshold=0.8).sizes.values()) == {6}
    for share in (0.9, 0.6, 0.3):
        sizes = sc.plan(graph, scores, budget=sc.Budget(params=share)).sizes
        assert sizes.keys() == set(tie)
        assert len(set(sizes.values())) == 1


def test_ties_are_ignored_whole() -> None:
    graph, scores = scored(Chunked())
    with pytest.raises(NothingToPrune, match="leave none of 2 axes"):
        sc.plan(graph, scores, keep=0.5, ignore=[graph.ties[0][0]])


def test_heads_of_a_chunked_projection_and_their_widths() -> None:
    """Three chunks of (heads width): the widths of values may not differ from those of queries, heads are free."""
    graph, scores = scored(Attention())
    assert graph.ties == (("qkv.weight:0/head_dim1", "qkv.weight:0/head_dim2"),)
    sizes = sc.plan(graph, scores, keep=0.5, only=["heads"]).sizes
    assert sizes == {"qkv.weight:0/heads": 2}


def test_a_plan_by_hand_must_respect_ties() -> None:
    graph, _ = scored(Chunked())
    with pytest.raises(PlanError, match="must keep the proportions of their sizes"):
        make_plan(graph, {graph.ties[0][0]: torch.tensor([0, 1])})


def test_keep_class_leaves_literals_alone() -> None:
    graph, scores = scored(LiteralNet())
    plan = sc.plan(graph, scores, keep=0.5, keep_class=True)
    assert plan.sizes == {"fc1.weight:0": 5}
    assert plan.rewrites == ()
    assert sc.plan(graph, scores, keep=0.5).rewrites[0].startswith("view(96) at ")


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"give exactly one of budget, threshold and keep; got none of them"),
        ({"budget": sc.Budget(macs=0.5), "threshold": 0.8}, r"got budget and threshold\. For half the work"),
        ({"threshold": 0.8, "keep": 0.5}, r"got threshold and keep"),
        ({"budget": 0.5}, r"budget=0\.5 is no Budget: write budget=sc\.Budget\(macs=0\.5\)"),
        ({"threshold": 0.0}, r"threshold=0\.0: give a number above 0"),
        ({"threshold": float("nan")}, r"threshold=nan: give a number above 0"),
        ({"threshold": float("inf")}, r"threshold=inf: give a number above 0"),
        ({"keep": 0.0}, r"keep=0\.0: give the share of units that stays, in \(0, 1\]"),
        ({"keep": 1.2}, r"keep=1\.2: give the share"),
        ({"keep": 0.5, "scope": "everywhere"}, r'scope=\'everywhere\': give "global", "local" or "isomorphic"'),
        ({"keep": 0.5, "min_units": 0}, r"min_units=0, multiple_of=1: both must be whole numbers from 1"),
        ({"keep": 0.5, "multiple_of": 0}, r"min_units=1, multiple_of=0: both must be whole numbers from 1"),
    ],
)
def test_arguments_that_make_no_sense(mlp: sc.Graph, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message) as caught:
        sc.plan(mlp, {HIDDEN: torch.ones(4)}, **settings)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "scores", [{}, {HIDDEN: torch.ones(3)}, {HIDDEN: torch.ones(4, 1)}, {HIDDEN: torch.tensor([1, 2, 3, float("nan")])}]
)
def test_scores_that_do_not_fit(mlp: sc.Graph, scores: dict[str, Tensor]) -> None:
    with pytest.raises(PlanError, match=r"1 axes have no score for each unit, 0.weight:0 first \(size 4\)"):
        sc.plan(mlp, scores, keep=0.5)


def test_nothing_to_prune_says_why() -> None:
    model = nn.Linear(4, 2)
    graph = sc.trace(model, torch.zeros(1, 4))
    message = (
        r"Linear has no axis that can be pruned: weight:1 \(size 4\): an input of the model; weight:0 \(size 2\): "
    )
    with pytest.raises(NothingToPrune, match=message):
        sc.plan(graph, {}, keep=0.5)
    with pytest.raises(NothingToPrune, match=message):
        sc.prune(model, torch.zeros(1, 4))


def test_only_parameters_that_compute_something_can_go() -> None:
    """BERT's table of positions is longer than the example: its tail is for longer inputs, not spare."""
    graph, scores = scored(bert())
    plan = sc.plan(graph, scores, keep=0.5)
    assert not [name for name in plan.tensors if "position_ids" in name]
