"""Must show: last month's plan on retrained weights does as well as pruning afresh, and it shows where it does not.

    python benchmarks/replay.py --results replay.jsonl --out docs/replay.md

ResNet-20 on CIFAR-10 is pruned; then the dense network is trained on, and the plan is replayed on its new weights,
beside a plan made afresh for the same MACs, and a random plan of the same widths. As the control of the figures that
say whether a plan is still good, the same is done with the units of the retrained network in another order: it computes
the same, and the plan is worth nothing to it.

Calibration and validation images are training images, drawn by the seed; the accuracy is that of test images.

Results are appended to the file of ``--results`` as they come, one JSON object a line; what is there is not done again.
"""

import argparse
import copy
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accuracy import setting
from accuracy_table import deliver, spread
from accuracy_tasks import CIFAR_BATCH, CIFAR_IMAGES, Task, chosen, cifar_split, shared, tasks, unlabelled
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.planning import make_plan
from secateur.replaying import verdict

VALIDATION = 2048
TITLES = ("Retrained weights", "The same with its units in another order")
PLANS = ("replayed", "afresh", "random")
HEAD = """# An old plan on new weights

`{command}`

{setting}. ResNet-20 on CIFAR-10 is pruned to {share:.0%} of its MACs; then the dense network is trained on for {steps}
steps (SGD with momentum, learning rate {lr:g}, batches of {batch}), and the plan is carried out on the new weights:
"replayed". "Afresh" is a plan made on the new weights for the same MACs, "random" keeps units drawn at random at the
widths of the old plan. Each is given "as cut", and refitted by least squares on the same {calibration:,} training
images. Accuracy in per cent on {tested:,} test images, mean ± standard deviation over {seeds} seed(s) (of the batches,
the calibration images and the random plans).

In the second half ({controls} of these seeds) the units inside the retrained network's blocks stand in another order.
It computes the same, so that nothing but the plan is wrong for it: what a plan is worth that has lost its weights, and
whether it is noticed.
"""


def retrained(task: Task, seed: int, steps: int, lr: float, batch: int) -> nn.Module:
    """The dense network, trained on for some steps on mirrored and unmirrored training images."""
    model = task.dense(seed).train().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    images, labels = cifar_split("train")
    order = chosen(steps * batch, len(images), 1000 + seed)
    mirror = torch.rand(len(order), generator=torch.Generator().manual_seed(seed)) < 0.5
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
    for rows, flips in zip(order.split(batch), mirror.split(batch), strict=True):
        inputs = shared().normalise(images[rows])
        inputs[flips] = inputs[flips].flip(-1)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels[rows]).backward()
        optimizer.step()
    return model.eval().to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]


@torch.no_grad()
def reordered(model: nn.Module, seed: int) -> nn.Module:
    """The same function with the channels inside each block in another order."""
    model = copy.deepcopy(model)
    blocks: list[Any] = [module for module in model.modules() if hasattr(module, "conv2")]
    for number, inner in enumerate(blocks):
        order = chosen(len(inner.bn1.weight), len(inner.bn1.weight), 100 * seed + number)
        inner.conv1.weight.copy_(inner.conv1.weight[order])
        for tensor in (inner.bn1.weight, inner.bn1.bias, inner.bn1.running_mean, inner.bn1.running_var):
            tensor.copy_(tensor[order])
        inner.conv2.weight.copy_(inner.conv2.weight[:, order])
    return model


def drawn(graph: sc.Graph, plan: sc.Plan, seed: int) -> sc.Plan:
    """A plan of the same widths whose units are drawn at random."""
    return make_plan(
        graph,
        {
            name: chosen(len(axis.kept), axis.before, 31 * seed + k).sort().values
            for k, (name, axis) in enumerate(plan.axes.items())
        },
    )


def validation(seed: int) -> list[tuple[Tensor, Tensor]]:
    """Labelled training images that are not calibrated on."""
    images, labels = cifar_split("train")
    rows = chosen(CIFAR_IMAGES + VALIDATION, len(images), seed)[CIFAR_IMAGES:]
    return list(zip(shared().normalise(images[rows]).split(CIFAR_BATCH), labels[rows].split(CIFAR_BATCH), strict=True))


