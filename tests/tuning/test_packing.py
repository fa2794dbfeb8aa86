"""What is packed comes back as it was, through JSON and safetensors too."""

import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.errors import ArtifactError
from secateur.tuning.checkpoints import read, write
from secateur.tuning.packing import pack, unpack

DTYPES = (
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Of any dtype, with 0 to 3 dims, empty ones too, and any bits."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    if dtype == torch.bool:
        values = draw(st.lists(st.booleans(), min_size=math.prod(shape), max_size=math.prod(shape)))
        return torch.tensor(values, dtype=torch.bool).reshape(shape)
    size = math.prod(shape) * dtype.itemsize
    raw = draw(st.binary(min_size=size, max_size=size))
    return torch.tensor(list(raw), dtype=torch.uint8).view(dtype).reshape(shape)


TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=6)
NAMES = TEXT | st.sampled_from(
    ["", "a", "a.b", "b", "value", "tensor", "$tensor", "$", "__metadata__", "0", "key", "a#2"]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | TEXT | tensors()
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(NAMES, inner, max_size=4)
        | st.dictionaries(NAMES | st.integers(-2, 2) | st.tuples(st.integers(0, 1), NAMES), inner, max_size=4)
    ),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return (
            isinstance(other, Tensor)
            and (one.dtype, one.shape) == (other.dtype, other.shape)
            and bits(one) == bits(other)
        )
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return repr(one) == repr(other)  # NaN, and minus zero
    return one == other


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


@settings(max_examples=300, deadline=None)
@given(TREES)
def test_what_is_packed_comes_back(tree: Any) -> None:
    data, held = pack(tree)
    assert same(unpack(json.loads(json.dumps(data, allow_nan=False)), held), tree)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(NAMES, TREES, max_size=4))
def test_files_give_back_what_was_written(tree: dict[str, Any]) -> None:
    with TemporaryDirectory() as folder:
        write(Path(folder) / "one", tree)
        assert same(read(Path(folder) / "one"), tree)


def test_paths_that_read_alike_keep_their_own_tensors() -> None:
    tree = {"a.b": torch.tensor(1), "a": {"b": torch.tensor(2)}, 1: {"x": torch.tensor(3)}, "1": {"x": torch.tensor(4)}}
    back = unpack(*pack(tree))
    assert [int(v) for v in (back["a.b"], back["a"]["b"], back[1]["x"], back["1"]["x"])] == [1, 2, 3, 4]


def test_a_packed_tensor_is_a_copy() -> None:
    tensor = torch.zeros(2, requires_grad=True)
    _, held = pack([tensor])
    with torch.no_grad():
        tensor.add_(1)
    assert held["0"].tolist() == [0, 0]
    assert not held["0"].requires_grad


def test_views_and_tied_tensors_are_kept_whole(tmp_path: Path) -> None:
    table = torch.arange(12.0).reshape(3, 4)
    tree = {"whole": table, "part": table[:, 1], "turned": table.T, "same": table}
    write(tmp_path / "one", tree)
    assert same(read(tmp_path / "one"), tree)


@pytest.mark.parametrize(
    ("thing", "name"), [(object(), "object"), ({1, 2}, "set"), (b"x", "bytes"), (torch.float32, "dtype")]
)
def test_what_it_cannot_hold_is_named_with_its_place(thing: Any, name: str) -> None:
    with pytest.raises(ArtifactError, match=f"callbacks.0.it is a {name}, which a checkpoint can't hold"):
        pack({"callbacks": [{"it": thing}]})


@pytest.mark.parametrize("tensor", [torch.eye(2).to_sparse(), torch.zeros(2, dtype=torch.uint16)])
def test_tensors_that_files_cannot_hold_are_named(tensor: Tensor) -> None:
    with pytest.raises(ArtifactError, match=r"callbacks.it is a (sparse|torch.uint16) tensor"):
        pack({"callbacks": {"it": tensor}})


@pytest.mark.parametrize(
    "data",
    [
        {"$tensor": "gone"},
        {"$tensor": ["x"]},
        {"$tuple": 3},
        {"$pairs": [[1]]},
        {"$pairs": [[[], 1]]},
        {"$pairs": None},
        {"$float": "x"},
        {"$float": []},
        {"$other": 1},
    ],
)
def test_what_pack_never_gives_is_refused(data: Any) -> None:
    with pytest.raises(ArtifactError, match="not a state that secateur wrote"):
        unpack({"a": data}, {})
