"""Which form stores a tensor in the fewest bytes."""

import math
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from secateur.packed.blocks import LARGEST, Blocks, best_blocks
from secateur.packed.groups import PATTERNS, Groups
from secateur.packed.masks import Mask
from secateur.packed.words import WORDS, Words, words
from secateur.strict import whole

Form = Mask | Groups | Blocks
SMALLEST = 4096  # bytes of a tensor that is looked at
OVERHEAD = 256  # bytes that two tensors and their description take more in a file than one
EXPANSION = 64  # times the stored bytes: more than that no form makes of them, so that small files stay small


def smallest(tensor: Tensor) -> Form | None:
    """The form that takes the fewest bytes; None where the tensor as it is does.

    A tensor of fewer than 4096 bytes is always left as it is.

    Example:
        >>> x = torch.ones(64, 64)
        >>> x[:8] = 0
        >>> smallest(x)
        Blocks(rows=8, cols=64)
    """
    dense = tensor.numel() * tensor.element_size()
    if dense < SMALLEST or tensor.element_size() not in WORDS or tensor.layout != torch.strided:
        return None
    flat, shape = words(tensor), tuple(tensor.shape)
    count = int(np.count_nonzero(flat))
    best: tuple[int, Form] | None = None
    for form, size in _candidates(flat, shape, count):
        if size + OVERHEAD < dense <= EXPANSION * size and (best is None or size < best[0]):
            best = size, form
    limit = min(dense - OVERHEAD, best[0] if best else dense)
    blocks = best_blocks(flat, shape, limit) if count * flat.itemsize < limit else None
    if blocks is not None and dense <= EXPANSION * blocks.size(flat, shape):
        return blocks
    return best[1] if best else None


def _candidates(flat: Words, shape: tuple[int, ...], count: int) -> list[tuple[Form, int]]:
    """Forms with their sizes, those first that are to be taken where others are as small."""
    found: list[tuple[Form, int]] = []
    for n, m in PATTERNS:
        if count * m > len(flat) * n or 2 * count * m <= len(flat) * n:
            continue  # more than n:m has, or half of it at most: a mask would do better than groups filled up
        for dim in _dims(shape):
            groups = Groups(n, m, dim)
            if (size := groups.size(flat, shape)) is not None:
                found.append((groups, size))
                break
    mask = Mask()
    return [*found, (mask, mask.size(flat, shape))]


def _dims(shape: tuple[int, ...]) -> list[int | None]:
    """Where groups are looked for: along the inputs of a weight (out, in, ...), or in the order of the indices."""
    return [1, None] if len(shape) > 2 and math.prod(shape[2:]) > 1 else [None]


def described(form: Form) -> dict[str, Any]:
    """A form as plain data."""
    return {"form": form.form, **form.settings()}


def form_of(data: dict[str, Any]) -> Form:
    """Read what `described` gave.

    Raises:
        ValueError: it is none.
    """
    kind, rest = data.get("form"), {name: value for name, value in data.items() if name != "form"}
    wanted = {"mask": set[str](), "nm": {"n", "m", "dim"}, "blocks": {"rows", "cols"}}
    if not isinstance(kind, str) or kind not in wanted or rest.keys() != wanted[kind]:
        raise ValueError(f"is stored in a form that nobody knows: {data!r:.100}")
    if kind == "mask":
        return Mask()
    if kind == "nm":
        dim = None if rest["dim"] is None else whole(rest["dim"], 0, 63)
        return Groups(whole(rest["n"], 1, 16), whole(rest["m"], 2, 16), dim)
    most = cast(int, LARGEST * 2**16)  # whole kernels may be large
    return Blocks(whole(rest["rows"], 1, most), whole(rest["cols"], 1, most))
