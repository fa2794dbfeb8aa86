"""The pruned checkpoint while it is being written: files of the same layout as the source's, filled place by place.

A tensor keeps its shape and its dtype, so every file has the source's header and every tensor its old place. Room for
all of it is taken at the start. Until it is published the folder has another name; see `Output.publish`.
"""

import errno
import os
import shutil
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from secateur.errors import OutputError
from secateur.files import flush
from secateur.sparsity.streaming.checkpoint import Checkpoint
from secateur.sparsity.streaming.tensors import Entry, TensorFile, bytes_of, read_into

CHUNK = 2**23  # bytes that are copied at once


class Output:
    """Where a checkpoint is written.

    Args:
        source: what is pruned; it is only ever read.
        work: the folder to write to.
    """

    def __init__(self, source: Checkpoint, work: Path) -> None:
        self.source, self.work = source, work

    def prepare(self) -> None:
        """Make the files, with headers and room for all tensors, and copy what lies beside them.

        Raises:
            OutputError: no room, or no leave.
        """
        with told(self.work):
            self.work.mkdir(parents=True, exist_ok=True)
            self._check_room()
            for name, file in self.source.files.items():
                _made(self.work / name, file)
            for name in self.source.beside:
                shutil.copyfile(self.source.path / name, self.work / name)
                flush(self.work / name)
            flush(self.work)

    def _check_room(self) -> None:
        have = sum(file.stat().st_size for file in self.work.iterdir() if file.is_file())
        free = shutil.disk_usage(self.work).free
        if self.source.size - have > free:
            raise OutputError(
                f"the pruned checkpoint takes {self.source.size:,} bytes, and {str(self.work.parent)!r} has {free:,} "
                "free: make room, or choose another place"
            )

    def place(self, entry: Entry) -> Entry:
        """Where a tensor of the source lies here."""
        return Entry(
            file=self.work / entry.file.name,
            name=entry.name,
            dtype=entry.dtype,
            shape=entry.shape,
            start=entry.start,
            size=entry.size,
        )

    def write(self, entry: Entry, tensor: Tensor) -> None:
        """Put a tensor's new values in its place.

        Raises:
            OutputError: they can't be written.
        """
        raw = bytes_of(tensor.detach().cpu().contiguous())
        assert len(raw) == entry.size, f"{entry.name}: {len(raw)} bytes for {entry.size}"
        with told(self.work), _open(self.work / entry.file.name) as handle:
            _write_all(handle, raw, entry.start)

    def copy(self, entry: Entry) -> None:
        """Copy a tensor as it is.

        Raises:
            ArtifactError: the source can't be read.
            OutputError: it can't be written.
        """
        room = memoryview(bytearray(min(CHUNK, entry.size)))
        with told(self.work), _open(self.work / entry.file.name) as handle:
            for offset in range(0, entry.size, CHUNK):
                part = room[: min(CHUNK, entry.size - offset)]
                read_into(entry, part, offset)
                _write_all(handle, part, entry.start + offset)

    def sync(self, files: Iterable[str]) -> None:
        """Have files on the disk before anybody says that they are.

        Raises:
            OutputError: the disk refuses.
        """
        with told(self.work):
            for name in files:
                with _open(self.work / name) as handle:
                    os.fsync(handle)


def _made(path: Path, like: TensorFile) -> None:
    """A file with another's header, and room for its tensors."""
    with like.path.open("rb") as file:
        header = file.read(like.data)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _reserve(handle, like.size)
        _write_all(handle, memoryview(header), 0)
        os.fsync(handle)
    finally:
        os.close(handle)


def _reserve(handle: int, size: int) -> None:
    """Take room on the disk now, where the system can, so that it doesn't run out on the way."""
    os.ftruncate(handle, size)
    if hasattr(os, "posix_fallocate") and size:
        try:
            os.posix_fallocate(handle, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise


@contextmanager
def _open(path: Path) -> Generator[int]:
    handle = os.open(path, os.O_WRONLY)
    try:
        yield handle
    finally:
        os.close(handle)


def _write_all(handle: int, data: memoryview, start: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(handle, data[done:], start + done)


@contextmanager
def told(place: Path) -> Generator[None]:
    """What the system refuses is our error, and says what to do."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        hint = "the disk is full: make room, and call again to go on" if full else "check the place and its permissions"
        raise OutputError(f"can't write to {str(place)!r}: {error.strerror or error}; {hint}") from error
