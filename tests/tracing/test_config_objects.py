"""Sizes on config objects that hang on modules: every kind of object, found, set, and never the user's own."""

import argparse
import copy
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur import objects
from secateur.modules import Walk
from secateur.origins import Attribute


@dataclass
class Plain:
    hidden: int = 12
    dims: tuple[int, int] = (6, 4)


@dataclass(frozen=True)
class Frozen:
    hidden: int = 12
    dims: tuple[int, int] = (6, 4)


@dataclass(frozen=True, slots=True)
class Slots:
    hidden: int = 12
    dims: tuple[int, int] = (6, 4)


class Guarded:
    """Takes nothing but plain ints, and nothing at all once it is made."""

    def __init__(self) -> None:
        vars(self).update(hidden=12, dims=[6, 4])

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name} can't be set")


class Keyed(dict[str, Any]):
    """A dict whose keys can be read as attributes."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]


@dataclass(frozen=True)
class Outer:
    inner: Any = field(default_factory=Frozen)
    layers: tuple[Any, ...] = (Plain(hidden=99), Plain())
    same: int = 12


class Net(nn.Module):
    """Views to sizes that it reads from a config when it runs."""

    def __init__(self, config: Any, find: Any = lambda config: config) -> None:
        super().__init__()
        self.config, self.find = config, find
        self.a, self.b, self.c = nn.Linear(4, 12), nn.Linear(12, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        config = self.find(self.config)
        read = config.__getitem__ if isinstance(config, dict) else lambda name: getattr(config, name)
        x = self.a(x).relu().view(-1, read("hidden"))
        x = self.b(x).view(-1, read("dims")[0], read("dims")[1]).relu().flatten(1)
        return self.c(x)


CONFIGS = [
    (Plain(), lambda c: c),
    (Frozen(), lambda c: c),
    (Slots(), lambda c: c),
    (Guarded(), lambda c: c),
    (SimpleNamespace(hidden=12, dims=[6, 4]), lambda c: c),
    (argparse.Namespace(hidden=12, dims=(6, 4)), lambda c: c),
    (Keyed(hidden=12, dims=(6, 4)), lambda c: c),
    ({"hidden": 12, "dims": (6, 4)}, lambda c: c),
    (Outer(), lambda c: c.inner),
    (Outer(), lambda c: c.layers[1]),
    ({"model": {"hidden": 12, "dims": [6, 4]}}, lambda c: c["model"]),
]


def said(config: Any) -> tuple[int, list[int]]:
    values = objects.items(config)
    return values["hidden"], list(values["dims"])


@pytest.mark.parametrize(("config", "find"), CONFIGS, ids=range(len(CONFIGS)))
def test_sizes_on_any_config_follow(config: Any, find: Any) -> None:
    config = copy.deepcopy(config)
    model = Net(config, find)
    result = sc.prune(model, torch.randn(2, 4), keep=0.5)
    assert result.rewritten is None
    assert said(find(result.model.config)) == (6, [3, 2])
    assert said(find(config)) == (12, [6, 4])
    assert model.config is config
    assert all(type(v) is int for v in (said(find(config))[0], *said(find(config))[1]))
    assert result.model(torch.randn(5, 4)).shape == (5, 3)


@pytest.mark.parametrize(("config", "find"), CONFIGS, ids=range(len(CONFIGS)))
def test_a_plan_with_sizes_on_configs_is_stored_and_replayed(config: Any, find: Any) -> None:
    model = Net(copy.deepcopy(config), find)
    graph = sc.trace(model, torch.randn(2, 4))
    plan = sc.Plan.from_dict(sc.plan(graph, sc.score(model, graph), keep=0.5).to_dict())
    assert any(
        isinstance(site, Attribute) and site.name.startswith("config.") for site, _ in plan.settings
    ) or isinstance(config, dict)
    assert said(find(plan.apply(model).config)) == (6, [3, 2])


def test_pruning_in_place_leaves_other_models_their_config() -> None:
    config = Outer()
    model, other = Net(config, lambda c: c.inner), Net(config, lambda c: c.inner)
    model.part = nn.Identity()
    model.part.own = config.inner  # type: ignore[assignment]
    graph = sc.trace(model, torch.randn(2, 4))
    sc.plan(graph, sc.score(model, graph), keep=0.5).apply_(model)
    assert (model.config.inner.hidden, other.config.inner.hidden, config.inner.hidden) == (6, 12, 12)
    assert model.part.own is model.config.inner
    assert model(torch.randn(3, 4)).shape == other(torch.randn(3, 4)).shape


class Half(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.a, self.b = nn.Linear(4, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu().view(-1, self.config.hidden))


def test_one_size_on_a_shared_config_ties_what_it_serves() -> None:
    config = Frozen()
    model = nn.Sequential(Half(config), Half(config))
    graph = sc.trace(model, torch.randn(2, 4))
    assert graph.ties == (("0.a.weight:0", "1.a.weight:0"),)
    small = sc.prune(model, torch.randn(2, 4), keep=0.5).model
    assert small[0].config is small[1].config  # type: ignore[index]
    assert small[0].config.hidden == 6  # type: ignore[index,union-attr]


def test_configs_of_their_own_are_set_each() -> None:
    model = nn.Sequential(Half(Frozen()), Half(Frozen()))
    graph = sc.trace(model, torch.randn(2, 4))
    assert graph.ties == ()
    plan = sc.plan(graph, sc.score(model, graph), keep=0.5, only=["1"])
    small = plan.apply(model)
    assert (small[0].config.hidden, small[1].config.hidden) == (12, 6)  # type: ignore[index]


class Single:
    """Refuses to be copied: there is one of it."""

    hidden = 12

    def __init__(self) -> None:
        self.hidden = 12

    def __deepcopy__(self, memo: dict[int, Any]) -> "Single":
        return self


def test_a_config_that_can_not_be_copied_is_never_touched() -> None:
    config = Single()
    model = Half(config)
    result = sc.prune(model, torch.randn(2, 4), keep=0.5)
    assert vars(config) == {"hidden": 12}
    assert type(config.hidden) is int
    assert "view(12)" in str(result.rewritten)  # the class is replaced instead, as for a literal


def test_configs_that_lead_in_circles_and_other_objects_do_no_harm() -> None:
    config = SimpleNamespace(hidden=12, names=["a"], table={1: 2}, none=None, path=[{"deep": {"er": [1, 2]}}])
    config.itself = config
    config.model = model = Half(config)
    found = [path for _, path, _ in objects.on_modules(Walk(model))]
    assert len(found) == len(set(found))
    assert found[0] == "config"
    assert sc.prune(model, torch.randn(2, 4), keep=0.5).model.config.hidden == 6  # type: ignore[union-attr]
    assert type(config.hidden) is int


def test_a_plan_refuses_a_config_of_other_sizes() -> None:
    from secateur.errors import SurgeryError

    model = Half(Frozen())
    graph = sc.trace(model, torch.randn(2, 4))
    plan = sc.plan(graph, sc.score(model, graph), keep=0.5)
    other = Half(Frozen(hidden=8))
    with pytest.raises(SurgeryError, match=r"config\.hidden is 8, planned for 12"):
        plan.apply(other)
