"""Packed tensors that lie about themselves are refused, before memory is taken for what they claim."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from secateur.errors import ArtifactError, OutputError
from secateur.packed import HEADER, pack, read_tensors, unpack, write_tensors

Stored = dict[str, Tensor]


def packed() -> Stored:
    """One tensor of each form."""
    torch.manual_seed(0)
    mask = torch.randn(40, 101).masked_fill(torch.rand(40, 101) < 0.5, 0.0)
    groups = torch.zeros(800, 4).scatter(1, torch.rand(800, 4).topk(2, 1).indices, torch.rand(800, 2) + 1).view(40, 80)
    blocks = torch.block_diag(*[torch.randn(8, 8) for _ in range(9)])
    made = pack({"m": mask, "g": groups, "b": blocks})
    assert [d["form"] for d in described(made).values()] == ["blocks", "nm", "mask"]
    return made


def described(stored: Stored) -> dict[str, Any]:
    return json.loads(bytes(stored[HEADER].numpy()))["tensors"]


def headed(stored: Stored, header: Any) -> Stored:
    text = header if isinstance(header, str) else json.dumps(header)
    return {**stored, HEADER: torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)}


def entry(name: str, **changes: Any) -> Callable[[Stored], Stored]:
    def change(stored: Stored) -> Stored:
        forms = described(stored)
        return headed(stored, {"version": 1, "tensors": {**forms, name: {**forms[name], **changes}}})

    return change


def header(data: Any) -> Callable[[Stored], Stored]:
    return lambda stored: headed(stored, data)


def part(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Stored], Stored]:
    return lambda stored: {**stored, name: change(stored[name].clone())}


def but(*names: str) -> Callable[[Stored], Stored]:
    return lambda stored: {name: tensor for name, tensor in stored.items() if name not in names}


def flipped(at: int, bits: int) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor[at] ^= bits
        return tensor

    return change


ATTACKS: dict[str, tuple[Callable[[Stored], Stored], str]] = {
    "another version": (header({"version": 2, "tensors": {}}), "of version 2; this secateur reads version 1"),
    "no version": (header({"tensors": {}}), "of version None"),
    "a true version": (header({"version": True, "tensors": {}}), "of version True"),
    "no JSON": (header("\x00\x01"), "can't be read"),
    "a deep header": (header("[" * 100_000), "can't be read"),
    "a list": (header("[]"), "no JSON object"),
    "tensors of a list": (header({"version": 1, "tensors": [1]}), "does not say what is packed"),
    "a tensor of text": (header({"version": 1, "tensors": {"m": "x"}}), "does not say what is packed"),
    "a header of floats": (part(HEADER, lambda t: t.float()), "no text"),
    "bytes that are no text": (part(HEADER, lambda t: t | 128), "codec can't decode|can't be read"),
    "a form that nobody knows": (entry("m", form="pickle"), "m is stored in a form that nobody knows"),
    "a form of a list": (entry("m", form=["mask"]), "m is stored in a form that nobody knows"),
    "one setting more": (entry("m", rows=4), "m is stored in a form that nobody knows"),
    "no shape": (entry("m", shape=None), "m None is no list"),
    "a negative size": (entry("m", shape=[-40, -101]), "m -40 is no whole number from 0"),
    "a size of a half": (entry("m", shape=[40.0, 101]), "m 40.0 is no whole number"),
    "a thousand dims": (entry("m", shape=[1] * 1000), "m a list of 1000 items"),
    "a bomb": (entry("m", shape=[2**24, 2**24]), "m is said to have the shape .* which its bytes can't hold"),
    "a bomb of groups": (entry("g", shape=[2**20, 2**20]), "g is said to have the shape"),
    "a bomb of blocks": (entry("b", shape=[2**20, 2**20]), "b is said to have the shape"),
    "a bomb of many dims": (entry("m", shape=[2**48] * 64), "m is said to have the shape|no number"),
    "nothing": (entry("m", shape=[0, 101]), r"m is said to have the shape \[0, 101\]"),
    "a larger mask": (entry("m", shape=[41, 101]), "m has 505 bytes of places, not 518"),
    "a smaller mask": (entry("m", shape=[39, 101]), "m has 505 bytes of places, not 493"),
    "more groups": (entry("g", shape=[41, 80]), "g has 400 bytes of places and 1600 values, not 410 and 1640"),
    "groups that don't divide": (entry("g", shape=[3199]), r"g can't be 2:4 along None in the shape \[3199\]"),
    "groups of another pattern": (entry("g", n=1), "g has 400 bytes of places and 1600 values, not 200 and 800"),
    "groups of no pattern": (entry("g", n=3), "g can't be 3:4 along None"),
    "groups of 17": (entry("g", m=17), "17 is no whole number from 2 to 16"),
    "groups of a dim that is not there": (entry("g", dim=7), "g can't be 2:4 along 7"),
    "groups of a dim of text": (entry("g", dim="1"), "'1' is no whole number"),
    "blocks that don't divide": (entry("b", rows=7), r"b has blocks of 7 x 8, which don't divide the shape \[72, 72\]"),
    "blocks of a vector": (entry("b", shape=[72 * 72]), "b has blocks of 8 x 8, which don't divide"),
    "blocks of nothing": (entry("b", rows=0), "0 is no whole number from 1"),
    "blocks without end": (entry("b", rows=2**40), "is no whole number from 1"),
    "other blocks": (entry("b", rows=4), "b has 11 bytes of places, not 21"),
    "a bit too many": (part("m#places", flipped(0, 1)), "m has places for .* values, but"),
    "a block too many": (part("b#places", flipped(0, 2)), "b has places for 640 values, but 576 values"),
    "bits beyond the end": (part("b#places", flipped(10, 128)), "b has places beyond its end"),
    "places in no order": (part("g#places", lambda t: t.fill_(0b0001_0001)), "g has places that 2 of 4 values can't"),
    "places twice": (part("g#places", lambda t: t.fill_(0)), "g has places that 2 of 4 values can't have"),
    "a value too few": (part("m#values", lambda t: t[:-1].clone()), "m has places for .* values, but"),
    "a value too few in groups": (part("g#values", lambda t: t[:-1].clone()), "1599 values, not"),
    "a value too few in blocks": (part("b#values", lambda t: t[:-1].clone()), "b has places for 576 values, but 575"),
    "values of a matrix": (part("m#values", lambda t: t[None].clone()), "m has values that are torch.float32 of"),
    "places of numbers": (part("m#places", lambda t: t.int()), "m has places that are torch.int32"),
    "places of a matrix": (part("m#places", lambda t: t[None].clone()), "m has places that are torch.uint8 of"),
    "no values": (but("m#values"), "m#values is missing"),
    "no places": (but("g#places"), "g#places is missing"),
    "twice": (lambda stored: {**stored, "m": torch.ones(2)}, "m is there packed and as it is"),
}  # fmt: skip


@pytest.mark.parametrize(("attack", "said"), ATTACKS.values(), ids=list(ATTACKS))
def test_lies(attack: Callable[[Stored], Stored], said: str) -> None:
    stored = attack(packed())
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactError, match=f"(?s)damaged, or are of a newer secateur.*({said})|{said}"):
            unpack(stored)
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


def test_any_flipped_bit_of_places_or_header_is_seen_or_changes_no_size() -> None:
    """What cannot be seen here, a value or the place of one, is seen by the hash of the file."""
    stored, shapes = packed(), {"m": (40, 101), "g": (40, 80), "b": (72, 72)}
    draw, refused = torch.Generator().manual_seed(0), 0
    for _ in range(300):
        name = ["m#places", "g#places", "b#places", HEADER][int(torch.randint(4, (), generator=draw))]
        at = int(torch.randint(len(stored[name]), (), generator=draw))
        bit = 1 << int(torch.randint(8, (), generator=draw))
        try:
            found = unpack(part(name, flipped(at, bit))(stored))
        except ArtifactError:
            refused += 1
        else:
            assert {n: tuple(t.shape) for n, t in found.items() if n in shapes}.items() <= shapes.items()
    assert refused > 150


def test_files(tmp_path: Path) -> None:
    tensors = {"w": torch.randn(64, 64).masked_fill(torch.rand(64, 64) < 0.8, 0.0), "b": torch.ones(3)}
    write_tensors(tmp_path / "packed.safetensors", tensors)
    write_tensors(tmp_path / "plain.safetensors", tensors, plain=True)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("packed", "plain")]
    assert sizes[0] < 0.35 * sizes[1]
    assert load_file(tmp_path / "plain.safetensors").keys() == tensors.keys()
    for name in ("packed", "plain"):
        found = read_tensors(tmp_path / f"{name}.safetensors")
        assert all(torch.equal(found[n], t) for n, t in tensors.items())
    with pytest.raises(OutputError, match="can't write to"):
        write_tensors(tmp_path / "nowhere" / "x.safetensors", tensors)


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(b"\x08")
    with pytest.raises(ArtifactError, match=r"cut\.safetensors can't be read"):
        read_tensors(tmp_path / "cut.safetensors")
    with pytest.raises(ArtifactError, match=r"nowhere\.safetensors can't be read"):
        read_tensors(tmp_path / "nowhere.safetensors")
    save_file(entry("m", shape=[2**24, 2**24])(packed()), tmp_path / "bomb.safetensors")
    with pytest.raises(ArtifactError, match="which its bytes can't hold"):
        read_tensors(tmp_path / "bomb.safetensors")
