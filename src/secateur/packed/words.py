"""The values of a tensor as words of bits, flat: only a word without a single bit is a zero.

So negative zeros, NaNs with their payloads and subnormals are values like any others, whatever the type is.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

Words = np.ndarray[Any, np.dtype[Any]]
WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}  # by bytes of a value
CHUNK = 2**18  # values that are worked on at once; a multiple of 64
POPULATION = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.uint8)  # bits of a byte


def words(tensor: Tensor) -> Words:
    """The values of a tensor, (n,), in the order of its indices; of a contiguous tensor they share its memory."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    found: Any = flat.view(torch.uint8).numpy()
    return found.view(WORDS[tensor.element_size()])


def bits(mask: Words) -> Words:
    """Truth values (n,) as bytes, eight in each, the first in the lowest bit; what is left of the last byte is 0."""
    return np.packbits(mask, bitorder="little")


def truths(packed: Words, count: int) -> Words:
    """The truth values that `bits` packed."""
    return np.unpackbits(packed, count=count, bitorder="little").view(np.bool_)


def population(packed: Words) -> int:
    """How many bits are set."""
    return sum(int(POPULATION[packed[at : at + CHUNK]].sum(dtype=np.int64)) for at in range(0, len(packed), CHUNK))


def scatter(out: Words, masks: Iterable[Words], values: Words) -> None:
    """Put values in their places, in order.

    Args:
        out: zeros, (n,); filled in place.
        masks: where values belong, piece by piece from the beginning.
        values: as many as there are such places.
    """
    at = taken = 0
    for mask in masks:
        places = np.flatnonzero(mask)
        out[at : at + len(mask)][places] = values[taken : taken + len(places)]
        at, taken = at + len(mask), taken + len(places)
