"""What the commands print when they are done."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from secateur.config import PruneSettings
from secateur.reporting import Report
from secateur.reporting.numbers import size

if TYPE_CHECKING:
    from secateur.run import Outcome

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


def finished(console: Console, outcome: "Outcome", settings: PruneSettings) -> None:
    """The end of a run: its report, where the result is, how to use it and how to repeat it."""
    console.print()
    console.print(outcome.report)
    if outcome.result.rewritten:
        said = f"The network's class was replaced by its graph: {outcome.result.rewritten}."
        console.print(Text(said), soft_wrap=not console.is_terminal)
    console.print()
    _facts(
        console,
        {
            "Saved in": str(settings.out),
            "Look at": str(settings.out / "report.html"),
            "Load it": f'sc.load("{settings.out}")',
            "Repeat it": str(outcome.report["command"]),
        },
    )


def saved(console: Console, path: Path) -> None:
    """A saved result: its report, and the files in its directory."""
    report = Report.load(path)
    console.print(report)
    console.print()
    for file in sorted(path.iterdir(), key=lambda file: list(_ABOUT).index(file.name) if file.name in _ABOUT else 99):
        console.print(
            Text.assemble(f"{file.name:<20}{size(file.stat().st_size):>9}  ", (_ABOUT.get(file.name, ""), "dim"))
        )
    console.print()
    _facts(console, {"Load it": f'sc.load("{path}")', "Made by": str(report["command"] or "")})


def _facts(console: Console, facts: dict[str, str]) -> None:
    for name, value in facts.items():
        if value:
            console.print(Text.assemble((f"{name:<11}", "bold"), value), soft_wrap=True)
