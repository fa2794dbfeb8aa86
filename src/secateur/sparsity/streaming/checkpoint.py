"""A checkpoint in Hugging Face's layout: one or many safetensors files with an index, and what lies beside them."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur import digests
from secateur.errors import ArtifactError
from secateur.sparsity.streaming.tensors import Entry, TensorFile, opened

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".ckpt", ".onnx", ".ot")
"""Ends of names of files that hold weights: these are not copied along with the configuration and the tokenizer."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint on disk.

    Attributes:
        path: its folder.
        files: its safetensors files by name, in order.
        entries: every tensor by name.
        beside: names of the files that are copied along: configuration, tokenizer, index.
    """

    path: Path
    files: dict[str, TensorFile]
    entries: dict[str, Entry]
    beside: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of all safetensors files."""
        return sum(file.size for file in self.files.values())

    @property
    def digest(self) -> str:
        """Tells one checkpoint from another: headers, sizes and times of change of its files, and its configuration.

        Values are not read; a file that is written to has another time.
        """
        files = [[n, f.size, f.path.stat().st_mtime_ns, f.digest] for n, f in self.files.items()]
        return digests.of_json({"files": files, "config": digests.of_file(self.path / "config.json")})


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Look at a checkpoint: headers only.

    Args:
        path: folder with ``config.json`` and ``model.safetensors``, or ``model.safetensors.index.json`` and the files
            that it names.

    Raises:
        ArtifactError: files are missing or damaged, or the index contradicts them; it says all of it.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ArtifactError(f"{str(path)!r} is no folder: give that of a checkpoint, with config.json and safetensors")
    if not (folder / "config.json").is_file():
        raise ArtifactError(f"{str(path)!r} has no config.json: give a checkpoint in the layout of transformers")
    where = _index(folder)
    names = sorted(set(where.values())) if where is not None else [SINGLE]
    files = _opened(folder, names)
    entries = {name: entry for file in files.values() for name, entry in file.entries.items()}
    if where is not None:
        _check_index(folder, where, files)
        entries = {name: files[file].entries[name] for name, file in where.items()}
    beside = [f.name for f in sorted(folder.iterdir()) if f.is_file() and f.suffix not in WEIGHTS]
    return Checkpoint(path=folder, files=files, entries=entries, beside=tuple(beside))


def _index(folder: Path) -> dict[str, str] | None:
    """The file of each tensor; None where one file has them all."""
    file = folder / INDEX
    if not file.is_file():
        if (folder / SINGLE).exists():
            return None
        raise ArtifactError(
            f"{str(folder)!r} has neither {SINGLE} nor {INDEX}: save the model with safe_serialization=True"
        )
    try:
        said: Any = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
        where = {str(name): str(place) for name, place in said.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"can't read the index {str(file)!r}: {error}. It is damaged: get it again") from error
    if away := sorted({place for place in where.values() if Path(place).name != place}):
        raise ArtifactError(f"{str(file)!r} names files outside its folder: {', '.join(away[:3])}")
    return where


def _opened(folder: Path, names: list[str]) -> dict[str, TensorFile]:
    """All files, or one error for all that are no use."""
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ArtifactError(
            f"{len(missing)} of the {len(names)} files of {str(folder)!r} are missing: {', '.join(missing[:5])}. "
            "Get them again"
        )
    files: dict[str, TensorFile] = {}
    bad: list[str] = []
    for name in names:
        try:
            files[name] = opened(folder / name)
        except ArtifactError as error:
            bad.append(str(error))
    if bad:
        raise ArtifactError("; ".join(bad[:5]) + (f"; and {len(bad) - 5} more" if len(bad) > 5 else ""))
    return files


def _check_index(folder: Path, where: dict[str, str], files: dict[str, TensorFile]) -> None:
    """Tensors of the index are in their files, and the other way round."""
    lost = [f"{name} (in {place})" for name, place in where.items() if name not in files[place].entries]
    extra = [f"{name} (in {p})" for p, file in files.items() for name in file.entries if where.get(name) != p]
    if lost or extra:
        told = [f"it names {len(lost)} that are not there: {', '.join(lost[:3])}"] if lost else []
        told += [f"it leaves out {len(extra)} that are: {', '.join(extra[:3])}"] if extra else []
        raise ArtifactError(f"the index of {str(folder)!r} does not fit its files; {'; '.join(told)}. Get both again")


def same_place(a: Path, b: Path) -> bool:
    """Whether two paths are one folder, or one lies in the other."""
    first, second = (Path(os.path.realpath(p)) for p in (a, b))
    return first == second or first in second.parents or second in first.parents
