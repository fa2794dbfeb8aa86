"""Killed at any moment and resumed, a run ends with the same bits as one that nothing disturbed."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from secateur.config import PruneSettings, TuneSettings
from secateur.errors import OutputError
from secateur.runs.prune import prune_run
from secateur.runs.resume import resume_run
from secateur.runs.tune import Tuned, tune_run
from secateur.runs.unfinished import Unfinished
from support.results import hashes

COMMAND = [sys.executable, "-c", "import sys; from secateur.cli import main; sys.exit(main())"]
SHORT = ["--budget", "params=0.3", "--train-epochs", "6", "--epochs", "6", "--checkpoint-every", "7"]
LIMIT_S = 300


def started(*words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finished(process: subprocess.Popen[bytes]) -> None:
    said = process.communicate(timeout=LIMIT_S)[1].decode()
    assert process.returncode == 0, said


def killed_until_done(out: Path, moments: random.Random, longest_s: float) -> int:
    """Start a run, kill and resume it at random moments until it is done; how often it was killed."""
    words, kills = ("prune", *SHORT, "--out", str(out)), 0
    while True:
        process = started(*words)
        stop = time.monotonic() + moments.uniform(0.0, longest_s)
        while process.poll() is None and (time.monotonic() < stop or not Unfinished(out).path.exists()):
            time.sleep(0.002)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        said = process.communicate(timeout=LIMIT_S)[1].decode()
        if process.returncode != -signal.SIGKILL:
            assert process.returncode == 0, said
            return kills
        words = ("resume", str(out))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], float]:
    """The hashes of a run that nothing disturbed, and how long it took."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    began = time.monotonic()
    finished(started("prune", *SHORT, "--out", str(out)))
    return hashes(out), time.monotonic() - began


def check_kills(undisturbed: tuple[dict[str, str], float], tmp_path: Path, least: int) -> None:
    wanted, seconds = undisturbed
    moments, kills, round = random.Random(0), 0, 0
    while kills < least:
        out = tmp_path / f"run{round}"
        kills += killed_until_done(out, moments, seconds)
        assert hashes(out) == wanted
        assert not Unfinished(out).path.exists()
        assert [path.name for path in tmp_path.iterdir()] == [out.name], "nothing is left beside the result"
        shutil.rmtree(out)
        round += 1


def test_three_kills_change_nothing(undisturbed: tuple[dict[str, str], float], tmp_path: Path) -> None:
    check_kills(undisturbed, tmp_path, 3)


@pytest.mark.heavy
@pytest.mark.timeout(3600)
def test_twenty_kills_change_nothing(undisturbed: tuple[dict[str, str], float], tmp_path: Path) -> None:
    check_kills(undisturbed, tmp_path, 20)


# ---------------------------------------------------------------------- in one process


def quick(out: Path, **settings: object) -> PruneSettings:
    return PruneSettings(budget="params=0.3", train_epochs=1, epochs=1, out=out, **settings)  # type: ignore[arg-type]


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    prune_run(quick(tmp_path / "run"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    assert resume_run(tmp_path / "run") is None
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == before


def test_nothing_to_resume_is_said(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="nothing to go on with"):
        resume_run(tmp_path / "run")


def test_an_unfinished_run_is_not_forgotten_unasked(tmp_path: Path) -> None:
    Unfinished(tmp_path / "run").begin(quick(tmp_path / "run").to_yaml(), overwrite=False)
    with pytest.raises(OutputError, match="secateur resume"):
        prune_run(quick(tmp_path / "run"))
    prune_run(quick(tmp_path / "run"), overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_that_only_began_is_resumed(tmp_path: Path) -> None:
    whole = quick(tmp_path / "whole")
    prune_run(whole)
    Unfinished(tmp_path / "run").begin(quick(tmp_path / "run").resolved().to_yaml(), overwrite=False)
    assert resume_run(tmp_path / "run.unfinished") is not None
    assert hashes(tmp_path / "run") == hashes(tmp_path / "whole")


def test_tuning_a_saved_result(tmp_path: Path) -> None:
    prune_run(quick(tmp_path / "run"))
    settings = TuneSettings(result=tmp_path / "run", epochs=2, out=tmp_path / "tuned")
    done = tune_run(settings)
    assert isinstance(done, Tuned)
    assert done.report["tuned"]["params"] == done.report["pruned"]["params"] < done.report["dense"]["params"]
    assert len(done.history.epochs) == 2
    assert done.history.steps_per_second > 0
    tune_run(TuneSettings(result=tmp_path / "run", epochs=2, out=tmp_path / "again"))
    assert hashes(tmp_path / "again") == hashes(tmp_path / "tuned")