def case(task: Task, model: nn.Module, old: sc.Result, seed: int, limit: int | None) -> dict[str, Any]:
    """An old plan on one network: accuracies of all plans, and what replaying says of the old one."""
    data = [unlabelled(batch) for batch in task.calibration(seed)]
    told = sc.replay(model, old, task.example, data=data, seed=seed, validate=validation(seed))
    fresh, random = told.fresh, drawn(told.graph, old.plan, seed)
    assert fresh is not None, told.stability.left_out
    networks = {
        "dense": model,
        "replayed, as cut": old.plan.apply(model),
        "replayed": told.model,
        "afresh, as cut": fresh.plan.apply(model),
        "afresh": fresh.model,
        "random, as cut": random.apply(model),
        "random": random.apply(model, compensate="lstsq", data=data),
    }
    return {
        **{name: task.evaluate(network.eval(), seed, limit) for name, network in networks.items()},
        "correlation": told.stability.correlation,
        "overlap": told.stability.overlap,
        "agreement": told.stability.agreement,
        "by figures": verdict(told.stability).status,
        "by results": told.verdict.status,
    }


def work(task: Task, seed: int, titles: list[str], options: Any) -> list[dict[str, Any]]:
    """The rows of a seed."""
    data = [unlabelled(batch) for batch in task.calibration(seed)]
    old = sc.prune(task.dense(seed), task.example, budget=sc.Budget(macs=options.macs), data=data, seed=seed)
    new = retrained(task, seed, options.steps, options.lr, options.batch)
    rows: list[dict[str, Any]] = []
    for title in titles:
        model = new if title == TITLES[0] else reordered(new, seed)
        rows.append({"seed": seed, "title": title, **case(task, model, old, seed, options.limit_eval)})
        print(time.strftime("%H:%M:%S"), rows[-1], file=sys.stderr, flush=True)
        if options.results is not None:
            with options.results.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    return rows


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """One half of the page."""
    lines = [f"\n## {title}\n", "| plan | as cut | refitted |", "| --- | --- | --- |"]
    for name in PLANS:
        cells = [spread([row[kind] for row in rows]) for kind in (f"{name}, as cut", name)]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    lines.append(f"| the dense network | {spread([row['dense'] for row in rows])} | |")
    lines += ["", "| what replaying says of the plan | |", "| --- | --- |"]
    for name, words in (
        ("correlation", "rank correlation of old and new scores"),
        ("overlap", "share of its units that a fresh plan keeps"),
        ("agreement", "agreement with a fresh plan, beyond chance"),
    ):
        lines.append(f"| {words} | {spread([row[name] for row in rows])} |")
    for name, words in (("by figures", "verdict without labels"), ("by results", "verdict with labels")):
        lines.append(f"| {words} | {', '.join(row[name] for row in rows)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="An old plan on retrained weights, beside pruning afresh.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0, help="leave out those before, for several processes")
    parser.add_argument("--controls", type=int, default=1, help="seeds with the units in another order, too")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--limit-eval", type=int, help="test on so many images only, for a quick look")
    parser.add_argument("--results", type=Path, help="rows that are there, and where new ones are appended")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = tasks()["resnet20"]
    rows: list[dict[str, Any]] = []
    if options.results is not None and options.results.exists():
        rows = [json.loads(line) for line in options.results.read_text().splitlines()]
    for seed in range(options.first_seed, options.seeds):
        wanted = [title for title, seeds in zip(TITLES, (options.seeds, options.controls), strict=True) if seed < seeds]
        there = [row["title"] for row in rows if row["seed"] == seed]
        if missing := [title for title in wanted if title not in there]:
            rows += work(task, seed, missing, options)
    halves = {title: [row for row in rows if row["title"] == title] for title in TITLES}
    text = HEAD.format(
        command="python benchmarks/replay.py " + " ".join(sys.argv[1:]),
        setting=setting(),
        share=options.macs,
        steps=options.steps,
        lr=options.lr,
        batch=options.batch,
        calibration=CIFAR_IMAGES,
        tested=options.limit_eval or len(cifar_split("test")[0]),
        seeds=options.seeds,
        controls=options.controls,
    ) + "".join(table(title, found) for title, found in halves.items() if found)
    deliver(text, options.out)


if __name__ == "__main__":
    main()
