"""Must show: single weights of a Llama and of a ResNet-56 made zero, by every criterion and compensation.

    python benchmarks/sparsity.py llama resnet56 --seeds 3 --out docs/sparsity.md
    python benchmarks/sparsity.py sizes --out docs/sparsity.md

Every result is a line in ``--rows``, and what stands there already is not run again, so that a run can be cut short
and gone on with. ``--split valid`` looks at stories, or training images, that are neither calibrated nor tested on:
settings are chosen there. ``sizes`` measures the files of the ResNet's results against the dense one's, as `sc.save`
writes them.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from accuracy import setting
from accuracy_tasks import HELD_OUT, STORY_TOKENS, accuracy, chosen, cifar_split, llama, perplexity, shared
from torch import Tensor, nn

import secateur as sc

STORIES, JUDGED = 32, 100
CIFAR_CALIBRATION, CIFAR_BATCH, CIFAR_TEST, CIFAR_SPARSITY = 512, 128, 2000, 0.8
Arguments = Mapping[str, Any]
FIXED = ("magnitude",)  # the same with any calibration data
METHODS: dict[str, Arguments] = {
    "random": {"importance": "random"},
    "magnitude": {"importance": "magnitude"},
    "taylor": {"importance": "taylor"},
    "fisher": {"importance": "fisher"},
    "ria": {"importance": "ria"},
    "wanda": {"importance": "wanda"},
    "sparsegpt": {"compensate": "sparsegpt"},
    "sparsegpt+alps": {"compensate": "sparsegpt+alps"},
    "wanda, alps": {"compensate": "alps"},
    "fisher, alps": {"importance": "fisher", "compensate": "alps"},
}
PATTERNS: dict[str, Arguments] = {
    "50 %": {"sparsity": 0.5},
    "60 %": {"sparsity": 0.6},
    "70 %": {"sparsity": 0.7},
    "2:4": {"pattern": sc.NM(2, 4)},
    "4:8": {"pattern": sc.NM(4, 8)},
}
ALLOCATED: dict[str, Arguments] = {
    f"wanda, {how}": {**METHODS["wanda"], "allocation": how} for how in ("erk", "owl", "global")
}
ALLOCATED_AT = "70 %"
OF_IMAGES: dict[str, Arguments] = {
    "random": {"importance": "random"},
    "magnitude": {"importance": "magnitude"},
    "sparsegpt": {"compensate": "sparsegpt"},
    "sparsegpt+alps": {"compensate": "sparsegpt+alps"},
    "magnitude, global": {"importance": "magnitude", "allocation": "global"},
    "magnitude, global, alps": {"importance": "magnitude", "allocation": "global", "compensate": "alps"},
}


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A trained network, its data, and what is tried on it.

    Attributes:
        name: for the command line.
        dense: the network.
        data: calibration batches, by seed.
        judge: the metric of a model, by split.
        tried: methods by pattern.
        how: the arguments of a pattern.
    """

    name: str
    dense: Callable[[], nn.Module]
    data: Callable[[int], list[Any]]
    judge: Callable[[nn.Module, str], float]
    tried: Mapping[str, Mapping[str, Arguments]]
    how: Mapping[str, Arguments] = field(default_factory=dict[str, Arguments])


