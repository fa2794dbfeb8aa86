"""Folders of images, one folder a class."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from secateur.data.augmenting import Augmentation
from secateur.data.images import DEVIATION, MEAN, ImageSource, check_images
from secateur.data.loading import Data, of_parts
from secateur.data.splitting import hold_out, split_name
from secateur.errors import DataError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


@dataclass(frozen=True)
class Images:
    """Images on disk: their paths, and the class of each."""

    paths: list[Path]
    labels: list[int]

    def source(self, size: int, augment: Augmentation) -> ImageSource:
        """A source that reads them."""
        return ImageSource(self.at, self.labels, size=size, augment=augment, name=lambda i: str(self.paths[i]))

    def at(self, positions: Sequence[int]) -> list[Path]:
        """The paths of some of them."""
        return [self.paths[i] for i in positions]


def image_folder(path: Path, *, batch_size: int, seed: int, image_size: int, augment: Augmentation) -> Data:
    """Images of ``path/train``, ``path/val`` and ``path/test``, or of ``path`` with one folder a class.

    Where a split has no folder, a stratified part of another is held out by a fixed seed: half of ``val`` for testing,
    15 % of ``train`` for validation, or both out of everything. Pixels are normalised by ImageNet's mean and deviation.

    Args:
        path: the folder.
        batch_size: images in a batch.
        seed: of the order and the augmentation of training images; the split does not depend on it.
        image_size: side of the square images in pixels, at least 1.
        augment: what happens to training images.
    """
    check_images(image_size, "reading image folders")
    folders = _split_folders(path)
    classes = _class_names(folders["train"])
    found = {name: _images(folder, classes) for name, folder in folders.items()}
    return of_parts(
        hold_out({name: images.labels for name, images in found.items()}),
        lambda split, training: found[split].source(image_size, augment if training else "none"),
        batch_size=batch_size,
        seed=seed,
        classes=len(classes),
        description=f"{path}, {len(classes)} classes at {image_size}x{image_size}, augment={augment}",
        scaled=(MEAN, DEVIATION),
    )


def _split_folders(path: Path) -> dict[str, Path]:
    """The folder of each split; only "train" where ``path`` holds one folder a class."""
    if not path.is_dir():
        raise DataError(f"no folder {str(path)!r}: give one with train and val folders, or with one folder a class")
    named = [(split_name(p.name), p) for p in sorted(path.iterdir()) if p.is_dir()]
    found = {name: folder for name, folder in named if name is not None}
    if "train" not in found:
        return {"train": path}
    twice = [folder.name for name, folder in named if name is not None and found[name] is not folder]
    if twice:
        raise DataError(f"{path} holds two folders for one split: {', '.join(twice)} beside others. Keep one of each")
    return found


def _class_names(folder: Path) -> list[str]:
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(names) < 2:
        what = f"only {names[0]!r}" if names else "none"
        raise DataError(f"{folder} must hold one folder for each class, at least two; there is {what}")
    return names


def _images(folder: Path, classes: list[str]) -> Images:
    """All images of a split, in the order of their names."""
    strangers = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name not in classes and p.name[0] != ".")
    if strangers:
        raise DataError(f"{folder} holds classes that the training images lack: {', '.join(strangers)}")
    found = {
        name: sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        for name in classes
    }
    empty = [name for name, paths in found.items() if not paths]
    if empty:
        raise DataError(f"no image in {', '.join(str(folder / name) for name in empty)}: every class needs some")
    pairs = [(path, label) for label, name in enumerate(classes) for path in found[name]]
    return Images([path for path, _ in pairs], [label for _, label in pairs])
