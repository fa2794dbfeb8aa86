"""What users hand a model: example inputs and batches of data, in all the shapes that they come in."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any, cast

from torch import Tensor, nn
from torch.utils._pytree import tree_map

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


def as_call(args: Any, kwargs: Mapping[str, Any] | None = None) -> tuple[Args, Kwargs]:
    """Example inputs as ``(positional, keyword)``.

    Args:
        args: a tensor, a tuple of positional inputs, or a mapping of keyword inputs. A list counts as
            one positional input (detection models take lists of images).
        kwargs: further keyword inputs.
    """
    named = {str(k): v for k, v in (kwargs or {}).items()}
    if args is None:
        return (), named
    if isinstance(args, tuple):
        return cast(Args, args), named
    if isinstance(args, Mapping):
        return (), {**{str(k): v for k, v in cast(Mapping[Any, Any], args).items()}, **named}
    return (args,), named


def split_batch(batch: Any) -> tuple[Args, Kwargs, Any]:
    """A batch of data as ``(positional, keyword, target)``.

    A tensor is the input. A mapping is keyword inputs, labels included. A pair is ``(inputs, target)``, whose
    inputs are again a tensor, a tuple or a mapping. ``target`` is None where the batch has none.
    """
    if isinstance(batch, tuple | list):
        items = cast("tuple[Any, ...] | list[Any]", batch)
        if len(items) == 1:
            return *as_call(items[0]), None
        if len(items) == 2:
            return *as_call(items[0]), items[1]
        raise TypeError(
            f"a batch is a tensor, a mapping, or a pair (inputs, target); got a sequence of {len(items)} items"
        )
    if isinstance(batch, Tensor | Mapping):
        return *as_call(batch), None
    raise TypeError(f"a batch is a tensor, a mapping, or a pair (inputs, target); got {type(batch).__name__}")


def known_length(batches: Iterable[Any]) -> int | None:
    """How many batches there are, as far as they say so: a DataLoader has a length only if its data set has one.

    >>> known_length([1, 2]), known_length(iter([1]))
    (2, None)
    """
    if not isinstance(batches, Sized):
        return None
    try:
        return len(batches)
    except (TypeError, NotImplementedError):
        return None


def fresh(inputs: Any) -> Any:
    """Inputs of their own for one run: a forward pass may write to the tensors, and to the caches, that it is given."""
    return tree_map(lambda v: v.detach().clone() if isinstance(v, Tensor) else _copied(v), inputs)


def lasting(inputs: Any) -> Any:
    """Inputs that gradients can go through: a tensor that was made under ``inference_mode`` is copied, others stay.

    To be called outside of that mode.
    """
    return tree_map(lambda v: v.clone() if isinstance(v, Tensor) and v.is_inference() else v, inputs)


def _copied(value: Any) -> Any:
    """A deep copy of an object that may hold tensors; itself where it can't be copied."""
    if not hasattr(value, "__dict__") or callable(value):
        return value
    memo: dict[int, Any] = {id(t): t.detach().clone() for t in _held(value, set())}  # activations can't be deep-copied
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # an object that refuses: forward gets it as it is, as it would from the user
        return value


def _held(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """The tensors in an object, its attributes and containers."""
    if isinstance(value, Tensor):
        yield value
    elif id(value) not in seen and not isinstance(value, type):
        seen.add(id(value))
        parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
        for part in [*parts, *getattr(value, "__dict__", {}).values()]:
            yield from _held(part, seen)


def run(model: nn.Module, args: Any, kwargs: Mapping[str, Any] | None = None) -> Any:
    """Call the model on example inputs."""
    positional, named = as_call(args, kwargs)
    return model(*positional, **named)
