"""Must show: the embedded example at a tenth of its parameters, over five seeds, beside two controls.

    python benchmarks/digits.py

Each seed trains a dense network with the settings of ``secateur prune --budget params=0.1``, prunes it as that does
(by the best of three hints, refitted by least squares on the training split), by L2 norm and at random without
refitting, and tunes all three in the same way. The last line is the network of the same sizes as the first of them,
but with fresh weights, trained from scratch for as many epochs as the dense network and its tuning had together, at
whichever of their two learning rates is better on the validation split. All accuracies are of the test split, on
which nothing is chosen.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from secateur.config import PruneSettings
from secateur.data import Data
from secateur.runs.prune import prepare, prune_model, train_dense, tune
from secateur.tuning import SCRATCH, TUNE, evaluate
from secateur.tuning import tune as train

ROWS = {
    "dense": "dense",
    "auto": "pruned by the hint that a trial chose, refitted, tuned",
    "l2": "pruned by L2 norm, tuned",
    "random": "pruned at random, tuned",
    "scratch": "the small network from scratch",
}


def one_seed(budget: str, seed: int) -> dict[str, dict[str, float]]:
    """Parameters and test accuracy of each row; for pruned networks also the accuracy before tuning."""
    settings = PruneSettings(budget=budget, seed=seed)
    dense, data = prepare(settings)
    train_dense(dense, data, settings)
    found = {"dense": figures(dense, data)}
    fresh: nn.Module | None = None
    for importance in ("auto", "l2", "random"):
        compensate = "auto" if importance == "auto" else "none"
        chosen = replace(settings, importance=importance, compensate=compensate)
        small: nn.Module = prune_model(dense, data, chosen).model
        fresh = fresh or reset(copy.deepcopy(small), seed)
        bare = figures(small, data)["accuracy"]
        tune(small, dense, data, chosen)
        found[importance] = {**figures(small, data), "bare": bare}
    assert fresh is not None
    found["scratch"] = figures(from_scratch(fresh, data, seed), data)
    return found


def figures(model: nn.Module, data: Data) -> dict[str, float]:
    """Parameters, and accuracy on the test split in [0, 1]."""
    return {"params": sum(p.numel() for p in model.parameters()), "accuracy": evaluate(model, data.test)["accuracy"]}


def reset(model: nn.Module, seed: int) -> nn.Module:
    """The model with the weights that its layers start with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            if callable(restart := getattr(module, "reset_parameters", None)):
                restart()
    return model


def from_scratch(fresh: nn.Module, data: Data, seed: int) -> nn.Module:
    """The fresh network trained at two learning rates, the better one by validation."""
    best: tuple[float, float, nn.Module] | None = None
    for lr in (SCRATCH.lr, TUNE.lr):
        model = copy.deepcopy(fresh)
        train(model, data.train, validate=data.validation, epochs=SCRATCH.epochs + TUNE.epochs, lr=lr, seed=seed)
        assert data.validation is not None
        scores = evaluate(model, data.validation)
        if best is None or (scores["accuracy"], -scores["loss"]) > best[:2]:
            best = (scores["accuracy"], -scores["loss"], model)
    assert best is not None
    return best[2]


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation of fractions, in per cent."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.2f} ± {100 * deviation:.2f}"


def table(runs: Sequence[dict[str, dict[str, float]]]) -> str:
    """A Markdown table of all rows over all seeds."""
    lines = [
        "| network | parameters | test accuracy in % | against dense, points | before tuning in % |",
        "| --- | --- | --- | --- | --- |",
    ]
    dense = statistics.mean(run["dense"]["accuracy"] for run in runs)
    for name, label in ROWS.items():
        rows = [run[name] for run in runs]
        counts = sorted({int(row["params"]) for row in rows})
        sizes = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
        accuracies = [row["accuracy"] for row in rows]
        gap = f"{100 * (statistics.mean(accuracies) - dense):+.2f}" if name != "dense" else ""
        bare = spread([row["bare"] for row in rows]) if "bare" in rows[0] else ""
        lines.append(f"| {label} | {sizes} | {spread(accuracies)} | {gap} | {bare} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="The embedded example at a tenth of its parameters, with controls.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", default="params=0.1")
    options = parser.parse_args()
    torch.set_num_threads(1)  # sums then come in the same order on every machine
    started = time.perf_counter()
    runs = [one_seed(options.budget, seed) for seed in range(options.seeds)]
    print(table(runs))
    print(
        f"\n{options.seeds} seeds, mean ± standard deviation; {options.budget}, torch {torch.__version__}, CPU, ",
        end="",
    )
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
