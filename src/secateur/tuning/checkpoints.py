"""Checkpoints that survive anything: whole or not there, checked on loading, the last two kept, no pickle.

``step-00000120/`` holds ``state.json`` and ``tensors.safetensors``. It is prepared as a hidden sibling, flushed to the
disk and renamed, so that a kill at any moment leaves either the checkpoint or none.
"""

import json
import os
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from secateur import digests
from secateur.errors import ArtifactError, OutputError
from secateur.files import flush
from secateur.tuning.packing import pack, unpack

VERSION = 1
EVERY = "30s"
_NAME = re.compile(r"step-(\d{8,})")
_FAULTS = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError, ArtifactError)
_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}


class Checkpoints:
    """A folder of checkpoints.

    Args:
        folder: made if it is not there.
        every: how often `due` says yes: a number of steps, or a time such as "30s", "5min", "1h".
        keep: how many stay; older ones go.

    Raises:
        OutputError: nothing can be written there, or ``every`` is neither.
    """

    def __init__(self, folder: str | Path, *, every: int | str = EVERY, keep: int = 2) -> None:
        self.folder, self.keep = Path(folder), keep
        self.steps, self.seconds = interval(every)
        self._clock = time.monotonic()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for rest in self.folder.glob(".step-*.partial"):  # of a run that was killed while it wrote
                shutil.rmtree(rest, ignore_errors=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise OutputError(
                f"no checkpoint can be written to {self.folder}: {error.strerror or error}. Give a folder that can be "
                f"written to, or none"
            ) from error

    @property
    def timed(self) -> bool:
        """Whether `due` goes by the clock."""
        return self.seconds is not None

    def due(self, step: int) -> bool:
        """Whether a checkpoint should be written after so many steps."""
        if self.seconds is not None:
            return time.monotonic() - self._clock >= self.seconds
        assert self.steps is not None
        return step % self.steps == 0

    def save(self, step: int, state: Mapping[str, Any]) -> Path | None:
        """Write one, and let older ones go; None, and a warning, where it can't be written: training goes on.

        Args:
            state: what `packing.pack` takes.
        """
        self._clock = time.monotonic()
        target = self.folder / f"step-{step:08d}"
        try:
            work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=self.folder))
            try:
                write(work / "new", state)
                if target.exists():  # of the same step, before its validation
                    os.replace(target, work / "old")
                os.replace(work / "new", target)
                flush(self.folder)
            finally:
                shutil.rmtree(work, ignore_errors=True)
        except (OSError, SafetensorError) as error:
            kept = self.found()
            warnings.warn(
                f"no checkpoint could be written at step {step} ({error}). Training goes on; "
                + (f"the last one is {kept[-1].name}" if kept else "there is none yet")
                + f". Make room in {self.folder}.",
                stacklevel=2,
            )
            return None
        for old in self.found()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)
        return target

    def found(self) -> list[Path]:
        """The checkpoints that are there, the oldest first."""
        there = [path for path in self.folder.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir()]
        return sorted(there, key=lambda path: int(path.name.partition("-")[2]))

    def latest(self) -> dict[str, Any] | None:
        """The state of the newest checkpoint that is whole; None where there is none.

        Raises:
            ArtifactError: there are some, and none is whole.
        """
        found = self.newest()
        return None if found is None else found[1]

    def newest(self) -> tuple[str, dict[str, Any]] | None:
        """The name and the state of the newest checkpoint that is whole; None where there is none.

        Damaged ones are set aside, with a warning: their numbers would count as the newest for ever.

        Raises:
            ArtifactError: there are some, and none is whole.
        """
        found = self.found()
        damaged: list[str] = []
        for at, path in reversed(list(enumerate(found))):
            try:
                return path.name, read(path)
            except ArtifactError as error:
                said = f"{error}. It is {_set_aside(path)}"
                damaged.append(said)
                if at:
                    warnings.warn(f"{said}; going back to {found[at - 1].name}, the one before.", stacklevel=2)
        if damaged:
            raise ArtifactError(
                f"no checkpoint in {self.folder} is whole: {'; '.join(damaged)}. Look after the disk; put a whole one "
                "there, or start once more, and what they were of is done anew"
            )
        return None

    def clear(self) -> None:
        """Remove all of them."""
        for path in self.found():
            shutil.rmtree(path, ignore_errors=True)


def write(folder: Path, state: Mapping[str, Any]) -> None:
    """Write a state into a folder, made if it is not there."""
    data, tensors = pack(state)
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "tensors.safetensors")
    body = json.dumps(data, allow_nan=False)
    record = {"version": VERSION, "sha256": digests.of_text(body), "tensors": _file_digest(folder), "state": body}
    (folder / "state.json").write_text(json.dumps(record), encoding="utf-8")
    for path in (folder / "tensors.safetensors", folder / "state.json", folder):
        flush(path)


def read(folder: Path) -> dict[str, Any]:
    """The state in a folder.

    Raises:
        ArtifactError: it is damaged, or of another version.
    """
    try:
        record: Any = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        version, body = record["version"], record["state"]
        if version == VERSION and (digests.of_text(body), _file_digest(folder)) != (
            record["sha256"],
            record["tensors"],
        ):
            raise ValueError("its content does not match its hash")
        state: Any = unpack(json.loads(body), load_file(folder / "tensors.safetensors")) if version == VERSION else {}
    except _FAULTS as error:
        raise ArtifactError(f"the checkpoint {folder} is damaged: {type(error).__name__}: {error}") from error
    if version != VERSION:
        raise ArtifactError(f"the checkpoint {folder} has version {str(version)[:20]}; this reads {VERSION}")
    if not isinstance(state, dict):
        raise ArtifactError(f"the checkpoint {folder} is damaged: it holds a {type(state).__name__}, not a state")
    return cast("dict[str, Any]", state)


def interval(every: int | str) -> tuple[int | None, float | None]:
    """Steps, or seconds.

    Raises:
        OutputError: it is neither.

    Example:
        >>> interval("5min"), interval(100)
        ((None, 300.0), (100, None))
    """
    if isinstance(every, int) and not isinstance(every, bool) and every >= 1:
        return every, None
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*(s|min|h)?\s*", str(every))
    if match is None or not float(match[1]):
        raise OutputError(f"checkpoint interval {every!r}: give a number of steps, or a time such as '30s' or '5min'")
    if match[2] is None:
        return interval(int(float(match[1])))
    return None, float(match[1]) * _UNITS[match[2]]


def _set_aside(path: Path) -> str:
    aside = path.with_name(path.name.replace("step", "damaged"))
    try:
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(path, aside)
    except OSError:
        return "passed over"
    return f"set aside as {aside.name}"


def _file_digest(folder: Path) -> str:
    return digests.of_file(folder / "tensors.safetensors")
