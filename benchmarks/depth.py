"""Must show: what whole blocks cost that are chosen by influence, by the loss or at random, with and without
compensation, and without any training.

    python benchmarks/depth.py [llama] [resnet56] [--images 500] [--stories 50] [--parts FOLDER] [--write docs/depth.md]

Trained networks of the folder shared/ beside the checkout lose 1, 2, ... whole blocks, chosen on batches of training
data: by their influence, by what the loss rises by without each (scored once, or again after each block that goes), and
at random with three seeds. Every shorter network is proved to compute what the dense one computes with these blocks
skipped, and measured as it is; then what stays is refitted to the dense network on batches of training data, without
labels (`compensate="lstsq"`), and measured again. Nothing is trained. Latencies are medians of all of a network's
versions run in turns.
"""

import argparse
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accuracy_tasks import Task, tasks, unlabelled
from torch import nn

import secateur as sc
from secateur.depth import compensate_blocks_
from secateur.depth.importance import at_random, influence, loss_increase
from secateur.measuring import measure_all

COUNTS = {"llama": (1, 2, 3, 4), "resnet56": (6,)}
CHOSEN_ON = {"llama": 4, "resnet56": 1}  # of the task's calibration batches, 16 stories and 128 images
REFITTED_ON = {"llama": 4, "resnet56": 4}
NOTES = {
    "llama": "Blocks chosen on 256 tokens of each of 64 stories, and refitted on the same; perplexity of {limit} of "
    "the last 300 stories, which were not looked at for either.",
    "resnet56": "Blocks chosen on 128 images of the training split, and refitted on 512; accuracy on the first {limit} "
    "images of the test split.",
}
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Row:
    """One shorter network.

    Attributes:
        how: what chose the blocks.
        model: without compensation.
        metric, refitted: its metric, without and with compensation.
        left: why nothing took over what some blocks did.
    """

    how: str
    model: nn.Module
    dropped: tuple[str, ...]
    metric: float
    refitted: float
    left: dict[str, str]


def orders(task: Task, dense: nn.Module) -> dict[str, list[str]]:
    """The blocks in the order in which each way drops them."""
    names = list(sc.shorten(dense, task.example, blocks=1, importance="random").scores)
    data = task.calibration(0)[: CHOSEN_ON[task.name]]
    by_loss = loss_increase(dense, names, data)
    found = {"influence": ranked(influence(dense, names, data)), "loss": ranked(by_loss)}
    gone = found["loss"][:1]
    while len(gone) < max(COUNTS[task.name]):
        left = [name for name in names if name not in gone]
        gone = [*gone, ranked(loss_increase(dense, left, data, skipped=gone))[0]]
    found["loss, scored again"] = gone
    return found | {f"random, seed {seed}": ranked(at_random(names, seed)) for seed in SEEDS}


def ranked(scores: Mapping[str, float]) -> list[str]:
    """The least important block first."""
    return sorted(scores, key=scores.__getitem__)


def versions(task: Task, limit: int) -> tuple[float, list[Row], nn.Module]:
    """The dense network's metric, and its shorter versions with theirs."""
    dense = task.dense(0)
    metric, known, rows = task.evaluate(dense, 0, limit), dict[frozenset[str], Row](), list[Row]()
    data = [unlabelled(batch) for batch in task.calibration(0)[: REFITTED_ON[task.name]]]
    for how, order in orders(task, dense).items():
        for count in COUNTS[task.name]:
            started, which = time.time(), frozenset(order[:count])
            if which not in known:
                known[which] = shorter(task, dense, order[:count], data, limit)
            rows.append(replace(known[which], how=how))
            took = f"{time.time() - started:.0f} s"
            found = f"{rows[-1].metric:.2f} {rows[-1].refitted:.2f}"
            print(task.name, how, count, sorted(which), found, took, flush=True)
    return metric, rows, dense


def shorter(task: Task, dense: nn.Module, gone: list[str], data: list[Any], limit: int) -> Row:
    """The network without some blocks, as it is and refitted."""
    result = sc.shorten(dense, task.example, importance=gone)
    refitted = result.change.apply(dense)
    done = compensate_blocks_(dense, refitted, result.change, data)
    metric, again = (task.evaluate(model, 0, limit) for model in (result.model, refitted))
    left = {name: done.left[name] for name in result.dropped if name in done.left}
    return Row("", result.model, result.dropped, metric, again, left)


