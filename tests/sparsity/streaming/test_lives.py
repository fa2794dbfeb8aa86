"""A run that is killed goes on where it stood, with the same bytes; several processes prune as one."""

import json
import os
import signal
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import secateur as sc
from secateur.errors import ArtifactError, DataError, OutputError
from support import streamed
from support.several import environment
from support.streamed import contents, model_of, prune, tokens, written


def forked(names: list[str], folder: Path, environments: list[dict[str, str]]) -> list[int]:
    """Run scenarios in children of this process, side by side; gives how each ended."""
    children: list[int] = []
    for name, variables in zip(names, environments, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads; the children take no lock of theirs
            child = os.fork()
        if child == 0:
            status = 1
            try:
                os.environ.update(variables)
                getattr(streamed, name)(folder)
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def launched(name: str, folder: Path, port: int) -> None:
    """The same under torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    log = folder / f"{name}.log"
    with log.open("w") as file:
        child = subprocess.Popen(
            [*command, "-m", "support.streamed", name, str(folder)],
            env=environment(),
            cwd=folder,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        assert child.wait(timeout=280) == 0, log.read_text()[-3000:]
    except BaseException:
        os.killpg(child.pid, signal.SIGKILL)  # the launcher's children too
        raise


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    written(model_of("llama"), tmp_path / "dense")
    return tmp_path


def test_killed_twice_and_resumed_to_the_same_bytes(dense: Path):
    prune(dense, "whole")
    (dense / "kill-at").write_text("1")
    for done in (1, 2):
        assert forked(["killed"], dense, [{}]) == [-signal.SIGKILL]
        assert not (dense / "killed").exists()
        journal = json.loads((dense / "killed.unfinished" / "journal.json").read_text())
        assert len(journal["blocks"]) == done
    prune(dense, "killed")
    assert contents(dense / "killed") == contents(dense / "whole")
    assert not (dense / "killed.unfinished").exists()


def stopped(folder: Path, monkeypatch: pytest.MonkeyPatch, blocks: int = 1, **settings: Any) -> None:
    """Ctrl-C after so many blocks."""
    from secateur.sparsity.streaming.journal import Journal

    write = Journal.write

    def press(self: Journal, place: Path) -> None:
        write(self, place)
        if len(self.blocks) == blocks:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Journal, "write", press)
        prune(folder, "stopped", **settings)


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_ctrl_c_leaves_it_resumable(dense: Path, monkeypatch: pytest.MonkeyPatch, blocks: int):
    stopped(dense, monkeypatch, blocks)
    prune(dense, "whole")
    prune(dense, "stopped")
    assert contents(dense / "stopped") == contents(dense / "whole")


def test_without_data_too(dense: Path, monkeypatch: pytest.MonkeyPatch):
    settings = {"data": None, "compensate": None}
    stopped(dense, monkeypatch, 2, **settings)
    prune(dense, "whole", **settings)
    prune(dense, "stopped", **settings)
    assert contents(dense / "stopped") == contents(dense / "whole")


def test_a_run_of_another_kind_is_not_gone_on_with(dense: Path, monkeypatch: pytest.MonkeyPatch):
    stopped(dense, monkeypatch)
    with pytest.raises(OutputError, match=r"asked was 0.5, now 0.6.*overwrite"):
        prune(dense, "stopped", sparsity=0.6)
    with pytest.raises(OutputError, match="another data"):
        prune(dense, "stopped", data=tokens(4, padded=False))
    shard = next((dense / "dense").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes())
    with pytest.raises(OutputError, match="another checkpoint"):
        prune(dense, "stopped")
    assert prune(dense, "stopped", sparsity=0.6, overwrite=True).report["sparsity"]["asked"] == 0.6


def test_a_run_of_another_kind_without_a_block_done_is_in_nobodys_way(dense: Path):
    with pytest.raises(DataError):
        prune(dense, data=[{**batch, "input_ids": batch["input_ids"] + 10_000} for batch in tokens(4, padded=False)])
    assert (dense / "sparse.unfinished").exists()
    assert prune(dense, data=tokens(4, padded=False)).sparsity == 0.5
    assert not (dense / "sparse.unfinished").exists()


def test_a_damaged_run_is_not_gone_on_with(dense: Path, monkeypatch: pytest.MonkeyPatch):
    stopped(dense, monkeypatch)
    for shard in (dense / "stopped.unfinished" / "checkpoint").glob("*.safetensors"):
        length = 8 + int.from_bytes(shard.read_bytes()[:8], "little")
        shard.write_bytes(shard.read_bytes()[:length] + bytes(shard.stat().st_size - length))
    with pytest.raises(ArtifactError, match=r"model.layers.0 in .* is not what was written there"):
        prune(dense, "stopped")
    (dense / "stopped.unfinished" / "journal.json").write_text("{")
    with pytest.raises(ArtifactError, match="can't read the journal"):
        prune(dense, "stopped")


def test_killed_between_the_result_and_saying_so(dense: Path, monkeypatch: pytest.MonkeyPatch):
    """The result is there, and the traces of the run too: the next call is content with it."""
    from secateur.sparsity.streaming.publishing import Publication

    with monkeypatch.context() as patch:
        patch.setattr(Publication, "_clear", lambda self: None)
        prune(dense)
    before = contents(dense / "sparse")
    assert (dense / "sparse.unfinished").exists()
    found = prune(dense)
    assert contents(dense / "sparse") == before
    assert found.sparsity == 0.5
    assert not (dense / "sparse.unfinished").exists()


@pytest.mark.parametrize("launcher", ["none", pytest.param("torchrun", marks=pytest.mark.heavy)])
def test_two_processes_prune_as_one(dense: Path, launcher: str):
    """Each has two of the four batches; sums are added up in float64."""
    for way in ("wanda", "sparsegpt"):
        prune(dense, f"one-{way}", compensate=None if way == "wanda" else way)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if launcher == "torchrun":
        launched("shared", dense, port)
    else:
        common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        assert forked(["shared"] * 2, dense, [{"RANK": str(rank), **common} for rank in (0, 1)]) == [0, 0]
    assert {(dense / f"seen-by-{rank}.txt").read_text() for rank in (0, 1)} == {"2"}
    for way in ("wanda", "sparsegpt"):
        one, two = (loaded(dense / name) for name in (f"one-{way}", f"by-{way}"))
        for name, tensor in one.items():
            assert torch.equal(tensor == 0, two[name] == 0), name
            torch.testing.assert_close(two[name], tensor, rtol=1e-6, atol=1e-7)
        reports = [json.loads((dense / name / "report.json").read_text()) for name in (f"one-{way}", f"by-{way}")]
        rows = [[row["rows"] for row in report["sparsity"]["layers"]] for report in reports]
        assert rows[0] == rows[1]


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_a_place_that_is_taken(dense: Path):
    prune(dense)
    with pytest.raises(OutputError, match="is there already"):
        prune(dense)
    assert prune(dense, overwrite=True, sparsity=0.25).sparsity == 0.25
    (dense / "other").mkdir()
    (dense / "other" / "thesis.txt").write_text("all of it")
    with pytest.raises(OutputError, match="holds something else"):
        prune(dense, "other", overwrite=True)
    for to in ("dense", "dense/sparse", "."):
        with pytest.raises(OutputError, match="is the source, or lies in it"):
            sc.sparsify(dense / "dense", output=dense / to)
