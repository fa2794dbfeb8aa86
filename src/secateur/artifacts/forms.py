"""The two forms of a saved result: a directory, and a single file into which that directory is folded.

In the single file the tensors of ``model.safetensors`` are called ``model/NAME``, those of other files likewise, and
the texts (artifact.json, plan.json, README.md) are entries of its metadata.
"""

import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from secateur import digests
from secateur.artifacts.record import (
    CARD,
    FILES,
    PACKED,
    PLAIN,
    RECORD,
    VERSION,
    checked,
    is_file_name,
    seal,
)
from secateur.errors import ArtifactError, OutputError
from secateur.files import atomic, is_our_card, write_text
from secateur.packed import HEADER, pack, unpack
from secateur.strict import MAX_JSON, parse, read_text

ENDING = ".safetensors"
MAX_EMPTY = 2**31  # places of a dim, or of all dims but the empty ones, of a tensor without values
ALTERED = "is not the file that was saved: it was truncated or altered. Copy it again from where it was made."


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A saved result whose files were checked against their hashes.

    Attributes:
        path: the directory, or the single file.
        record: what artifact.json says, in the newest version's form.
        size_bytes: of all files that the record names.
    """

    path: Path
    record: dict[str, Any]
    size_bytes: int

    @property
    def single(self) -> bool:
        """Whether it is a single file."""
        return is_single(self.path)

    def json(self, name: str) -> dict[str, Any]:
        """One of its JSON files.

        Raises:
            ArtifactError: it can't be read.
        """
        return parse(_metadata(self.path)[name] if self.single else read_text(self.path / name), f"{self.path}: {name}")

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one of its files, packed or not, each in memory of its own: in the file they lie where the
        header ends, and kernels round differently where a tensor does not start at a full word of the vector unit.

        Raises:
            ArtifactError: there is no such file, or it can't be read.
        """
        if name not in self.record["files"] or not name.endswith(ENDING):
            raise ArtifactError(f"{self.path} holds no {name}; it has {', '.join(self.record['files'])}")
        with _readable(self.path if self.single else self.path / name):
            found = dict(_folded(self.path, name)) if self.single else load_file(self.path / name)
            stored = {at: _sane(tensor, at) for at, tensor in found.items()}
            return {at: tensor.clone() if tensor is stored.get(at) else tensor for at, tensor in unpack(stored).items()}

    @property
    def packed(self) -> bool:
        """Whether tensors with zeros are packed in it."""
        return self.record["version"] > PLAIN


def is_single(path: Path) -> bool:
    """Whether a result of this path is a single file: the path's ending says so."""
    return path.suffix == ENDING and not path.is_dir()


def open_saved(path: str | Path) -> Saved:
    """The record of a saved result, once every file that it names is what was saved.

    Raises:
        ArtifactError: it is no result of ours, or one that was truncated or altered.
    """
    place = Path(path)
    return _open_single(place) if is_single(place) else _open_directory(place)


def _open_directory(folder: Path) -> Saved:
    if not (folder / RECORD).is_file():
        raise ArtifactError(
            f"{folder} holds no saved result (there is no artifact.json); give the directory that sc.save "
            f"or a run wrote"
        )
    record = checked(parse(read_text(folder / RECORD), str(folder / RECORD)), str(folder / RECORD))
    for name, wanted in record["files"].items():
        if not (folder / name).is_file():
            raise ArtifactError(f"{folder / name} is missing")
        if fingerprint(folder / name) != wanted:
            raise ArtifactError(f"{folder / name} {ALTERED}")
    total = sum((folder / name).stat().st_size for name in (RECORD, *record["files"]))
    return Saved(path=folder, record=record, size_bytes=total)


