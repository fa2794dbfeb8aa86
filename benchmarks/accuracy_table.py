"""The page of accuracy.py: a table for each task and budget, and what follows from it."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accuracy_methods import Method
from accuracy_tasks import Task

Row = dict[str, Any]

HEAD = """# Accuracy after pruning, without training

{setting}. The command of each table repeats it. Parts of one may run at once, a process for each core, as they did
here, and be joined with `--join`.

Mean ± standard deviation over seeds (of the calibration data and of all that is random; a method that depends on
neither has none). MACs and parameters are counted on what each tool returned, by one counter, as a share of the dense
network's. Latency is the median over interleaved rounds, as a share of the dense network's in the same rounds; with all
cores busy it is a rough figure (the README has latencies of an idle machine). Seconds are those of choosing, cutting
and compensating: scores of secateur's hints come from one pass for all of them, which is left out, while "secateur
defaults", which is `sc.prune` with a budget and unlabelled data and nothing else, counts scores and proof, and
torch-pruning's Taylor its gradients. Where labels are needed to score, it says so. "+bn": running statistics of the
batch norms estimated again on the calibration images. torch-pruning's ratio is searched until its result costs what the
budget asks for, as near as its widths allow.
"""


def deliver(text: str, out: Path | None) -> None:
    """Write a page to its file, or print it where there is none."""
    if out:
        out.write_text(text)
    else:
        print(text)


def document(tasks: Sequence[Task], methods: Mapping[str, Method], rows: Sequence[Row], setting: str) -> str:
    """The whole page."""
    parts = [HEAD.format(setting=setting)]
    for task in tasks:
        own = [row for row in rows if row["task"] == task.name]
        if own:
            parts += [
                f"## {task.title}\n",
                "\n\n".join(s + "." for s in (task.note.rstrip("."), task.peer_note) if s) + "\n",
            ]
            parts += [section(task, methods, own, budget) for budget in budgets(own)]
    return "\n".join(parts)


def budgets(rows: Iterable[Row]) -> list[float]:
    """The budgets of rows, the largest first; the dense network's own is none."""
    return sorted({row["budget"] for row in rows if row["method"] != "dense"}, reverse=True)


def section(task: Task, methods: Mapping[str, Method], rows: Sequence[Row], budget: float) -> str:
    """One budget: the table, and what follows from it."""
    dense = sorted((r for r in rows if r["method"] == "dense"), key=lambda r: r["seed"])
    counted = "MACs" if task.cost == "macs" else "parameters without the embeddings" if task.apart else "parameters"
    unit = "accuracy in %" if task.metric == "accuracy" else task.metric
    costs = ["of the budget's"] * bool(task.apart) + ["MACs", "params"]
    columns = ["method", unit, "against dense", *costs, "latency", "seconds", "seeds"]
    lines = [
        f"### {budget:.0%} of the {counted}\n",
        f"`{command(task, methods, rows, budget)}`\n",
        f"| {' | '.join(columns)} |",
        "|" + " --- |" * len(columns),
        line(task, "dense", dense, dense),
    ]
    here = {name: [r for r in rows if r["method"] == name and r["budget"] == budget] for name in methods}
    for name, found in here.items():
        good = [row for row in found if "error" not in row]
        if good:
            lines.append(line(task, name + (", labels" if methods[name].labels else ""), good, dense))
        elif found:
            lines.append(f"| {name} | {short(found[0]['error'])} |" + " |" * (len(columns) - 3) + f" {len(found)} |")
    good = {name: values for name, found in here.items() if (values := [r for r in found if "error" not in r])}
    return "\n".join([*lines, "", *verdicts(task, methods, good, dense), ""])


def command(task: Task, methods: Mapping[str, Method], rows: Sequence[Row], budget: float) -> str:
    """What repeats a table."""
    done = {row["method"] for row in rows if row["budget"] == budget}
    seeds = 1 + max(row["seed"] for row in rows if row["budget"] == budget)
    left_out = [m for m in methods.values() if m.fits(task) and m.name not in done]
    names = " ".join(f'"{name}"' for name in methods if name in done)
    parts = f" --methods {names}" if left_out else ""
    return f"python benchmarks/accuracy.py {task.name} --seeds {seeds} --budgets {budget:g}{parts}"


def line(task: Task, label: str, rows: Sequence[Row], dense: Sequence[Row]) -> str:
    """A method over its seeds."""
    by_seed = {row["seed"]: row for row in dense}
    gaps = [row["value"] - by_seed[row["seed"]]["value"] for row in rows]
    names = ["counted"] * bool(task.apart) + ["macs", "params"]
    shares = [statistics.mean(row[name] / by_seed[row["seed"]][name] for row in rows) for name in names]
    latency = statistics.median(row["latency_ms"] / row["dense_latency_ms"] for row in rows)
    values, seconds = spread([r["value"] for r in rows]), statistics.mean(r["seconds"] for r in rows)
    costs = " | ".join(f"{100 * share:.1f} %" for share in shares)
    gap = f"{statistics.mean(gaps):+.2f}" if any(gaps) else ""
    return f"| {label} | {values} | {gap} | {costs} | {100 * latency:.0f} % | {seconds:.1f} | {len(rows)} |"


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def verdicts(
    task: Task, methods: Mapping[str, Method], found: Mapping[str, Sequence[Row]], dense: Sequence[Row]
) -> list[str]:
    """The best of ours that needs no labels beside the best of torch-pruning."""
    baseline = {row["seed"]: row["value"] for row in dense}
    better = -1 if task.metric == "accuracy" else 1
    lost = {n: statistics.mean(better * (r["value"] - baseline[r["seed"]]) for r in rows) for n, rows in found.items()}
    mine = [n for n in lost if methods[n].ours and not methods[n].labels]
    bare = [n for n in lost if not methods[n].ours and not methods[n].compensated]
    fair = [n for n in lost if not methods[n].ours and methods[n].compensated]
    if not mine or not bare:
        return []
    best, unit = min(mine, key=lost.__getitem__), "points" if task.metric == "accuracy" else "of perplexity"
    lines = [f"- Best of secateur without labels: {best}, {lost[best]:.2f} {unit} lost."]
    for kind, names in (("as it is", bare), ("with batch norms estimated again", fair)):
        if names:
            peer = min(names, key=lost.__getitem__)
            lines.append(
                f"- Best of torch-pruning {kind}: {peer}, {lost[peer]:.2f} {unit} lost: {lost[peer] - lost[best]:+.2f} "
                f"for secateur, which wins back {1 - lost[best] / lost[peer]:.0%} of it."
                if lost[peer] > 0
                else f"- Best of torch-pruning {kind}: {peer}, nothing lost."
            )
    return lines


def short(text: str) -> str:
    """An error, on one line of a table."""
    text = text.replace("|", "/")
    return text if len(text) <= 100 else text[:97] + "..."
