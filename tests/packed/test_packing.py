"""What is packed comes back bit by bit, in fewer bytes, and in the form that takes the fewest."""

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.packed import HEADER, pack, size_bytes, unpack
from secateur.packed.choosing import described
from secateur.packed.groups import Groups
from secateur.packed.packing import PLACES, VALUES
from secateur.packed.words import words

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
          torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64]  # fmt: skip


def same(a: Tensor, b: Tensor) -> bool:
    bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits[0], bits[1])


def unstructured(shape: tuple[int, ...], zeros: float, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw).masked_fill(torch.rand(shape, generator=draw) < zeros, 0.0)


def nm(shape: tuple[int, ...], n: int, m: int) -> Tensor:
    """n of each m values, drawn."""
    groups = math.prod(shape) // m
    there = torch.rand(groups, m, generator=torch.Generator().manual_seed(0)).topk(n, dim=1).indices
    return torch.zeros(groups, m).scatter(1, there, torch.arange(1.0, groups * n + 1).view(groups, n)).view(shape)


def form(packed: dict[str, Tensor], name: str = "x") -> dict[str, Any]:
    return json.loads(bytes(packed[HEADER].numpy()))["tensors"][name]


def _as_groups(x: Tensor, n: int, m: int) -> dict[str, Tensor]:
    """Packed in a form that another would beat."""
    places, values = Groups(n, m).pack(words(x), tuple(x.shape))
    header = json.dumps({"version": 1, "tensors": {"x": {**described(Groups(n, m)), "shape": list(x.shape)}}})
    return {
        f"x{VALUES}": torch.from_numpy(values.view("uint8")).view(x.dtype),
        f"x{PLACES}": torch.from_numpy(places),
        HEADER: torch.frombuffer(bytearray(header.encode()), dtype=torch.uint8),
    }


def test_by_hand() -> None:
    """A row of 1 0 0 2 0 0 0 0 has bits 0 and 3: the byte 9."""
    x = torch.tensor([1.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0]).repeat(200)
    x[-8:] = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 5.0])
    x[:3] = 7.0
    packed = pack({"x": x})
    assert form(packed) == {"form": "mask", "shape": [1600]}
    assert packed[f"x{PLACES}"].tolist() == [15, *[9] * 198, 130]
    assert packed[f"x{VALUES}"].tolist() == [7.0, 7.0, 7.0, 2.0, *[1.0, 2.0] * 198, 1.0, 5.0]


def test_two_four_by_hand() -> None:
    """Values at 0 and 3 of four are 0 + 3 * 4 = 12; at 0 and 1, 0 + 1 * 4 = 4. A byte holds two groups: 12 + 4 * 16 and
    4 + 12 * 16.
    """
    a, b = [5.0, 0.0, 0.0, 6.0], [7.0, 8.0, 0.0, 0.0]
    x = torch.tensor([[a, b] * 10, [b, a] * 10] * 20).view(40, 80)
    packed = pack({"x": x})
    assert form(packed) == {"form": "nm", "n": 2, "m": 4, "dim": None, "shape": [40, 80]}
    assert packed[f"x{PLACES}"].tolist() == [*[76] * 10, *[196] * 10] * 20
    assert packed[f"x{VALUES}"][:8].tolist() == [5.0, 6.0, 7.0, 8.0, 5.0, 6.0, 7.0, 8.0]


def test_blocks_by_hand() -> None:
    """Of 8 x 8 blocks of 8 x 8 values those on the diagonal are there: the bits 1, 2, 4, ... of eight bytes."""
    x = torch.block_diag(*[torch.full((8, 8), k + 1.0) for k in range(8)])
    packed = pack({"x": x})
    assert form(packed) == {"form": "blocks", "rows": 8, "cols": 8, "shape": [64, 64]}
    assert packed[f"x{PLACES}"].tolist() == [2**k for k in range(8)]
    assert packed[f"x{VALUES}"].tolist() == [k + 1.0 for k in range(8) for _ in range(64)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(64, 96), (8, 16, 3, 3, 8), (7001,), (1, 8192), (8191, 1)], ids=str)
