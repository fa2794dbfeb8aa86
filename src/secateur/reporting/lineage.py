"""What was done to a network, step by step, as a table: figures, details, and the weights that each step began with."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from secateur.reporting.figures import MACS, PARAMS, metric
from secateur.reporting.numbers import DASH

ACCURACY, LOSS = metric("accuracy"), metric("loss")
FIGURES = (PARAMS, MACS, ACCURACY, LOSS)
OWN = ("step", "figures", "before", "parent", "masked")  # of a step; the rest are details
HASH, LONGEST = 12, 60  # letters that are shown of a hash, and of a detail


def table(history: Sequence[Mapping[str, Any]]) -> Table:
    """The lineage of a network: the dense one first, then what was done.

    Args:
        history: steps, oldest first, ``{"step", "figures", ...}``; see `secateur.provenance`. Figures and details are
            taken as they come: a file of anyone's may hold them.
    """
    columns = [step.get("figures") for step in history] + [step.get("before") for step in history]
    shown = [figure for figure in FIGURES if any(figure.of(column) is not None for column in columns)]
    grid = Table(box=box.SIMPLE_HEAD, title=Text("Lineage"), title_justify="left")
    grid.add_column("step", no_wrap=True)
    for figure in shown:
        grid.add_column(figure.label, justify="right", no_wrap=True)
    grid.add_column("made of", no_wrap=True)
    grid.add_column("how", overflow="fold")
    first = history[0].get("before") if history else None
    if isinstance(first, Mapping):
        grid.add_row("dense", *(figure.show(figure.of(first)) for figure in shown), "", "")  # pyright: ignore[reportUnknownArgumentType]
    for number, step in enumerate(history, 1):
        figures = step.get("figures")
        parent = step.get("parent")
        grid.add_row(
            Text(f"{number} {safe(step['step'])}"),
            *(figure.show(figure.of(figures)) for figure in shown),
            Text(safe(parent)[:HASH] if isinstance(parent, str) else DASH),
            Text(details(step)),
        )
    return grid


def details(step: Mapping[str, Any]) -> str:
    """What a step says beside its figures, in words.

    >>> details({"step": "prune", "figures": None, "importance": "l2", "seed": 0, "parent": "ab12"})
    'importance l2, seed 0'
    """
    return ", ".join(f"{safe(name)} {safe(value)}" for name, value in step.items() if name not in OWN)


def safe(value: Any) -> str:
    """Anything as a short text without control characters.

    >>> safe("a" + chr(27) + "[2Jb")
    'a?[2Jb'
    """
    text = "".join(letter if letter.isprintable() else "?" for letter in str(value))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
