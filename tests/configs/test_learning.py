"""Which values of a config set which axes: found by building, and never believed without a try."""

import copy
import logging
import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.configs import Blueprint, learn
from secateur.errors import PlanError
from secateur.planning import families

WIDTH, HIDDEN = "embed.weight:0", "blocks.0.up.weight:0"


@dataclass
class Config:
    """Of `Net`. ``tables`` are what it computes from its sizes: nothing, a table of positions, or a factor."""

    width: int = 16
    inner: int | None = None
    depth: int = 2
    classes: int = 3
    label: int = 7
    tables: str = ""
    strict: bool = False

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        if self.strict and self.width % 4:
            raise ValueError(f"width {self.width} is no multiple of 4")

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        return cls(**values)


class Block(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        inner = config.inner or 2 * config.width
        self.up, self.down = nn.Linear(config.width, inner), nn.Linear(inner, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).relu())


class Net(nn.Module):
    """An embedding, residual blocks and a head, all of it from a config."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(4, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head = nn.Linear(config.width, config.classes)
        self.factor = config.width**0.5 if config.tables == "factor" else 1.0
        table = torch.arange(config.width) / config.width if config.tables == "table" else torch.ones(1)
        self.register_buffer("table", table, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) * self.factor + self.table
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def learned(model: nn.Module) -> tuple[sc.Graph, Any]:
    graph = families.uniform(sc.trace(model, torch.randn(2, 4)))
    return graph, learn(model, graph, (torch.randn(2, 4),), {})


def words(wording: Any) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Names of config values that are scaled together, and the axes that follow."""
    return {tuple(str(site) for site in word.values): word.axes for word in wording.words}


def rebuilt(model: Any) -> nn.Module:
    """What a checkpoint gives: built from the config alone, with the stored weights."""
    made = type(model)(Config.from_dict(model.config.to_dict()))
    made.load_state_dict(model.state_dict())
    return made.eval()


# ---------------------------------------------------------------------- blueprints


def test_a_blueprint_builds_without_memory_and_changes_nothing() -> None:
    model = Net(Config())
    before, state = dict(vars(model.config)), torch.random.get_rng_state()
    blueprint = Blueprint.of(model)
    assert blueprint is not None
    built = blueprint.build({next(s for s in blueprint.sites() if s.name == "config.width"): 8})
    assert built.embed.weight.shape == (8, 4)  # type: ignore[union-attr]
    assert built.embed.weight.is_meta  # type: ignore[union-attr]
    assert vars(model.config) == before
    assert torch.equal(torch.random.get_rng_state(), state)


class Renamed(Net):
    """Takes more than a config."""

    def __init__(self, config: Config, more: int) -> None:
        super().__init__(config)
        self.more = more


class Unread(Config):
    """Stores itself in a form of its own."""

    def to_dict(self) -> dict[str, Any]:
        return {"version": 1, "values": dict(vars(self))}


def test_a_config_with_other_ideas_of_storing_is_taken_as_it_is() -> None:
    blueprint = Blueprint.of(Net(Unread(inner=24)))
    assert blueprint is not None
    assert not blueprint.stored
    assert set(words(learned(Net(Unread(inner=24)))[1])) == {("config.width",), ("config.inner",)}