def stories() -> Bench:
    """The Llama on stories; settings are chosen on short stories, which are never calibrated on."""
    task = llama()

    def judge(model: nn.Module, split: str) -> float:
        if split == "test":
            return task.evaluate(model, 0, JUDGED)
        return perplexity(model, [s for s in shared().stories(0, -HELD_OUT) if len(s) < STORY_TOKENS])

    def data(seed: int) -> list[Any]:
        batches = task.calibration(seed)
        return batches[: STORIES // len(batches[0]["input_ids"])]

    tried = {name: {**METHODS, **(ALLOCATED if name == ALLOCATED_AT else {})} for name in PATTERNS}
    return Bench(name="llama", dense=lambda: task.dense(0), data=data, judge=judge, tried=tried, how=PATTERNS)


def images() -> Bench:
    """ResNet-56 on CIFAR-10."""

    def data(seed: int) -> list[Any]:
        found, labels = cifar_split("train")
        rows = chosen(CIFAR_CALIBRATION, len(found), seed)
        return list(zip(shared().normalise(found[rows]).split(CIFAR_BATCH), labels[rows].split(CIFAR_BATCH)))  # noqa: B905

    def judge(model: nn.Module, split: str) -> float:
        found, labels = cifar_split("test" if split == "test" else "train")
        rows: Tensor | slice = slice(CIFAR_TEST) if split == "test" else chosen(2000, len(found), 1000)
        return accuracy(model, found[rows], labels[rows], shared().normalise)

    name = f"{CIFAR_SPARSITY:.0%}"
    return Bench(
        name="resnet56",
        dense=lambda: shared().cifar_resnet(56),
        data=data,
        judge=judge,
        tried={name: OF_IMAGES},
        how={name: {"sparsity": CIFAR_SPARSITY}},
    )


# ---------------------------------------------------------------------- running


class Rows:
    """What was measured, a line of JSON each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            self.rows = [json.loads(line) for line in path.read_text().splitlines()]

    def known(self, **key: Any) -> dict[str, Any] | None:
        return next((row for row in self.rows if all(row.get(k) == v for k, v in key.items())), None)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, file=sys.stderr, flush=True)


def run(bench: Bench, rows: Rows, seeds: int, split: str) -> None:
    """Measure what is not measured yet."""
    net = bench.dense()
    key = {"bench": bench.name, "split": split}
    if rows.known(**key, method="dense") is None:
        rows.add({**key, "pattern": "", "method": "dense", "seed": 0, "metric": bench.judge(net, split)})
    data = [bench.data(seed) for seed in range(seeds)]
    for pattern, methods in bench.tried.items():
        for method, arguments in methods.items():
            for seed in range(1 if is_blind(method) else seeds):
                own = {**key, "pattern": pattern, "method": method, "seed": seed}
                if rows.known(**own) is None:
                    rows.add({**own, **one(bench, net, data[seed], {**bench.how[pattern], **arguments}, seed, split)})


def is_blind(method: str) -> bool:
    """Whether calibration data make no difference."""
    return method.split(",")[0] in FIXED and "alps" not in method


def one(bench: Bench, net: nn.Module, data: list[Any], arguments: Arguments, seed: int, split: str) -> dict[str, Any]:
    """One network pruned and judged."""
    begin = time.perf_counter()
    result = sc.sparsify(net, data=data, seed=seed, **arguments)
    seconds = time.perf_counter() - begin
    errors = [layer["error"] for layer in result.report["sparsity"]["layers"]]
    return {
        "metric": bench.judge(result.model, split),
        "sparsity": result.sparsity,
        "error": mean(errors),
        "seconds": round(seconds, 1),
    }


def sizes(rows: Rows) -> None:
    """Bytes of the weights' file of each of the ResNet's results, seed 0, against those of the dense network."""
    bench = images()
    net, data = bench.dense(), bench.data(0)
    example = data[0][0][:1]
    for pattern, methods in bench.tried.items():
        for method, arguments in methods.items():
            result = sc.sparsify(net, data=data, **{**bench.how[pattern], **arguments})
            ratio = stored(result.model, example) / stored(net, example)
            rows.add({"bench": "sizes", "pattern": pattern, "method": method, "ratio": ratio})


def stored(model: nn.Module, example: Tensor) -> int:
    """Bytes of the weights as `sc.save` writes them."""
    with tempfile.TemporaryDirectory() as folder:
        sc.save(model, Path(folder) / "model", args=example)
        return (Path(folder) / "model" / "model.safetensors").stat().st_size


# ---------------------------------------------------------------------- telling


def table(
    rows: Sequence[dict[str, Any]], patterns: Iterable[str], methods: Iterable[str], seeds: int, more: str = ""
) -> str:
    """A line for each method, a column for each pattern: mean and spread over calibration seeds."""
    columns = list(patterns)
    heads = ["method", *columns, *([more] if more else [])]
    lines = [f"| {' | '.join(heads)} |", "| --- |" + " ---: |" * (len(heads) - 1)]
    for method in methods:
        own = [r for r in rows if r["method"] == method and "metric" in r]
        wanted = 1 if is_blind(method) else seeds
        cells = [spread([r["metric"] for r in own if r["pattern"] == column], wanted) for column in columns]
        ratio = [r["ratio"] for r in rows if r["method"] == method and "ratio" in r]
        end = f" {ratio[-1]:.3f} |" if ratio else " |" if more else ""
        lines.append(f"| {method} | {' | '.join(cells)} |{end}")
    return "\n".join(lines)


def spread(values: Sequence[float], wanted: int) -> str:
    """Mean and standard deviation, and how many seeds these are of where not all were run; one value as it is."""
    if not values:
        return "not run"
    digits = 0 if mean(values) >= 1000 else 2
    said = f"{mean(values):,.{digits}f}" + (f" ± {stdev(values):,.{digits}f}" if len(values) > 1 else "")
    return said if len(values) == wanted else f"{said} ({len(values)} of {wanted} seeds)"


def tell(rows: Rows, split: str, seeds: int) -> str:
    """The tables of a page."""
    own = [row for row in rows.rows if row.get("split", split) == split]
    found = [row for row in own if row["bench"] == "llama"]
    seen = [row for row in own if row["bench"] in ("resnet56", "sizes")]
    dense = [next((r["metric"] for r in part if r["method"] == "dense"), 0.0) for part in (found, seen)]
    parts = [
        setting(),
        f"Llama, perplexity; dense {dense[0]:.2f}:",
        table(found, PATTERNS, METHODS, seeds),
        "Other allocations, perplexity:",
        table(found, [ALLOCATED_AT], ["wanda", *ALLOCATED], seeds),
        f"ResNet-56, accuracy in %; dense {dense[1]:.2f}:",
        table(seen, [f"{CIFAR_SPARSITY:.0%}"], OF_IMAGES, seeds, "file, of the dense one's"),
    ]
    return "\n\n".join(parts)


MARKS = "<!-- measured: begin -->", "<!-- measured: end -->"


def write(page: Path, text: str) -> None:
    """Put the tables between the marks of a page; the words around them stay."""
    old = page.read_text() if page.exists() else f"# Single weights\n\n{MARKS[0]}\n{MARKS[1]}\n"
    before, _, rest = old.partition(MARKS[0])
    page.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=["llama", "resnet56", "sizes", "nothing"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--split", choices=["test", "valid"], default="test")
    parser.add_argument("--rows", type=Path, default=Path("sparsity.jsonl"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = Rows(args.rows)
    for name, bench in (("llama", stories), ("resnet56", images)):
        if name in args.what:
            run(bench(), rows, args.seeds, args.split)
    if "sizes" in args.what:
        sizes(rows)
    text = tell(rows, args.split, args.seeds)
    if args.out is None:
        print(text)
    else:
        write(args.out, text)


if __name__ == "__main__":
    main()
