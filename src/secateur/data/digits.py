"""The embedded data: handwritten digits that come with scikit-learn."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.data.augmenting import Augmentation
from secateur.data.batches import Batches, TensorSource
from secateur.data.loading import Data
from secateur.data.splitting import SPLIT_SEED, stratified
from secateur.errors import DataError, MissingExtra

SPLIT = (0.7, 0.1)  # train, validation; the rest is the test split


def shifted(images: Tensor, draws: Tensor) -> Tensor:
    """Each image moved by up to one pixel along each direction, zeros moving in.

    Args:
        images: (batch, channels, height, width).
        draws: (batch,), a random whole number for each image.
    """
    batch, _, height, width = images.shape
    padded = F.pad(images, (1, 1, 1, 1))
    top, left = (draws % 3)[:, None], (draws // 3 % 3)[:, None]
    rows = (top + torch.arange(height))[:, None, :, None]
    columns = (left + torch.arange(width))[:, None, None, :]
    return padded[torch.arange(batch)[:, None, None, None], torch.arange(images.shape[1])[:, None, None], rows, columns]


def digits(*, batch_size: int, seed: int, augment: Augmentation = "standard") -> Data:
    """1,797 images of 8x8, padded to 10x10, values in [0, 1]; stratified 70 : 10 : 20 by a fixed seed.

    Args:
        batch_size: samples in a batch.
        seed: of the order and the shifts of the training batches; the split does not depend on it.
        augment: "standard" moves each training image by up to one pixel, "none" leaves it.
    """
    if augment == "flip":
        raise DataError("augment='flip' would mirror digits, which makes them none: give 'standard' (shifts) or 'none'")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtra("scikit-learn", "train", "the embedded digits data") from error
    bunch: Any = load_digits()
    images = F.pad(torch.as_tensor(bunch.images, dtype=torch.float32)[:, None] / 16, (1, 1, 1, 1))
    labels = torch.as_tensor(bunch.target, dtype=torch.long)
    source = TensorSource(images, labels)
    moving = TensorSource(images, labels, augment=shifted if augment == "standard" else None)
    train, validation, test = stratified(labels.tolist(), SPLIT, SPLIT_SEED)
    return Data(
        train=Batches(moving, train, batch_size=batch_size, shuffle=True, seed=seed),
        validation=Batches(source, validation, batch_size=256),
        test=Batches(source, test, batch_size=256),
        classes=10,
        description=f"scikit-learn digits, 10x10: {len(train)} train, {len(validation)} validation, {len(test)} test",
    )
