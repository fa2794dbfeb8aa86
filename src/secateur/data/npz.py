"""Samples in one .npz file: images as bytes, floating-point numbers of any shape, or tokens.

Shape letters: N samples, C channels, H rows, W columns, T tokens.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from secateur.data.arrays import Array, array_names, read_arrays
from secateur.data.augmenting import Augmentation, cropped, mirrored
from secateur.data.batches import CHEAP, Augment, Source, fingerprint
from secateur.data.loading import Data, of_parts
from secateur.data.splitting import SPLITS, hold_out, split_name
from secateur.errors import DataError

INPUTS = {"x", "image", "images", "input", "inputs", "data", "features", "ids", "input_ids", "tokens"}
LABELS = {"y", "label", "labels", "target", "targets"}
CHANNELS = (1, 3, 4)  # counts that leave no doubt which dim of an image they are
CHUNK = 2**22  # bytes of an array that are looked at in one go
AUGMENTS: dict[Augmentation, Augment | None] = {"none": None, "flip": mirrored, "standard": cropped}


@dataclass(frozen=True)
class Form:
    """What the samples of an array are.

    Args:
        kind: "images" of bytes, "numbers" or "tokens".
        last: whether the channels come last, so have to be moved.
        shape: of a sample, as the model gets it.
    """

    kind: str
    last: bool
    shape: tuple[int, ...]

    def tensor(self, rows: Array) -> Tensor:
        """Samples (N, ...) as a tensor of their own: float32, tokens as int64, channels first."""
        rows = rows.astype(np.int64 if self.kind == "tokens" else np.float32)
        found = torch.from_numpy(np.moveaxis(rows, -1, 1) if self.last else rows)
        return found.reshape(len(rows), *self.shape).contiguous()

    def __str__(self) -> str:
        return f"{self.kind} of {'x'.join(map(str, self.shape))}"


class ArraySource(Source):
    """Samples of an array, made into tensors as they are asked for.

    Args:
        array: (samples, ...), in memory or mapped.
        labels: (samples,), int64.
        ready: from some of its rows to a batch of inputs.
        augment: changes a batch of inputs at random.
    """

    def __init__(
        self, array: Array, labels: Tensor, ready: Callable[[Array], Tensor], augment: Augment | None = None
    ) -> None:
        self.array, self.labels, self.ready, self.augment = array, labels, ready, augment

    def __len__(self) -> int:
        return len(self.array)

    def plain(self) -> Self:
        made = copy.copy(self)
        made.augment = None
        return made

    def fetch(self, positions: Sequence[int], draws: Tensor) -> tuple[Tensor, Tensor]:
        inputs = self.ready(self.array[np.asarray(positions)])
        return (self.augment(inputs, draws) if self.augment else inputs), self.labels_at(positions)

    def fingerprints(self, positions: Sequence[int]) -> list[bytes] | None:
        if self.array.nbytes > CHEAP:
            return None
        return [fingerprint(row.tobytes()) for rows in chunks(self.array, positions) for row in rows]


def npz(path: Path, *, batch_size: int, seed: int, augment: Augmentation) -> Data:
    """Arrays x_train, y_train, x_test, y_test and maybe x_val, y_val of one file, or under other common names.

    Bytes (uint8) of shape (N, H, W), (N, H, W, C) or (N, C, H, W) are images: they become (N, C, H, W), scaled to
    [0, 1] and normalised by mean and deviation of each channel over the training part. Floating-point numbers stay as
    they are, but for channels that plainly come last; whole numbers (N, T) are tokens. A missing split is held out, as
    in `hold_out`. Nothing is unpickled.

    Args:
        path: the file.
        batch_size: samples in a batch.
        seed: of the order and the augmentation of training samples; the split does not depend on it.
        augment: what happens to training images.
    """
    there = array_names(path)
    names = _named(path, there)
    arrays = read_arrays(path, [name for pair in names.values() for name in pair])
    labels = {split: _labels(arrays[y], y, len(arrays[x]), x) for split, (x, y) in names.items()}
    inputs = {split: arrays[x] for split, (x, _) in names.items()}
    form = _form({names[split][0]: array for split, array in inputs.items()})
    if augment != "none" and (form.kind == "tokens" or len(form.shape) != 3):
        raise DataError(f"augment={augment!r} is for images, and {path} holds {form}: leave it out, or give 'none'")
    for split, array in inputs.items():
        _check_finite(array, names[split][0])
    parts = hold_out({split: found.tolist() for split, found in labels.items()})
    ready, words, scaled = form.tensor, "", None
    if form.kind == "images":
        mean, deviation = moments(inputs[parts["train"].split], parts["train"].positions, form)
        ready, scaled = _normalised(form, mean, deviation), (mean, deviation)
        words = f", normalised by the training part's mean {_listed(mean)} and deviation {_listed(deviation)}"

    def source(split: str, training: bool) -> ArraySource:
        return ArraySource(inputs[split], labels[split], ready, AUGMENTS[augment] if training else None)

    classes = 1 + max(int(found.max()) for found in labels.values() if len(found))
    unused = [name for name in there if name not in arrays]
    return of_parts(
        parts,
        source,
        batch_size=batch_size,
        seed=seed,
        classes=classes,
        description=f"{path}, {classes} classes, {form}{words}{', not used: ' if unused else ''}{', '.join(unused)}",
        scaled=scaled,
    )


def moments(array: Array, positions: Sequence[int], form: Form) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel of images of bytes, in [0, 1], over some of them; no deviation below 1/255."""
    first = second = torch.zeros(form.shape[0], dtype=torch.float64)
    count = len(positions) * form.shape[1] * form.shape[2]
    for rows in chunks(array, positions):
        pixels = form.tensor(rows).double() / 255
        first = first + pixels.sum((0, 2, 3))
        second = second + pixels.square().sum((0, 2, 3))
    mean = first / count
    deviation = (second / count - mean.square()).clamp(min=0).sqrt().clamp(min=1 / 255)
    return mean.tolist(), deviation.tolist()


