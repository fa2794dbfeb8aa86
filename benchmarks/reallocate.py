"""Must show: a network whose widths were chosen badly wins accuracy when its width is reallocated, at the same MACs.

    python benchmarks/reallocate.py --seeds 3 --out docs/reallocate.md

A small CNN on Fashion-MNIST with a starved layer between two wide ones is trained; then it is trained on for the same
number of steps as it is, reallocated by `sc.reallocate`, and with other widths at the same MACs as controls. ``--split
valid`` looks at 5,000 training images that are held out, by which settings were chosen; the test split is for the end.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from accuracy import setting
from accuracy_tasks import shared
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.graph import Graph
from secateur.importance import AxisView
from secateur.planning import make_plan
from secateur.planning.moving import shared as copies

WIDTHS = (24, 2, 96)
TRAIN, VALID, BATCH = 6_000, 5_000, 64
LEARNING_RATE, NOISE = 3e-3, 0.5
AXES = ("0.weight:0", "3.weight:0", "6.weight:0")
HEAD = """# Width reallocated at the same cost

`{command}`

{setting}. A CNN of three 3x3 convolutions with batch norms on Fashion-MNIST at half its
resolution (14x14), {train:,} training images. Its widths were chosen badly on purpose: {widths}.
It is trained for {dense} epochs; then every network below is trained for {tuned} epochs more, by the same
optimizer (AdamW, a cosine from {rate:g}) on the same batches. Importance, widths and units come of 2,048 training
images; settings were chosen on held-out training images of another seed, and the {split} split ({count:,} images) was
looked at once. The network from scratch had no training before. Mean ± standard deviation over {seeds} seeds.

| network | widths | MACs | accuracy in % | against as it is |
| --- | --- | --- | --- | --- |
"""


@dataclass(frozen=True)
class Images:
    """Images (N, 1, 14, 14), normalised, and labels (N,)."""

    x: Tensor
    y: Tensor

    def part(self, start: int, stop: int) -> "Images":
        return Images(self.x[start:stop], self.y[start:stop])

    def batches(self, size: int = 256) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.x.split(size), self.y.split(size), strict=True))


def images(split: str, seed: int) -> Images:
    """All images of a split, in an order of the seed's."""
    x, y = shared().fashion_mnist(split)
    x = torch.as_tensor(x).reshape(-1, 1, 28, 28).float() / 255
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    x = (F.avg_pool2d(x, 2) - 0.286) / 0.3
    return Images(x[order], torch.as_tensor(y).long()[order])


def network(widths: Sequence[int], seed: int) -> nn.Sequential:
    """Three convolutions with outputs of 7, 4 and 4 pixels, and a linear head."""
    torch.manual_seed(seed)
    a, b, c = widths
    return nn.Sequential(
        *(nn.Conv2d(1, a, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(a), nn.ReLU()),
        *(nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()),
        *(nn.Conv2d(b, c, 3, padding=1, bias=False), nn.BatchNorm2d(c), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 10)),
    )


