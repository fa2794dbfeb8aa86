"""Must show: how much of a trained network's accuracy is left, with no training, beside torch-pruning and controls.

    python benchmarks/accuracy.py [TASK ...] --results accuracy.json --out docs/accuracy.md

Every task (`accuracy_tasks`) is pruned to several budgets by every method (`accuracy_methods`) over several seeds: each
hint of secateur with and without compensation, the random control among them, and torch-pruning by L2 and Taylor, with
and without its batch norms estimated again on the same calibration data. Both tools' results are counted by the same
counter and timed in turns with the dense network, on one thread.

Results are appended to the file of ``--results`` as they come, one JSON object a line; what is there is not done again,
but for what failed. It knows nothing of changes to the code: start a new file after one. On several cores, give each
process its own part of the methods and its own file, and write the page from all of them with ``--join``.
"""

import argparse
import fnmatch
import hashlib
import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from accuracy_methods import Case, Method, methods
from accuracy_table import deliver, document
from accuracy_tasks import Task, tasks
from torch import nn

from secateur.measuring import measure_all

Row = dict[str, Any]
KEY = ("task", "budget", "method", "seed", "limit")


class Results:
    """Rows, in memory and in a file. Networks with the same weights are evaluated once."""

    def __init__(self, path: Path | None, others: Iterable[Path] = ()) -> None:
        self.path = path
        self.rows: dict[tuple[Any, ...], Row] = {}
        for file in (*others, *([path] if path is not None and path.exists() else [])):
            for row in map(json.loads, file.read_text().splitlines()):
                self.rows[key(row)] = row

    def done(self, row: Row) -> bool:
        """Whether the file has the row, and it did not fail."""
        found = self.rows.get(key(row))
        return found is not None and "error" not in found

    def add(self, row: Row) -> None:
        """Remember the row, in the file too."""
        self.rows[key(row)] = row
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")

    def value(self, task: Task, seed: int, limit: int | None, mark: str) -> float | None:
        """The metric of a network with the same weights on the same samples."""
        for row in self.rows.values():
            same = row["task"] == task.name and row["limit"] == limit and row.get("fingerprint") == mark
            if same and (row["seed"] == seed or not task.splits):
                return row["value"]
        return None


def key(row: Row) -> tuple[Any, ...]:
    """What tells rows apart."""
    return tuple(row[name] for name in KEY)


def fingerprint(model: nn.Module) -> str:
    """The same for networks with the same weights."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def judge(task: Task, model: nn.Module, dense: nn.Module, seed: int, limit: int | None, results: Results) -> Row:
    """Everything that is measured on a network."""
    mark = fingerprint(model)
    value = results.value(task, seed, limit, mark)
    timing = {"dense": dense, "pruned": model} if model is not dense else {"dense": dense}
    times = measure_all(timing, task.timed, threads=1, training=False, memory=False)
    return {
        "value": task.evaluate(model.eval(), seed, limit) if value is None else value,
        **task.costs(model),
        "latency_ms": times["pruned" if model is not dense else "dense"].latency_ms,
        "dense_latency_ms": times["dense"].latency_ms,
        "fingerprint": mark,
    }


def work(task: Task, chosen: Sequence[Method], budgets: Iterable[float], options: Any, results: Results) -> None:
    """All rows of a task that are not there yet."""
    limit = options.limit_eval
    for seed in range(options.seeds):
        wanted = [(budget, method) for budget in budgets for method in chosen if method.fits(task)]
        rows: list[tuple[Row, Method]] = [
            ({"task": task.name, "budget": budget, "method": method.name, "seed": seed, "limit": limit}, method)
            for budget, method in wanted
        ]
        first: Row = {"task": task.name, "budget": 1.0, "method": "dense", "seed": seed, "limit": limit}
        rows = [(row, method) for row, method in rows if not results.done(row)]
        if not rows and results.done(first):
            continue
        dense, batches = task.dense(seed).eval(), task.calibration(seed)
        if not results.done(first):
            results.add({**first, "seconds": 0.0, **judge(task, dense, dense, seed, limit, results)})
            say(results.rows[key(first)])
        for row, method in rows:
            case = Case(task=task, seed=seed, fraction=row["budget"], dense=dense, batches=batches)
            try:
                small, seconds = method.run(case)
                found = {"seconds": seconds, **judge(task, small, dense, seed, limit, results)}
            except Exception as error:  # of a tool, on this task: it goes into the table
                found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
            results.add({**row, **found})
            say(results.rows[key(row)])


def say(row: Row) -> None:
    """One line of progress."""
    told = row["error"][:120] if "error" in row else f"{row['value']:.2f}, {row['seconds']:.1f} s"
    print(
        f"{time.strftime('%H:%M:%S')} {row['task']} {row['budget']} seed {row['seed']} {row['method']}: {told}",
        file=sys.stderr,
        flush=True,
    )


def picked(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The names that any pattern matches; all without patterns.

    Raises:
        SystemExit: a pattern matches none.
    """
    known = list(names)
    for pattern in patterns:
        if not any(fnmatch.fnmatch(name, pattern) for name in known):
            raise SystemExit(f"nothing is called {pattern!r}; there are: {', '.join(known)}")
    return [n for n in known if not patterns or any(fnmatch.fnmatch(n, p) for p in patterns)]


def setting() -> str:
    """Hardware and versions."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        processor = models[0] if models else processor
    packages = ("secateur", "torch", "torch-pruning", "transformers")
    return f"{processor}, one thread; " + ", ".join(f"{name} {version(name)}" for name in packages)


def version(package: str) -> str:
    """The version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def main() -> None:
    known, ways = tasks(), methods()
    parser = argparse.ArgumentParser(description="Accuracy after pruning without training.")
    parser.add_argument(
        "tasks", nargs="*", metavar="TASK", help=f"patterns of {', '.join(known)}; all if none is given"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budgets", type=float, nargs="+", help="fractions, instead of each task's own")
    parser.add_argument("--methods", nargs="+", default=[], metavar="PATTERN", help=f"patterns of: {', '.join(ways)}")
    parser.add_argument("--limit-eval", type=int, help="evaluate on so many samples only, for a quick look")
    parser.add_argument("--results", type=Path, help="rows that are there, and where new ones are appended")
    parser.add_argument(
        "--join", type=Path, nargs="+", default=[], metavar="FILE", help="only write the page of results in these files"
    )
    parser.add_argument("--out", type=Path, help="write the tables here as Markdown; they are printed otherwise")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(options.results, options.join)
    names, chosen = picked(known, options.tasks), [ways[name] for name in picked(ways, options.methods)]
    for name in names if not options.join else ():
        work(known[name], chosen, options.budgets or known[name].budgets, options, results)
    asked = {m.name for m in chosen} | {"dense"}
    rows = [
        row
        for row in results.rows.values()
        if row["task"] in names
        and row["limit"] == options.limit_eval
        and row["method"] in asked
        and row["seed"] < options.seeds
        and (not options.budgets or row["budget"] in {1.0, *options.budgets})
    ]
    text = document([known[name] for name in names], ways, rows, setting())
    deliver(text, options.out)


if __name__ == "__main__":
    main()
