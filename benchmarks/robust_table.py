"""The page of robust_pruning.py: tables between two marks of a page whose other text stays."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

Row = dict[str, Any]
START, END = "<!-- measured -->", "<!-- measured so far -->"
HEAD = "| method | seeds | MACs | params | before: clean | before: robust | after: clean | after: robust |"
RULE = "| --- | --- | --- | --- | --- | --- | --- | --- |"


def document(rows: Sequence[Row], path: Path) -> None:
    """Put the tables into the page.

    Raises:
        SystemExit: there is nothing to show, or the page lacks the marks.
    """
    text = path.read_text(encoding="utf-8")
    if not rows or START not in text or END not in text:
        raise SystemExit(f"{path} needs the lines {START} and {END}, and --results at least one file")
    before, after = text.split(START)[0], text.split(END)[1]
    path.write_text(f"{before}{START}\n\n{measured(rows)}\n\n{END}{after}", encoding="utf-8")


def measured(rows: Sequence[Row]) -> str:
    """The setting in words, and a table for each budget."""
    budgets = sorted({row["budget"] for row in rows if row["method"] != "dense"}, reverse=True)
    parts = [_setting(rows)]
    for budget in budgets:
        lines = [_line("dense", [row for row in rows if row["method"] == "dense"])]
        chosen = [row for row in rows if row["budget"] == budget and row["method"] != "dense"]
        names = dict.fromkeys(row["method"] for row in sorted(chosen, key=lambda row: row["order"]))
        lines += [_line(name, [row for row in chosen if row["method"] == name]) for name in names]
        parts.append("\n".join([f"### {100 * budget:g}% of the MACs", "", HEAD, RULE, *lines]))
    return "\n\n".join(parts)


def _setting(rows: Sequence[Row]) -> str:
    """What all rows have in common; whatever differs among them is an error, not a footnote."""
    common = {(str(row["settings"]), str(row["images"]), row["hardware"]) for row in rows}
    if len(common) > 1:
        raise SystemExit(f"the results come of different settings: {sorted(common)}. Render one set at a time")
    how, images, machine = rows[0]["settings"], rows[0]["images"], rows[0]["hardware"]
    seconds = sum(sum(row["seconds"].values()) for row in rows)
    return (
        f"Measured on {machine}: {len(rows)} networks, {seconds:.0f} s of work in all processes together. "
        f"Scores and compensation: {images['calibration']:,} training images. Tuning: {how['epochs']} epochs of "
        f"{images['tuning']:,} training images, PGD-{how['pgd']}, batches of {how['batch']}, SGD with a rate of "
        f"{how['lr']:g} that falls by a cosine, precision {how['precision']}; the epoch is chosen on "
        f"{images['validation']:,} more training images under attack. Tests: {images['test']:,} test images, full "
        f"precision, Auto-PGD of {how['steps']} steps by cross-entropy, then towards {how['targets']} classes by the "
        f"difference of logits ratio. Accuracies in %, mean ± standard deviation over seeds; each seed is a dense "
        f"network of its own."
    )


def _line(name: str, rows: Sequence[Row]) -> str:
    cells = [_spread([100 * row["cost"][kind] for row in rows], "%") for kind in ("macs", "params")]
    cells += [
        _spread([row[when][what] for row in rows]) for when in ("before", "after") for what in ("clean", "robust")
    ]
    return f"| {name} | {len(rows)} | {' | '.join(cells)} |"


def _spread(values: Sequence[float], unit: str = "") -> str:
    """Mean and standard deviation; of costs, which hardly differ, the mean."""
    if unit or len(values) < 2:
        return f"{mean(values):.1f}{' ' if unit else ''}{unit}"
    return f"{mean(values):.1f} ± {stdev(values):.1f}"
