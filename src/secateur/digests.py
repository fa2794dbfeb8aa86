"""Hashes (SHA-256, in hex) of files, of plain data and of tensors, for knowing them again."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.modules import named_tensors

CHUNK = 2**20  # numbers that are hashed at once


def of_file(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_text(text: str) -> str:
    """Of a text in UTF-8."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def of_json(data: Any) -> str:
    """Of plain data, however it is laid out in a file: the order of keys and white space don't count."""
    return of_text(json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False))


def of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Of named tensors: names, types, shapes and values, in the order of the names.

    Example:
        >>> a = {"x": torch.zeros(2), "y": torch.ones(1)}
        >>> of_tensors(a) == of_tensors(dict(reversed(a.items())))
        True
        >>> of_tensors(a) == of_tensors({**a, "x": torch.zeros(1, 2)})
        False
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        data = tensor.detach().cpu().contiguous().flatten()
        for start in range(0, data.numel(), CHUNK):
            piece: Any = data[start : start + CHUNK].view(torch.uint8).numpy()
            digest.update(piece)
    return digest.hexdigest()


def of_model(model: nn.Module) -> str | None:
    """Of a model's parameters and buffers; None where it has no values to hash (the meta device, packed weights)."""
    tensors = named_tensors(model)
    if any(t.is_meta or t.layout != torch.strided or t.is_quantized for t in tensors.values()):
        return None
    try:
        return of_tensors(tensors)
    except (RuntimeError, TypeError, NotImplementedError):  # tensors of a kind of their own
        return None
