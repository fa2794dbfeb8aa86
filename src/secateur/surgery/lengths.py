"""Weights that are computed with a norm keep what they compute: what changes in parts gets the old norm back.

Weight normalisation holds a weight as directions and lengths: a direction that loses a part gets a new length. Spectral
normalisation divides a weight by ``u @ weight @ v``: new vectors u and v give the number that the whole weight gave.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from secateur.modules import parts
from secateur.surgery.reindex import take

STEPS = 15  # of the power iteration, as torch does when it makes u and v


def lengths(
    model: nn.Module, kept: Mapping[int, Mapping[int, Tensor]], weighted: Mapping[int, Tensor] | None = None
) -> dict[int, Tensor]:
    """New lengths and vectors where they must change, so that the part of a weight that stays is what it was.

    Args:
        model: before surgery.
        kept: positions of each dim that stay, by the id of the tensor.
        weighted: what tensors become whose weights are multiplied by something besides, by the id of the old ones.

    Returns:
        The new tensors by the id of the old ones.
    """
    found: dict[int, Tensor] = {}
    weighted = weighted or {}
    for length, direction, dim in normalised(model):
        at = kept.get(id(direction), {})
        if at.keys() - {dim} or id(direction) in weighted:
            exact = torch.promote_types(direction.dtype, torch.float32)
            old = direction.detach().to(exact)
            new = weighted[id(direction)].to(exact) if id(direction) in weighted else take(old, at)
            ratio = length.detach().to(exact) / torch.norm_except_dim(old, 2, dim)
            ratio = take(ratio, {dim: at[dim]}) if dim in at else ratio
            found[id(length)] = (torch.norm_except_dim(new, 2, dim) * ratio).to(length.dtype)
    for weight, u, v, dim in divided(model):
        if (at := kept.get(id(weight))) or id(weight) in weighted:
            new = weighted[id(weight)] if id(weight) in weighted else take(weight, at or {})
            found[id(u)], found[id(v)] = vectors(weight, new, u, v, dim)
    return found


def recomputed(model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Tensors that surgery may compute anew, each with the weight that it follows from."""
    for length, direction, _ in normalised(model):
        yield length, direction
    for weight, u, v, _ in divided(model):
        yield from ((u, weight), (v, weight))


def vectors(weight: Tensor, new: Tensor, u: Tensor, v: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The first singular vectors of the new weight, u as long as it takes for ``u @ new @ v`` to be what it was."""
    exact = torch.float64  # vectors that were never iterated nearly cancel
    whole = weight.detach().to(exact)
    norm = u.to(exact) @ _matrix(whole, dim) @ v.to(exact)
    matrix = _matrix(new.detach().to(exact), dim)
    left, right = u.new_ones(matrix.shape[0], dtype=exact), v.new_ones(matrix.shape[1], dtype=exact)
    for _ in range(STEPS):
        left = nn.functional.normalize(matrix @ right, dim=0)
        right = nn.functional.normalize(matrix.T @ left, dim=0)
    found = left @ matrix @ right
    return (left * (norm / found) if found else left).to(u.dtype), right.to(v.dtype)


def _matrix(weight: Tensor, dim: int) -> Tensor:
    return weight.movedim(dim, 0).flatten(1)


def divided(model: nn.Module) -> Iterator[tuple[Tensor, Tensor, Tensor, int]]:
    """Weights that spectral normalisation divides, its vectors u and v, and the dim that it takes for rows."""
    for module in parts(model):
        if isinstance(module, ParametrizationList):
            computed: Any = module
            for norm in (p for p in module if isinstance(p, _SpectralNorm) and hasattr(p, "_u")):
                yield computed.original, norm._u, norm._v, norm.dim
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                weight, u, v = (getattr(module, f"{hook.name}_{part}") for part in ("orig", "u", "v"))
                yield weight, u, v, hook.dim


def normalised(model: nn.Module) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Lengths, directions, and the dim that has a length for each position (-1: one for all)."""
    for module in parts(model):
        if isinstance(module, ParametrizationList) and isinstance(module[0], _WeightNorm):
            computed: Any = module
            yield computed.original0, computed.original1, computed[0].dim
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm):
                yield getattr(module, f"{hook.name}_g"), getattr(module, f"{hook.name}_v"), hook.dim
