"""Must show: accuracy after the same short budget of training, from secateur's compensated start and from others.

    python benchmarks/tuning.py --seeds 3 --results tuning.jsonl --out docs/tuning.md

ResNet-56 on CIFAR-10, pruned to a share of its MACs by secateur's defaults (2,048 unlabelled images), by torch-pruning
(L2, global), at random, and the network that secateur left, from scratch. All are trained by `sc.tune` with the same
number of steps on the same augmented batches, with the dense network as their teacher, each kind of network at the
optimizer and rate that its own range test finds on the training images of its first seed: one test costs more than the
short training. The test split is looked at once, at the end. Rows are appended to the file
of ``--results`` as they come, and what is there is not done again.
"""

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accuracy import setting
from accuracy_methods import Case, methods
from accuracy_table import deliver, spread
from accuracy_tasks import Task, cifar_split, shared, tasks
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.tuning import tune

PADDING = 4  # of the crops, as in He et al. 2016
HEAD = """# Training after pruning

`{command}`

{setting}. ResNet-56 on CIFAR-10 at {share:.0%} of its MACs, {steps} steps of {batch} images ({epochs:.2f} epochs) for
every network: AdamW or SGD and the learning rate by range test on the first seed's training images, a cosine, and the
dense network as the teacher. Seconds are those of the training alone. Mean ± standard deviation over seeds, full test
split.

| network | before in % | after in % | optimizer, learning rate | seconds of training | seeds |
| --- | --- | --- | --- | --- | --- |
"""


class Crops:
    """Training batches with random crops and flips, the same for the same seed and epoch."""

    def __init__(self, steps: int, batch: int, seed: int) -> None:
        self.steps, self.batch, self.seed, self.number = steps, batch, seed, 0

    def __len__(self) -> int:
        return self.steps

    def set_epoch(self, number: int) -> None:
        self.number = number

    def skip(self, done: int) -> Iterator[tuple[Tensor, Tensor]]:
        images, labels = cifar_split("train")
        generator = torch.Generator().manual_seed(1000 * self.seed + self.number)
        order = torch.randperm(len(images), generator=generator)
        for step in range(done, self.steps):
            at = order[step * self.batch % len(order) :][: self.batch]
            drawn = torch.Generator().manual_seed((1000 * self.seed + self.number) * 100_000 + step)
            yield self.augmented(shared().normalise(images[at]), drawn), labels[at]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.skip(0)

    def augmented(self, images: Tensor, generator: torch.Generator) -> Tensor:
        count, _, height, width = images.shape
        flip = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
        padded = F.pad(torch.where(flip, images.flip(-1), images), [PADDING] * 4)
        tops, lefts = (torch.randint(0, 2 * PADDING + 1, (count,), generator=generator).tolist() for _ in range(2))
        corners = zip(padded, tops, lefts, strict=True)
        crops = [image[:, top : top + height, left : left + width] for image, top, left in corners]
        return torch.stack(crops).contiguous(memory_format=torch.channels_last)


def anew(model: nn.Module, seed: int) -> nn.Module:
    """The same network, never trained."""
    model = copy.deepcopy(model)
    torch.manual_seed(seed)
    for module in model.modules():
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
    return model


def starts(case: Case) -> dict[str, Callable[[], nn.Module]]:
    """Networks to train, by name."""
    known = methods()
    kept: dict[str, nn.Module] = {}

    def by(name: str) -> nn.Module:
        if name not in kept:
            kept[name] = known[name].run(case)[0]
        return copy.deepcopy(kept[name])

    return {
        "secateur, compensated": lambda: by("secateur defaults"),
        "torch-pruning, L2": lambda: by("torch-pruning l2 global"),
        "at random": lambda: by("secateur random"),
        "from scratch": lambda: anew(by("secateur defaults"), case.seed),
    }


def row(
    task: Task, name: str, model: nn.Module, teacher: nn.Module, seed: int, options: Any, known: Any
) -> dict[str, Any]:
    """Train one network, and test it; ``known`` is the choice of optimizer and rate that its kind has already."""
    before = task.evaluate(model.eval(), seed, None)
    began = time.perf_counter()
    history = tune(
        model,
        Crops(options.steps, options.batch, seed),
        epochs=1,
        lr=known["lr"] if known else options.lr,
        optimizer=known["optimizer"] if known else options.optimizer,
        teacher=teacher,
        device="cpu",
        seed=seed,
    )
    choice = known or history.choice
    seconds = time.perf_counter() - began - (0 if known or not choice else choice["seconds"])
    return {
        "name": name,
        "seed": seed,
        "before": before,
        "after": task.evaluate(model.eval(), seed, None),
        "choice": choice,
        "lr": (choice or {}).get("lr", options.lr),
        "optimizer": (choice or {}).get("optimizer", options.optimizer),
        "macs": task.costs(model)["macs"],
        "seconds": seconds,
    }


def document(rows: Sequence[dict[str, Any]], options: Any) -> str:
    head = HEAD.format(
        command="python benchmarks/tuning.py " + " ".join(sys.argv[1:]),
        setting=setting(),
        share=options.budget,
        steps=options.steps,
        batch=options.batch,
        epochs=options.steps * options.batch / 50_000,
    )
    lines: list[str] = []
    for name in dict.fromkeys(r["name"] for r in rows):
        own = [r for r in rows if r["name"] == name]
        rates = ", ".join(dict.fromkeys(f"{r['lr']:.2g}" for r in own))
        columns = [spread([r[key] for r in own]) for key in ("before", "after")]
        seconds = statistics.mean(r["seconds"] for r in own)
        rates = f"{own[0]['choice']['optimizer']}, {rates}" if own[0]["choice"] else rates
        lines.append(f"| {name} | {' | '.join(columns)} | {rates} | {seconds:.0f} | {len(own)} |")
    return head + "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy after pruning and a short training.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--budget", type=float, default=0.5, help="share of the MACs that stays")
    parser.add_argument("--lr", default="auto", type=lambda text: text if text == "auto" else float(text))
    parser.add_argument("--optimizer", default="auto")
    parser.add_argument("--names", nargs="+", help="only these networks")
    parser.add_argument("--results", type=Path, default=Path("tuning.jsonl"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    task = tasks()["resnet56"]
    rows: list[dict[str, Any]] = []
    if options.results.exists():
        rows = [json.loads(line) for line in options.results.read_text().splitlines()]
    for seed in options.seeds:
        dense = task.dense(seed).eval()
        case = Case(task=task, seed=seed, fraction=options.budget, dense=dense, batches=task.calibration(seed))
        for name, make in starts(case).items():
            done = any(r["name"] == name and r["seed"] == seed for r in rows)
            if done or (options.names and name not in options.names):
                continue
            known = next((r["choice"] for r in rows if r["name"] == name and r["choice"]), None)
            rows.append(row(task, name, make(), dense, seed, options, known))
            print(json.dumps(rows[-1] | {"choice": None}), file=sys.stderr, flush=True)
            with options.results.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    text = document(rows, options)
    deliver(text, options.out)


if __name__ == "__main__":
    main()
