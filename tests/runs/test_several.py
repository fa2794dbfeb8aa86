"""``secateur tune`` in several processes: one result, the same as that of one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from secateur.config import PruneSettings
from secateur.errors import ConfigError
from secateur.runs.prune import prune_run
from secateur.runs.unfinished import Unfinished

LIMIT_S = 280
TOLERANCE = 1e-5  # sums are made in another order


def two(*words: str) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "secateur"]
    return subprocess.run(
        [*start, *words],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )


@pytest.mark.slow
def test_two_processes_write_one_result_the_same_as_that_of_one(tmp_path: Path) -> None:
    prune_run(PruneSettings(budget="params=0.3", train_epochs=1, epochs=0, out=tmp_path / "run"))
    words = ["tune", str(tmp_path / "run"), "--epochs", "2", "--checkpoint-every", "5"]
    told = two(*words, "--out", str(tmp_path / "both"))
    assert told.returncode == 0, told.stderr
    assert told.stdout.count("Saved in") == 1, "the first process alone speaks"
    assert not Unfinished(tmp_path / "both").path.exists()
    alone = [sys.executable, "-m", "secateur", *words, "--out", str(tmp_path / "one")]
    subprocess.run(alone, check=True, capture_output=True, timeout=LIMIT_S, env={**os.environ, "OMP_NUM_THREADS": "1"})
    both, one = (load_file(tmp_path / name / "model.safetensors") for name in ("both", "one"))
    for name, value in one.items():
        torch.testing.assert_close(both[name], value, rtol=0, atol=TOLERANCE)


def test_pruning_is_the_work_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="secateur prune is the work of one process"):
        prune_run(PruneSettings(out=tmp_path / "run"))
    assert not list(tmp_path.iterdir())