class Viewing(Net):
    """Fixes the width of its stream in the code."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.view(-1, 4)) + self.head(self.embed(x).view(-1, 16).relu())


def test_axes_that_would_replace_the_class_stay_whole() -> None:
    result = sc.prune(Viewing(Config(inner=24)), torch.randn(2, 4), keep=0.5, uniform=True)
    assert result.plan.sizes.keys() == {HIDDEN, "blocks.1.up.weight:0"}
    assert "a plain checkpoint keeps the class, and view(16) at" in result.graph.frozen[WIDTH].frozen[0]


def test_no_blueprint_where_a_config_does_not_build_the_model() -> None:
    assert Blueprint.of(Renamed(Config(), 1)) is None
    assert Blueprint.of(nn.Linear(2, 2)) is None
    wider = Net(Config())
    wider.head = nn.Linear(16, 5)  # changed since
    assert Blueprint.of(wider) is None


def test_without_a_blueprint_widths_are_equal_and_the_config_stays() -> None:
    model = Renamed(Config(inner=12), 1)
    result = sc.prune(model, torch.randn(2, 4), keep=0.5, uniform=True)
    assert {row["after"] for row in result.axes if "up" in row["name"]} == {6}
    assert vars(result.model.config) == vars(model.config)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- what the config says


def test_values_are_found_by_what_they_build_not_by_their_names() -> None:
    graph, wording = learned(Net(Config(inner=24)))
    assert words(wording) == {
        ("config.width",): (WIDTH,),
        ("config.inner",): (HIDDEN, "blocks.1.up.weight:0"),
    }
    assert all(word.needs == {} for word in wording.words)
    assert wording.restrict(graph).axes.keys() == graph.axes.keys()


def test_a_size_that_the_config_leaves_open_is_written_down() -> None:
    """Else the width of the blocks would follow that of the stream."""
    model = Net(Config())
    result = sc.prune(model, torch.randn(2, 4), keep=0.5, uniform=True, only=[WIDTH])
    assert (result.model.config.width, result.model.config.inner) == (8, 32)  # type: ignore[union-attr]
    assert model.config.inner is None
    x = torch.randn(3, 4)
    assert torch.equal(result.model.eval()(x), rebuilt(result.model)(x))


def test_a_config_of_the_same_int_twice() -> None:
    """Width, hidden size and a label of 16: each value is told by what it builds."""
    _, wording = learned(Net(Config(width=16, inner=16, label=16)))
    assert set(words(wording)) == {("config.width",), ("config.inner",)}


@pytest.mark.parametrize(
    ("tables", "reason"),
    [
        ("factor", "a model built from its config computes something else: it sets factor to 2.828, not 4"),
        ("table", "a model built from its config computes something else: it computes table anew"),
    ],
)
def test_what_feeds_a_table_or_factor_stays_whole(tables: str, reason: str) -> None:
    model = Net(Config(tables=tables, inner=24))
    result = sc.prune(model, torch.randn(2, 4), keep=0.5, uniform=True)
    assert result.plan.sizes == {HIDDEN: 12, "blocks.1.up.weight:0": 12}
    assert result.graph.frozen[WIDTH].frozen == (f"uniform: the config says it as width, but {reason}",)
    assert WIDTH in sc.prune(model, torch.randn(2, 4), keep=0.5).plan.sizes


def test_the_pruned_model_is_what_its_config_says() -> None:
    model = Net(Config(inner=24))
    result = sc.prune(model, torch.randn(2, 4), budget=sc.Budget(params=0.5), uniform=True)
    config: Any = result.model.config
    assert (config.width, config.inner) == (result.plan.sizes[WIDTH], result.plan.sizes[HIDDEN])
    assert (config.depth, config.classes, config.label) == (2, 3, 7)
    x = torch.randn(3, 4)
    assert torch.equal(result.model.eval()(x), rebuilt(result.model)(x))
    replayed: Any = sc.Plan.from_dict(result.plan.to_dict()).apply(Net(Config(inner=24)))
    assert (replayed.config.width, replayed.config.inner) == (config.width, config.inner)


@pytest.mark.parametrize(("keep", "width"), [(0.75, 12), (0.6, 8), (0.7, 12), (0.1, 4)])
def test_widths_that_the_config_refuses_give_way_to_near_ones(keep: float, width: int) -> None:
    """Of a wanted 12, 10, 11 and 2: to the nearest multiple of 4, the narrower of two."""
    result = sc.prune(Net(Config(inner=24, strict=True)), torch.randn(2, 4), keep=keep, uniform=True)
    assert result.plan.sizes[WIDTH] == result.model.config.width == width  # type: ignore[union-attr]


def test_a_budget_holds_where_widths_give_way() -> None:
    model, args = Net(Config(inner=24, strict=True)), torch.randn(2, 4)
    result = sc.prune(model, args, budget=sc.Budget(params=0.5), uniform=True, only=[WIDTH])
    free = sc.prune(model, args, budget=sc.Budget(params=0.5), only=[WIDTH])
    assert result.plan.sizes[WIDTH] == 4 < free.plan.sizes[WIDTH] < 8
    with pytest.raises(PlanError, match=r"the config can't say these widths together: \{'embed\.weight:0': 5\}"):
        sc.prune(model, args, budget=sc.Budget(params=0.5), uniform=True, only=[WIDTH], multiple_of=5)


class Halves(nn.Module):
    """A value of the config that is half of the width it sets."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.fc1, self.fc2 = nn.Linear(4, 3 * config.width), nn.Linear(3 * config.width, config.classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x).relu())


class Windowed(Net):
    """Reads a window that short inputs never reach, and refuses some widths."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.window = config.label
        if config.width in (10, 15, 19):
            raise ValueError(f"{config.width} is no width")

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[-self.window :])


def test_a_value_that_no_example_notices_is_left_alone() -> None:
    """The widths that are tried first can't be built. With the window of 15, four fifths is: the window is needless."""
    model = Windowed(Config(width=20, inner=24, label=15))
    _, wording = learned(model)
    assert set(words(wording)) == {("config.width",), ("config.inner",)}
    result = sc.prune(model, torch.randn(2, 4), keep=0.6, uniform=True)
    assert (result.model.config.width, result.model.config.label) == (12, 15)  # type: ignore[union-attr]


def test_values_stay_whole_numbers() -> None:
    model = Halves(Config(width=8))
    result = sc.prune(model, torch.randn(2, 4), keep=0.45, uniform=True)  # 10.8 of 24
    assert result.plan.sizes == {"fc1.weight:0": 12}
    assert result.model.config.width == 4  # type: ignore[union-attr]


def test_learning_leaves_the_model_as_it_is() -> None:
    model = Net(Config(inner=24)).train()
    before = copy.deepcopy(model.state_dict())
    config = replace(model.config)
    level, seed = logging.root.manager.disable, torch.random.get_rng_state()
    graph = families.uniform(sc.trace(model, torch.zeros(2, 4)))
    learn(model, graph, (torch.zeros(2, 4),), {})
    assert torch.equal(torch.random.get_rng_state(), seed)
    assert logging.root.manager.disable == level
    assert model.training
    assert vars(model.config) == vars(config)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert math.isclose(model.factor, 1.0)
