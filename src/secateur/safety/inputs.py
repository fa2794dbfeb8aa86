"""The part of a batch that an attacker changes.

Shape letters: N samples.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

from torch import Tensor
from torch.utils._pytree import MappingKey, SequenceKey, TreeSpec, tree_flatten_with_path, tree_unflatten

from secateur.errors import DataError
from secateur.safety.threat import Threat

ROUNDING = 1e-3  # share of the bounds' width by which pixels may lie outside
AUGMENTED = 0.05  # the same where data augmentation made them


def opened(batch: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """The inputs of a batch, (N, ...), and what puts others in their place.

    The inputs are the first tensor of floating-point numbers that is no target: the last item of a pair, and "labels"
    of a mapping, are targets.

    Raises:
        DataError: there is no such tensor, as in batches of tokens.

    Example:
        >>> import torch
        >>> inputs, put = opened((torch.zeros(2, 3), torch.tensor([0, 1])))
        >>> put(inputs + 1)
        (tensor([[1., 1., 1.],
                [1., 1., 1.]]), tensor([0, 1]))
    """
    batch = _plain(batch)
    several = isinstance(batch, tuple) and len(cast("tuple[Any, ...]", batch)) > 1
    last = len(cast("tuple[Any, ...]", batch)) - 1 if several else -1
    found, form = tree_flatten_with_path(batch)
    leaves: list[Any] = [leaf for _, leaf in found]
    for at, (path, leaf) in enumerate(found):
        target = (several and isinstance(path[0], SequenceKey) and path[0].idx == last) or any(
            isinstance(key, MappingKey) and key.key == "labels" for key in path
        )
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() > 1 and not target:
            return leaf, partial(_put, leaves, at, form)
    raise DataError(
        f"a batch that is a {type(batch).__name__} has no inputs to attack: attacks change one tensor of "
        f"floating-point numbers, samples first, such as images; tokens can't be changed a little"
    )


def _put(leaves: list[Any], at: int, form: TreeSpec, other: Tensor) -> Any:
    return tree_unflatten([*leaves[:at], other, *leaves[at + 1 :]], form)


def _plain(batch: Any) -> Any:
    """Mappings as dicts and sequences as tuples, which keep their form when one tensor is replaced."""
    if isinstance(batch, tuple | list):
        return tuple(_plain(item) if isinstance(item, Mapping) else item for item in cast("tuple[Any, ...]", batch))
    return dict(cast("Mapping[str, Any]", batch)) if isinstance(batch, Mapping) else batch


def check_bounds(threat: Threat, pixels: Tensor, slack: float = ROUNDING) -> None:
    """Refuse pixels that lie outside the bounds: an attack would clip them, and spoil inputs that nobody attacked.

    Args:
        threat: its bounds, and how inputs were scaled.
        pixels: once scaling is undone, of any shape.
        slack: share of the bounds' width by which they may lie outside.

    Raises:
        DataError: saying what normalise= or bounds= should be.
    """
    (low, high), room = threat.bounds, slack * (threat.bounds[1] - threat.bounds[0])
    least, most = (float(value) for value in pixels.aminmax())
    if low - room <= least and most <= high + room:
        return
    if threat.normalise is None:
        cure = f"if they were scaled, give normalise=(mean, std), else bounds=({least:.4g}, {most:.4g}) or wider"
        raise DataError(f"inputs lie between {least:.3g} and {most:.3g}, out of bounds={threat.bounds}: {cure}")
    raise DataError(
        f"inputs, once normalise={threat.normalise} is undone as input * std + mean, lie between {least:.3g} and "
        f"{most:.3g}, out of bounds={threat.bounds}: give the mean and deviation that they were really scaled with, in "
        "the unit of the bounds"
    )
