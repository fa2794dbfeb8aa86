"""Images or tokens in data sets of Hugging Face's ``datasets``, from local files.

Images are read by us, because ``datasets`` would fetch one whose path is an address.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from secateur.data.augmenting import Augmentation
from secateur.data.images import DEVIATION, IMAGE_SIZE, MEAN, ImageSource, check_images
from secateur.data.loading import Data, of_parts
from secateur.data.opening import listed, open_splits
from secateur.data.splitting import hold_out
from secateur.data.tokens import TokenSource
from secateur.errors import DataError

IMAGE_NAMES = ("image", "img", "images", "picture", "file_name")
LABEL_NAMES = ("label", "labels", "fine_label", "class", "target")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How samples become batches.

    Args:
        batch_size: samples in a batch.
        seed: of the order and the augmentation of training samples.
        image_size: side in pixels of the square that an image becomes; None is 224.
        augment: what happens to training images; None mirrors them.
    """

    batch_size: int
    seed: int
    image_size: int | None = None
    augment: Augmentation | None = None


def hugging_face(
    path: Path, options: Options, *, image_column: str | None = None, label_column: str | None = None
) -> Data:
    """What ``save_to_disk`` wrote, or parquet, csv or json files: images with labels, or tokens.

    Missing splits are held out, as in `hold_out`.

    Args:
        path: the directory or file. In a directory of files, their names, or those of their folders, say which split
            they are of: train-00000.parquet, test/part.csv.
        options: how samples become batches.
        image_column: the column of images, where that isn't plain.
        label_column: the column of labels, where that isn't plain.
    """
    sets, others = open_splits(path)
    columns: list[str] = sets["train"].column_names
    missing = [name for name in (image_column, label_column) if name is not None and name not in columns]
    if missing:
        raise DataError(f"{path} has no column {' and no '.join(map(repr, missing))}: it has {listed(columns)}")
    for split, rows in sets.items():
        if set(rows.column_names) != set(columns):
            raise DataError(
                f"{path}: the splits differ in their columns, train has {listed(columns)} and {split} "
                f"{listed(rows.column_names)}. Bring them to the same ones"
            )
    if image_column is None and "input_ids" in columns:
        data = _tokens(path, sets, options, label_column)
    else:
        data = _images(path, sets, options, image_column or _image_column(path, sets["train"]), label_column)
    return replace(data, description=f"{data.description}; not used: {listed(others)}") if others else data


def _image_column(path: Path, rows: Any) -> str:
    """The one column that holds images."""
    columns: list[str] = rows.column_names
    typed = [name for name in columns if _holds_images(rows.features[name])]
    texts = [name for name in columns if getattr(rows.features[name], "dtype", "") in ("string", "large_string")]
    named = [name for name in texts if name in IMAGE_NAMES]
    found = typed or named
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"{path} has several columns of images, {listed(found)}: choose one by --data-args.image-column"
        )
    advice = (
        f"Text has to be tokenized first: rows.map(lambda row: tokenizer(row[{texts[0]!r}], truncation=True), "
        "batched=True).save_to_disk(PATH), which gives columns input_ids and attention_mask"
        if texts
        else "For anything else, give a function 'package.module:function' that returns loaders"
    )
    raise DataError(f"{path} has the columns {listed(columns)}: there is neither image nor input_ids. {advice}")


def _holds_images(feature: Any) -> bool:
    """Whether a column is of images, or of files with their paths, as images are stored."""
    return type(feature).__name__ == "Image" or (isinstance(feature, dict) and {"bytes", "path"} == set(feature))


def _label_column(path: Path, columns: Sequence[str], given: str | None) -> str:
    found = [given] if given is not None else [name for name in LABEL_NAMES if name in columns]
    if len(found) == 1:
        return found[0]
    what = f"several columns that may be labels, {listed(found)}" if found else "no column label"
    raise DataError(f"{path} has {what}, among {listed(columns)}: choose one by --data-args.label-column")


