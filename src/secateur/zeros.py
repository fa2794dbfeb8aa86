"""Which weights of a model are sparse: its history says which were pruned, their zeros are the mask.

No mask is kept beside a model. The zeros go wherever the weights go: through surgery, copies, state dicts, files and
exports, and nothing can disagree with them. A weight that stays and happens to be exactly zero counts as removed.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from secateur.modules import named_parameters
from secateur.provenance import history, note_step, remember

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


def sparse_after(model: nn.Module, names: Iterable[str], pattern: object) -> dict[str, str]:
    """What `sparse_weights` is to give once these weights have a pattern, for a step in the history."""
    text = pattern if isinstance(pattern, str) else repr(pattern)
    return {**sparse_weights(model), **dict.fromkeys(names, text)}


def note_sparse(model: nn.Module, names: Iterable[str], pattern: object, **details: Any) -> None:
    """Note on a model that these weights were made sparse in training."""
    note_step(model, "sparsify", **{KEY: sparse_after(model, names, pattern)}, **details)


def rename_sparse(model: nn.Module, names: Mapping[str, str]) -> None:
    """Follow a change of names, old to new; weights that have no new name are gone."""
    past = list(history(model))
    at = next((k for k in reversed(range(len(past))) if isinstance(past[k].get(KEY), Mapping)), None)
    if at is not None:
        past[at] = {**past[at], KEY: {names[old]: text for old, text in past[at][KEY].items() if old in names}}
        remember(model, "history", tuple(past))


def zeros_kept(model: nn.Module) -> dict[str, Tensor]:
    """The masks of weights that were made sparse: bool, True = stays, by name; of those with zeros alone."""
    have = named_parameters(model)
    masks = {name: have[name].detach() != 0 for name in sparse_weights(model) if not have[name].is_meta}
    return {name: mask for name, mask in masks.items() if not bool(mask.all())}


def sparsity_of(model: nn.Module) -> float | None:
    """Share of zeros in the weights that were made sparse, in [0, 1]; None where none was."""
    have = named_parameters(model)
    weights = [have[name].detach() for name in sparse_weights(model)]
    total = sum(weight.numel() for weight in weights)
    return sum(int((weight == 0).sum()) for weight in weights) / total if total else None