def _open_single(file: Path) -> Saved:
    if not file.is_file():
        raise ArtifactError(f"{file} holds no saved result (there is no such file); give what sc.save wrote")
    texts = _metadata(file)
    if RECORD not in texts:
        raise ArtifactError(f"{file} holds no saved result: weights alone, without what rebuilds their model")
    record = checked(parse(texts[RECORD], f"{file}: {RECORD}"), f"{file}: {RECORD}")
    files: dict[str, Any] = record["files"]
    known = {CARD, RECORD, "format"}
    if unknown := [name for name in texts if name not in files and name not in known]:
        raise ArtifactError(f"{file} holds {unknown[0]}, which its record does not know")
    stems = {name.removesuffix(ENDING) for name in files if name.endswith(ENDING)}
    with _readable(file), safe_open(file, "pt") as opened:
        if foreign := [name for name in opened.keys() if name.partition("/")[0] not in stems]:  # noqa: SIM118
            raise ArtifactError(f"{file} holds the tensor {foreign[0]}, which its record does not know")
    for name, wanted in files.items():
        if not name.endswith(ENDING) and name not in texts:
            raise ArtifactError(f"{name} is missing in {file}")
        with _readable(file):
            got = _text_print(texts[name]) if name in texts else tensors_print(dict(_folded(file, name)))
        if got != wanted:
            raise ArtifactError(f"{name} in {file} {ALTERED}")
    return Saved(path=file, record=record, size_bytes=file.stat().st_size)


# ---------------------------------------------------------------------- reading


