"""Damaged and hostile results: each is refused as such or loads as if nothing had happened, and does no harm."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import secateur as sc
from support.networks import Attention, LiteralNet, Mlp, example

PROGRAM = Path(__file__).parents[1] / "support" / "loads_damaged.py"
SECONDS = 3.0  # of processor time for one
MEMORY = 160 * 2**20  # bytes beyond what the process had; limits allow 64 MiB of results, and operations need scratch
TOLERANCE = 1e-4  # of the probe, where hashes were made to fit


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small results of each kind, in both forms, in a folder with a module that must never be imported."""
    folder = tmp_path_factory.mktemp("damage")
    torch.manual_seed(0)
    for name, make in {"kept-mlp": Mlp, "kept-attention": Attention, "graph-literal": LiteralNet}.items():
        model = make()
        if isinstance(model, Mlp):
            model[0].bias.requires_grad_(False)
        result = sc.prune(model, example(model), keep=0.5)
        build = None if result.rewritten else f"support.networks:{make.__name__}"
        for ending in ("", ".safetensors"):
            sc.save(result, folder / f"base-{name}{ending}", build=build)
    packed = sc.prune(Mlp(2048), torch.ones(1, 4), keep=0.5)
    with torch.no_grad():
        for layer in (packed.model[0], packed.model[2]):  # type: ignore[index]
            layer.weight.masked_fill_(torch.rand_like(layer.weight) < 0.8, 0.0)
    for ending in ("", ".safetensors"):
        sc.save(
            packed, folder / f"base-kept-packed{ending}", {"callable": "support.networks:Mlp", "args": {"hidden": 2048}}
        )
    (folder / "canary_module.py").write_text("open('canary', 'w')\n")
    return folder


def run(folder: Path, *which: str) -> list[dict[str, Any]]:
    """Load damaged results in a process of its own, and say how each went."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(PROGRAM), str(folder), *which],
        check=False, cwd=folder, capture_output=True, text=True, timeout=3000,
    )  # fmt: skip
    assert done.returncode == 0, f"died of {done.returncode} at: {done.stderr[-2000:]}"
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(outcomes: list[dict[str, Any]], folder: Path) -> None:
    def wrong(outcome: dict[str, Any]) -> bool:
        neither = not outcome["outcome"].startswith(("loaded", "refused: "))
        by_accident = any(f" {kind} " in outcome["how"] for kind in ("_bits", "_cut", "_swap"))
        changed = outcome["off"] is not None and not outcome["off"] <= (0 if by_accident else TOLERANCE)
        harm = outcome["seen"] or outcome["seconds"] > SECONDS or outcome["bytes"] > MEMORY
        return bool(neither or changed or harm)

    bad = [outcome for outcome in outcomes if wrong(outcome)]
    assert not bad, "\n".join(json.dumps(outcome) for outcome in bad)
    assert not (folder / "canary").exists()


def test_a_hundred_by_chance(results: Path) -> None:
    outcomes = run(results, "0", "120")
    check(outcomes, results)
    assert len(outcomes) >= 110
    assert sum(o["outcome"].startswith("refused") for o in outcomes) > 60


@pytest.mark.slow
def test_on_purpose(results: Path) -> None:
    outcomes = run(results, "attacks")
    check(outcomes, results)
    assert len(outcomes) > 300


@pytest.mark.heavy
@pytest.mark.timeout(3600)
def test_a_thousand_by_chance(results: Path) -> None:
    outcomes = run(results, "1000", "1000")
    check(outcomes, results)
    assert len(outcomes) > 900
