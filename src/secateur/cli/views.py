"""What the commands print when they are done."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from secateur.artifacts import loading, open_saved, read_record
from secateur.reporting import Report, lineage
from secateur.reporting.numbers import size

if TYPE_CHECKING:
    from secateur.artifacts import Saved
    from secateur.hints import HintCheck
    from secateur.pruning import Result
    from secateur.runs.prune import Outcome
    from secateur.runs.tune import Tuned

_ABOUT = {
    "config.yaml": "all settings",
    "model.safetensors": "the network's weights",
    "plan.json": "which units stay",
    "artifact.json": "how to build the network again",
    "probe.safetensors": "an input and its output, checked on loading",
    "README.md": "the model card",
    "scores.safetensors": "the importance of the dense network's units",
    "removed.safetensors": "what undoing needs",
    "report.html": "the report as a page",
    "report.json": "the report as data",
    "training.json": "the training curves",
}


def finished(console: Console, outcome: "Outcome | Tuned", out: Path) -> None:
    """The end of a run: its report, where the result is, how to use it and how to repeat it."""
    console.print()
    console.print(outcome.report)
    if advice := getattr(outcome, "advice", ""):
        console.print(Text(advice, style="yellow"))
    console.print()
    _facts(
        console,
        {
            "Saved in": str(out),
            "Look at": str(out / "report.html"),
            "Load it": loading(str(out), read_record(outcome.path)),
            "Repeat it": str(outcome.report["command"]),
        },
    )


def grown(console: Console, result: "Result", out: Path) -> None:
    """A growth: its report, and where it is."""
    console.print()
    console.print(result)
    console.print()
    kept(console, out)


def kept(console: Console, out: Path) -> None:
    """Where a network was saved, and how to load it."""
    _facts(console, {"Saved in": str(out), "Load it": loading(str(out), read_record(out))})


def checked(console: Console, check: "HintCheck", out: Path | None) -> None:
    """The end of a check of hints: its tables, and where the pictures are."""
    console.print()
    console.print(check)
    if out is not None:
        console.print()
        _facts(console, {"Saved in": str(out), "Look at": str(out / "hints.html")})


def saved(console: Console, path: Path) -> None:
    """A saved result, once its files are checked: its report, its files, how to load it and to make it again."""
    found = open_saved(path)
    report = Report.load(path) if (path / "report.json").exists() else None
    if report is not None:
        console.print(report)
    else:
        console.print(Text(f"A network saved by itself, without a report: {found.record['class']}"))
    console.print()
    if found.record["history"]:
        console.print(lineage.table(found.record["history"]))
    for name, weight in _sizes(found).items():
        about = _ABOUT.get(name, "further tensors" if name in found.record["files"] else "not written by secateur")
        console.print(Text.assemble(f"{name:<20}{size(weight):>9}  ", (about, "dim")))
    console.print()
    about_run: dict[str, Any] = (report or {}).get("environment") or {}
    _facts(
        console,
        {
            "Load it": loading(str(path), found.record),
            "Made by": str((report or {}).get("command") or ""),
            "Cut short": str(about_run.get("interrupted") or ""),
        },
    )


def _sizes(found: "Saved") -> dict[str, int]:
    """The size in bytes of each file of a result; in a single file, of each that was folded into it."""
    if found.single:
        files = found.record["files"]
        return {name: files[name]["bytes"] for name in dict.fromkeys((*_ABOUT, *files)) if name in files}
    order = [*_ABOUT, *sorted(file.name for file in found.path.iterdir() if file.name not in _ABOUT)]
    return {name: (found.path / name).stat().st_size for name in order if (found.path / name).is_file()}


def _facts(console: Console, facts: dict[str, str]) -> None:
    for name, value in facts.items():
        if value:
            console.print(Text.assemble((f"{name:<11}", "bold"), value), soft_wrap=True)
