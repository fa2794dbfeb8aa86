"""From an unfinished run to a result: it appears when it is complete, under its name, and in one step."""

import os
import resource
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from secateur.errors import OutputError
from secateur.files import flush, write_json
from secateur.reporting import Report
from secateur.sparsity.layers import Layers
from secateur.sparsity.streaming import journal
from secateur.sparsity.streaming.checkpoint import Checkpoint, same_place
from secateur.sparsity.streaming.output import told
from secateur.sparsity.streaming.sharing import Group
from secateur.sparsity.streaming.skeleton import Skeleton
from secateur.sparsity.telling import assembled

REPORT = "report.json"
OF = "of.json"  # beside the journal of a run that is complete but for its name


class Publication:
    """The place of a result, and that of the run until then.

    Args:
        output: the result's.
        source: what is pruned.
        processes: of the run; the first one writes.
        overwrite: replace an earlier result, and forget an unfinished run.

    Raises:
        OutputError: the place is taken by something else, or is the source's.
    """

    def __init__(self, output: str | Path, source: Checkpoint, processes: Group, *, overwrite: bool) -> None:
        self.path = Path(os.path.abspath(Path(output).expanduser()))
        self.unfinished = self.path.with_name(self.path.name + ".unfinished")
        self.processes, self.overwrite, self._shown = processes, overwrite, str(output)
        if same_place(self.path, source.path):
            raise OutputError(
                f"output={self._shown!r} is the source, or lies in it, or the other way round: choose another place"
            )
        if os.path.lexists(self.path) and not self._resumable():
            self._check_replaceable()

    def _resumable(self) -> bool:
        """Whether the result is there, and only its traces were not cleared away yet."""
        return (self.unfinished / OF).exists() and not (self.unfinished / "checkpoint").exists()

    def _check_replaceable(self) -> None:
        if not self.path.is_dir() or self.path.is_symlink():
            raise OutputError(f"output={self._shown!r} is a file or a link: choose another place")
        if not any(self.path.iterdir()):
            return
        if not self.overwrite:
            raise OutputError(
                f"output={self._shown!r} is there already: choose another place, or replace it by overwrite"
            )
        if not (self.path / REPORT).is_file() or not (self.path / "config.json").is_file():
            raise OutputError(
                f"output={self._shown!r} holds something else than a checkpoint that secateur pruned, so overwrite "
                "leaves it alone: move it away, or choose another place"
            )

    def finished(self, of: Mapping[str, Any]) -> bool:
        """Whether the same run was complete, and killed before it could say so; then its traces are cleared away."""
        if self.overwrite or not self._resumable() or not self.path.is_dir():
            return False
        if journal.taken_up(self.unfinished, of, self._shown).begun:
            self._clear()
            return True
        return False

    def begin(self, of: Mapping[str, Any]) -> journal.Journal:
        """Make the folder of the run, or take up the one that is there.

        Raises:
            OutputError: it is of another kind, or can't be written to.
        """
        if self.processes.main:
            if self.overwrite or journal.is_empty_of_another(self.unfinished, of):
                self._clear()
            with told(self.unfinished):
                self.unfinished.mkdir(parents=True, exist_ok=True)
        self.processes.wait()
        return journal.taken_up(self.unfinished, of, self._shown)

    def publish(self, report: Report) -> None:
        """Give the result its name.

        Raises:
            OutputError: something has taken it meanwhile.
        """
        if self.processes.main:
            work = self.unfinished / "checkpoint"
            report.save(work / REPORT)
            write_json(self.unfinished / OF, {"complete": True})
            old = self.path.with_name(f".{self.path.name}.old")
            with told(self.path):
                if self.path.is_dir():
                    os.replace(self.path, old)
                os.replace(work, self.path)
            flush(self.path.parent)
            shutil.rmtree(old, ignore_errors=True)
            self._clear()
        self.processes.wait()

    def _clear(self) -> None:
        """Take the folder of the run away at once: half of one would neither be a run nor none."""
        away = self.path.with_name(f".{self.path.name}.unfinished.old")
        shutil.rmtree(away, ignore_errors=True)
        if self.unfinished.exists():
            with told(self.unfinished):
                os.replace(self.unfinished, away)
            shutil.rmtree(away, ignore_errors=True)


def report_of(
    source: Checkpoint,
    skeleton: Skeleton,
    layers: Layers,
    done: journal.Journal,
    said: Mapping[str, Any],
    seed: int,
) -> Report:
    """The report, without anything that differs from one run to the next."""
    rows = [row for entry in done.blocks for row in entry.rows]
    left = {**layers.left, **{name: why for entry in done.blocks for name, why in entry.left.items()}}
    params = sum(p.numel() for p in skeleton.model.parameters())
    figures = {"params": params, "macs": None, "size_bytes": source.size, "metrics": {}}
    return assembled(type(skeleton.model).__name__, figures, figures, rows, left, said, seed)


def peak_memory_bytes() -> int:
    """The largest resident set that this process has had."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 1024)
