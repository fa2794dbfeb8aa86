"""Zeros in blocks: a tensor as a matrix (first dim, all others) in blocks of (rows, cols), one bit for each of them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur.packed.words import CHUNK, Words, bits, population, truths

LARGEST = 64  # rows and cols of a block that are looked for


@dataclass(frozen=True)
class Blocks:
    """Blocks of (rows, cols), all of whose values are there or none."""

    rows: int
    cols: int
    form = "blocks"

    def size(self, words: Words, shape: tuple[int, ...]) -> int:
        """Bytes that `pack` would give."""
        grid = self._grid(words, shape)
        there = sum(int(piece.any((1, 2)).sum()) for piece in grid)
        return self._mask_bytes(shape) + there * self.rows * self.cols * words.itemsize

    def pack(self, words: Words, shape: tuple[int, ...]) -> tuple[Words, Words]:
        """Places as bytes and values as words, block after block."""
        there: list[Words] = []
        values: list[Words] = []
        for piece in self._grid(words, shape):
            here: Any = piece.any((1, 2))
            there.append(here)
            values.append(piece[here].reshape(-1))
        return bits(np.concatenate(there)), np.concatenate(values)

    def check(self, places: Words, values: Words, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless places and values are those of a tensor of this shape."""
        if len(shape) < 2 or shape[0] % self.rows or math.prod(shape[1:]) % self.cols:
            raise ValueError(f"has blocks of {self.rows} x {self.cols}, which don't divide the shape {list(shape)}")
        count = math.prod(shape) // (self.rows * self.cols)
        if len(places) != self._mask_bytes(shape):
            raise ValueError(f"has {len(places)} bytes of places, not {self._mask_bytes(shape)}")
        if count % 8 and places[-1] >> count % 8:
            raise ValueError("has places beyond its end")
        if (wanted := population(places) * self.rows * self.cols) != len(values):
            raise ValueError(f"has places for {wanted} values, but {len(values)} values")

    def unpack(self, places: Words, values: Words, shape: tuple[int, ...], out: Words) -> None:
        """Fill zeros (n,) with the values."""
        cols = math.prod(shape[1:])
        there = truths(places, len(out) // (self.rows * self.cols))
        filled = values.reshape(-1, self.rows, self.cols)
        at = taken = 0
        for band in _bands(out.reshape(-1, cols), self.rows):
            here = there[at : at + band.size // (self.rows * self.cols)]
            found = int(here.sum())
            piece = np.zeros((len(here), self.rows, self.cols), out.dtype)
            piece[here] = filled[taken : taken + found]
            grid = piece.reshape(-1, cols // self.cols, self.rows, self.cols).swapaxes(1, 2)
            band[...] = grid.reshape(band.shape)
            at, taken = at + len(here), taken + found

    def settings(self) -> dict[str, Any]:
        """As plain data."""
        return {"rows": self.rows, "cols": self.cols}

    def _mask_bytes(self, shape: tuple[int, ...]) -> int:
        return -(-(math.prod(shape) // (self.rows * self.cols)) // 8)

    def _grid(self, words: Words, shape: tuple[int, ...]) -> Iterator[Words]:
        """Blocks (b, rows, cols), from the first row of them on."""
        cols = math.prod(shape[1:])
        for band in _bands(words.reshape(-1, cols), self.rows):
            yield (
                band.reshape(-1, self.rows, cols // self.cols, self.cols)
                .swapaxes(1, 2)
                .reshape(-1, self.rows, self.cols)
            )


def _bands(matrix: Words, rows: int) -> Iterator[Words]:
    """A matrix in pieces of whole rows of blocks."""
    step = rows * max(1, CHUNK // (rows * matrix.shape[1]))
    for at in range(0, len(matrix), step):
        yield matrix[at : at + step]


def best_blocks(words: Words, shape: tuple[int, ...], below: int) -> Blocks | None:
    """The blocks of powers of two, or of as many whole kernels, that take the fewest bytes.

    Larger blocks never hold fewer values, so those beyond one that is no use are not looked at.

    Args:
        words: the values, (n,).
        shape: of the tensor.
        below: bytes that the result has to stay under.
    """
    if len(shape) < 2:
        return None
    best: Blocks | None = None
    there: Words = words.reshape(shape[0], -1) != 0
    for rows in _doubled(shape[0], 1):
        if rows > 1:
            there = there[::2] | there[1::2]
        if np.count_nonzero(there) * rows * words.itemsize >= below:
            break
        for base in dict.fromkeys((1, math.prod(shape[2:]))):
            for cols, count in _along(there, base):
                stored = count * rows * cols * words.itemsize
                if stored >= below:
                    break
                size = -(-len(words) // (rows * cols * 8)) + stored
                if size < below and rows * cols > 1:
                    below, best = size, Blocks(rows, cols)
    return best


def _doubled(length: int, base: int) -> Iterator[int]:
    """Powers of two times a base that divide a length."""
    size = base
    while size <= LARGEST * base and length % size == 0:
        yield size
        size *= 2


def _along(there: Words, base: int) -> Iterator[tuple[int, int]]:
    """Widths of blocks, and how many of that width are there."""
    for cols in _doubled(there.shape[1], base):
        if cols == base and base > 1:
            reduced: Any = there.reshape(len(there), -1, base).any(2)
            there = reduced
        elif cols > base:
            there = there[:, ::2] | there[:, 1::2]
        yield cols, int(np.count_nonzero(there))