def _images(path: Path, sets: Mapping[str, Any], options: Options, image: str, given: str | None) -> Data:
    size, augment = options.image_size if options.image_size is not None else IMAGE_SIZE, options.augment or "flip"
    check_images(size, "reading images")
    labels, classes = _class_labels(path, sets, _label_column(path, sets["train"].column_names, given))
    folder = path if path.is_dir() else path.parent

    def source(split: str, training: bool) -> ImageSource:
        return ImageSource(
            Stored(sets[split], image, folder),
            labels[split],
            size=size,
            augment=augment if training else "none",
            name=lambda row: f"{image} in row {row} of the split {split} of {path}",
        )

    words = f"{classes} classes at {size}x{size}, augment={augment}"
    return of_parts(
        hold_out(labels),
        source,
        batch_size=options.batch_size,
        seed=options.seed,
        classes=classes,
        description=f"{path}, {words}",
        scaled=(MEAN, DEVIATION),
    )


class Stored:
    """The images of a column, as they are stored.

    Args:
        rows: a split.
        column: which column.
        folder: where relative paths start.
    """

    def __init__(self, rows: Any, column: str, folder: Path) -> None:
        import datasets

        rows = rows.select_columns([column])
        raw = type(rows.features[column]).__name__ == "Image"
        self.rows = rows.cast_column(column, datasets.Image(decode=False)) if raw else rows
        self.column, self.folder = column, folder

    def __call__(self, positions: Sequence[int]) -> list[Path | bytes]:
        return [self._file(value) for value in self.rows[list(positions)][self.column]]

    def _file(self, value: Any) -> Path | bytes:
        if isinstance(value, dict):
            if value["bytes"] is not None:
                return value["bytes"]
            value = value["path"]
        if not value or "://" in value:
            raise DataError(
                f"the column {self.column} holds {value!r} instead of an image: only files on this machine are read. "
                "Store the images themselves, by datasets.Image()"
            )
        return self.folder / value


def _class_labels(path: Path, sets: Mapping[str, Any], column: str) -> tuple[dict[str, list[int]], int]:
    """The labels of each split as whole numbers, and how many classes there are."""
    feature = sets["train"].features[column]
    found: dict[str, list[Any]] = {split: list(rows[column]) for split, rows in sets.items()}
    empty = [split for split, values in found.items() if None in values]
    if empty:
        raise DataError(f"{path}: {column} is empty in some rows of {listed(empty)}. Take these rows out")
    dtype = str(getattr(feature, "dtype", feature))
    names: list[str] | None = getattr(feature, "names", None)
    other = [split for split, rows in sets.items() if getattr(rows.features[column], "names", None) != names]
    if other:
        raise DataError(f"{path}: {column} numbers the classes of {listed(other)} in another way than those of train")
    if names is None and "string" in dtype:
        names = sorted(set(found["train"]))
        number = {name: i for i, name in enumerate(names)}
        strangers = sorted({value for values in found.values() for value in values if value not in number})
        if strangers:
            raise DataError(f"{path}: {column} holds classes that the training split lacks: {listed(strangers)}")
        found = {split: [number[value] for value in values] for split, values in found.items()}
    elif not dtype.startswith(("int", "uint", "bool")):
        raise DataError(
            f"{path}: {column} is of {dtype}: classes are whole numbers from 0, or names. Choose another column by "
            "--data-args.label-column, or cast it, by rows.cast_column(...)"
        )
    labels = {split: [int(value) for value in values] for split, values in found.items()}
    highest = max((max(values, default=-1) for values in labels.values()), default=-1)
    return labels, len(names) if names is not None else highest + 1


def _tokens(path: Path, sets: Mapping[str, Any], options: Options, label: str | None) -> Data:
    if options.image_size is not None or options.augment not in (None, "none"):
        raise DataError(f"{path} holds tokens: image_size and augment are for images, so leave them out")
    sources = {split: TokenSource(rows, label, f"the split {split} of {path}") for split, rows in sets.items()}
    mixed = {" and ".join(source.names) for source in sources.values()}
    if len(mixed) > 1:
        raise DataError(
            f"{path}: the splits differ, one has {', another '.join(sorted(mixed))}. Store an "
            "attention_mask in all of them"
        )
    classes = None
    alike: dict[str, list[int]] = {}
    for split, source in sources.items():
        alike[split] = [0] * len(source) if source.labels is None else source.labels.tolist()
        if source.labels is not None:
            classes = max(classes or 0, 1 + max(alike[split], default=-1))
    return of_parts(
        hold_out(alike),
        lambda split, _: sources[split],
        batch_size=options.batch_size,
        seed=options.seed,
        classes=classes,
        description=f"{path}, tokens ({', '.join(sources['train'].names)})",
    )
