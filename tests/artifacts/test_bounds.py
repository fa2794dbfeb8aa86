"""What a file may make this machine do: numbers of the meter worked out by hand, and consent that lifts them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.artifacts import store
from secateur.artifacts.bounds import FLOPS_PER_BYTE, MIB, Limits, Meter
from secateur.errors import ArtifactError
from support.networks import LiteralNet, Mlp, example

PLENTY = Limits(memory=2**40, work=2**40, calls=2**20)


def test_limits_go_with_the_size_of_the_file() -> None:
    probe, build = Limits.of_probe(3200), Limits.of_build(3200)
    assert (probe.memory, probe.work, probe.calls) == (64 * MIB + 204_800, 10**9 + 104_857_600, 20_100)
    assert (build.memory, build.work, build.calls) == (64 * MIB + 3_276_800, 2 * 10**9 + 52_428_800, 200_100)


def test_memory_is_what_is_held_at_once() -> None:
    with Meter(PLENTY, strict=True) as meter:
        a = torch.ones(10, 10)  # 400 bytes
        view = a[:5].t()
        assert meter.held == 400, "views take none"
        b = a + 1
        assert meter.held == 800
        b.add_(1)
        assert meter.held == 800, "in place takes none"
        del a
        assert meter.held == 800, "the view holds it"
        del view
        assert meter.held == 400


def test_work_is_bytes_moved_and_arithmetic() -> None:
    a, b = torch.ones(2, 3), torch.ones(3, 4)
    with Meter(PLENTY, strict=True) as meter:
        a @ b  # 24 + 48 bytes in, 32 out, 2 * 2 * 3 * 4 operations
    assert meter.worked == 24 + 48 + 32 + 48 // FLOPS_PER_BYTE
    assert meter.called == 1
    image, kernel = torch.ones(1, 1, 5, 5), torch.ones(1, 1, 3, 3)
    with Meter(PLENTY, strict=True) as meter:
        torch.conv2d(image, kernel)  # 100 + 36 in, 9 values out, each of 9 products: 2 * 81 operations
    assert meter.worked == 100 + 36 + 36 + 162 // FLOPS_PER_BYTE
    image = torch.ones(1, 1, 6, 6)
    with Meter(PLENTY, strict=True) as meter:
        torch.max_pool2d(image, 3)  # 144 in, 4 values and 4 places (int64) out, 8 times 9 looked at
    assert meter.worked == 144 + 16 + 32 + 72 // FLOPS_PER_BYTE


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (replace(PLENTY, memory=399), "ones would hold 400 bytes, more than 399"),
        (replace(PLENTY, work=399), "ones would work on more than 399 bytes"),
        (replace(PLENTY, calls=0), "ones would be one of more than 0 calls"),
    ],
)
def test_what_goes_beyond_is_refused_before_it_is_done(limits: Limits, message: str) -> None:
    meter = Meter(limits, strict=True)
    with meter, pytest.raises(ArtifactError, match=f"{message}.*damaged, or made to do harm. If you trust"):
        torch.ones(10, 10)
    assert meter.held == 0


def test_what_cannot_be_foretold() -> None:
    counts = torch.tensor([1, 2])
    with Meter(PLENTY, strict=True), pytest.raises(ArtifactError, match="what bincount gives can't be foretold"):
        torch.bincount(counts)
    with Meter(PLENTY, strict=False):
        assert torch.bincount(counts).tolist() == [0, 1, 1]
    with Meter(PLENTY, strict=True):
        assert counts.nonzero().tolist() == [[0], [1]], "never more than so many"


def test_errors_are_those_of_the_operation() -> None:
    with Meter(PLENTY, strict=True), pytest.raises(RuntimeError, match="mat1 and mat2"):
        torch.ones(2, 3) @ torch.ones(4, 5)


@pytest.mark.parametrize("make", [Mlp, LiteralNet])
def test_trust_lifts_the_limits(make: type[nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    sc.save(sc.prune(model, example(model), keep=0.5), tmp_path / "net")
    dense = None if make is LiteralNet else make()
    monkeypatch.setattr(store.Limits, "of_probe", lambda size: replace(PLENTY, memory=8))
    with pytest.raises(ArtifactError, match="asks for more than a file of its size may: .* If you trust this file"):
        sc.load(tmp_path / "net", model=dense)
    sc.load(tmp_path / "net", model=dense, trust=True)


def test_a_build_is_bounded_before_it_is_filled(tmp_path: Path) -> None:
    build = {"callable": "support.networks:Mlp", "args": {"hidden": 2**40}}
    sc.save(sc.prune(Mlp(), torch.ones(1, 4), keep=0.5), tmp_path / "net.safetensors", build=build)
    with pytest.raises(ArtifactError, match=f"empty would hold {2**40 * 4 * 4} bytes, more than .* pass trust=True"):
        sc.load(tmp_path / "net.safetensors")
