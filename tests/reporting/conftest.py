"""Reports to look at: one of the embedded example, one of a large network."""

import math
from typing import Any

import pytest


def figures(scale: float, accuracy: float) -> dict[str, Any]:
    return {
        "params": round(81194 * scale),
        "macs": round(137624 * scale),
        "size_bytes": round(325_500 * scale),
        "latency_ms": 0.082,
        "throughput": 12195.1,
        "training_step_ms": 0.41,
        "peak_memory_bytes": 182_000_000,
        "metrics": {"accuracy": accuracy, "loss": 0.09},
    }


@pytest.fixture
def data() -> dict[str, Any]:
    """A small report in the form of report.json."""
    return {
        "version": "0.1.0",
        "command": "secateur prune --budget params=0.4",
        "seed": 0,
        "model": "simplenet",
        "dense": figures(1, 0.972),
        "pruned": figures(0.4, 0.853),
        "tuned": figures(0.4, 0.969),
        "proof": {"status": "proved", "max_difference": 3.1e-16, "scale": 14.2},
        "axes": [
            {"name": "conv1.weight:0", "kind": "channels", "before": 6, "after": 4},
            {"name": "conv2.weight:0", "kind": "channels", "before": 16, "after": 9},
            {"name": "fc1.weight:0", "kind": "hidden", "before": 120, "after": 71},
            {"name": "fc2.weight:0", "kind": "hidden", "before": 84, "after": 84},
        ],
        "plan": None,
        "environment": {
            "python": "3.11.7",
            "torch": "2.13.0",
            "processor": "A processor with a long name @ 2.70GHz",
            "threads": 2,
        },
    }


@pytest.fixture
def large(data: dict[str, Any]) -> dict[str, Any]:
    """A report with 120 axes of long names, whose text tries to be markup."""
    widths = [2 ** (5 + n % 6) for n in range(120)]
    return data | {
        "model": "package.with.a.long.name.and.more.of.it:<b>network</b>",
        "command": 'secateur prune --model "<script>alert(1)</script>"',
        "plan": {
            "rewrites": ["view(576) at /home/somebody/a/long/path/without/any/spaces/in/it/package/networks.py:30"]
        },
        "proof": {"status": "shape-checked", "max_difference": 0.31, "scale": 8.1},
        "axes": [
            {
                "name": f"features.denseblock{n // 40}.denselayer{n % 40}.conv{n % 2}.weight:0",
                "kind": "channels",
                "before": width,
                "after": max(1, width * (n % 10) // 9),
            }
            for n, width in enumerate(widths)
        ],
    }


@pytest.fixture
def histories() -> dict[str, list[dict[str, Any]]]:
    """Training curves, one with a gap."""
    rows = [
        {
            "epoch": n + 1,
            "train_loss": 2.3 * math.exp(-n / 5),
            "train_accuracy": 1 - 0.9 * math.exp(-n / 4),
            "validation_loss": 2.4 * math.exp(-n / 6) if n != 7 else None,
            "validation_accuracy": 1 - 0.95 * math.exp(-n / 4),
        }
        for n in range(20)
    ]
    return {"dense": rows, "tuned": rows[8:]}
