"""The command line, struck by a signal at a place of the code: ``python -m support.struck SIGNAL PLACE WORDS...``.

A place is ``package.module:name`` or ``package.module:Class.method``, of which a call is struck before anything of it
is done; with ``:name>`` right after it; with ``*3`` the third call; with ``?text`` only calls count with an argument
that holds the text.
"""

import importlib
import multiprocessing
import os
import re
import signal
import sys
import tempfile
from collections.abc import Sequence
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

from secateur.cli.app import execute

PLACE = re.compile(r"(?P<module>[\w.]+):(?P<name>[\w.]+)(?P<after>>?)(?:\*(?P<count>\d+))?(?:\?(?P<text>.+))?")
LIMIT_S = 240
PRELOAD = ["support.struck", "secateur.runs.prune", "secateur.runs.tune", "secateur.cli.views", "accelerate"]


def strike(name: str, place: str) -> None:
    """Have this process get a signal at a place."""
    match = PLACE.fullmatch(place)
    assert match is not None, place
    owner: Any = importlib.import_module(match["module"])
    *outer, last = match["name"].split(".")
    for part in outer:
        owner = getattr(owner, part)
    function, left = getattr(owner, last), int(match["count"] or 1)

    @wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        if match["text"] is None or any(match["text"] in str(value) for value in args):
            left -= 1
            due = left == 0
        else:
            due = False
        if due and not match["after"]:
            signal.raise_signal(signal.Signals[name])
        given = function(*args, **kwargs)
        if due and match["after"]:
            signal.raise_signal(signal.Signals[name])
        return given

    setattr(owner, last, counted)


def run(name: str, place: str, words: Sequence[str]) -> None:
    """Carry out a command, and end with its exit code."""
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background may have it ignored
    if place:
        strike(name, place)
    sys.exit(execute(list(words)))


class Ended(NamedTuple):
    """How a process ended: its exit code, or the number of a signal below zero; and what it said."""

    code: int
    said: str


def struck(name: str, place: str, *words: str) -> Ended:
    """Do so in a process of its own.

    Args:
        name: of the signal.
        place: where; empty for an undisturbed run.
        words: of the command line.
    """
    context = multiprocessing.get_context("forkserver")  # which imports everything once
    context.set_forkserver_preload(PRELOAD)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "said.txt"
        process = context.Process(target=_run_into, args=(file, name, place, words))
        process.start()
        process.join(LIMIT_S)
        code = process.exitcode
        if code is None:
            process.kill()
            raise AssertionError(f"{words} hung")
        return Ended(code, " ".join(file.read_text().split()))


def _run_into(file: Path, *args: Any) -> None:
    handle = os.open(file, os.O_WRONLY | os.O_CREAT)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    run(*args)


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], sys.argv[3:])
