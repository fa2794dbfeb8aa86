"""What the commands print when they are done."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from secateur.artifacts import read_record
from secateur.reporting import Report
from secateur.reporting.numbers import size

if TYPE_CHECKING:
    from secateur.hints import HintCheck
    from secateur.runs.prune import Outcome
    from secateur.runs.replay import Replayed
    from secateur.runs.tune import Tuned

_ABOUT = {
    "config.yaml": "all settings",
    "model.safetensors": "the network's weights",
    "plan.json": "which units stay",
    "artifact.json": "how to build the network again",
    "probe.safetensors": "an input and its output, checked on loading",
    "report.html": "the report as a page",
    "report.json": "the report as data",
    "training.json": "the training curves",
}


def finished(console: Console, outcome: "Outcome | Tuned | Replayed", out: Path) -> None:
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
            "Load it": loading(out, read_record(outcome.path)),
            "Repeat it": str(outcome.report["command"]),
        },
    )


def checked(console: Console, check: "HintCheck", out: Path | None) -> None:
    """The end of a check of hints: its tables, and where the pictures are."""
    console.print()
    console.print(check)
    if out is not None:
        console.print()
        _facts(console, {"Saved in": str(out), "Look at": str(out / "hints.html")})


def saved(console: Console, path: Path) -> None:
    """A saved result, once its files are checked: its report, its files, how to load it and to make it again."""
    record = read_record(path)
    report = Report.load(path) if (path / "report.json").exists() else None
    if report is not None:
        console.print(report)
    else:
        console.print(Text(f"A network saved by itself, without a report: {record['class']}"))
    console.print()
    order = [*_ABOUT, *sorted(file.name for file in path.iterdir() if file.name not in _ABOUT)]
    for file in [path / name for name in order if (path / name).is_file()]:
        about = (_ABOUT.get(file.name, "not written by secateur"), "dim")
        console.print(Text.assemble(f"{file.name:<20}{size(file.stat().st_size):>9}  ", about))
    console.print()
    about_run: dict[str, Any] = (report or {}).get("environment") or {}
    _facts(
        console,
        {
            "Load it": loading(path, record),
            "Made by": str((report or {}).get("command") or ""),
            "Cut short": str(about_run.get("interrupted") or ""),
        },
    )


def loading(path: Path, record: Mapping[str, Any]) -> str:
    """Python that loads a saved result, in a line."""
    if record["graph"] is not None:
        return f'sc.load("{path}")'
    if record["build"] is not None:
        return f'sc.load("{path}", trust=True), which imports {record["build"]["callable"].partition(":")[0]}'
    return f'sc.load("{path}", model=...), given an instance of {record["class"]} with its original sizes'


def _facts(console: Console, facts: dict[str, str]) -> None:
    for name, value in facts.items():
        if value:
            console.print(Text.assemble((f"{name:<11}", "bold"), value), soft_wrap=True)
