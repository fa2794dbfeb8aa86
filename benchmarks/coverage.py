"""Which models can be pruned, how fast, and what keeps the others: the table of docs/coverage.md.

    python benchmarks/coverage.py --zoo ../shared/zoo/zoo.py --out docs/coverage.md

Every model of the zoo (a Python file with ``ZOO = [(name, build, inputs, kind), ...]``) is pruned to half the width of
every axis that can be pruned, in a process of its own, on one thread, under a time limit. torch-pruning is given the
same models in the same run where it is installed, as its documentation says: half of every group by L2, classifier
layers ignored, heads of attention said. Times are those of the quickest of several runs in one process.

A model counts as pruned when the result is proved, runs at two batch sizes, and gives finite gradients in one backward
step.
"""

import argparse
import importlib.util
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import peers
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.graph import named
from secateur.pruning import Result
from secateur.tracing.running import tensors_in

RUNS, LONG = (3, 25), 2.0  # least and most runs of each timing, and seconds after which there are no more
Row = dict[str, Any]
Entry = tuple[str, Callable[[], nn.Module], Callable[[int], tuple[Any, Any]], str]


def ours(entry: Entry) -> Row:
    """Prune a model, check the result, and time the four stages in a first call."""
    _, build, inputs, _ = entry
    model, example = fresh(build), inputs(2)
    started = time.perf_counter()
    result = sc.prune(model, *example, keep=0.5)
    row: Row = {"prune": time.perf_counter() - started, **facts(result)}
    check(result.model, inputs, [tuple(t.shape) for t in outputs(model, inputs(3))])
    return row


def stages(entry: Entry) -> Row:
    """Seconds of trace, score, plan and apply."""
    _, build, inputs, _ = entry
    names = ("trace", "score", "plan", "apply")

    def once() -> Row:
        model, (args, kwargs) = fresh(build), inputs(2)
        marks = [time.perf_counter()]
        graph = sc.trace(model, args, kwargs)
        marks.append(time.perf_counter())
        scores = sc.score(model, graph)
        marks.append(time.perf_counter())
        plan = sc.plan(graph, scores, keep=0.5)
        marks.append(time.perf_counter())
        plan.apply(model)
        marks.append(time.perf_counter())
        return {**{n: b - a for n, a, b in zip(names, marks, marks[1:], strict=False)}, "seconds": marks[-1] - marks[0]}

    return quickest(once)


def peer(entry: Entry) -> Row:
    """The same with torch-pruning, timed alike, and the same checks but for the proof."""
    _, build, inputs, _ = entry
    shapes = [tuple(t.shape) for t in outputs(fresh(build), inputs(3))]

    def once() -> Row:
        model, (args, kwargs) = fresh(build), inputs(2)
        before = sum(p.numel() for p in model.parameters())
        run = peers.pruner(model, args, kwargs)
        started = time.perf_counter()
        run()
        seconds = time.perf_counter() - started
        after = sum(p.numel() for p in model.parameters())
        if after > 0.95 * before:
            raise RuntimeError(f"nothing was pruned: {after / before:.0%} of the parameters are left")
        return {"seconds": seconds, "left": after / before, "model": model}

    check(once()["model"], inputs, shapes)
    return {k: v for k, v in quickest(once).items() if k != "model"}


def quickest(once: Callable[[], Row]) -> Row:
    """The quickest of several runs, which is what other work on the machine disturbs least."""
    rows: list[Row] = []
    while len(rows) < RUNS[1] and (len(rows) < RUNS[0] or sum(row["seconds"] for row in rows) < LONG):
        rows.append(once())
    return min(rows, key=lambda row: row["seconds"])


