"""Must show: an adversarially trained network, pruned, keeps its robustness best where importance is that of attacks.

    python benchmarks/robust_pruning.py run --images cifar.npz --dense FOLDER --results FOLDER --workers 8
    python benchmarks/robust_pruning.py render --results FOLDER --out docs/robust_pruning.md

``--images`` holds uint8 images (N, 3, 32, 32) as x_train and x_test, and labels as y_train and y_test; without it all
of CIFAR-10 beside this repository is read. ``--dense`` holds robust_SEED.safetensors, state dicts of CifarResNet(20).
Every network is cut by secateur, tuned by `sc.tune` against PGD for the same number of steps, and attacked before and
after (`robust_setting`). Each (seed, budget, method) writes a file of its own, so that a run that was cut off goes on.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from robust_setting import ADVERSARIAL, Data, Loader, accuracies, dense, hardware, load_data, training_attack
from robust_table import document
from torch import Tensor, multiprocessing, nn

import secateur as sc
from secateur.tuning import History

SEEDS, BUDGETS = (0, 1, 2), (0.5, 0.25)
METHODS: dict[str, dict[str, Any]] = {
    "robust": {"importance": "auto", "adversarial": ADVERSARIAL},
    "robust reconstruction": {"importance": "reconstruction", "adversarial": ADVERSARIAL},
    "robust gate": {"importance": "taylor_gate", "adversarial": ADVERSARIAL},
    "clean": {"importance": "reconstruction"},
    "l2": {"importance": "l2", "adversarial": ADVERSARIAL},
    "random": {"importance": "random", "adversarial": ADVERSARIAL},
    "l2, cut only": {"importance": "l2", "compensate": None},
    "random, cut only": {"importance": "random", "compensate": None},
}
"""How `sc.prune` is asked. With ``adversarial`` weights are refitted to images as they are and attacked ones; "cut
only" refits nothing."""


@dataclass(frozen=True)
class Job:
    """One network to make, tune and attack."""

    seed: int
    budget: float
    method: str

    @property
    def file(self) -> str:
        """Where its figures are written."""
        return f"{self.seed}-{self.budget:g}-{self.method.replace(' ', '_').replace(',', '')}.json"


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    """All that are asked for, the most telling first: what is cut off are whole seeds, not whole methods."""
    for seed in options.seeds:
        yield Job(seed, 1.0, "dense")
        for budget in options.budgets:
            for method in options.methods:
                yield Job(seed, budget, method)


def work(job: Job, options: argparse.Namespace, data: Data) -> dict[str, Any]:
    """The figures of one job."""
    started = time.perf_counter()
    network = dense(options.dense / f"robust_{job.seed}.safetensors", options.load, options.device)
    small, cost = network, {"macs": 1.0, "params": 1.0}
    if job.method != "dense":
        small, cost = pruned(network, job, data.tuning.part(0, options.calibrate).batches(256))
    seconds = {"prune": time.perf_counter() - started}
    before = after = judged(small, options, data, seconds, "attack_before")
    history = History()
    if options.epochs:
        history = tuned(small, job, options, data, seconds)
        after = judged(small, options, data, seconds, "attack_after")
    return {
        "seed": job.seed,
        "budget": job.budget,
        "method": job.method,
        "order": list(METHODS).index(job.method) if job.method in METHODS else -1,
        "cost": cost,
        "before": before,
        "after": after,
        "validation": [[row.validation_accuracy, row.robust_accuracy] for row in history.epochs],
        "kept_epoch": history.best_epoch,
        "steps": history.steps,
        "seconds": seconds,
        "settings": {n: getattr(options, n) for n in ("epochs", "lr", "batch", "pgd", "precision", "steps", "targets")},
        "images": {**data.counts, "calibration": min(options.calibrate, len(data.tuning))},
        "hardware": hardware(options.device),
    }


def tuned(model: nn.Module, job: Job, options: argparse.Namespace, data: Data, seconds: dict[str, float]) -> History:
    """Adversarial training, the same for all; the network is left in its best epoch by validation under attack."""
    started = time.perf_counter()
    history = sc.tune(
        model.to(memory_format=torch.channels_last),  # pyright: ignore[reportCallIssue]
        Loader(data.tuning, options.batch),
        data.validation.batches(500),
        epochs=options.epochs,
        lr=options.lr,
        optimizer="sgd",
        weight_decay=5e-4,
        warmup=0.1,
        adversarial=training_attack(options.pgd),
        precision=options.precision,
        device=options.device,
        seed=job.seed,
    )
    seconds["tune"] = time.perf_counter() - started
    return history


