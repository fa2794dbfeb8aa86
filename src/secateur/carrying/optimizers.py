"""An optimizer goes on with the parameters of the smaller model, in the same groups and with what it has learnt."""

import inspect
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from secateur.carrying.moves import Move, Unmappable
from secateur.carrying.states import carried

Groups = list[tuple[dict[str, Any], list[tuple[str | None, Tensor]]]]


def carry_(optimizer: torch.optim.Optimizer, found: Mapping[int, Move], created: Mapping[str, Tensor]) -> int:
    """Put the new parameters in the place of the old ones; the number of old ones that the optimizer held.

    Nothing changes before everything is known.

    Args:
        optimizer: any that keeps its state by parameter; the object, its groups and its hooks stay.
        found: what became of each parameter of the dense model, by the id of the old one. Others stay as they are.
        created: parameters that the smaller model has on top, by name: they join the group of their layer's weight.
    """
    held = [found[id(p)] for group in optimizer.param_groups for p in group["params"] if id(p) in found]
    if isinstance(optimizer, torch.optim.LBFGS) and any(move.changed or move.new is None for move in held):
        _warn("the state of LBFGS is of all parameters at once", ["all parameters"])
        optimizer.state.clear()
        optimizer._numel_cache = None
    groups = [(group, list(_members(group, found, created))) for group in optimizer.param_groups]
    states, anew = _states(optimizer, held)
    anew |= {id(tensor) for tensor in created.values()}
    for group, tensor in [(group, t) for group, members in groups for _, t in members if id(t) in anew]:
        if first := _first_state(optimizer, group, tensor):
            states[tensor] = first
    for move in held:
        optimizer.state.pop(move.old, None)
    optimizer.state.update(states)
    for group, members in groups:
        group["params"][:] = [tensor for _, tensor in members]
        if "param_names" in group:
            group["param_names"][:] = [name for name, _ in members]
    for move in held:
        _carry_gradient(move)
    return len(held)


def _members(
    group: Mapping[str, Any], found: Mapping[int, Move], created: Mapping[str, Tensor]
) -> Iterator[tuple[str | None, Tensor]]:
    """Name and parameter of each member that the group will have."""
    names: Iterable[Any] = group.get("param_names") or [None] * len(group["params"])
    for given, tensor in zip(names, group["params"], strict=True):
        move = found.get(id(tensor))
        if move is None:
            yield given, tensor
            continue
        if move.new is not None:
            yield given, move.new
        owner, _, role = move.name.rpartition(".")
        for name in created if role == "weight" else ():
            if name.rpartition(".")[0] == owner:
                yield given and given.removesuffix(role) + name.rpartition(".")[2], created[name]


def _states(optimizer: torch.optim.Optimizer, held: Iterable[Move]) -> tuple[dict[Tensor, Any], set[int]]:
    """The state of each new parameter that has one, and the ids of those that lost theirs."""
    states: dict[Tensor, Any] = {}
    dropped: dict[str, Unmappable] = {}
    anew: set[int] = set()
    for move in held:
        if move.new is None or move.old not in optimizer.state:
            continue
        try:
            states[move.new] = carried(optimizer.state[move.old], move)
        except Unmappable as error:
            dropped[move.name] = error
            anew.add(id(move.new))
    if dropped:
        _warn("; ".join(dict.fromkeys(map(str, dropped.values()))), list(dropped))
    return states, anew


def _first_state(optimizer: Any, group: Mapping[str, Any], parameter: Tensor) -> dict[str, Any]:
    """The state that an optimizer makes when it is built (Adagrad's sums); empty where it is made at the first step."""
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps
    accepted = inspect.signature(type(inner)).parameters
    settings = {name: value for name, value in {**inner.defaults, **group}.items() if name in accepted}
    try:
        made: Any = type(inner)([parameter], **{n: v for n, v in settings.items() if n != "params"})
    except Exception:  # a constructor that wants more: its state begins with the first step, as most do
        return {}
    return dict(made.state.get(parameter, {}))


def _carry_gradient(move: Move) -> None:
    """A gradient that no step has used yet."""
    old, new = move.old.grad, move.new
    if old is not None and new is not None and new is not move.old and new.grad is None and old.layout == torch.strided:
        new.grad = move.take(old, 1) if move.changed else old


def _warn(why: str, names: list[str]) -> None:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    warnings.warn(
        f"the optimizer starts anew for {', '.join(names[:3])}{more}: no way is known to re-index its state ({why}).",
        UserWarning,
        stacklevel=2,
    )
