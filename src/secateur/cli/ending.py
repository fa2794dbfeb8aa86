"""How a command ends: with an exit code, and with words instead of a traceback."""

import os
import sys
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from secateur.cli import views
from secateur.cli.terminal import Terminal

if TYPE_CHECKING:
    from secateur.runs.prune import Outcome
    from secateur.runs.steps import Watch
    from secateur.runs.tune import Tuned

FILE_WIDTH = 140
DONE, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130


def output() -> Console:
    """The standard output stream; a file has room for wide tables."""
    return Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else FILE_WIDTH)


def complain(kind: str, message: str, style: str = "bold red") -> None:
    """Say what went wrong on the standard error stream."""
    Console(stderr=True, highlight=False).print(Text.assemble((f"{kind}: ", style), message), soft_wrap=True)


@contextmanager
def warnings_told() -> Generator[None]:
    """Show warnings for users as what they are, without the code that gave them."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def tell(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, UserWarning):
                complain("warning", str(message), "bold yellow")
            else:
                show(message, category, *where, **more)

        warnings.showwarning = tell
        yield


def with_notes(said: str, error: Exception) -> str:
    """Words on an error, and what was noted at it on its way."""
    notes: list[str] = getattr(error, "__notes__", [])
    return ". ".join([said.rstrip("."), *notes]) if notes else said


def explain(words: list[str]) -> None:
    """The traceback of the present error, for those who asked for it."""
    if "--debug" in words:
        Console(stderr=True).print_exception()


def carried_out(
    run: "Callable[[Watch], Outcome | Tuned | None]", out: Path, *, quiet: bool = False, nothing: str = ""
) -> int:
    """Carry out a run and show what it left; the exit code.

    Args:
        run: it.
        out: its output directory.
        quiet: show no steps, for all processes of several but the first.
        nothing: what to say where it leaves nothing.
    """
    from secateur.runs.steps import silent

    terminal = Terminal(output())
    try:
        outcome = run(silent if quiet else terminal.watch)
    except KeyboardInterrupt:
        return _stopped(terminal, out)
    if outcome is not None:
        return _ended(outcome, out)
    if nothing and not quiet:
        output().print(Text(nothing), soft_wrap=True)
    return DONE


def interrupted(terminal: Terminal, what: str) -> int:
    """Say that Ctrl-C ended a command that keeps nothing; the exit code."""
    step = f" during: {terminal.current}" if terminal.current else ""
    complain("stopped", f"by Ctrl-C{step}. {what}")
    return INTERRUPTED


def _ended(outcome: "Outcome | Tuned", out: Path) -> int:
    """Show what a run left; the exit code."""
    views.finished(output(), outcome, out)
    if getattr(outcome, "failed", ""):
        words = outcome.interrupted[:1].upper() + outcome.interrupted[1:]
        complain(
            "error",
            f"{outcome.failed} {words}. It is saved in {out}. Train it on with other settings: secateur tune {out}; "
            f"or, when the data are mended, go on with: secateur resume {out}",
        )
        return FAILED
    if outcome.interrupted:
        on = "resume" if getattr(outcome, "resumable", True) else "tune"
        complain(
            "stopped",
            f"by Ctrl-C: {outcome.interrupted}. It is saved in {out}. Go on with: secateur {on} {out}",
        )
        return INTERRUPTED
    return DONE


def _stopped(terminal: Terminal, out: Path) -> int:
    """Say what Ctrl-C stopped, and how to go on; the exit code."""
    from secateur.runs.unfinished import Unfinished

    kept = Unfinished(out).worth_keeping
    how = f"Go on with: secateur resume {out}" if kept else f"Nothing was kept: {out} was not written"
    return interrupted(terminal, how)