def pruned(
    network: nn.Module, job: Job, calibration: list[tuple[Tensor, Tensor]]
) -> tuple[nn.Module, dict[str, float]]:
    """The smaller network, and what it costs as a share of the dense one."""
    result = sc.prune(
        network,
        calibration[0][0][:2],
        budget=sc.Budget(macs=job.budget),
        data=calibration,
        seed=job.seed,
        **METHODS[job.method],
    )
    report = cast("dict[str, Any]", result.report)
    return result.model, {kind: report["pruned"][kind] / report["dense"][kind] for kind in ("macs", "params")}


def judged(
    model: nn.Module, options: argparse.Namespace, data: Data, seconds: dict[str, float], name: str
) -> dict[str, Any]:
    """Accuracy on test images as they are and under the strongest attack, in full precision."""
    started = time.perf_counter()
    found = accuracies(model.eval(), data.test.batches(500), steps=options.steps, targets=options.targets)
    seconds[name] = time.perf_counter() - started
    return found


def worker(rank: int, options: argparse.Namespace) -> None:
    """Do every job that is this worker's and is not done."""
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.benchmark = True
    data = load_data(
        options.images, options.load, options.device, options.train, options.test, validate=options.validate
    )
    for number, job in enumerate(jobs(options)):
        path = options.results / job.file
        if number % options.workers != rank or path.exists():
            continue
        found = work(job, options, data)
        path.write_text(json.dumps(found, indent=1) + "\n")
        say(job, found)


def say(job: Job, found: dict[str, Any]) -> None:
    parts = [f"{name} {found[name]['clean']:.1f} / {found[name]['robust']:.1f}" for name in ("before", "after")]
    times = ", ".join(f"{name} {value:.1f} s" for name, value in found["seconds"].items())
    print(f"{job.file}: {'; '.join(parts)} ({times})", flush=True)


def run(options: argparse.Namespace) -> None:
    """All jobs, among the workers."""
    options.results.mkdir(parents=True, exist_ok=True)
    if options.workers == 1:
        worker(0, options)
    else:
        cast("Any", multiprocessing).spawn(worker, (options,), nprocs=options.workers)


def render(options: argparse.Namespace) -> None:
    """Write the measured part of the page."""
    rows = [json.loads(path.read_text()) for path in sorted(options.results.glob("*.json"))]
    document(rows, options.out)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    start = parts.add_parser("run")
    start.set_defaults(act=run)
    start.add_argument("--images", type=Path)
    start.add_argument("--load", type=Path, default=Path(__file__).parents[2] / "shared/data/load.py")
    start.add_argument("--dense", type=Path, required=True)
    start.add_argument("--results", type=Path, required=True)
    start.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    start.add_argument("--budgets", type=float, nargs="*", default=BUDGETS)
    start.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    start.add_argument("--train", type=int, help="training images; the rest is left out")
    start.add_argument("--test", type=int, default=2000)
    start.add_argument("--calibrate", type=int, default=1024)
    start.add_argument("--epochs", type=int, default=3)
    start.add_argument("--lr", type=float, default=0.05)
    start.add_argument("--batch", type=int, default=512)
    start.add_argument("--pgd", type=int, default=7, help="steps of the attack that is trained against")
    start.add_argument("--validate", type=int, default=1000, help="training images that choose the epoch")
    start.add_argument("--precision", default="bf16")
    start.add_argument("--steps", type=int, default=50, help="of Auto-PGD")
    start.add_argument("--targets", type=int, default=3, help="classes that Auto-PGD goes to")
    start.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    start.add_argument("--workers", type=int, default=1)
    start.add_argument("--threads", type=int, default=1)
    show = parts.add_parser("render")
    show.set_defaults(act=render)
    show.add_argument("--results", type=Path, required=True)
    show.add_argument("--out", type=Path, required=True)
    return parser.parse_args(given)


if __name__ == "__main__":
    chosen = arguments()
    chosen.act(chosen)
