"""Must show: what training only some of the parameters after pruning costs and brings.

    python benchmarks/train_only.py --out docs/train_only.md

The Llama on stories, pruned to 75 % of its parameters without the embeddings and refitted, is trained for the same
number of steps: everything, low-rank changes, the norms or the head alone, each at the learning rate of its own range
test; three seeds, perplexity on stories that nothing else looked at.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from accuracy import setting
from accuracy_methods import Case, methods
from accuracy_table import deliver, spread
from accuracy_tasks import HELD_OUT, STORY_TOKENS, Task, chosen, shared, tasks
from torch import nn

from secateur.tuning import Callback, LowRank, trainable, tune

CHOICES: dict[str, Any] = {
    "all": "all",
    "low-rank, rank 8": LowRank(rank=8),
    "norms": "norms",
    "head": "head",
}
HEAD = """# Training only some of the parameters

`{command}`

{setting}. A Llama on stories at 75 % of its parameters without the embeddings, refitted (perplexity {start} before
training, {dense:.2f} for the dense one), {steps} steps of {batch} stories of {tokens} tokens, no teacher, learning rate
by range test. Mean ± standard deviation over seeds. The optimizer keeps two numbers for each parameter that trains.
Milliseconds are of this process alone, so that other work on the machine counts little.

| what trains | parameters | share | perplexity | learning rate | ms a step |
| --- | --- | --- | --- | --- | --- |
"""


class Stopwatch(Callback):
    """Seconds that the process computed, from the end of the first step to that of the last."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def after_step(self, run: Any) -> None:
        self.times.append(time.process_time())

    @property
    def per_step(self) -> float:
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1)


def stories(seed: int, steps: int, batch: int) -> list[dict[str, torch.Tensor]]:
    """Training batches from stories that are not held out."""
    found = [s[:STORY_TOKENS] for s in shared().stories(0, -HELD_OUT) if len(s) >= STORY_TOKENS]
    order = chosen(len(found), len(found), 100 + seed)
    rows = [found[int(order[k % len(order)])] for k in range(steps * batch)]
    parts = [torch.stack(rows[k : k + batch]) for k in range(0, len(rows), batch)]
    return [{"input_ids": part, "labels": part} for part in parts]


def row(task: Task, name: str, model: nn.Module, seed: int, options: Any) -> dict[str, Any]:
    """Train one copy."""
    with trainable(model, CHOICES[name]) as found:
        count, share = found.count, found.share
    began, watch = time.perf_counter(), Stopwatch()
    history = tune(
        model,
        stories(seed, options.steps, options.batch),
        epochs=1,
        lr="auto",
        optimizer="adamw",
        train_only=CHOICES[name],
        device="cpu",
        seed=seed,
        callbacks=[watch],
    )
    print(name, seed, f"{time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return {
        "name": name,
        "count": count,
        "share": share,
        "value": task.evaluate(model.eval(), seed, None),
        "lr": (history.choice or {})["lr"],
        "ms": 1e3 * watch.per_step,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Training only some of the parameters after pruning.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = tasks()["llama"]
    rows: list[dict[str, Any]] = []
    starts: list[float] = []
    dense = task.dense(0).eval()
    for seed in range(options.seeds):
        case = Case(task=task, seed=seed, fraction=0.75, dense=dense, batches=task.calibration(seed))
        starts.append(task.evaluate(methods()["secateur defaults"].run(case)[0], seed, None))
        rows += [row(task, name, methods()["secateur defaults"].run(case)[0], seed, options) for name in CHOICES]
    text = HEAD.format(
        command="python benchmarks/train_only.py " + " ".join(sys.argv[1:]),
        setting=setting(),
        start=spread(starts),
        dense=task.evaluate(dense, 0, None),
        steps=options.steps,
        batch=options.batch,
        tokens=STORY_TOKENS,
    )
    for name in CHOICES:
        own = [r for r in rows if r["name"] == name]
        rates = ", ".join(dict.fromkeys(f"{r['lr']:.2g}" for r in own))
        text += (
            f"| {name} | {own[0]['count']:,} | {100 * own[0]['share']:.1f} % | {spread([r['value'] for r in own])} | "
            f"{rates} | {statistics.mean(r['ms'] for r in own):.0f} |\n"
        )
    deliver(text, options.out)


if __name__ == "__main__":
    main()
