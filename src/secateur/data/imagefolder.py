"""Folders of images, one folder a class."""

import importlib.util
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.data.batches import Batches, stratified
from secateur.data.loading import ALIASES, Data
from secateur.errors import DataError, MissingExtra

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's red, green and blue, in [0, 1]
SPLIT_SEED = 0
HELD_OUT = 0.15  # fraction of the images that a split gets where it has no folder of its own


@dataclass(frozen=True)
class Images:
    """Images on disk: their paths, and the class of each."""

    paths: list[Path]
    labels: list[int]


class ImageSource:
    """Reads images as they are asked for, with a thread for each core.

    Args:
        images: what to read.
        size: side in pixels of the square that each image is scaled and cut to.
    """

    def __init__(self, images: Images, size: int) -> None:
        self.images, self.size = images, size
        self.workers = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="secateur-images")
        self.mean = torch.tensor(MEAN).view(3, 1, 1)
        self.deviation = torch.tensor(DEVIATION).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.images.paths)

    def fetch(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        pixels = torch.stack(list(self.workers.map(self.read, positions)))
        labels = torch.tensor([self.images.labels[i] for i in positions])
        return (pixels.float() / 255 - self.mean) / self.deviation, labels

    def read(self, position: int) -> Tensor:
        """One image as bytes (3, size, size): scaled until the shorter side fits, then its middle square."""
        from PIL import Image, ImageOps

        path = self.images.paths[position]
        try:
            with Image.open(path) as file:
                file.draft("RGB", (self.size, self.size))  # a JPEG is decoded no larger than needed
                image = ImageOps.fit(file.convert("RGB"), (self.size, self.size), Image.Resampling.BILINEAR)
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises on broken files
            raise DataError(f"{path} can't be read as an image ({error}): repair it or take it out") from error
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        return pixels.view(self.size, self.size, 3).permute(2, 0, 1)


def flipped(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image mirrored, left to right, with probability one half."""
    mirror = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(mirror, images.flip(-1), images)


def image_folder(path: Path, *, batch_size: int, seed: int, image_size: int) -> Data:
    """Images of ``path/train``, ``path/val`` and ``path/test``, or of ``path`` with one folder a class.

    Where a split has no folder, a stratified part of another is held out by a fixed seed: half of ``val`` for testing,
    15 % of ``train`` for validation, or both out of everything. Pixels are normalised by ImageNet's mean and deviation.

    Args:
        path: the folder.
        batch_size: images in a batch.
        seed: of the order and the mirroring of training images; the split does not depend on it.
        image_size: side of the square images in pixels, at least 1.
    """
    if importlib.util.find_spec("PIL") is None:
        raise MissingExtra("pillow", "vision", "reading image folders")
    if image_size < 1:
        raise DataError(f"image_size={image_size}: an image needs at least 1 pixel")
    folders = _split_folders(path)
    classes = _class_names(folders["train"])
    splits = _held_out({name: _images(folder, classes) for name, folder in folders.items()})
    counts = ", ".join(f"{len(images.paths)} {name}" for name, images in splits.items())

    def batches(name: str, **options: Any) -> Batches:
        source = ImageSource(splits[name], image_size)
        return Batches(source, range(len(source)), batch_size=batch_size, seed=seed, **options)

    return Data(
        train=batches("train", shuffle=True, augment=flipped),
        validation=batches("validation"),
        test=batches("test"),
        classes=len(classes),
        description=f"{path}, {len(classes)} classes at {image_size}x{image_size}: {counts}",
    )


def _split_folders(path: Path) -> dict[str, Path]:
    """The folder of each split; only "train" where ``path`` holds one folder a class."""
    if not path.is_dir():
        raise DataError(f"no folder {str(path)!r}: give one with train and val folders, or with one folder a class")
    found = {ALIASES.get(p.name, p.name): p for p in sorted(path.iterdir()) if p.is_dir()}
    if "train" not in found:
        return {"train": path}
    return {name: found[name] for name in ("train", "validation", "test") if name in found}


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


def _held_out(splits: dict[str, Images]) -> dict[str, Images]:
    """Training, validation and test images, missing ones taken from those that are there."""
    found = dict(splits)
    if "validation" not in splits and "test" not in splits:
        found["train"], found["validation"], found["test"] = _parts(splits["train"], 1 - 2 * HELD_OUT, HELD_OUT)
    elif "validation" not in splits:
        found["train"], found["validation"] = _parts(splits["train"], 1 - HELD_OUT)
    elif "test" not in splits:
        found["validation"], found["test"] = _parts(splits["validation"], 0.5)
    empty = [name for name, images in found.items() if not images.paths]
    if empty:
        raise DataError(f"too few images: none is left for {' and '.join(empty)}. Add images, or a folder for each")
    return found


def _parts(images: Images, *fractions: float) -> list[Images]:
    parts = stratified(images.labels, fractions, SPLIT_SEED)
    return [Images([images.paths[i] for i in part], [images.labels[i] for i in part]) for part in parts]
