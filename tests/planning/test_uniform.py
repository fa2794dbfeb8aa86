"""Repeated blocks: equal widths, one ranking of like axes, and widths that are multiples of numbers of their own."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import NothingToPrune, PlanError
from secateur.planning import families
from support.networks import llama


class Blocks(nn.Module):
    """Residual blocks of the given widths over a stem of 8, and a head."""

    def __init__(self, *widths: int, fixed: int | None = None) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.blocks = nn.ModuleList(nn.ModuleDict({"fc1": nn.Linear(8, w), "fc2": nn.Linear(w, 8)}) for w in widths)
        self.fixed = fixed

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for k, block in enumerate(self.blocks):
            y = block["fc1"](x)  # type: ignore[index]
            y = y + torch.arange(y.shape[-1]) if k == self.fixed else y.relu()
            x = x + block["fc2"](y)  # type: ignore[index]
        return self.head(x)


FIRST, SECOND, THIRD = (f"blocks.{k}.fc1.weight:0" for k in range(3))


def traced(model: nn.Module) -> sc.Graph:
    return sc.trace(model, torch.randn(2, 4))


def scores_of(graph: sc.Graph, **given: list[float]) -> dict[str, Tensor]:
    """Scores by axis; those not given are far above the others."""
    found = {name: torch.full((info.size,), 1e6) for name, info in graph.axes.items()}
    return found | {f"blocks.{key[1:]}.fc1.weight:0": torch.tensor(values).float() for key, values in given.items()}


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("model.layers.0.mlp.up_proj.weight:0", "model.layers.#.mlp.up_proj.weight:0"),
        ("h.11.attn.c_attn.weight:1/head_dim2", "h.#.attn.c_attn.weight:1/head_dim2"),
        ("encoder.layers.encoder_layer_3.mlp.0.weight:0", "encoder.layers.encoder_layer_#.mlp.#.weight:0"),
        ("layer1.0.conv1.weight:0", "layer1.#.conv1.weight:0"),
        ("0.weight:0", "#.weight:0"),
        ("fc1.weight:0", "fc1.weight:0"),
    ],
)
def test_a_name_up_to_the_block(name: str, wanted: str) -> None:
    assert families.block_name(name) == wanted


def test_ties_that_share_an_axis_are_one() -> None:
    assert families.joined([("c", "a"), ("b",), ("e", "d"), ("a", "b")], "abcde") == (("a", "b", "c"), ("d", "e"))


# ---------------------------------------------------------------------- uniform


def test_repeated_blocks_keep_equal_widths_but_units_of_their_own() -> None:
    graph = traced(Blocks(6, 6, 6))
    scores = scores_of(graph, b0=[1, 1, 1, 9, 9, 9], b1=[9, 9, 9, 9, 9, 1], b2=[9, 1, 9, 1, 9, 1])
    free = sc.plan(graph, scores, threshold=0.5)
    assert free.sizes == {FIRST: 3, SECOND: 5, THIRD: 3}
    even = sc.plan(graph, scores, threshold=0.5, uniform=True)
    assert even.sizes == dict.fromkeys((FIRST, SECOND, THIRD), 5)
    even = sc.plan(graph, scores, keep=0.5, uniform=True)
    assert (even.axes[FIRST].kept, even.axes[THIRD].kept) == ((3, 4, 5), (0, 2, 4))


@pytest.mark.parametrize("scope", ["global", "local", "isomorphic"])
def test_a_budget_keeps_blocks_equal(scope: Any) -> None:
    graph = traced(Blocks(60, 60, 60))
    scores = {name: torch.rand(info.size) for name, info in graph.axes.items()}
    plan = sc.plan(graph, scores, budget=sc.Budget(params=0.5), uniform=True, scope=scope)
    assert len({plan.sizes[name] for name in (FIRST, SECOND, THIRD)}) == 1
    assert 0.45 <= graph.cost(plan.sizes)["params"] / graph.cost()["params"] <= 0.5


def test_blocks_of_other_widths_are_no_repetition() -> None:
    graph = traced(Blocks(6, 12, 6))
    assert families.uniform(graph).ties == ((FIRST, THIRD),)


def test_a_frozen_block_keeps_those_like_it() -> None:
    graph = families.uniform(traced(Blocks(6, 6, 6, fixed=1)))
    assert graph.axes.keys() == {"stem.weight:0"}
    assert graph.frozen[FIRST].frozen == (f"uniform: must stay as wide as {SECOND}, which is frozen",)


def test_what_is_ignored_in_one_block_stays_in_all() -> None:
    graph = traced(Blocks(6, 6, 6))
    scores = sc.score(Blocks(6, 6, 6), graph)
    plan = sc.plan(graph, scores, keep=0.5, uniform=True, ignore=[SECOND])
    assert plan.sizes == {"stem.weight:0": 4}
    with pytest.raises(NothingToPrune, match=r"only=\['blocks\.1\.fc1\.weight:0'\].*leave none"):
        sc.plan(graph, scores, keep=0.5, uniform=True, only=[SECOND])


def test_without_a_config_uniform_is_equal_widths() -> None:
    model = Blocks(12, 12)
    result = sc.prune(model, torch.randn(2, 4), budget=sc.Budget(params=0.5), uniform=True)
    assert result.plan.sizes[FIRST] == result.plan.sizes[SECOND] < 12
    assert result.proof.status == "proved"


# ---------------------------------------------------------------------- isomorphic


def test_like_axes_are_ranked_together() -> None:
    """Half of each family goes: of the blocks the six lowest of twelve, wherever they are; of the stem four."""
    graph = traced(Blocks(6, 6))
    scores = scores_of(graph, b0=[1, 2, 3, 4, 5, 11], b1=[6, 7, 8, 9, 10, 12])
    plan = sc.plan(graph, scores, keep=0.5, scope="isomorphic")
    assert (plan.axes[FIRST].kept, plan.axes[SECOND].kept) == ((5,), (1, 2, 3, 4, 5))
    assert plan.sizes["stem.weight:0"] == 4
    assert sc.plan(graph, scores, keep=0.5).sizes[FIRST] == 3


def test_a_threshold_of_the_family() -> None:
    graph = traced(Blocks(6, 6))
    scores = scores_of(graph, b0=[1, 1, 1, 1, 1, 1], b1=[3, 3, 3, 3, 3, 3])
    assert sc.plan(graph, scores, threshold=0.75).axes == {}
    assert sc.plan(graph, scores, threshold=0.75, scope="isomorphic").sizes == {FIRST: 1}


def test_a_budget_takes_like_units_by_their_score_alone() -> None:
    """A block of low scores goes before one of high scores; each by itself they would lose the same."""
    graph = traced(Blocks(60, 60))
    scores = scores_of(graph, b0=[1 + k / 60 for k in range(60)], b1=[5 + k / 60 for k in range(60)])
    plan = sc.plan(graph, scores, budget=sc.Budget(params=0.8), scope="isomorphic")
    assert plan.sizes[FIRST] < 40
    assert SECOND not in plan.sizes
    alike = sc.plan(graph, scores, budget=sc.Budget(params=0.8), scope="local")
    assert abs(alike.sizes[FIRST] - alike.sizes[SECOND]) <= 1


def test_axes_of_other_kinds_or_sizes_are_other_families() -> None:
    graph = traced(Blocks(6, 6, 12))
    alike = {name: families.likeness(info) for name, info in graph.axes.items()}
    assert alike[FIRST] == alike[SECOND]
    assert len(set(alike.values())) == 3


# ---------------------------------------------------------------------- multiple_of


@pytest.mark.parametrize(
    ("multiple_of", "wanted"),
    [
        (4, (4, 8, 4)),
        ({"blocks.0": 4}, (4, 8, 4)),
        ({"blocks.1.fc1.weight:0": 5}, (3, 6, 5)),
        ({"hidden": 5, "blocks.0": 4}, (4, 8, 5)),
        ({"blocks.0": 4, "hidden": 5}, (4, 10, 5)),
        ({"blocks.0": 4, "residual": 1}, (3, 8, 4)),
        ({"*.fc1.weight:0": 7}, (3, 7, 7)),
        ({}, (3, 6, 4)),
    ],
)
def test_multiples_for_each_pattern_the_last_that_names_an_axis(
    multiple_of: int | dict[str, int], wanted: tuple[int, ...]
) -> None:
    """Of a stem of 8, which runs through the blocks, and blocks of 15 and 10: 3, 6 and 4 without any."""
    model = Blocks(15, 10)
    graph = traced(model)
    scores = sc.score(model, graph)
    plan = sc.plan(graph, scores, keep=0.4, multiple_of=multiple_of)
    assert tuple(plan.sizes.get(n, graph.axes[n].size) for n in ("stem.weight:0", FIRST, SECOND)) == wanted


@pytest.mark.parametrize(
    ("multiple_of", "message"),
    [
        ({"hidden": 0}, r"multiple_of=\{'hidden': 0\}: both must be whole numbers from 1"),
        ({"hidden": 2.0}, "both must be whole numbers from 1"),
        ({"blokcs": 4}, "'blokcs' name no axis, kind, module or tensor of Blocks."),
    ],
)
def test_multiples_that_make_no_sense(multiple_of: dict[str, int], message: str) -> None:
    model = Blocks(6)
    graph = traced(model)
    with pytest.raises(PlanError, match=message if "\\" in message else re.escape(message)):
        sc.plan(graph, sc.score(model, graph), keep=0.5, multiple_of=multiple_of)


# ---------------------------------------------------------------------- only, ignore


def test_kinds_of_a_transformer() -> None:
    model = llama()
    args = {"input_ids": torch.randint(0, 20, (2, 5))}
    graph = sc.trace(model, args)
    scores = sc.score(model, graph)
    for kind in ("kv_groups", "hidden", "residual"):
        plan = sc.plan(graph, scores, keep=0.5, only=[kind])
        assert {axis.kind for axis in plan.axes.values()} == {kind}
        rest = sc.plan(graph, scores, keep=0.5, ignore=[kind])
        assert kind not in {axis.kind for axis in rest.axes.values()}
        assert rest.axes
