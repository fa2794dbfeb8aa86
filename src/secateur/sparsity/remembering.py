"""Which weights of a model are sparse: the history says which were pruned, their zeros are the mask.

No mask is kept beside a model. The zeros go wherever the weights go: through surgery, copies, state dicts, files and
exports, and nothing can disagree with them. A weight that stays and happens to be exactly zero counts as removed.
"""

import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from secateur.errors import SparsityError
from secateur.modules import named_parameters
from secateur.provenance import history, note_step, remember
from secateur.sparsity.layers import Layer, find_layers, named
from secateur.sparsity.patterns import NM, Block, Pattern, Unstructured

KEY = "masked"
"""In a step of a model's history: patterns as text, by the names of the weights that are sparse after the step."""


def sparse_weights(model: nn.Module) -> dict[str, str]:
    """The pattern, as text, of each weight that was made sparse, by name; nothing for a model that never was.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU())
        >>> sparse_weights(net), sparse_weights(sc.sparsify(net, pattern=sc.NM(2, 4)).model)
        ({}, {'0.weight': 'NM(n=2, m=4)'})
    """
    told = next((done[KEY] for done in reversed(history(model)) if isinstance(done.get(KEY), Mapping)), {})
    have = named_parameters(model) if told else {}
    return {name: str(pattern) for name, pattern in told.items() if name in have}


def sparse_after(model: nn.Module, names: Iterable[str], pattern: Pattern) -> dict[str, str]:
    """What `sparse_weights` is to give once these weights have a pattern, for a step in the history."""
    return {**sparse_weights(model), **dict.fromkeys(names, repr(pattern))}


def note_sparse(model: nn.Module, names: Iterable[str], pattern: Pattern, **details: Any) -> None:
    """Note on a model that these weights were made sparse in training."""
    note_step(model, "sparsify", **{KEY: sparse_after(model, names, pattern)}, **details)


def rename_sparse(model: nn.Module, names: Mapping[str, str]) -> None:
    """Follow a change of names, old to new; weights that have no new name are gone."""
    past = list(history(model))
    at = next((k for k in reversed(range(len(past))) if isinstance(past[k].get(KEY), Mapping)), None)
    if at is not None:
        past[at] = {**past[at], KEY: {names[old]: text for old, text in past[at][KEY].items() if old in names}}
        remember(model, "history", tuple(past))


def zero_masks(model: nn.Module, only: Iterable[str] = (), ignore: Iterable[str] = ()) -> dict[str, Tensor]:
    """The masks of a sparse model: bool, True = stays, by name; of weights with zeros alone.

    Where the history says nothing, every linear or convolutional weight counts that has zeros and other numbers.

    Args:
        only, ignore: names of parameters or modules, or globs.

    Raises:
        SparsityError: a name that names nothing.
    """
    known = sparse_weights(model)
    have = named_parameters(model)
    if known:
        chosen = {n: have[n] for n in known if (not only or named([n], only)) and not named([n], ignore)}
    else:
        try:
            chosen = {name: layer.parameter for name, layer in find_layers(model, only, ignore).chosen.items()}
        except SparsityError:
            if only or ignore:
                raise
            chosen = {}
    masks = {name: weight.detach() != 0 for name, weight in chosen.items() if not weight.is_meta}
    return {n: m for n, m in masks.items() if not bool(m.all()) and (bool(known) or bool(m.any()))}


def sparsity_of(model: nn.Module) -> float | None:
    """Share of zeros in the weights that were made sparse, in [0, 1]; None where none was."""
    have = named_parameters(model)
    weights = [have[name].detach() for name in sparse_weights(model)]
    total = sum(weight.numel() for weight in weights)
    return sum(int((weight == 0).sum()) for weight in weights) / total if total else None


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
            stacklevel=3,
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
