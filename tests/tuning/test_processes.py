"""Several processes train what one trains: DDP and FSDP on the CPU, started by torchrun.

Sums are made in another order, so results agree to 1e-5 of weights around 1; here they differ by 1e-7.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from support import several
from support.several import Found, launch, results

TOLERANCE = 1e-5
SHARDED = {"ACCELERATE_USE_FSDP": "true"}
ALIKE = ("plain", "momentum", "lonely", "tied")
ALL = (*ALIKE, "kept", "normed", "poisoned", "unread", "apart", "stopped")


@pytest.fixture(scope="module", params=[pytest.param("ddp"), pytest.param("fsdp", marks=pytest.mark.heavy)])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes left the results of all scenarios."""
    path = tmp_path_factory.mktemp(request.param)
    alone = {"ddp": "averaged,attacked,attacked_trades,sparse", "fsdp": "hidden,sharded"}[request.param]
    done = launch(",".join((*ALL, alone)), path, **(SHARDED if request.param == "fsdp" else {}))
    assert done.returncode == 0, done.stderr[-3000:]
    return path


def one(name: str, folder: Path) -> Found:
    """The same scenario, in this process."""
    return getattr(several, name)(folder)


def check_alike(found: Found, wanted: Found) -> None:
    assert found["state"].keys() == wanted["state"].keys()
    for name, value in wanted["state"].items():
        torch.testing.assert_close(found["state"][name], value, atol=TOLERANCE, rtol=TOLERANCE)
    assert found["history"]["best_epoch"] == wanted["history"]["best_epoch"]
    for row, expected in zip(found["history"]["epochs"], wanted["history"]["epochs"], strict=True):
        for name in ("train_loss", "validation_loss", "validation_accuracy", "metric", "steps"):
            wanted_value = expected[name] if expected[name] is None else pytest.approx(expected[name], rel=1e-4)
            assert row[name] == wanted_value, name


@pytest.mark.slow
@pytest.mark.parametrize("name", ALIKE)
def test_two_processes_train_what_one_trains(folder: Path, tmp_path: Path, name: str) -> None:
    """On every process, in the user's own model: uneven batches, one smaller than the number of processes,
    accumulation, clipping, validation and the best state; tied weights, a share without any label."""
    wanted = one(name, tmp_path)
    for found in results(name, folder):
        check_alike(found, wanted)
        assert found.get("seen") == wanted.get("seen")


@pytest.mark.slow
def test_one_process_writes_the_checkpoints(folder: Path, tmp_path: Path) -> None:
    main, other = results("kept", folder)
    assert main["written"] == [3, 6, 6, 8]
    assert other["written"] == []
    assert sorted(path.name for path in (folder / "kept").iterdir()) == ["step-00000006", "step-00000008"]
    check_alike(other, one("plain", tmp_path))


@pytest.mark.slow
def test_all_processes_end_with_the_same_batch_statistics(folder: Path) -> None:
    main, other = results("normed", folder)
    assert all(torch.equal(value, other["state"][name]) for name, value in main["state"].items())
    assert main["history"]["epochs"][-1]["validation_loss"] == other["history"]["epochs"][-1]["validation_loss"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["attacked", "attacked_trades"])
def test_adversarial_training_ends_with_one_model(folder: Path, name: str) -> None:
    """Each process attacks its share of every batch, from starts of its own."""
    if folder.name.startswith("fsdp"):
        pytest.skip("adversarial training does not go with FSDP")
    first, second = results(name, folder)
    assert first["state"].keys() == second["state"].keys()
    assert all(torch.equal(value, second["state"][n]) for n, value in first["state"].items())
    rows = [found["history"]["epochs"] for found in (first, second)]
    assert [row["robust_accuracy"] for row in rows[0]] == [row["robust_accuracy"] for row in rows[1]]
    assert rows[0][-1]["robust_loss"] >= rows[0][-1]["validation_loss"]


@pytest.mark.slow
def test_nan_in_one_process_stops_all(folder: Path) -> None:
    main, other = (found["error"] for found in results("poisoned", folder))
    assert "the loss became NaN or infinite in another process at step 2 of 3 (epoch 1), with lr=0.05" in main
    assert "the loss became nan at step 2 of 3" in other


