"""Must show: pruned in the middle of training, a network goes on where it was if Adam's moments are carried over.

    python benchmarks/momentum.py --picture docs/momentum.svg

SimpleNet on scikit-learn's digits, pruned to half of its parameters after 200 steps of Adam. From there on three
networks are trained on the same batches: the pruned one with the optimizer that was carried over, the same one with a
new optimizer, and the dense one, which nobody disturbed. The loss is measured on the first 2,048 training images,
as they were augmented, after every step around the pruning; the picture has the mean over the seeds.
"""

import argparse
import copy
import time
from collections.abc import Sequence
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.data import load_data
from secateur.examples import SimpleNet
from secateur.files import write_text
from secateur.reporting.charts import nice_ticks

NAMES = ("dense, undisturbed", "carried over", "new optimizer")
BEFORE = 10  # steps before pruning that are shown


def run(seed: int, steps: int, after: int, lr: float, params: float) -> dict[str, list[float]]:
    """The training loss around the pruning, step by step, of each of the three networks."""
    torch.manual_seed(seed)
    data: Any = load_data("digits", batch_size=64, seed=seed)
    batches = list(islice(endless(data.train), steps + after))
    images, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    images, labels = images[:2048], labels[:2048]
    dense = SimpleNet()
    optimizer = torch.optim.Adam(dense.parameters(), lr=lr)
    shared: list[float] = []
    for k, batch in enumerate(batches[:steps]):
        step(dense, optimizer, batch)
        if k >= steps - BEFORE:
            shared.append(loss(dense, images, labels))
    result = sc.prune(dense, images[:2], budget=sc.Budget(params=params), data=[images[:512]])
    undisturbed, as_new = copy.deepcopy(dense), copy.deepcopy(result.model)
    others = torch.optim.Adam(undisturbed.parameters(), lr=lr), torch.optim.Adam(as_new.parameters(), lr=lr)
    others[0].load_state_dict(copy.deepcopy(optimizer.state_dict()))
    networks = zip(NAMES, (undisturbed, result.model, as_new), (others[0], optimizer, others[1]), strict=True)
    result.remap_(optimizer)
    curves: dict[str, list[float]] = {}
    for name, network, own in networks:
        curves[name] = [*shared, loss(network, images, labels)]
        for batch in batches[steps:]:
            step(network, own, batch)
            curves[name].append(loss(network, images, labels))
    return curves


def endless(batches: Any) -> Any:
    """Batches of one epoch after another."""
    while True:
        yield from batches


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor]) -> None:
    """One step of training."""
    optimizer.zero_grad()
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    optimizer.step()


@torch.no_grad()
def loss(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The mean over the given images."""
    return F.cross_entropy(model(images), labels).item()


# ---------------------------------------------------------------------- the picture

STYLE = (
    "svg.curves{background:#fbfaf7;color:#1d2420;font:12px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}"
    ".curves text{fill:currentColor}.curves .soft{opacity:.65}.curves .head{font-size:14px;font-weight:600}"
    ".curves .grid{stroke:#8d9991;stroke-opacity:.35}.curves .cut{stroke:#8d9991;stroke-dasharray:4 4}"
    ".curves polyline{fill:none;stroke-width:2}.curves .c0{stroke:#8d9991}.curves .c1{stroke:#1f7a4d}"
    ".curves .c2{stroke:#b4532a}"
    "@media (prefers-color-scheme:dark){svg.curves{background:#141816;color:#e8ece8}.curves .c1{stroke:#53c18a}"
    ".curves .c2{stroke:#e08a5f}}"
)
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 340, 56, 16, 62, 40


def picture(curves: dict[str, list[float]], title: str, note: str, at: int) -> str:
    """The curves as SVG, self-contained."""
    values = [value for curve in curves.values() for value in curve]
    ticks = nice_ticks(0.0, max(values))
    count = max(map(len, curves.values()))

    def x(k: int) -> float:
        return round(LEFT + k / (count - 1) * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - value / ticks[-1] * (HEIGHT - TOP - BOTTOM), 1)

    grid = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(t)}" y2="{y(t)}"/>'
        f'<text x="{LEFT - 8}" y="{y(t) + 4}" text-anchor="end">{t:g}</text>'
        for t in ticks
    )
    marks = "".join(
        f'<text x="{x(k)}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{k - BEFORE:+d}</text>'
        for k in range(0, count, 10)
    )
    lines = "".join(
        f'<polyline class="c{k}" points="{" ".join(f"{x(i)},{y(v)}" for i, v in enumerate(curve))}"/>'
        f'<line class="c{k}" stroke-width="3" x1="{LEFT + 150 * k + 190}" x2="{LEFT + 150 * k + 208}" y1="24" y2="24"/>'
        f'<text x="{LEFT + 150 * k + 214}" y="28">{escape(name)}</text>'
        for k, (name, curve) in enumerate(curves.items())
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="curves" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title><desc>{escape(note)}</desc><style>{STYLE}</style>'
        f'<text class="head" x="16" y="28">{escape(title)}</text><text class="soft" x="16" y="46">{escape(note)}</text>'
        f'{grid}{marks}<line class="cut" x1="{x(BEFORE)}" x2="{x(BEFORE)}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>{lines}'
        f'<text class="soft" x="{WIDTH / 2}" y="{HEIGHT - 6}" text-anchor="middle">'
        f"steps since pruning, which was after step {at}</text></svg>\n"
    )


def mean(curves: Sequence[Sequence[float]]) -> list[float]:
    """Step by step."""
    return [sum(values) / len(values) for values in zip(*curves, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description="The training loss around a pruning, with and without Adam's moments.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200, help="before pruning")
    parser.add_argument("--after", type=int, default=40)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--params", type=float, default=0.5)
    parser.add_argument("--picture", type=Path, help=".svg file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    runs = [run(s, options.steps, options.after, options.lr, options.params) for s in range(options.seeds)]
    curves = {name: mean([one[name] for one in runs]) for name in NAMES}
    print(f"| network | just pruned | highest within 10 steps | after {options.after} steps |")
    print("| --- | ---: | ---: | ---: |")
    for name, curve in curves.items():
        since = curve[BEFORE:]
        highest = sum(max(one[name][BEFORE : BEFORE + 11]) for one in runs) / len(runs)
        print(f"| {name} | {since[0]:.4f} | {highest:.4f} | {since[-1]:.4f} |")
    print(f"\n{options.seeds} seeds, torch {torch.__version__}, CPU, {time.perf_counter() - started:.0f} s")
    if options.picture:
        note = f"SimpleNet on digits, {options.params:.0%} of the parameters left, mean of {options.seeds} seeds"
        write_text(options.picture, picture(curves, "Loss around pruning", note, options.steps))


if __name__ == "__main__":
    main()
