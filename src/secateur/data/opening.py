"""Data sets of Hugging Face's ``datasets`` opened from local files, without ever reaching for the network.

They are opened by the readers of single formats, not by ``load_dataset``, which tells a server.
"""

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from secateur.data.splitting import split_name
from secateur.errors import DataError, MissingExtra

READERS = {".parquet": "from_parquet", ".csv": "from_csv", ".json": "from_json", ".jsonl": "from_json"}
SAVED = ("dataset_dict.json", "dataset_info.json", "state.json")  # of which save_to_disk writes some


def open_splits(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The rows of each split, of which "train" is one, and the names of splits that are none of ours."""
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra("datasets", "data", "reading hf:PATH") from error
    if not path.exists():
        raise DataError(
            f"no file or directory {str(path)!r}: hf: reads local files only. Get a data set of the hub once, by "
            "datasets.load_dataset(...).save_to_disk(PATH)"
        )
    try:
        with _quiet(datasets):
            named = _read(datasets, path)
    except DataError:
        raise
    except Exception as error:  # each format has errors of its own
        raise DataError(
            f"{path} can't be read by datasets {datasets.__version__} ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}). Give what save_to_disk wrote, or parquet, csv or json files"
        ) from error
    return _by_split(path, named)


def _read(datasets: Any, path: Path) -> dict[str, Any]:
    """The rows of each split, under the names that they have."""
    if any((path / name).is_file() for name in SAVED):
        found = datasets.load_from_disk(str(path.resolve()))
        return dict(found) if isinstance(found, dict) else {"train": found}
    return {split: _rows(datasets, files) for split, files in _files(path).items()}


@contextmanager
def _quiet(datasets: Any) -> Generator[None]:
    """No progress bars inside: a terminal has one at a time, and that is the run's."""
    if datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


def _rows(datasets: Any, files: list[Path]) -> Any:
    """The rows of files of one format."""
    reader = getattr(datasets.Dataset, READERS[files[0].suffix.lower()])
    return reader([str(file.resolve()) for file in files])


def _files(path: Path) -> dict[str, list[Path]]:
    """The files of each split."""
    if path.is_file():
        if path.suffix.lower() not in READERS:
            raise DataError(f"{path} is none of {', '.join(READERS)}: give such a file, or a directory of them")
        return {"train": [path]}
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in READERS and file.is_file())
    kinds = sorted({READERS[file.suffix.lower()] for file in files})
    if len(kinds) != 1:
        what = "files of several formats" if kinds else f"no {', '.join(READERS)} file"
        raise DataError(f"{path} holds {what}: give a directory with files of one format, or what save_to_disk wrote")
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(_split_of(file.relative_to(path)), []).append(file)
    return found


def _split_of(file: Path) -> str:
    """The split that a file's name, or one of its folders, names; "train" if none does."""
    for part in reversed(file.with_suffix("").parts):
        words = part.replace("-", " ").replace("_", " ").replace(".", " ").split()
        for word in words:
            if split_name(word) is not None:
                return word
    return "train"


def _by_split(path: Path, named: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The rows under our names of splits, and the names of others; a single one counts as the training split."""
    if len(named) == 1:
        named = {"train": next(iter(named.values()))}
    found: dict[str, Any] = {}
    for name, rows in named.items():
        split = split_name(name)
        if split in found:
            raise DataError(f"{path}: {name!r} is a second {split} split. Keep one of them")
        if split is not None:
            found[split] = rows
    if "train" not in found:
        raise DataError(f"{path} has the splits {listed(named)}: one of them must be called train")
    return found, [name for name in named if split_name(name) is None]


def listed(names: Iterable[Any]) -> str:
    """Names with commas."""
    return ", ".join(map(str, names)) or "none"
