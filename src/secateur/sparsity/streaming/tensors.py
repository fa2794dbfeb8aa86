"""One safetensors file: where its tensors lie, read one by one without mapping the file into memory.

A mapped page counts as memory of the process; a read one goes to its tensor and nowhere else.
"""

import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.errors import ArtifactError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""By their names in a file. Others are copied as they are, and can't be computed with."""
HEADER_BYTES = 100_000_000  # more than that is no header; the format's own bound
PREFIX = 8  # bytes of the header's length


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Where a tensor lies.

    Attributes:
        file: the file.
        name: in the file.
        dtype: as the file says it, such as BF16.
        shape: its dims.
        start, size: first byte in the file, and number of bytes.
    """

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True, kw_only=True)
class TensorFile:
    """A safetensors file, known by its header.

    Attributes:
        path: the file.
        entries: its tensors, by name.
        data: where the header ends, in bytes.
        size: of the whole file, in bytes.
        digest: SHA-256 of the header.
    """

    path: Path
    entries: dict[str, Entry]
    data: int
    size: int
    digest: str


def opened(path: Path) -> TensorFile:
    """Read a file's header, and see that the file is whole.

    Raises:
        ArtifactError: it is missing, truncated, or no safetensors file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(PREFIX), "little")
            raw = file.read(length) if length <= min(HEADER_BYTES, size) else b""
    except OSError as error:
        raise ArtifactError(f"can't read {str(path)!r}: {error.strerror or error}") from error
    try:
        header: dict[str, Any] = json.loads(raw)
        found = {n: _entry(path, n, said, PREFIX + length) for n, said in header.items() if n != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{str(path)!r} ({size:,} bytes) is no whole safetensors file: its header can't be read. It is truncated "
            "or damaged: get it again"
        ) from error
    _check(path, sorted(found.values(), key=lambda entry: (entry.start, entry.size)), PREFIX + length, size)
    return TensorFile(path=path, entries=found, data=PREFIX + length, size=size, digest=hashlib.sha256(raw).hexdigest())


def _entry(path: Path, name: str, said: dict[str, Any], data: int) -> Entry:
    start, stop = (int(place) for place in said["data_offsets"])
    shape = tuple(int(length) for length in said["shape"])
    return Entry(file=path, name=name, dtype=str(said["dtype"]), shape=shape, start=data + start, size=stop - start)


def _check(path: Path, entries: list[Entry], data: int, size: int) -> None:
    """The tensors lie one behind the other, each of the size that its shape says, up to the end of the file."""
    place = data
    for entry in entries:
        known = DTYPES.get(entry.dtype)
        wanted = None if known is None else math.prod(entry.shape) * known.itemsize
        if entry.start != place or entry.size < 0 or wanted not in (None, entry.size):
            raise ArtifactError(
                f"{entry.name} in {str(path)!r} is {entry.dtype} of shape {list(entry.shape)}, and lies at byte "
                f"{entry.start:,} with {entry.size:,} bytes: the file's header contradicts itself. Get it again"
            )
        place += entry.size
    if place != size:
        raise ArtifactError(
            f"{str(path)!r} has {size:,} bytes, and its header speaks of {place:,}: it is truncated or was written to. "
            "Get it again"
        )


def read(entry: Entry) -> Tensor:
    """A tensor's values, in the dtype of the file.

    Raises:
        ArtifactError: they can't be read, or torch has no such dtype.
    """
    if entry.dtype not in DTYPES:
        raise ArtifactError(
            f"{entry.name} in {str(entry.file)!r} is {entry.dtype}, which can't be computed with; give a checkpoint "
            f"in {', '.join(DTYPES)}"
        )
    raw = torch.empty(entry.size, dtype=torch.uint8)
    read_into(entry, bytes_of(raw))
    return raw.view(DTYPES[entry.dtype]).view(entry.shape)


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor, not copied."""
    raw: Any = tensor.flatten().view(torch.uint8).numpy()
    return memoryview(raw)


def read_into(entry: Entry, room: memoryview, offset: int = 0) -> None:
    """Some of a tensor's bytes, as many as there is room for.

    Raises:
        ArtifactError: they can't be read: the file was cut off since its header was read.
    """
    done = 0
    try:
        handle = os.open(entry.file, os.O_RDONLY)
        try:
            while done < len(room):
                got = os.preadv(handle, [room[done:]], entry.start + offset + done)
                if not got:
                    raise ArtifactError(
                        f"{str(entry.file)!r} ends within {entry.name}: it was cut off while it was read. Get it again"
                    )
                done += got
        finally:
            os.close(handle)
    except OSError as error:
        raise ArtifactError(f"can't read {entry.name} in {str(entry.file)!r}: {error.strerror or error}") from error
