"""Named tensors, those with zeros packed: what a safetensors file holds instead of them, and back.

A packed tensor NAME becomes ``NAME#values``, (v,), of its type, and ``NAME#places``, (b,) bytes. How it was packed
stands in a tensor of bytes, ``secateur.packed``: JSON with a version, so that it is hashed with the others.
"""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from secateur.errors import ArtifactError
from secateur.packed.choosing import EXPANSION, described, form_of, smallest
from secateur.packed.words import WORDS, words
from secateur.strict import items, parse, whole

HEADER = "secateur.packed"
VERSION = 1
VALUES, PLACES = "#values", "#places"
LEAST = 100  # packing has to save one part in so many of all bytes, or the tensors stay as they are
MAX_DIMS, MAX_SIZE = 64, 2**48


def pack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pack every tensor that takes fewer bytes so.

    The form is chosen for each: a mask and values, N:M places and values, or blocks. Tensors without zeros stay as they
    are, and all do where packing would save less than a hundredth of the bytes.

    Example:
        >>> x = torch.ones(64, 64)
        >>> x[::2] = 0
        >>> {name: t.numel() for name, t in pack({"x": x}).items() if name != HEADER}
        {'x#values': 2048, 'x#places': 8}
    """
    made: dict[str, Tensor] = {}
    forms: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        taken = any(f"{name}{end}" in tensors for end in (VALUES, PLACES)) or HEADER in tensors
        form = None if taken else smallest(tensor)
        if form is None:
            made[name] = tensor
            continue
        shape = tuple(tensor.shape)
        places, values = form.pack(words(tensor), shape)
        made[f"{name}{VALUES}"] = torch.from_numpy(values.view("uint8")).view(tensor.dtype)
        made[f"{name}{PLACES}"] = torch.from_numpy(places)
        forms[name] = {**described(form), "shape": list(shape)}
    before = size_bytes(tensors.values())
    if LEAST * (before - size_bytes(made.values())) <= before:
        return dict(tensors)
    header = json.dumps({"version": VERSION, "tensors": forms}, sort_keys=True, separators=(",", ":"))
    made[HEADER] = torch.frombuffer(bytearray(header.encode("utf-8", "surrogatepass")), dtype=torch.uint8)
    return made


def unpack(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that `pack` was given, bit by bit; each that was packed in memory of its own.

    Sizes are checked before memory is taken: a packed tensor has at most 64 times the bytes that it is stored in.

    Raises:
        ArtifactError: the description, places or values contradict each other, or are of a version that is not known.
    """
    if HEADER not in stored:
        return dict(stored)
    try:
        forms = _header(stored[HEADER])
        parts = {f"{name}{end}" for name in forms for end in (VALUES, PLACES)}
        if missing := sorted(parts - stored.keys()):
            raise ValueError(f"{missing[0]} is missing")
        if twice := sorted(forms.keys() & stored.keys()):
            raise ValueError(f"{twice[0]} is there packed and as it is")
        made = {name: tensor for name, tensor in stored.items() if name not in parts and name != HEADER}
        for name, data in forms.items():
            made[name] = _unpacked(name, data, stored[f"{name}{VALUES}"], stored[f"{name}{PLACES}"])
    except ValueError as error:
        raise ArtifactError(
            f"these packed tensors were damaged, or are of a newer secateur: {error}. Copy the file again from where "
            "it was made"
        ) from error
    return made


def size_bytes(tensors: Iterable[Tensor]) -> int:
    """Of all values together."""
    return sum(t.numel() * t.element_size() for t in tensors)


def _header(tensor: Tensor) -> dict[str, dict[str, Any]]:
    if tensor.dtype != torch.uint8 or tensor.dim() != 1:
        raise ValueError(f"{HEADER} is {tensor.dtype} of {list(tensor.shape)}, no text")
    data = parse(bytes(tensor.numpy()).decode("utf-8", "surrogatepass"), HEADER)
    if data.get("version") != VERSION or type(data["version"]) is not int:
        raise ValueError(f"they are of version {data.get('version')!r}; this secateur reads version {VERSION}")
    forms = data.get("tensors")
    if not isinstance(forms, dict) or not all(isinstance(f, dict) for f in cast("dict[str, Any]", forms).values()):
        raise ValueError(f"{HEADER} does not say what is packed")
    return cast("dict[str, dict[str, Any]]", forms)


def _unpacked(name: str, data: dict[str, Any], values: Tensor, places: Tensor) -> Tensor:
    """One tensor. What its parts are is checked before any memory is taken."""
    try:
        shape = tuple(whole(size, 0, MAX_SIZE) for size in items(data.get("shape"), MAX_DIMS))
        form = form_of({key: value for key, value in data.items() if key != "shape"})
        if values.dim() != 1 or values.element_size() not in WORDS:
            raise ValueError(f"has values that are {values.dtype} of {list(values.shape)}")
        if places.dtype != torch.uint8 or places.dim() != 1:
            raise ValueError(f"has places that are {places.dtype} of {list(places.shape)}, not bytes")
        size = math.prod(shape) * values.element_size()
        if not 0 < size <= EXPANSION * size_bytes((values, places)):
            raise ValueError(f"is said to have the shape {list(shape)}, which its bytes can't hold")
        form.check(words(places), words(values), shape)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from error
    out = torch.zeros(size, dtype=torch.uint8)
    filled: Any = out.numpy()
    form.unpack(words(places), words(values), shape, filled.view(WORDS[values.element_size()]))
    return out.view(values.dtype).reshape(shape)
