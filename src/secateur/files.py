"""Writing files so that nobody ever sees half of one.

A file is written under a temporary name beside its place, flushed to the disk and renamed: it is there whole or not at
all. A run's directory is prepared as a hidden sibling in the same way, and appears at once.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from secateur.errors import OutputError

_OUR_SUFFIXES = (".json", ".yaml", ".html", ".svg", ".safetensors")
CARD_MARK = "library_name: secateur"  # in the metadata of every model card of ours
_MARKS = ("config.yaml", "artifact.json", "hints.json")  # a directory that we wrote has one of these


@contextmanager
def atomic(path: str | Path) -> Generator[Path]:
    """Give a temporary path to write to; on leaving it is renamed to ``path``, on an error it is removed.

    Args:
        path: where the file shall be. Its folder must exist. An existing file is replaced, and stays whole until then.

    Raises:
        OutputError: the file can't be written there.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> with atomic(folder / "notes.txt") as temporary:
        ...     _ = temporary.write_text("whole")
        >>> [file.name for file in folder.iterdir()]
        ['notes.txt']
    """
    target = Path(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise _unwritable(target, error) from error
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # last, since some writers put a file of their own in its place
        flush(temporary)
        os.replace(temporary, target)
        flush(target.parent)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write text (UTF-8, lines end in a newline character) in one step."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | Path, data: Any) -> None:
    """Write data as JSON in one step. NaN and infinity, which JSON doesn't have, are refused with a ValueError."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


class RunDirectory:
    """A directory that is prepared out of sight and appears at once.

    Write to ``work`` (a hidden sibling of the final place) inside a ``with`` block, then call ``publish()``. Leaving
    the block without it, be it by an error or by Ctrl-C, removes everything that was written.

    Args:
        path: the directory's final place. Missing parents are made.
        overwrite: replace an earlier run there. Only what secateur writes is ever replaced: a directory with other
            files in it is refused all the same.

    Raises:
        OutputError: the place is taken (see ``overwrite``) or can't be written to.

    Example:
        >>> place = Path(tempfile.mkdtemp()) / "run"
        >>> with RunDirectory(place) as run:
        ...     write_text(run.work / "config.yaml", "seed: 0")
        ...     assert not place.exists()
        ...     _ = run.publish()
        >>> [file.name for file in place.iterdir()]
        ['config.yaml']
    """

    def __init__(self, path: str | Path, *, overwrite: bool = False) -> None:
        self.path = Path(os.path.abspath(Path(path).expanduser()))
        self.overwrite = overwrite
        self.published = False
        self._shown = path
        self._work: Path | None = None
        self._check_free()

    @staticmethod
    def name_of(work: Path) -> str:
        """The name that a directory to write to will have; that of any other place is its own.

        Example:
            >>> RunDirectory.name_of(Path("/tmp/.run.a1b2c3d4.partial")), RunDirectory.name_of(Path("/tmp/run"))
            ('run', 'run')
        """
        found = re.fullmatch(r"\.(.+)\.[^.]+\.partial", work.name)
        return work.name if found is None else found[1]

    @property
    def work(self) -> Path:
        """The hidden directory to write to before ``publish()``."""
        assert self._work is not None, "RunDirectory is used in a with block"
        return self._work

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._work = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", suffix=".partial", dir=self.path.parent))
            self._work.chmod(0o777 & ~_umask())
        except OSError as error:
            raise _unwritable(self._shown, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._work is not None:
            shutil.rmtree(self._work, ignore_errors=True)

    def publish(self) -> Path:
        """Move what was written to its final place, in one step, and return that place."""
        self._check_free()
        with _moved_aside(self.path):
            try:
                os.replace(self.work, self.path)
            except OSError as error:
                raise _unwritable(self._shown, error) from error
        flush(self.path.parent)
        self.published = True
        return self.path

    def _check_free(self) -> None:
        if self.path == Path.cwd() or self.path in Path.cwd().parents:
            raise OutputError(
                f"the output directory {str(self._shown)!r} is the current one or above it. Name a new one with --out"
            )
        if not os.path.lexists(self.path):
            return
        if not self.path.is_dir() or self.path.is_symlink():
            raise OutputError(
                f"the output directory {str(self._shown)!r} is a file or a link. Choose another place with --out"
            )
        entries = sorted(self.path.iterdir())
        if not entries:
            return
        if not self.overwrite:
            raise OutputError(
                f"the output directory {str(self._shown)!r} is not empty ({_names(entries)}). "
                f"Choose another with --out, or replace the earlier run there with --overwrite"
            )
        foreign = [entry for entry in entries if not _is_ours(entry)]
        if foreign or not any((self.path / name).exists() for name in _MARKS):
            raise OutputError(
                f"the output directory {str(self._shown)!r} holds what secateur did not write "
                f"({_names(foreign or entries)}), "
                f"so --overwrite leaves it alone. Move that away, or choose another place with --out"
            )


@contextmanager
def _moved_aside(path: Path) -> Generator[None]:
    """Put what is at ``path`` out of the way; back again if the block fails, away for good if it doesn't."""
    if not path.exists():
        yield
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
    os.replace(path, aside / path.name)
    try:
        yield
    except BaseException:
        os.replace(aside / path.name, path)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def is_our_card(file: Path) -> bool:
    """Whether a README.md is a model card that we wrote, and no README of the user's own."""
    return CARD_MARK in file.read_text(encoding="utf-8", errors="replace")


def _is_ours(entry: Path) -> bool:
    if entry.name == ".DS_Store":
        return True
    if not entry.is_file() or entry.is_symlink():
        return False
    return entry.suffix in _OUR_SUFFIXES or (entry.name == "README.md" and is_our_card(entry))


def _names(entries: list[Path]) -> str:
    shown = ", ".join(entry.name for entry in entries[:3])
    return shown + (f" and {len(entries) - 3} more" if len(entries) > 3 else "")


def _unwritable(path: str | Path, error: OSError) -> OutputError:
    return OutputError(
        f"can't write to {str(path)!r}: {error.strerror or error}. Check the place and its permissions, or choose "
        f"another"
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def flush(path: Path) -> None:
    """Ask the system to put a file, or a folder's list of names, on the disk (not every system can for a folder)."""
    with suppress(PermissionError):
        handle = os.open(path, os.O_RDONLY)
        try:
            with suppress(OSError):
                os.fsync(handle)
        finally:
            os.close(handle)
