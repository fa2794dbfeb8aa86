"""Arrays in .npz files, read without pickle and without more memory than there is.

An array that was saved without compression (``np.savez``) is mapped: its samples are read from the disk as they are
asked for. A compressed one has to be read as a whole.
"""

import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from secateur.errors import DataError

Array = np.ndarray[Any, np.dtype[Any]]
LOCAL_HEADER = 30  # bytes before a member's name in a zip file, see PKWARE's APPNOTE.TXT, 4.3.7


def array_names(path: Path) -> list[str]:
    """The names of the arrays in a file.

    Raises:
        DataError: it is no .npz file.
    """
    if not path.is_file():
        raise DataError(f"no file {str(path)!r}: give an .npz file with x_train, y_train, x_test and y_test")
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path} is no whole .npz file ({error}): write it with np.savez") from error


def read_arrays(path: Path, names: Iterable[str]) -> dict[str, Array]:
    """Some arrays of a file, by their names.

    Raises:
        DataError: one is damaged, holds Python objects, or is larger than the memory that is left.
    """
    found: dict[str, Array] = {}
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.getinfo(f"{name}.npy") for name in names}
        try:
            heads = {name: _head(archive, member) for name, member in members.items()}
            _check_memory(path, {name: heads[name] for name in members if members[name].compress_type})
            for name, member in members.items():
                found[name] = _mapped(path, member, heads[name]) if not member.compress_type else _read(archive, member)
        except (ValueError, EOFError, OSError, zipfile.BadZipFile, NotImplementedError) as error:
            at = ", ".join(name for name in members if name not in found)
            raise DataError(
                f"{path}: can't read {at} ({' '.join(str(error).split())}). Arrays must be of numbers, without Python "
                "objects, and whole: write them again with np.savez"
            ) from error
    return found


class _Head:
    """What stands before an array's data."""

    def __init__(self, stream: BinaryIO) -> None:
        version = npy.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version} of the .npy format")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        self.shape, self.fortran, self.dtype = read(stream)
        self.size = stream.tell()
        if self.dtype.hasobject:
            raise ValueError("Python objects")
        self.nbytes = int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


def _head(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> _Head:
    with archive.open(member) as stream:
        head = _Head(stream)  # pyright: ignore[reportArgumentType]
    if head.size + head.nbytes != member.file_size:
        raise ValueError(f"{head.nbytes} bytes were announced, and there are {member.file_size - head.size}")
    return head


def _mapped(path: Path, member: zipfile.ZipInfo, head: _Head) -> Array:
    order = "F" if head.fortran else "C"
    if not head.nbytes:
        return np.empty(head.shape, head.dtype)
    with path.open("rb") as file:
        file.seek(member.header_offset)
        local = file.read(LOCAL_HEADER)
    start = member.header_offset + LOCAL_HEADER + sum(int.from_bytes(local[i : i + 2], "little") for i in (26, 28))
    return np.memmap(path, head.dtype, "r", start + head.size, head.shape, order)


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    with archive.open(member) as stream:
        return npy.read_array(stream, allow_pickle=False)


def _check_memory(path: Path, heads: dict[str, _Head]) -> None:
    needed, free = sum(head.nbytes for head in heads.values()), free_memory()
    if needed > free:
        raise DataError(
            f"{path}: {', '.join(heads)} take {needed:,} bytes unpacked, and {free:,} bytes of memory are free. Save "
            "the arrays with np.savez instead of np.savez_compressed: then they are read from the disk as they are used"
        )


def free_memory() -> int:
    """Bytes of memory that can still be used; all that the machine has, where the system doesn't say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 2**63
