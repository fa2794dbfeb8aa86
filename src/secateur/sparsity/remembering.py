"""The zeros of a sparse model: as masks, and whether they have the pattern in which they were made."""

import re
import warnings
from collections.abc import Iterable

from torch import Tensor, nn

from secateur.errors import SparsityError
from secateur.sparsity.layers import Layer, asked_for, find_layers, listed
from secateur.sparsity.patterns import NM, Block, Pattern, Unstructured
from secateur.zeros import sparse_weights, zeros_kept


def zero_masks(model: nn.Module, only: Iterable[str] = (), ignore: Iterable[str] = ()) -> dict[str, Tensor]:
    """The masks of a sparse model: bool, True = stays, by name; of weights with zeros alone.

    Where the history says nothing, every linear or convolutional weight counts that has zeros and other numbers.

    Args:
        only, ignore: names of parameters or modules, or globs.

    Raises:
        SparsityError: a name that names nothing.
    """
    only, ignore = listed(only), listed(ignore)
    if sparse_weights(model):
        asked = asked_for(model, only, ignore)
        return {name: mask for name, mask in zeros_kept(model).items() if name in asked}
    try:
        found = find_layers(model, only, ignore).chosen
    except SparsityError:
        if only or ignore:
            raise
        return {}
    masks = {name: layer.parameter.detach() != 0 for name, layer in found.items() if not layer.parameter.is_meta}
    return {name: mask for name, mask in masks.items() if not bool(mask.all()) and bool(mask.any())}


def broken_patterns(model: nn.Module) -> dict[str, str]:
    """Weights that have lost the pattern in which they were pruned, with that pattern, by name.

    Pruning units after weights takes inputs out of groups of m and out of blocks, so that what is left of two groups
    makes a new one with other zeros: rounding widths to a multiple of m keeps the shape that a kernel needs, not the
    pattern. The zeros stay in either case.
    """
    known = {name: made for name, text in sparse_weights(model).items() if (made := pattern_of(text)) is not None}
    if not any(made != Unstructured() for made in known.values()):
        return {}
    layers = find_layers(model, only=list(known)).chosen
    return {name: repr(made) for name, made in known.items() if name in layers and not has_pattern(layers[name], made)}


def tell_broken(before: nn.Module, after: nn.Module) -> None:
    """Warn of weights that had their pattern before a change of the model and have lost it."""
    lost = {name: text for name, text in broken_patterns(after).items() if name not in broken_patterns(before)}
    if lost:
        some = ", ".join(f"{name} ({text})" for name, text in list(lost.items())[:3])
        warnings.warn(
            f"{len(lost)} weights lost the pattern of their zeros, which stay: {some}. Inputs went out of groups and "
            "blocks; sparsify again, or sparsify after the units have gone",
            stacklevel=4,
        )


def has_pattern(layer: Layer, pattern: Pattern) -> bool:
    """Whether the zeros of a weight are those of a pattern."""
    if not pattern.fits(layer.pattern_shape):
        return False
    stays = layer.matrix != 0
    if isinstance(pattern, NM):
        return int(stays.unflatten(1, (-1, pattern.m)).sum(-1).max()) <= pattern.n
    if isinstance(pattern, Block):
        cells = stays.unflatten(1, (-1, pattern.cols)).unflatten(0, (-1, pattern.rows)).double().mean((1, 3))
        return bool(((cells == 0) | (cells == 1)).all())
    return True


def pattern_of(text: str) -> Pattern | None:
    """The pattern that a text, its ``repr``, is of; None for one that is not ours.

    >>> pattern_of("NM(n=2, m=4)"), pattern_of("Mine()")
    (NM(n=2, m=4), None)
    """
    match = re.fullmatch(r"(NM|Block|Unstructured)\((?:(?:n|rows)=(\d{1,6}), (?:m|cols)=(\d{1,6}))?\)", text)
    if match is None or (match[1] == "Unstructured") != (match[2] is None):
        return None
    return Unstructured() if match[2] is None else {"NM": NM, "Block": Block}[match[1]](int(match[2]), int(match[3]))
