"""What an optimizer keeps for a parameter, re-indexed as the parameter was."""

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from secateur.carrying.moves import Move, Unmappable

POWERS = {
    "exp_avg": 1, "momentum_buffer": 1, "grad_avg": 1, "exp_inf": 1, "prev": 1,
    "exp_avg_sq": 2, "max_exp_avg_sq": 2, "square_avg": 2, "sum": 2, "variance": 2, "row_var": 2, "col_var": 2,
    "exp_avg_sq_row": 2, "exp_avg_sq_col": 2,
    "ax": -1, "step_size": -1, "acc_delta": -2,
}  # fmt: skip
"""How values of a name grow with the gradient: moments with its first or second power, averages of weights, as weights
do, with the power -1. A weight that is multiplied by f has gradients that are divided by f; one of m copies of a unit
has an m-th of the unit's gradient."""
REDUCED = {"exp_avg_sq_row": -1, "exp_avg_sq_col": -2}
"""Factored moments without the dim that they are means over; torch's own keep it as a dim of 1."""


def carried(state: Mapping[str, Any], move: Move) -> dict[str, Any]:
    """The state for the new parameter.

    Raises:
        Unmappable: it holds a tensor that nobody knows how to re-index.
    """
    return {name: _carried(name, value, move) for name, value in state.items()} if move.changed else dict(state)


def _carried(name: str, value: Any, move: Move) -> Any:
    if isinstance(value, Tensor):
        return _tensor(name, value, move)
    if isinstance(value, Mapping):
        return {key: _carried(name, item, move) for key, item in cast("Mapping[Any, Any]", value).items()}
    if type(value) in (list, tuple):
        return type(value)(_carried(name, item, move) for item in cast("list[Any]", value))
    return value


def _tensor(name: str, value: Tensor, move: Move) -> Tensor:
    shape = move.old.shape
    if value.dim() == 0 or (value.numel() == 1 and value.dim() != len(shape)):
        return value  # a step count
    gone = REDUCED.get(name)
    if gone is not None and value.dim() == len(shape) - 1 and len(shape) >= -gone:
        return _tensor(name, value.unsqueeze(gone), move).squeeze(gone)
    if value.dim() == len(shape) and all(size in (1, of) for size, of in zip(value.shape, shape, strict=True)):
        if move.factor is not None and value.is_floating_point() and name not in POWERS:
            raise Unmappable(f"{name!r} belongs to weights that are multiplied by a factor, and may have to change too")
        return move.take(value, POWERS.get(name, 0))
    raise Unmappable(f"{name!r} is {list(value.shape)}, the parameter {list(shape)}")