def fresh(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build().eval()


def outputs(model: nn.Module, inputs: tuple[Any, Any]) -> list[Tensor]:
    return tensors_in(model(*inputs[0], **inputs[1]))


def facts(result: Result) -> Row:
    dense, small = result.graph.cost(), result.graph.cost(result.plan.sizes)
    return {
        "axes": len(result.graph.axes),
        "pruned": len(result.plan.axes),
        "coverage": result.graph.coverage,
        "params": small["params"] / dense["params"],
        "macs": small["macs"] / dense["macs"] if dense["macs"] else 1.0,
        "status": result.proof.status,
        "normalised": len(result.proof.normalised),
        "ratio": result.proof.ratio,
        "rewritten": result.rewritten or "",
        "unknown": [f"{name} at {place}" for name, place in result.graph.unknown],
        "frozen": frozen(result),
    }


def frozen(result: Result) -> list[str]:
    """Why parameters lie on no prunable axis, the largest first."""
    graph, share = result.graph, dict[str, int]()
    for info in graph.tensors.values():
        names = named(info.dims)
        if info.parameter and not graph.axes.keys() & set(names):
            reasons = [graph.frozen[n].frozen[0] for n in names if n in graph.frozen] or ["no axis"]
            share[reasons[0]] = share.get(reasons[0], 0) + math.prod(info.shape)
    return [f"{reason} ({size} parameters)" for reason, size in sorted(share.items(), key=lambda i: -i[1])[:3]]


def check(model: nn.Module, inputs: Callable[[int], tuple[Any, Any]], shapes: list[tuple[int, ...]]) -> None:
    """Two batch sizes and one backward step.

    Raises:
        RuntimeError: saying which failed.
    """
    outputs(model, inputs(2))
    got = [tuple(t.shape) for t in outputs(model, inputs(3))]
    if got != shapes and not data_dependent(shapes, got):
        raise RuntimeError(f"outputs of shapes {got}, before {shapes}")
    for p in model.parameters():
        p.requires_grad_(p.is_floating_point())
    found = [t.float().pow(2).sum() for t in outputs(model, inputs(2)) if t.requires_grad and t.is_floating_point()]
    if not found:
        raise RuntimeError("no output has a gradient")
    torch.stack(found).sum().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    if not grads or not all(bool(g.isfinite().all()) for g in grads):
        raise RuntimeError("gradients are missing or not finite")


def data_dependent(before: list[tuple[int, ...]], after: list[tuple[int, ...]]) -> bool:
    """Detections: as many outputs, of as many boxes as values decide."""
    return len(before) == len(after) and all(a[1:] == b[1:] for a, b in zip(before, after, strict=True))


# ---------------------------------------------------------------------- processes


def alone(work: Callable[[Entry], Row], entry: Entry, limit: float) -> Row:
    """Run in a process of its own; what failed, or took too long, is said in ``error``."""
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)

    def child(sender: Connection) -> None:
        if "-v" not in sys.argv:
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
        try:
            sender.send(work(entry))
        except Exception as error:
            sender.send({"error": f"{type(error).__name__}: {' '.join(str(error).split())}"})

    process = context.Process(target=child, args=(writer,))
    process.start()
    writer.close()
    try:
        return reader.recv() if reader.poll(limit) else {"error": f"more than {limit:.0f} s"}
    except EOFError:
        return {"error": f"the process ended with code {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def load_zoo(path: Path) -> list[Entry]:
    spec = importlib.util.spec_from_file_location("zoo", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is no Python file")
    sys.path.append(str(path.resolve().parent))  # its name is left out of places
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.ZOO)


def preload() -> None:
    """Import the model libraries once, in the parent."""
    for name in ("torchvision", "timm", "transformers", "torch_pruning"):
        if importlib.util.find_spec(name):
            importlib.import_module(name)


# ---------------------------------------------------------------------- the table


def passed(row: Row) -> bool:
    return "error" not in row["ours"]


def summary(rows: list[Row], with_peer: bool) -> list[str]:
    good = [r for r in rows if passed(r)]
    coverage = statistics.mean(r["ours"]["coverage"] for r in good) if good else 0.0
    share, rewritten = len(good) / len(rows), sum(bool(r["ours"]["rewritten"]) for r in good)
    slowest = max((r for r in rows if "seconds" in r["stages"]), key=lambda r: r["stages"]["seconds"], default=None)
    lines = [
        f"- {len(good)} of {len(rows)} models pruned and proved ({share:.1%}).",
        f"- Parameters on a prunable axis, mean over the models, failed ones as 0: {coverage * share:.1%}.",
        f"- Class kept: {len(good) - rewritten}; rewritten as a graph: {rewritten}.",
    ]
    if slowest:
        lines.append(f"- Slowest four stages: {slowest['name']}, {slowest['stages']['seconds']:.2f} s.")
    both = [r for r in good if with_peer and "error" not in r["peer"] and "seconds" in r["stages"]]
    if both:
        ratio = statistics.geometric_mean(r["peer"]["seconds"] / r["stages"]["seconds"] for r in both)
        managed = sum("error" not in r["peer"] for r in rows)
        lines += [
            f"- torch-pruning: {managed} of {len(rows)} pass the same checks, the proof left out.",
            f"- On the {len(both)} models that both manage, our four stages are {ratio:.1f}x as fast (geometric mean).",
        ]
    return lines


def cell(row: Row, with_peer: bool) -> str:
    name, own, times, other = row["name"], row["ours"], row["stages"], row["peer"]
    seconds = " | ".join(f"{1e3 * times[s]:.0f}" if s in times else "" for s in ("trace", "score", "plan", "apply"))
    if passed(row):
        note = "; ".join(
            [f"rewritten: {own['rewritten']}"] * bool(own["rewritten"])
            + [f"whole: {reason}" for reason in own["frozen"][:1]]
        )
        result = f"{own['status']} | {own['coverage']:.0%} | {own['pruned']}/{own['axes']} | {own['params'] - 1:+.0%}"
    else:
        note, result = own["error"], "fail | | | "
    theirs = ""
    if with_peer:
        theirs = (
            f" {1e3 * other['seconds']:.0f}, {other['left'] - 1:+.0%} |"
            if "seconds" in other
            else f" {short(other['error'])} |"
        )
    return f"| {name} | {result} | {seconds} |{theirs} {short(note)} |"


def short(text: str) -> str:
    text = text.replace("|", "/").replace("\n", " ")
    for place in sys.path:
        text = text.replace(place.rstrip("/") + "/", "") if place else text
    return text if len(text) <= 160 else text[:157] + "..."


def table(rows: list[Row], with_peer: bool, command: str) -> str:
    peer_head = " torch-pruning |" if with_peer else ""
    versions = ", ".join(
        f"{m} {importlib.import_module(m).__version__}" for m in ("torch", "torchvision", "timm", "transformers")
    )
    return "\n".join([
        "# Coverage", "",
        f"`{command}`", "",
        f"Every model pruned to half the width of every prunable axis. {versions}; one thread; times in ms.", "",
        *summary(rows, with_peer), "",
        f"| model | result | on an axis | axes | params | trace | score | plan | apply |{peer_head} note |",
        f"| --- | --- | --- | --- | --- | --- | --- | --- | --- |{' --- |' if with_peer else ''} --- |",
        *(cell(row, with_peer) for row in rows), "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts of model names; all models where none is given")
    parser.add_argument(
        "--zoo", type=Path, default=Path(__file__).parents[2] / "shared/zoo/zoo.py", help="file with ZOO"
    )
    parser.add_argument("--out", type=Path, help="write the table here as Markdown, and the rows beside it as JSON")
    parser.add_argument("--limit", type=float, default=90.0, help="seconds for each model and tool")
    parser.add_argument("--no-peer", action="store_true", help="leave torch-pruning out")
    parser.add_argument("--no-stages", action="store_true", help="leave the timing of the four stages out")
    parser.add_argument("-v", action="store_true", help="let the processes print")
    options = parser.parse_args()
    torch.set_num_threads(1)
    entries = [e for e in load_zoo(options.zoo) if not options.names or any(n in e[0] for n in options.names)]
    preload()
    with_peer = not options.no_peer and importlib.util.find_spec("torch_pruning") is not None
    rows: list[Row] = []
    for number, entry in enumerate(entries, 1):
        row: Row = {"name": entry[0], "ours": alone(ours, entry, options.limit)}
        row["stages"] = {} if options.no_stages else alone(stages, entry, options.limit)
        row["peer"] = alone(peer, entry, options.limit) if with_peer else {}
        rows.append(row)
        print(f"{number}/{len(entries)} {cell(row, with_peer)}", flush=True)
    print("\n".join(summary(rows, with_peer)))
    if options.out:
        command = "python benchmarks/coverage.py " + " ".join(sys.argv[1:])
        options.out.write_text(table(rows, with_peer, command))
        options.out.with_suffix(".json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