def chunks(array: Array, positions: Sequence[int]) -> Iterator[Array]:
    """Some rows of an array, a few megabytes at a time."""
    step = _rows(array, CHUNK)
    for start in range(0, len(positions), step):
        yield array[np.asarray(positions[start : start + step])]


def _rows(array: Array, size: int) -> int:
    """How many rows of an array fit into so many bytes, at least one."""
    return max(1, size // max(1, array[:1].nbytes))


def _named(path: Path, names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """The names of inputs and labels of each split.

    A name says which split and which of the two it is, in any order: x_train, train_images, labels_val. One that says
    no split is of the training split.
    """
    found: dict[tuple[str, str], str] = {}
    for name in names:
        words = name.lower().replace("-", "_").split("_")
        splits = [split for split in map(split_name, words) if split is not None] or ["train"]
        rest = "_".join(word for word in words if split_name(word) is None)
        role = "x" if rest in INPUTS else "y" if rest in LABELS else ""
        if role and (splits[0], role) in found:
            raise DataError(
                f"{path}: {found[splits[0], role]!r} and {name!r} both look like one array. Keep one of them"
            )
        if role and len(splits) == 1:
            found[splits[0], role] = name
    pairs = {split: (found.get((split, "x"), ""), found.get((split, "y"), "")) for split in SPLITS}
    halves = [f"{x or y} without its {'labels' if x else 'inputs'}" for x, y in pairs.values() if bool(x) != bool(y)]
    if halves or not pairs["train"][0]:
        raise DataError(
            f"{path} holds {', '.join(names) or 'no array'}: there is {' and '.join(halves) or 'no training data'}. It "
            "needs x_train and y_train, and x_test and y_test, x_val and y_val where there are such splits; "
            "train_images and train_labels will do, too"
        )
    return {split: pair for split, pair in pairs.items() if pair[0]}


def _labels(array: Array, name: str, count: int, inputs: str) -> Tensor:
    """Class labels (N,) from an array (N,) or (N, 1)."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise DataError(
            f"{name} has the shape {array.shape}: it must hold one class for each sample, (N,) or (N, 1). For rows of "
            f"zeros with a one, save {name}.argmax(1); for several labels a sample, give a function as --data"
        )
    if array.dtype.kind not in "iu":
        raise DataError(
            f"{name} is {array.dtype}: classes are whole numbers from 0. Save {name}.astype('int64'); for names of "
            f"classes, np.unique({name}, return_inverse=True)[1]"
        )
    if len(array) != count:
        raise DataError(f"{inputs} holds {count} samples, and {name} {len(array)} labels: there must be one for each")
    return torch.from_numpy(array.astype(np.int64))


def _form(arrays: Mapping[str, Array]) -> Form:
    """The form that all arrays share."""
    forms = {name: _form_of(array, name) for name, array in arrays.items()}
    if len(set(forms.values())) > 1:
        listed = ", ".join(f"{name} {form}" for name, form in forms.items())
        raise DataError(f"the splits differ: {listed}. Bring them all to one type and shape")
    return next(iter(forms.values()))


def _form_of(array: Array, name: str) -> Form:
    kind, shape = array.dtype.kind, tuple(array.shape[1:])
    if kind == "f" and shape:
        last = len(shape) == 3 and _channels_last(shape) is True
        return Form("numbers", last, (shape[2], *shape[:2]) if last else shape)
    if array.dtype == np.uint8 and len(shape) == 2:
        return Form("images", False, (1, *shape))
    if array.dtype == np.uint8 and len(shape) == 3:
        last = _channels_last(shape)
        if last is None:
            raise DataError(
                f"{name} has the shape {array.shape}: which of these are the channels can't be told. Save it as floats "
                f"(N, C, H, W), such as {name}.astype('float32') / 255"
            )
        return Form("images", last, (shape[2], *shape[:2]) if last else shape)
    if kind in "iu" and len(shape) == 1:
        return Form("tokens", False, shape)
    raise DataError(
        f"{name} is {array.dtype} of shape {array.shape}: give images as uint8 of (N, H, W), (N, H, W, C) or "
        "(N, C, H, W), numbers as float32 of any shape (N, ...), or tokens as whole numbers (N, T)"
    )


def _channels_last(shape: tuple[int, ...]) -> bool | None:
    """Whether the last of a sample's three dims holds the channels; False for the first, None where it isn't plain."""
    first, last = shape[0] in CHANNELS, shape[2] in CHANNELS
    if first != last:
        return last
    if not first and shape[1] in (shape[0], shape[2]) and shape[0] != shape[2]:
        return shape[1] == shape[0]  # square images of some other number of channels
    return None


def _normalised(form: Form, mean: Sequence[float], deviation: Sequence[float]) -> Callable[[Array], Tensor]:
    middle, spread = (torch.tensor(values).view(-1, 1, 1) for values in (mean, deviation))
    return lambda rows: (form.tensor(rows) / 255 - middle) / spread


def _check_finite(array: Array, name: str) -> None:
    """Raise where numbers are NaN or infinite; of a large array, only its first part is looked at."""
    if array.dtype.kind != "f" or not len(array):
        return
    rows = range(min(len(array), _rows(array, CHEAP)))
    bad = [~np.isfinite(part.reshape(len(part), -1)).all(1) for part in chunks(array, rows)]
    wrong = np.flatnonzero(np.concatenate(bad))
    if len(wrong):
        raise DataError(
            f"{name} holds NaN or infinity in {len(wrong)} of {len(rows)} samples, the first at position {wrong[0]}: "
            "take them out, or put numbers in their place (np.nan_to_num)"
        )


def _listed(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.3f}" for value in values) + ")"
