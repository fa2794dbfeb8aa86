"""What a pruned model remembers of its making, so that saving it needs nothing else.

Under "plans" stand the changes of its architecture, under "inputs" example inputs, and under "history" what was done to
it, oldest first: each step a mapping ``{"step": "prune" | "tune" | ..., "figures": {...} or None, ...}`` of plain data.
Under "scores" stand the importances of the dense model's units (`secateur.importance.keeping.KeptScores`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx, nn

KEYS = ("plans", "inputs", "history")


def remember(model: nn.Module, key: str, value: Any) -> None:
    """Note something on a model, so that copies of it keep it (a graph module copies its ``meta`` only)."""
    if isinstance(model, fx.GraphModule):
        model.meta[f"secateur_{key}"] = value
    else:
        model.__dict__[f"secateur_{key}"] = value


def recall(model: nn.Module, key: str) -> Any:
    """What `remember` noted, or None."""
    notes = model.meta if isinstance(model, fx.GraphModule) else model.__dict__
    return notes.get(f"secateur_{key}")


def history(model: nn.Module) -> tuple[dict[str, Any], ...]:
    """What was done to a model, oldest first."""
    return tuple(recall(model, "history") or ())


def note_step(model: nn.Module, step: str, *, figures: Mapping[str, Any] | None = None, **details: Any) -> None:
    """Add a step to a model's history.

    Args:
        model: what the step gave.
        step: a word for what was done: "prune", "tune", "grow" ...
        figures: of the model after it, in the form of a column of report.json; None where nothing was measured.
        details: more, as plain JSON data: importance, seed, data (in words), parent (hash of the weights before).
            Those that are None are left out.

    Example:
        >>> net = nn.Linear(1, 1)
        >>> note_step(net, "prune", seed=0)
        >>> note_step(net, "tune", figures={"params": 2}, data="digits")
        >>> [(done["step"], done["figures"]) for done in history(net)]
        [('prune', None), ('tune', {'params': 2})]
    """
    known = {name: value for name, value in details.items() if value is not None}
    done = {"step": step, "figures": None if figures is None else dict(figures), **known}
    remember(model, "history", (*history(model), done))


def complete_step(model: nn.Module, *, figures: Mapping[str, Any] | None, **details: Any) -> None:
    """Say more of a model's last step: figures that were measured since, and details, in place of those before.

    Example:
        >>> net = nn.Linear(1, 1)
        >>> note_step(net, "prune", seed=0)
        >>> complete_step(net, figures={"params": 2}, data="digits")
        >>> history(net)
        ({'step': 'prune', 'figures': {'params': 2}, 'seed': 0, 'data': 'digits'},)
    """
    if past := history(model):
        known = {name: value for name, value in details.items() if value is not None}
        measured = {} if figures is None else {"figures": dict(figures)}
        remember(model, "history", (*past[:-1], {**past[-1], **measured, **known}))


def pruned_from(past: Sequence[Mapping[str, Any]]) -> str | None:
    """The hash of the weights that units were taken from, or else of those before the first step; None if unknown.

    Single weights that went before the units did are no matter of these.

    >>> pruned_from([{"step": "sparsify", "parent": "a1"}, {"step": "prune", "parent": "b2"}])
    'b2'
    """
    known = [(done["step"], done["parent"]) for done in past if isinstance(done.get("parent"), str)]
    if known and known[0][0] == "sparsify":
        known = [(step, parent) for step, parent in known if step not in ("sparsify", "tune")] or known
    return known[0][1] if known else None


def inherit(model: nn.Module, parent: nn.Module) -> None:
    """Give a model the history of the one that it was made of."""
    if past := history(parent):
        remember(model, "history", past)
