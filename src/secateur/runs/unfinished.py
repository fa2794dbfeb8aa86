"""What lets a run be taken up again after anything: its settings and checkpoints, beside the place of its result."""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from secateur.errors import OutputError
from secateur.files import RunDirectory, flush, write_text

SETTINGS = "config.yaml"
WORTH = ("**/step-*", "*/artifact.json", "*/choice.json", "*/search.log")


class Ended(Protocol):
    """What a run left: ``interrupted`` says in words what Ctrl-C cut short."""

    @property
    def interrupted(self) -> str: ...


Left = TypeVar("Left", bound=Ended)


class Unfinished:
    """``OUT.unfinished``: it appears when a run begins, and goes when its result is complete.

    Args:
        out: the place of the result.
    """

    def __init__(self, out: str | Path) -> None:
        place = Path(os.path.abspath(Path(out).expanduser()))
        self.out = place
        self.path = place.with_name(place.name + ".unfinished")

    @property
    def settings(self) -> Path:
        """The file of the run's settings."""
        return self.path / SETTINGS

    def begin(self, settings: str, *, overwrite: bool) -> None:
        """Note the settings of a new run.

        Args:
            settings: a YAML file.
            overwrite: forget an earlier run that was not finished.

        Raises:
            OutputError: there is one, or nothing can be written there.
        """
        if self.path.exists():
            if not overwrite:
                raise OutputError(
                    f"{self.path} holds a run that was not finished. Go on with it: secateur resume {self.out}; or "
                    f"start anew with --overwrite"
                )
            self._remove()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            work = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", suffix=".partial", dir=self.path.parent))
            try:
                write_text(work / SETTINGS, settings)
                os.replace(work, self.path)
            finally:
                shutil.rmtree(work, ignore_errors=True)
            flush(self.path.parent)
        except OSError as error:
            raise OutputError(f"can't write to {str(self.path)!r}: {error.strerror or error}") from error

    def checkpoints(self, name: str) -> Path:
        """The folder for the checkpoints of a step of the run."""
        return self.path / name

    @property
    def worth_keeping(self) -> bool:
        """Whether something was done that resuming would save doing again."""
        return any(any(self.path.glob(pattern)) for pattern in WORTH)

    def clear(self) -> None:
        """Forget the run, and what a kill left of writing its result, or of putting an earlier one out of the way."""
        self._remove()
        mine = re.compile(
            rf"\.{re.escape(self.out.name)}(\.unfinished)?\.\w{{8}}\.(partial|old)"
        )  # as mkdtemp names them
        for rest in self.out.parent.glob(".*"):
            if mine.fullmatch(rest.name):
                shutil.rmtree(rest, ignore_errors=True)

    def _remove(self) -> None:
        """Take the folder away at once: half of one would neither be a run nor none."""
        if not self.path.exists():
            return
        try:
            away = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", suffix=".partial", dir=self.path.parent))
            os.replace(self.path, away / self.path.name)
        except OSError:  # no room, or no leave
            away = self.path
        shutil.rmtree(away, ignore_errors=True)


@contextmanager
def workplace(out: Path, settings: str, *, overwrite: bool, resume: bool) -> Generator[tuple[RunDirectory, Unfinished]]:
    """Where a run works: the directory that appears when it is published, and what lets the run be taken up again.

    The latter stays after an error if there is something in it worth keeping, and after success until it is cleared.

    Args:
        out: the place of the result.
        settings: the run's, as a YAML file.
        overwrite: replace an earlier run, finished or not.
        resume: go on with a run that was not finished.
    """
    unfinished = Unfinished(out)
    with RunDirectory(out, overwrite=overwrite or resume) as directory:
        if not resume:
            unfinished.begin(settings, overwrite=overwrite)
        try:
            write_text(directory.work / SETTINGS, settings)
            yield directory, unfinished
        except BaseException as error:
            if not unfinished.worth_keeping:
                unfinished.clear()
            elif isinstance(error, Exception):
                error.add_note(
                    f"What was done until then lies in {unfinished.path}. When the cause is mended, go on with: "
                    f"secateur resume {out}"
                )
            raise


def carried_through(
    out: Path,
    settings: str,
    work: Callable[[RunDirectory, Unfinished], Left],
    *,
    overwrite: bool,
    resume: bool,
) -> Left:
    """Work in a `workplace`; what lets the run be taken up again goes when nothing was cut short."""
    with workplace(out, settings, overwrite=overwrite, resume=resume) as (directory, unfinished):
        left = work(directory, unfinished)
    if not left.interrupted:
        try:
            unfinished.clear()
        except KeyboardInterrupt:  # too late: the result is there
            unfinished.clear()
    return left