@pytest.mark.slow
def test_a_loader_that_raises_in_one_process_stops_all_and_keeps_the_state(folder: Path) -> None:
    main, other = results("unread", folder)
    assert "the data loader of another process raised at step 3 of 6" in main["error"]
    assert "OSError: gone" in other["error"]
    assert main["kept"] == other["kept"] == ["step-00000002"]


@pytest.mark.slow
def test_processes_that_read_different_batches_are_told(folder: Path) -> None:
    for found, size in zip(results("apart", folder), (8, 9), strict=True):
        assert f"read different batches at step 1 of 2 (epoch 1): {size} samples here of 17 in all 2" in found["error"]


@pytest.mark.slow
def test_ctrl_c_in_one_process_stops_all(folder: Path) -> None:
    for found in results("stopped", folder):
        assert found["history"]["interrupted"]
        assert found["history"]["steps"] == 4


@pytest.mark.slow
def test_what_goes_with_one_kind_only(folder: Path, tmp_path: Path) -> None:
    if (folder / "averaged-0.pt").exists():
        for found in results("averaged", folder):
            check_alike(found, one("averaged", tmp_path))
        for found in results("sparse", folder):
            check_alike(found, wanted := one("sparse", tmp_path))
            for name, value in wanted["state"].items():
                if name.endswith("weight"):
                    assert torch.equal(found["state"][name] == 0, value == 0)
                    assert int((value == 0).sum()) == value.numel() // 2
    else:
        assert len(results("sharded", folder)[0]["errors"]) == 2
        assert all("FSDP shards" in error for error in results("sharded", folder)[0]["errors"])
        assert "FSDP can't look into the Opaque that the model returns" in results("hidden", folder)[0]["error"]


@pytest.mark.heavy
@pytest.mark.parametrize("kind", [{}, SHARDED])
def test_a_run_that_was_killed_goes_on_in_as_many_processes_or_in_one(tmp_path: Path, kind: dict[str, str]) -> None:
    """Two processes end with the bits of the undisturbed run, as sums of gloo have one order; one, with its numbers."""
    done = launch("long", tmp_path, **kind)
    assert done.returncode == 0, done.stderr[-3000:]
    whole = results("long", tmp_path)[0]
    shutil.rmtree(tmp_path / "long")
    assert launch("killed", tmp_path, **kind).returncode != 0
    shutil.copytree(tmp_path / "long", tmp_path / "copy")
    assert launch("long", tmp_path, **kind).returncode == 0
    for found in results("long", tmp_path):
        assert found["history"]["resumed"] == 4
        assert all(torch.equal(value, found["state"][name]) for name, value in whole["state"].items())
    shutil.rmtree(tmp_path / "long")
    shutil.copytree(tmp_path / "copy", tmp_path / "long")
    alone = one("long", tmp_path)
    assert alone["history"]["resumed"] == 4
    check_alike(alone, whole)


@pytest.mark.heavy
def test_three_processes_take_up_what_two_left(tmp_path: Path) -> None:
    assert launch("killed", tmp_path).returncode != 0
    done = launch("long", tmp_path, processes=3)
    assert done.returncode == 0, done.stderr[-3000:]
    wanted = one("plain_long", tmp_path)
    for found in results("long", tmp_path, 3):
        check_alike(found, wanted)


@pytest.mark.heavy
def test_accelerate_launch(tmp_path: Path) -> None:
    """``accelerate launch --cpu``, which sets another environment than torchrun."""
    done = launch("plain", tmp_path, processes=1, launcher="accelerate")
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = results("plain", tmp_path, 1)
    check_alike(found, one("plain", tmp_path))


def test_one_process_shares_with_nobody() -> None:
    from secateur.tuning.processes import processes

    with processes("cpu", None) as these:
        assert (these.count, these.main, these.sharded) == (1, True, False)
        assert these.total(1, 2.5) == [1, 2.5]
        assert these.each("x") == ["x"]
        assert these.mains("x") == "x"
        kept: dict[str, Any] = {"n": torch.zeros(1)}
        assert these.mains(kept) is kept
