"""What was done of a checkpoint's pruning, written down after each block, so that it can be taken up again."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from secateur.errors import ArtifactError, OutputError
from secateur.files import write_json

NAME = "journal.json"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A block that was pruned and is on the disk.

    Attributes:
        path: of the block in the model.
        digest: SHA-256 of its weights as they were written.
        rows: of the report, one for each weight that was pruned.
        left: why other weights of it were not, by name.
    """

    path: str
    digest: str
    rows: list[dict[str, Any]]
    left: dict[str, str]


@dataclass(kw_only=True)
class Journal:
    """What was done so far.

    Attributes:
        of: what the run is of, as digests or plain data by kind: settings, checkpoint, data, versions.
        begun: whether the files are there, and all that lies outside the blocks is in them.
        blocks: those that are done, in order.
    """

    of: dict[str, Any]
    begun: bool = False
    blocks: list[Entry] = field(default_factory=list[Entry])

    def write(self, folder: Path) -> None:
        """Put it on the disk, in one step."""
        write_json(folder / NAME, {"version": VERSION, **asdict(self)})


def taken_up(folder: Path, of: Mapping[str, Any], output: str) -> Journal:
    """The journal of an unfinished run, if it is of the same; else a new one.

    Args:
        folder: of the unfinished run.
        of: what this run is of.
        output: the place of the result, for errors.

    Raises:
        OutputError: the unfinished run is of something else; the message says of what.
        ArtifactError: the journal can't be read.
    """
    if not (folder / NAME).exists():
        return Journal(of=dict(of))
    found, version = _read(folder)
    if odd := _differences(found.of, of) if version == VERSION else [f"version {version} of the journal"]:
        raise OutputError(
            f"{str(folder)!r} holds an unfinished run of another kind: {'; '.join(odd)}. Call it as before to go on "
            f"with it; or start anew with overwrite, or choose another place than {output!r}"
        )
    return found


def is_empty_of_another(folder: Path, of: Mapping[str, Any]) -> bool:
    """Whether an unfinished run is of another kind, and no block of it is done, so that nothing is lost without it."""
    try:
        found, version = _read(folder)
    except ArtifactError:  # which `taken_up` reports, in every process
        return False
    return version == VERSION and not found.blocks and bool(_differences(found.of, of))


def _read(folder: Path) -> tuple[Journal, Any]:
    """The journal that is there, and its version."""
    file = folder / NAME
    try:
        said: Any = json.loads(file.read_text(encoding="utf-8"))
        found = Journal(of=said["of"], begun=said["begun"], blocks=[Entry(**entry) for entry in said["blocks"]])
        return found, said["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"can't read the journal {str(file)!r} of an unfinished run: {error}. Start anew with overwrite"
        ) from error


def _differences(had: Mapping[str, Any], have: Mapping[str, Any]) -> list[str]:
    """What an unfinished run was called with that this one isn't."""
    told: list[str] = []
    for key in dict.fromkeys((*had, *have)):
        old, new = had.get(key), have.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            told += [
                f"{k} was {old.get(k)!r}, now {new.get(k)!r}"
                for k in dict.fromkeys((*old, *new))
                if old.get(k) != new.get(k)
            ]
        elif old != new:
            told.append(f"another {key}")
    return told
