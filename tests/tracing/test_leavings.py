"""Caches and globals of the user's code hold no tensors without values after a trace."""

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import secateur as sc

X = torch.randn(5, 4)
DICT: dict[int, Any] = {0: "not a tensor", 1: torch.zeros(2)}
NESTED: dict[int, Any] = {}
LIST: list[Any] = ["first"]
LAST: Any = None


@functools.lru_cache
def triangle(size: int) -> Tensor:
    return torch.tril(torch.ones(size, size))


def from_a_dict(h: Tensor) -> Tensor:
    if h.shape[0] not in DICT:
        DICT[h.shape[0]] = torch.tril(torch.ones(h.shape[0], h.shape[0]))
    return DICT[h.shape[0]] @ h


def from_a_nested_one(h: Tensor) -> Tensor:
    mask, _ = NESTED.setdefault(h.shape[0], (torch.tril(torch.ones(h.shape[0], h.shape[0])), "causal"))
    return mask @ h


def from_a_list(h: Tensor) -> Tensor:
    LIST.append(h.detach())
    return LIST[-1] * 1.0


def from_a_global(h: Tensor) -> Tensor:
    global LAST
    LAST = h.detach()
    return LAST * 1.0


def from_a_cached_helper(h: Tensor) -> Tensor:
    return triangle(h.shape[0]) @ h


class Net(nn.Module):
    on_the_class: ClassVar[Any] = None
    table: ClassVar[dict[str, Any]] = {}

    def __init__(self, helper: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)
        self.__dict__["helper"] = helper

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.__dict__["helper"](self.a(x).relu()))

    def to_the_class(self, h: Tensor) -> Tensor:
        Net.on_the_class = Net.table["last"] = h.detach()
        return Net.on_the_class * 1.0

    @staticmethod
    @functools.lru_cache
    def weights(size: int) -> Tensor:
        return torch.ones(size)


def from_the_class(h: Tensor) -> Tensor:
    return Net.to_the_class(Net(torch.relu), h)


def from_a_cached_method(h: Tensor) -> Tensor:
    return Net.weights(h.shape[0])[:, None] * h


HELPERS = [
    from_a_dict, from_a_nested_one, from_a_list, from_a_global, from_a_cached_helper, from_the_class,
    from_a_cached_method,
]  # fmt: skip


def everything() -> tuple[Any, ...]:
    return dict(DICT), dict(NESTED), list(LIST), LAST, Net.on_the_class, dict(Net.table)


@pytest.mark.parametrize("helper", HELPERS)
def test_a_trace_leaves_nothing(helper: Callable[[Tensor], Tensor]) -> None:
    before = everything()
    model = Net(helper)
    graph = sc.trace(model, X)
    assert "a.weight:0" in graph.axes
    after = everything()
    for old, new in zip(before, after, strict=True):
        assert old is new or old == new
    out = model(X)  # what is cached from here on is real, and right
    assert type(out) is Tensor
    assert torch.isfinite(out).all()
    assert torch.equal(triangle(5), torch.tril(torch.ones(5, 5)))
    assert torch.equal(Net.weights(5), torch.ones(5))


def test_what_was_there_before_stays() -> None:
    kept, known = DICT[1], triangle(2).clone()
    sc.trace(Net(from_a_cached_helper), torch.randn(2, 4))
    assert DICT[1] is kept
    assert DICT[0] == "not a tensor"
    assert torch.equal(triangle(2), known)


def test_a_trace_that_fails_leaves_nothing_either() -> None:
    def failing(h: Tensor) -> Tensor:
        from_a_dict(h)
        from_a_global(h)
        raise KeyError("part-way")

    before = everything()
    with pytest.raises(sc.SecateurError, match="part-way"):
        sc.trace(Net(failing), torch.randn(7, 4))
    assert everything() == before


def test_helpers_in_another_module_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's module imports a function, whose own module keeps the cache."""
    code = """
import torch
CACHE = {}
def lookup(h):
    return CACHE.setdefault(h.shape[0], torch.ones(h.shape[0], 1)) * h
"""
    for name in ("some_users_helpers", "others_in_their_place"):
        helper = ModuleType(name)
        exec(code, helper.__dict__)
        monkeypatch.setitem(sys.modules, name, helper)
        monkeypatch.setattr(sys.modules[__name__], "lookup", helper.__dict__["lookup"], raising=False)
        sc.trace(Net(helper.__dict__["lookup"]), X)
        assert helper.__dict__["CACHE"] == {}


@pytest.mark.parametrize("helper", HELPERS)
def test_pruning_after_all_this_is_proved(helper: Callable[[Tensor], Tensor]) -> None:
    result = sc.prune(Net(helper), X, keep=0.5)
    assert result.proof.status == "proved"
    assert result.model.a.out_features == 4  # type: ignore[union-attr]
