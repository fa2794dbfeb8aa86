"""Must show: a trained ResNet-56 made as small as a bound on held-out accuracy allows, and what the test split says.

    python benchmarks/max_drop.py --shared ../shared

The held-out images come from CIFAR-10's training split, on which the network was trained: its accuracy there is near
100 %, so a drop of one point there may be another on images that it has never seen. The test split, which no choice
sees, is printed beside it. Calibration, for scores and compensation, takes the first images of the training split. No
training, before or after.
"""

import argparse
import importlib.util
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import secateur as sc
from secateur.rounds import Round
from secateur.tuning import evaluate

Batches = list[tuple[Tensor, Tensor]]


def loader(shared: Path) -> Any:
    """The module that reads the data and weights in the shared folder."""
    path = shared / "data" / "load.py"
    spec = importlib.util.spec_from_file_location("shared_data", path)
    if spec is None or spec.loader is None or not path.exists():
        sys.exit(f"no {path}: give the folder of data and weights with --shared")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def batches(images: Tensor, labels: Tensor, load: Any, size: int = 250) -> Batches:
    """Normalised images with their labels."""
    pairs = zip(images.split(size), labels.split(size), strict=True)
    return [(load.normalise(x), y) for x, y in pairs]


def accuracy(model: nn.Module, data: Batches) -> float:
    """In per cent."""
    return 100 * evaluate(model, data)["accuracy"]


def row(name: str, values: Sequence[object]) -> str:
    return f"| {name} | {' | '.join(map(str, values))} |"


def tell(done: Round) -> None:
    print(done.describe(), file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="ResNet-56 on CIFAR-10 within a bound on held-out accuracy.")
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared", help="data and weights")
    parser.add_argument("--max-drop", type=float, default=1.0, help="percentage points")
    parser.add_argument("--held-out", type=int, default=3000, help="images of the training split, its last ones")
    parser.add_argument("--test", type=int, default=10_000, help="images of the test split")
    parser.add_argument("--calibration", type=int, default=512, help="images of the training split, its first; 0: none")
    parser.add_argument("--importance", default="auto")
    parser.add_argument("--scope", default="global")
    options = parser.parse_args()

    load = loader(options.shared)
    model: nn.Module = load.cifar_resnet(56)
    images, labels = load.cifar10("train")
    unseen, answers = load.cifar10("test", options.test)
    held_out = batches(images[-options.held_out :], labels[-options.held_out :], load)
    seen = batches(images[: options.calibration], labels[: options.calibration], load) if options.calibration else None
    test = batches(unseen, answers, load)

    started = time.perf_counter()
    result = sc.prune(
        model,
        held_out[0][0][:2],
        importance=options.importance,
        data=seen,
        max_drop=options.max_drop,
        validate=held_out,
        scope=options.scope,
        on_round=tell,
    )
    seconds = time.perf_counter() - started
    found = result.report["held_out"]
    before, after = accuracy(model, test), accuracy(result.model, test)

    print(result)
    print()
    print(row("accuracy in %", ["images", "dense", "pruned", "drop in points", "allowed"]))
    print(row("---", ["---"] * 5))
    held = [f"{found[key]:.2f}" for key in ("dense", "pruned", "worse")]
    print(row("held out (the network was trained on these)", [options.held_out, *held, options.max_drop]))
    print(row("test", [options.test, f"{before:.2f}", f"{after:.2f}", f"{before - after:.2f}", "not bounded"]))
    how = f"importance {options.importance}, {options.calibration} images for calibration"
    print(f"\n{found['rounds']} rounds in {seconds:.0f} s, {how}, torch {torch.__version__}, CPU")
    assert found["worse"] <= options.max_drop + 1e-6


if __name__ == "__main__":
    main()
