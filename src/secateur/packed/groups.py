"""N:M zeros: at most n of each m consecutive values are there; where each of the n lies takes log2(m) bits.

Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks", arXiv:2104.08378, store 2:4 like this. A group that
holds fewer than n values is filled up with zeros in its first free places. The bits of a group are rounded up to 1, 2,
4 or 8, so that a byte holds whole groups. Where n places take more bits than m truth values do (4:8, say) a mask is
smaller, and there is no form here.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from secateur.packed.words import CHUNK, Words, scatter

PATTERNS = {(1, 2): 1, (1, 4): 2, (2, 4): 4, (1, 8): 4, (1, 16): 4, (2, 8): 8, (2, 16): 8}  # bits of a group


@dataclass(frozen=True)
class Groups:
    """n of each m values.

    Attributes:
        n, m: a pattern of `PATTERNS`.
        dim: along which the m values follow each other; None where they do so in the order of the tensor's indices.
    """

    n: int
    m: int
    dim: int | None = None
    form = "nm"

    def size(self, words: Words, shape: tuple[int, ...]) -> int | None:
        """Bytes that `pack` would give; None where a group has more than n values or is none."""
        length = len(words) if self.dim is None else shape[self.dim]
        if length % self.m or not len(words):
            return None
        rows = _laid(words, shape, self.dim)
        for at in range(0, len(rows), CHUNK):
            if (rows[at : at + CHUNK].reshape(-1, self.m) != 0).sum(1).max() > self.n:
                return None
        return self._index_bytes(len(words)) + len(words) // self.m * self.n * words.itemsize

    def pack(self, words: Words, shape: tuple[int, ...]) -> tuple[Words, Words]:
        """Places as bytes and values as words, n of each group."""
        rows = _laid(words, shape, self.dim)
        pairs = [self._packed(rows[at : at + CHUNK]) for at in range(0, len(rows), CHUNK)]
        return np.concatenate([p for p, _ in pairs]), np.concatenate([v for _, v in pairs])

    def _packed(self, piece: Words) -> tuple[Words, Words]:
        there = _filled((piece != 0).reshape(-1, self.m), self.n)
        at = np.flatnonzero(there).reshape(-1, self.n) % self.m
        each = self.m.bit_length() - 1
        codes = (at << each * np.arange(self.n)).sum(1).astype(np.uint8)
        together = 8 // PATTERNS[self.n, self.m]
        full = np.concatenate([codes, np.repeat(_first(self.n, self.m), -len(codes) % together)])
        places = (full.reshape(-1, together) << PATTERNS[self.n, self.m] * np.arange(together)).sum(1)
        return places.astype(np.uint8), piece[there.reshape(-1)]

    def check(self, places: Words, values: Words, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless places and values are those of a tensor of this shape."""
        count = math.prod(shape)
        length = count if self.dim is None else shape[self.dim] if self.dim < len(shape) else 1
        if (self.n, self.m) not in PATTERNS or length % self.m:
            raise ValueError(f"can't be {self.n}:{self.m} along {self.dim} in the shape {list(shape)}")
        if len(places) != self._index_bytes(count) or len(values) != count // self.m * self.n:
            raise ValueError(
                f"has {len(places)} bytes of places and {len(values)} values, "
                f"not {self._index_bytes(count)} and {count // self.m * self.n}"
            )
        valid = _table(self.n, self.m)[1]
        for at in range(0, len(places), CHUNK):
            if not valid[places[at : at + CHUNK]].all():
                raise ValueError(f"has places that {self.n} of {self.m} values can't have")

    def unpack(self, places: Words, values: Words, shape: tuple[int, ...], out: Words) -> None:
        """Fill zeros (n,) with the values. Along another dim than the last it takes a second tensor meanwhile."""
        direct = self.dim is None or self.dim == len(shape) - 1
        rows = out if direct else np.zeros_like(out)
        scatter(rows, self._pieces(places, len(out)), values)
        if not direct:
            assert self.dim is not None
            moved = [*shape[: self.dim], *shape[self.dim + 1 :], shape[self.dim]]
            out.reshape(shape)[...] = np.moveaxis(rows.reshape(moved), -1, self.dim)

    def settings(self) -> dict[str, Any]:
        """As plain data."""
        return {"n": self.n, "m": self.m, "dim": self.dim}

    def _index_bytes(self, count: int) -> int:
        return -(-(count // self.m) * PATTERNS[self.n, self.m] // 8)

    def _pieces(self, places: Words, count: int) -> Iterator[Words]:
        table = _table(self.n, self.m)[0]
        step = CHUNK // table.shape[1]
        for at in range(0, len(places), step):
            left = count - at * table.shape[1]
            yield table[places[at : at + step]].reshape(-1)[:left]


def _laid(words: Words, shape: tuple[int, ...], dim: int | None) -> Words:
    """Values with those along a dim one after the other."""
    return words if dim is None else np.moveaxis(words.reshape(shape), dim, -1).reshape(-1)


def _filled(there: Words, n: int) -> Words:
    """Groups (g, m) with n truths each: where there are fewer, the first free places are taken, too."""
    short = np.flatnonzero(there.sum(1) < n)
    if len(short):
        first = np.argsort(~there[short], axis=1, kind="stable")[:, :n]
        rows = np.zeros_like(there[short])
        np.put_along_axis(rows, first, True, axis=1)
        there[short] = rows
    return there


def _first(n: int, m: int) -> Any:
    """The code of a group whose values are its first ones; fills up the last byte."""
    each = m.bit_length() - 1
    return np.uint8(sum(k << each * k for k in range(n)))


@cache
def _table(n: int, m: int) -> tuple[Words, Words]:
    """For each byte of places: where the values of its groups lie, (256, groups * m), and whether it is sound."""
    width, each = PATTERNS[n, m], m.bit_length() - 1
    together = 8 // width
    codes = np.arange(256)[:, None] >> width * np.arange(together) & 2**width - 1  # (256, groups)
    at = codes[..., None] >> each * np.arange(n) & m - 1  # (256, groups, n)
    sound = (np.diff(at, axis=2) > 0).all((1, 2)) & (codes >> each * n == 0).all(1)
    there = np.zeros((256, together, m), np.bool_)
    np.put_along_axis(there, at, True, axis=2)
    return there.reshape(256, -1), sound