def test_every_type_and_shape(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = (unstructured(shape, 0.6) * 20).to(dtype)
    packed = pack({"x": x, "y": x.clone()})
    assert same(unpack(packed)["x"], x)
    assert (HEADER in packed) == (x.numel() * x.element_size() >= 4096)


def test_only_a_word_without_bits_is_a_zero() -> None:
    x = unstructured((64, 64), 0.5)
    odd = torch.tensor([-0.0, float("nan"), float("inf"), -float("inf"), 1e-42, -1e-42])
    x.view(-1)[: len(odd)] = odd
    x.view(torch.int32).view(-1)[6] = 0x7FC0BEEF  # a NaN with a payload
    packed = pack({"x": x})
    assert same(unpack(packed)["x"], x)
    assert packed[f"x{VALUES}"].numel() == int((x.view(torch.int32) != 0).sum())


def test_tensors_that_are_no_use_packed() -> None:
    """Empty ones, scalars, small ones, dense ones: nothing of them changes, and there is no header."""
    held = {
        "empty": torch.empty(0, 4),
        "scalar": torch.tensor(0.0),
        "small": torch.zeros(1023),
        "dense": torch.ones(99, 99),
    }
    assert pack(held).keys() == held.keys()
    few = {"bias": torch.zeros(1024), "weight": torch.randn(1024, 512)}
    assert pack(few).keys() == few.keys(), "less than a hundredth would be saved"
    assert pack({}) == {}


def test_others_beside_packed_ones_stay_as_they_are() -> None:
    held = {"scalar": torch.tensor(3.0), "w": unstructured((64, 64), 0.8), "dense": torch.randn(4, 4)}
    packed = pack(held)
    assert packed["scalar"] is held["scalar"]
    back = unpack(packed)
    assert all(same(back[name], tensor) for name, tensor in held.items())
    assert back.keys() == held.keys()


def test_views_that_are_not_contiguous() -> None:
    x = unstructured((96, 64), 0.7)
    for view in (x.t(), x[::2], x.view(8, 12, 64).permute(2, 0, 1), x[:1].expand(128, 64)):
        assert same(unpack(pack({"x": view}))["x"], view.contiguous())


def test_names_that_are_taken() -> None:
    x = unstructured((64, 64), 0.8)
    for other in (f"x{VALUES}", f"x{PLACES}", HEADER):
        held = {"x": x, other: torch.ones(2)}
        assert pack(held).keys() == held.keys()


@pytest.mark.parametrize(
    ("dtype", "bits"), [(torch.float32, 1 / 32), (torch.bfloat16, 1 / 16), (torch.float8_e5m2, 1 / 8)]
)
def test_smaller_from_a_fifth_of_zeros_on(dtype: torch.dtype, bits: float) -> None:
    x = torch.ones(256, 256).masked_fill(torch.arange(65536).view(256, 256) % 5 == 0, 0.0).to(dtype)
    share = size_bytes(t for name, t in pack({"x": x}).items() if name != HEADER) / size_bytes([x])
    assert share == pytest.approx(0.8 + bits, abs=1e-4)
    assert share < 1


@pytest.mark.parametrize(
    ("n", "m", "bits"), [(1, 2, 1), (1, 4, 2), (2, 4, 4), (1, 8, 4), (1, 16, 4), (2, 16, 8), (2, 8, 8)]
)
def test_groups(n: int, m: int, bits: int) -> None:
    """n values of each m, and so many bits of places for each group."""
    x = nm((48, 160), n, m)
    packed = pack({"x": x})
    assert [form(packed)[key] for key in ("form", "n", "m")] == ["nm", n, m]
    assert packed[f"x{VALUES}"].numel() == x.numel() // m * n
    assert packed[f"x{PLACES}"].numel() * 8 == x.numel() // m * bits
    assert same(unpack(packed)["x"], x)


def test_groups_that_hold_fewer() -> None:
    """They are filled up with zeros in the first free places, as long as that takes less than a mask."""
    x = nm((48, 160), 1, 4)
    x[3, 5:90] = 0
    packed = pack({"x": x})
    assert form(packed)["form"] == "nm"
    assert packed[f"x{VALUES}"].numel() == 48 * 40
    assert same(unpack(packed)["x"], x)
    two = nm((48, 160), 2, 4)
    two[3, 5:90] = 0
    assert form(pack({"x": two}))["form"] == "mask"
    assert same(unpack(_as_groups(two, 2, 4))["x"], two)


def test_groups_along_the_inputs_of_a_convolution() -> None:
    x = nm((16, 3, 3, 32), 1, 4).permute(0, 3, 1, 2).contiguous()
    packed = pack({"x": x})
    assert form(packed) == {"form": "nm", "n": 1, "m": 4, "dim": 1, "shape": [16, 32, 3, 3]}
    assert same(unpack(packed)["x"], x)


def test_a_mask_where_places_take_more() -> None:
    """4:8 takes 4 x 3 bits for 8 values, a mask 8; and a group too full is no group."""
    assert form(pack({"x": nm((64, 128), 4, 8)}))["form"] == "mask"
    x = nm((64, 128), 2, 4)
    x[0, :3] = 1.0
    assert form(pack({"x": x}))["form"] == "mask"


@pytest.mark.parametrize(("rows", "cols"), [(16, 16), (4, 4), (1, 8), (8, 1), (64, 2), (32, 32)])
def test_blocks(rows: int, cols: int) -> None:
    draw = torch.Generator().manual_seed(1)
    there = torch.rand(192 // rows, 256 // cols, generator=draw) < 0.3
    x = torch.randn(192, 256, generator=draw) * there.repeat_interleave(rows, 0).repeat_interleave(cols, 1)
    x = x.masked_fill(x == 0, 0.0)  # no negative zeros
    packed = pack({"x": x})
    assert [form(packed)[key] for key in ("form", "rows", "cols")] == ["blocks", rows, cols]
    assert packed[f"x{VALUES}"].numel() == int(there.sum()) * rows * cols
    assert same(unpack(packed)["x"], x)


def test_whole_kernels() -> None:
    x = torch.randn(64, 32, 3, 3).masked_fill(torch.rand(64, 32, 1, 1) < 0.7, 0.0)
    packed = pack({"x": x})
    assert [form(packed)[key] for key in ("form", "rows", "cols")] == ["blocks", 1, 9]
    assert same(unpack(packed)["x"], x)


def test_no_form_makes_more_than_64_times_its_bytes() -> None:
    """All zeros as blocks would take next to nothing; a mask takes a 32nd, and loading stays bounded."""
    x = torch.zeros(512, 512)
    packed = pack({"x": x})
    assert form(packed)["form"] == "mask"
    assert same(unpack(packed)["x"], x)


def test_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in pieces gives the same bytes as at once."""
    held = {"u": unstructured((96, 96), 0.5), "n": nm((96, 96), 2, 4), "b": torch.block_diag(*[torch.ones(24, 48)] * 4)}
    wanted = pack(held)
    for module in ("words", "masks", "groups", "blocks"):
        monkeypatch.setattr(f"secateur.packed.{module}.CHUNK", 192)
    found = pack(held)
    assert found.keys() == wanted.keys()
    assert all(same(found[name], wanted[name]) for name in wanted)
    assert all(same(tensor, held[name]) for name, tensor in unpack(found).items())


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40), cols=st.integers(26, 90), zeros=st.floats(0, 1), seed=st.integers(0, 2**31),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.int8]), grouped=st.booleans(),
)  # fmt: skip
def test_any_tensor(rows: int, cols: int, zeros: float, seed: int, dtype: torch.dtype, grouped: bool) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows * 4, cols * 4, generator=draw)
    mask = torch.rand(rows * 4, cols if grouped else cols * 4, generator=draw) < zeros
    x = (x.masked_fill(mask.repeat_interleave(4, 1) if grouped else mask, 0.0) * 9).to(dtype)
    packed = pack({"x": x})
    assert same(unpack(packed)["x"], x)
    assert size_bytes(packed.values()) <= size_bytes([x])