@contextmanager
def _readable(file: Path) -> Generator[None]:
    try:
        yield
    except (OSError, SafetensorError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(f"{file} can't be read: {error}") from error


def _metadata(file: Path) -> dict[str, str]:
    with _readable(file), safe_open(file, "pt") as opened:
        found: Any = opened.metadata() or {}
    if sum(map(len, found.values())) > MAX_JSON:
        raise ArtifactError(f"{file} has more than {MAX_JSON} bytes of texts")
    return found


def _folded(file: Path, name: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of one of the files that were folded into a single one."""
    start = name.removesuffix(ENDING) + "/"
    with safe_open(file, "pt") as opened:
        for key in opened.keys():  # noqa: SIM118 (it is no mapping)
            if key.startswith(start):
                yield key.removeprefix(start), opened.get_tensor(key)


def _sane(tensor: Tensor, name: str) -> Tensor:
    """A tensor without values costs no bytes in a file, whatever its shape says."""
    size = 1
    for places in tensor.shape:
        size *= max(places, 1)
    if not tensor.numel() and size > MAX_EMPTY:
        raise ValueError(f"{name} has the shape {list(tensor.shape)}, which no model has")
    return tensor


def fingerprint(file: Path) -> dict[str, Any]:
    """Hash and size of a file."""
    return {"sha256": digests.of_file(file), "bytes": file.stat().st_size}


def tensors_print(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Hash and size of tensors that have no file of their own."""
    return {"sha256": digests.of_tensors(tensors), "bytes": sum(t.numel() * t.element_size() for t in tensors.values())}


def _text_print(text: str) -> dict[str, Any]:
    return {"sha256": digests.of_text(text), "bytes": len(text.encode("utf-8", "surrogatepass"))}


# ---------------------------------------------------------------------- writing


def write(
    path: Path,
    record: Mapping[str, Any],
    texts: Mapping[str, str],
    tensors: Mapping[str, Mapping[str, Tensor]],
    card: str,
    *,
    plain: bool = False,
    overwrite: bool = False,
) -> None:
    """Write a result in the form that its path asks for. Nobody ever takes half of one for a result.

    Args:
        path: a directory, or a file that ends in ``.safetensors``.
        record: without "files" and "sha256", which are added; its version is raised where tensors are packed.
        texts: JSON by the name of its file.
        tensors: by the name of their file.
        card: the model card.
        plain: leave tensors with zeros as they are.
        overwrite: replace a result that is there.

    Raises:
        OutputError: the place is taken or can't be written.
    """
    assert all(is_file_name(name) for name in (*texts, *tensors))
    check_free(path, overwrite=overwrite)
    written = tensors if plain else _packed(tensors)
    versioned = {**record, "version": _version(record["version"], written)}
    (_write_single if is_single(path) else _write_directory)(path, versioned, texts, written, card)


def _packed(tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Mapping[str, Tensor]]:
    """The groups of tensors, weights packed where that saves bytes."""
    return {name: pack(held) if name in PACKED else held for name, held in tensors.items()}


def _version(least: int, tensors: Mapping[str, Mapping[str, Tensor]]) -> int:
    """The format's version that files with these tensors need."""
    return VERSION if any(HEADER in held for held in tensors.values()) else least


def check_free(path: Path, *, overwrite: bool) -> None:
    """Raise OutputError where a result can't be written to."""
    if is_single(path):
        if path.exists() and not overwrite:
            raise OutputError(f"{path} is there already; choose another place, or pass overwrite=True")
        return
    if (path / RECORD).exists() and not overwrite:
        raise OutputError(f"{path} holds a saved result already; choose another place, or pass overwrite=True")
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is a file; give a directory")


def add(saved: Saved, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Add groups of tensors to a result, or replace them. Weights are packed where the result's own are.

    Raises:
        OutputError: it can't be written.
    """
    tensors = _packed(tensors) if saved.packed else tensors
    version = _version(max(PLAIN, saved.record["version"]), tensors)
    if saved.single:
        texts = {name: text for name, text in _metadata(saved.path).items() if name in saved.record["files"]}
        held = {name: dict(_folded(saved.path, name)) for name in saved.record["files"] if name.endswith(ENDING)}
        record = {**saved.record, "version": version}
        _write_single(saved.path, record, texts, {**held, **tensors}, _metadata(saved.path).get(CARD, ""))
        return
    for name, held in tensors.items():
        _write_tensors(saved.path / name, held)
    files = {**saved.record["files"], **{name: fingerprint(saved.path / name) for name in tensors}}
    write_text(saved.path / RECORD, dumped(seal({**saved.record, "version": version, "files": files})))


def _write_single(
    file: Path,
    record: Mapping[str, Any],
    texts: Mapping[str, str],
    tensors: Mapping[str, Mapping[str, Tensor]],
    card: str,
) -> None:
    files = {name: _text_print(text) for name, text in texts.items()}
    files |= {name: tensors_print(held) for name, held in tensors.items()}
    metadata = {"format": "pt", RECORD: dumped(seal({**record, "files": files})), CARD: card, **texts}
    flat = {
        f"{name.removesuffix(ENDING)}/{at}": tensor for name, held in tensors.items() for at, tensor in held.items()
    }
    with made_folder(file.parent), atomic(file) as temporary:
        save_file(flat, temporary, metadata=metadata)


def _write_directory(
    folder: Path,
    record: Mapping[str, Any],
    texts: Mapping[str, str],
    tensors: Mapping[str, Mapping[str, Tensor]],
    card: str,
) -> None:
    with made_folder(folder):
        (folder / RECORD).unlink(missing_ok=True)  # from here to the last write the directory is no result
    for name, held in tensors.items():
        _write_tensors(folder / name, held)
    for name, text in texts.items():
        write_text(folder / name, text)
    if not (folder / CARD).exists() or is_our_card(folder / CARD):
        write_text(folder / CARD, card)
    files = {name: fingerprint(folder / name) for name in dict.fromkeys((*FILES, *texts, *tensors))}
    write_text(folder / RECORD, dumped(seal({**record, "files": files})))


def _write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    with atomic(file) as temporary:
        save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, temporary, metadata={"format": "pt"})


@contextmanager
def made_folder(folder: Path) -> Generator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise OutputError(f"{folder} can't be made: {error}") from error


def dumped(data: Any) -> str:
    """JSON as our files have it."""
    return json.dumps(data, indent=1, allow_nan=False) + "\n"