def table(task: Task, limit: int) -> str:
    """A section of the page."""
    metric, rows, dense = versions(task, limit)
    models = {"dense": dense, **{str(sorted(row.dropped)): row.model for row in rows}}
    timed = measure_all(models, task.timed, training=False, memory=False, min_run_time=0.01)
    whole = timed["dense"]
    unit = "accuracy in %" if task.metric == "accuracy" else task.metric
    size = {"llama": f"--stories {limit}", "resnet56": f"--images {limit}"}[task.name]
    lines = [
        f"## {task.title}",
        "",
        f"`python benchmarks/depth.py {task.name} {size}`",
        "",
        NOTES[task.name].format(limit=limit),
        "",
        f"| blocks gone | chosen by | {unit} | refitted | MACs | params | latency | which |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        f"| 0 | dense | {metric:,.2f} | | 100 % | 100 % | 100 % ({whole.latency_ms:.1f} ms) | |",
    ]
    for count in COUNTS[task.name]:
        for row in rows:
            if len(row.dropped) == count:
                found = timed[str(sorted(row.dropped))]
                which = ", ".join(name.removeprefix("model.layers.").removeprefix("layer") for name in row.dropped)
                shares = (
                    found.macs / whole.macs,
                    found.params / whole.params,
                    found.latency_ms / whole.latency_ms,
                )
                cells = " | ".join(f"{100 * share:.1f} %" for share in shares)
                values = f"{row.metric:,.2f} | {row.refitted:,.2f}"
                lines.append(f"| {count} | {row.how} | {values} | {cells} | {which} |")
    left = {name: why for row in rows for name, why in row.left.items() if not why.startswith("in a row with")}
    if left:
        said = "; ".join(f"{name} ({why})" for name, why in sorted(left.items()))
        start = "No weight took over what these did, and blocks that went in a row with them, where they went:"
        lines += ["", f"{start} {said}. All weights after them were refitted nevertheless."]
    return "\n".join(lines) + "\n"


def page(parts: Path) -> str:
    """The whole page, of the parts that were written."""
    head = f"""# Depth: whole blocks gone, without training

{platform.processor() or platform.machine()}, one thread on a machine that was busy with other benchmarks; secateur
{sc.__version__}, torch {torch.__version__}. The command of each table repeats it.

Blocks are chosen on training data, and nothing is trained afterwards. "Influence" is ShortGPT's: 1 - cosine similarity
of what goes into a block and what comes out. "Loss" is what the loss rises by without the block, scored once unless it
says otherwise. "Random" has three seeds. Each shorter network was proved to compute what the dense one computes with
these blocks skipped. "Refitted" is the same network after its weights were refitted in closed form to the dense one on
training data without labels (`compensate="lstsq"`, what `sc.shorten` does where it is given data): the last projection
before blocks that went to what these handed on, all others to what they gave. Its costs are the same.

MACs, parameters and latency are shares of the dense network's. Latency is the median of all of a network's versions
run in turns; since others' benchmarks ran beside it, take it for a rough figure.

"""
    found = [parts / f"{name}.md" for name in COUNTS if (parts / f"{name}.md").exists()]
    return head + "\n".join(file.read_text(encoding="utf-8") for file in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="{llama,resnet56}")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--stories", type=int, default=50)
    parser.add_argument("--parts", type=Path, default=Path("depth-parts"), help="folder for a table of each network")
    parser.add_argument("--write", type=Path, help="where the page of all tables goes")
    chosen = parser.parse_args()
    if unknown := set(chosen.networks) - set(COUNTS):
        parser.error(f"unknown networks {', '.join(unknown)}: choose from {', '.join(COUNTS)}")
    torch.set_num_threads(1)
    chosen.parts.mkdir(parents=True, exist_ok=True)
    known, limits = tasks(), {"llama": chosen.stories, "resnet56": chosen.images}
    for name in chosen.networks or COUNTS:
        started = time.time()
        text = table(known[name], limits[name])
        (chosen.parts / f"{name}.md").write_text(text, encoding="utf-8")
        print(text, f"{time.time() - started:.0f} s", flush=True)
    if chosen.write:
        chosen.write.write_text(page(chosen.parts), encoding="utf-8")


if __name__ == "__main__":
    main()
