"""What a pruned model remembers of its making, so that saving it needs nothing else."""

from typing import Any

from torch import fx, nn


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
