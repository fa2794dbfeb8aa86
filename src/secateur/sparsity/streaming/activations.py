"""The calibration activations between two blocks, one tensor for each batch: in memory, or in a file on the disk.

The file is read and written, not mapped: a mapped page would count as memory of the process.
"""

import os
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from secateur.errors import SparsityError
from secateur.sparsity.streaming.output import told
from secateur.sparsity.streaming.tensors import bytes_of

PLACES = ("memory", "disk")


class Activations(Protocol):
    """Tensors by number. A new one takes the place of the old, which has the same shape and dtype."""

    def get(self, number: int) -> Tensor: ...

    def put(self, number: int, tensor: Tensor) -> None: ...

    def close(self) -> None: ...


class InMemory:
    """Held as they are."""

    def __init__(self) -> None:
        self._held: dict[int, Tensor] = {}

    def get(self, number: int) -> Tensor:
        """The tensor that was put there."""
        return self._held[number]

    def put(self, number: int, tensor: Tensor) -> None:
        """Keep a tensor."""
        self._held[number] = tensor.detach()

    def close(self) -> None:
        """Let go of all."""
        self._held.clear()


class OnDisk:
    """In one file, one behind the other.

    Args:
        path: of the file, which is removed when it is closed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._where: dict[int, tuple[int, torch.dtype, torch.Size]] = {}
        self._end = 0
        with told(path):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)

    def get(self, number: int) -> Tensor:
        """The tensor that was put there."""
        start, dtype, shape = self._where[number]
        raw = torch.empty(shape.numel() * dtype.itemsize, dtype=torch.uint8)
        room, done = bytes_of(raw), 0
        while done < len(room):
            got = os.preadv(self._file, [room[done:]], start + done)
            assert got, f"{self.path} was cut off"
            done += got
        return raw.view(dtype).view(shape)

    def put(self, number: int, tensor: Tensor) -> None:
        """Keep a tensor.

        Raises:
            OutputError: the disk is full.
        """
        tensor = tensor.detach().cpu().contiguous()
        raw = bytes_of(tensor)
        start, dtype, shape = self._where.get(number, (self._end, tensor.dtype, tensor.shape))
        if (dtype, shape) != (tensor.dtype, tensor.shape):
            raise SparsityError(f"a block turns {dtype} {tuple(shape)} into {tensor.dtype} {tuple(tensor.shape)}")
        if number not in self._where:
            self._where[number] = start, dtype, shape
            self._end += len(raw)
        done = 0
        with told(self.path):
            while done < len(raw):
                done += os.pwrite(self._file, raw[done:], start + done)

    def close(self) -> None:
        """Remove the file."""
        os.close(self._file)
        self.path.unlink(missing_ok=True)


def activations(where: str, folder: Path, rank: int) -> Activations:
    """A place for activations.

    Args:
        where: one of `PLACES`.
        folder: for the file.
        rank: of this process, which has a file of its own.
    """
    return InMemory() if where == "memory" else OnDisk(folder / f"activations-{rank}.bin")
