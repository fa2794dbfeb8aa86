"""Any zeros: one bit for each value says whether it is there, and those that are there follow each other."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur.packed.words import CHUNK, Words, bits, population, scatter, truths


@dataclass(frozen=True)
class Mask:
    """A bit for each value, in the order of the tensor's indices."""

    form = "mask"

    def size(self, words: Words, shape: tuple[int, ...]) -> int:
        """Bytes that `pack` would give."""
        return -(-len(words) // 8) + int(np.count_nonzero(words)) * words.itemsize

    def pack(self, words: Words, shape: tuple[int, ...]) -> tuple[Words, Words]:
        """Places as bytes and values as words."""
        places = np.empty(-(-len(words) // 8), np.uint8)
        values = np.empty(np.count_nonzero(words), words.dtype)
        taken = 0
        for at in range(0, len(words), CHUNK):
            piece = words[at : at + CHUNK]
            there = piece != 0
            packed, found = bits(there), piece[there]
            places[at // 8 : at // 8 + len(packed)] = packed
            values[taken : taken + len(found)] = found
            taken += len(found)
        return places, values

    def check(self, places: Words, values: Words, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless places and values are those of a tensor of this shape."""
        count = math.prod(shape)
        if len(places) != -(-count // 8):
            raise ValueError(f"has {len(places)} bytes of places, not {-(-count // 8)}")
        if count % 8 and places[-1] >> count % 8:
            raise ValueError("has places beyond its end")
        if (wanted := population(places)) != len(values):
            raise ValueError(f"has places for {wanted} values, but {len(values)} values")

    def unpack(self, places: Words, values: Words, shape: tuple[int, ...], out: Words) -> None:
        """Fill zeros (n,) with the values."""
        scatter(out, _pieces(places, len(out)), values)

    def settings(self) -> dict[str, Any]:
        """As plain data."""
        return {}


def _pieces(places: Words, count: int) -> Iterator[Words]:
    for at in range(0, count, CHUNK):
        piece = min(CHUNK, count - at)
        yield truths(places[at // 8 : -(-(at + piece) // 8)], piece)