def train(net: nn.Module, data: Images, epochs: int, seed: int) -> nn.Module:
    """AdamW with a short warm-up and a cosine."""
    steps = epochs * (len(data.x) // BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)
    net.train()
    for _ in range(epochs):
        for at in torch.randperm(len(data.x), generator=generator)[: steps // epochs * BATCH].split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(net(data.x[at]), data.y[at]).backward()
            optimizer.step()
            schedule.step()
    return net.eval()


@torch.no_grad()
def accuracy(net: nn.Module, data: Images) -> float:
    """In per cent."""
    hits = sum(int((net(x).argmax(1) == y).sum()) for x, y in data.batches())
    return 100 * hits / len(data.x)


# ---------------------------------------------------------------------- the networks that are compared


@dataclass(frozen=True)
class AnyWorth:
    """A control: each axis is worth what chance says, and each of its units."""

    seed: int

    def of_axis(self, axis: AxisView) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * self.seed + len(axis.name) + sum(map(ord, axis.name)))
        return torch.rand(axis.size, generator=generator) * float(torch.randn(1, generator=generator).mul(2).exp())


def random_units(net: nn.Module, graph: Graph, like: sc.Plan, seed: int) -> nn.Module:
    """The widths of a plan, with units that chance chose to go and to be repeated."""
    generator = torch.Generator().manual_seed(seed)
    kept: dict[str, Tensor] = {}
    for name, axis in like.axes.items():
        worth = torch.rand(axis.before, generator=generator)
        width = len(axis.kept)
        kept[name] = worth.argsort()[-width:].sort().values if width < axis.before else copies(worth + 0.5, width)
    return make_plan(graph, kept).apply(net)


Make = Callable[[], nn.Module]


def candidates(net: nn.Module, data: Images, seed: int, importance: str, noise: float) -> dict[str, Make]:
    """The networks to train on, by name."""
    example, part = data.x[:1], data.part(0, 2048).batches()
    moved = sc.reallocate(net, example, data=part, importance=importance, noise=noise, seed=seed)
    print(moved, file=sys.stderr)
    graph = sc.trace(net, example)

    def from_scratch() -> nn.Module:
        return network([row["after"] for row in moved.rows], seed + 100)

    def by_chance() -> nn.Module:
        return sc.reallocate(net, example, data=part, importance=AnyWorth(seed), noise=noise, seed=seed).model

    return {
        "as it is": lambda: sc.Plan(axes={}, tensors={}).apply(net),
        "reallocated": lambda: moved.model,
        "the same widths, units at random": lambda: random_units(net, graph, moved.plan, seed),
        "the same widths, from scratch": from_scratch,
        "widths at random": by_chance,
    }


def one_seed(seed: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each network."""
    everything = images("train", seed)
    data, judged = everything.part(0, TRAIN), everything.part(TRAIN, TRAIN + VALID)
    if args.split == "test":
        judged = images("test", 0)
    net = train(network(WIDTHS, seed), data, args.dense, seed)
    rows = [row("before (not trained on)", net, judged, seed)]
    for name, make in candidates(net, data, seed, args.importance, args.noise).items():
        torch.manual_seed(seed)
        begin = time.perf_counter()
        rows.append(row(name, train(make(), data, args.tuned, seed + 1), judged, seed))
        print(rows[-1], f"{time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
    return rows


def row(name: str, net: nn.Module, judged: Images, seed: int) -> dict[str, Any]:
    """What one network came to."""
    found = sc.trace(net, judged.x[:1])
    widths = [found.tensors[axis.partition(":")[0]].shape[0] for axis in AXES]
    return {
        "name": name,
        "seed": seed,
        "widths": widths,
        "macs": found.cost()["macs"],
        "accuracy": accuracy(net, judged),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows by network, mean and spread."""
    lines: list[str] = []
    base = {r["seed"]: r["accuracy"] for r in rows if r["name"] == "as it is"}
    for name in dict.fromkeys(r["name"] for r in rows):
        own = [r for r in rows if r["name"] == name]
        widths = "; ".join(dict.fromkeys("-".join(map(str, r["widths"])) for r in own))
        macs = "; ".join(dict.fromkeys(f"{r['macs']:,}" for r in own))
        gains = [r["accuracy"] - base[r["seed"]] for r in own]
        lines.append(
            f"| {name} | {widths} | {macs} | {spread([r['accuracy'] for r in own])} | {spread(gains, sign=True)} |"
        )
    return "\n".join(lines) + "\n"


def spread(values: Sequence[float], *, sign: bool = False) -> str:
    """Mean ± standard deviation."""
    return f"{mean(values):{'+' if sign else ''}.2f} ± {stdev(values) if len(values) > 1 else 0:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--split", choices=("valid", "test"), default="test")
    parser.add_argument("--dense", type=int, default=6, help="epochs of the network with bad widths")
    parser.add_argument("--tuned", type=int, default=6, help="epochs of every network after that")
    parser.add_argument("--importance", default="auto")
    parser.add_argument("--noise", type=float, default=NOISE)
    parser.add_argument("--rows", type=Path, help="where rows are appended; seeds that are there are not done again")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    rows = [json.loads(line) for line in args.rows.read_text().splitlines()] if args.rows and args.rows.exists() else []
    for seed in set(seeds) - {r["seed"] for r in rows}:
        found = one_seed(seed, args)
        rows += found
        if args.rows is not None:
            with args.rows.open("a") as file:
                file.write("".join(json.dumps(r) + "\n" for r in found))
    rows = [r for r in rows if r["seed"] in seeds]
    head = HEAD.format(
        command=f"python benchmarks/reallocate.py {' '.join(sys.argv[1:])}",
        setting=setting(),
        train=TRAIN,
        widths="-".join(map(str, WIDTHS)),
        dense=args.dense,
        tuned=args.tuned,
        rate=LEARNING_RATE,
        split=args.split,
        count=VALID if args.split == "valid" else 10_000,
        seeds=args.seeds,
    )
    text = head + table(rows)
    print(text)
    if args.out is not None:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
