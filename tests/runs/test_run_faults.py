"""What goes wrong in a run of the command line: what it says, what is left, and that resuming goes on with it."""

import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

import secateur as sc
from secateur.cli import main
from secateur.errors import OutputError, TrainingError
from secateur.tuning import evaluate, loop
from support import faulty
from support.results import hashes

pytestmark = pytest.mark.filterwarnings("always")  # which the command line shows

UNTRAINED = ("prune", "--model", "support.faulty:net", "--data", "support.faulty:data", "--budget", "params=0.5")
WORDS = (*UNTRAINED, "--train-epochs", "1", "--epochs", "2", "--checkpoint-every", "2")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The hashes of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert main([*WORDS, "--out", str(out)]) == 0
    return hashes(out)


@pytest.fixture(scope="module")
def cut_off(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what is left of a run that ended at the fifth step of its fine-tuning."""
    place = tmp_path_factory.mktemp("runs") / "cut"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Run, "_step", ending_at(loop.Run._step, 6 + 5))
        assert main([*WORDS, "--out", str(place / "run")]) == 1
    assert names(place / "run.unfinished" / "tuned") == ["step-00000002", "step-00000004"]
    return place


def ending_at(step: object, count: int) -> object:
    counter: Iterator[int] = iter(range(1, 1000))

    def counted(run: loop.Run, group: object) -> None:
        if next(counter) == count:
            raise RuntimeError("the power is gone")
        step(run, group)  # type: ignore[operator]

    return counted


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_the_weights_hold_no_path_no_time_and_no_measurement(place: Path, cut_off: Path) -> None:
    """Two runs at different times in different directories; one of them was cut off, and measured later."""
    assert main([*WORDS, "--out", "a/folder/of/its/own"]) == 0
    copied(cut_off, place)
    assert main(["resume", "run"]) == 0
    one, other = place / "a" / "folder" / "of" / "its" / "own", place / "run"
    content = (one / "model.safetensors").read_bytes()
    assert content == (other / "model.safetensors").read_bytes()
    assert (one / "report.json").read_bytes() != (other / "report.json").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert {*header} == {"first.weight", "first.bias", "second.weight", "second.bias"}


@pytest.mark.parametrize(
    ("split", "passes", "what"),
    [
        ("train", 5, r"raised at step 4 of 12 (epoch 1): OSError: the disk is gone. The model keeps the best state"),
        ("validation", 7, "raised at batch 4 of the validation: OSError: the disk is gone. It was after step 6 of 12"),
        ("test", 2, "raised at batch 4 of the evaluation: OSError: the disk is gone"),
    ],
)
def test_data_that_cannot_be_read(
    split: str, passes: int, what: str, place: Path, whole: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    fault = {"fault": "raises", "split": split, "passes": str(passes), "mended": "mended"}
    flags = [word for name, value in fault.items() for word in (f"--data-args.{name}", value)]
    assert main([*WORDS, *flags, "--out", "run"]) == 1
    error = said(capsys)
    assert what in error
    assert error.endswith("When the cause is mended, go on with: secateur resume run")
    assert names(place) == ["run.unfinished"]
    (place / "mended").touch()
    assert main(["resume", "run"]) == 0
    assert hashes(place / "run") == whole
    assert names(place) == ["mended", "run"]


def test_a_loss_that_is_nan_in_the_fine_tuning_keeps_the_best_so_far(
    place: Path, whole: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data-args.fault", "nan", "--data-args.passes", "6", "--data-args.mended", "mended"]
    assert main([*WORDS, *flags, "--out", "run"]) == 1
    error = said(capsys)
    assert "error: the loss became nan at step 10 of 12 (epoch 2), with lr=" in error
    assert (
        "The fine-tuning ended in an error after 1 of 2 epochs; kept is its state after epoch 1. It is saved in run"
        in (error)
    )
    assert names(place) == ["run", "run.unfinished"]
    assert hashes(place / "run") != whole
    assert sc.load(place / "run", trust=True)
    assert main(["show", "run"]) == 0
    (place / "mended").touch()
    assert main(["resume", "run"]) == 0
    assert hashes(place / "run") == whole
    assert names(place) == ["mended", "run"]


def test_batches_that_do_not_fit_are_halved_where_that_is_allowed(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [*WORDS, "--model-args.room", "8", "--out", "run"]
    assert main(small) == 1
    assert "out of memory at step 1 with 16 samples" in (error := said(capsys))
    assert "--halve-batch" in error
    assert names(place) == []
    assert main([*small, "--halve-batch"]) == 0
    assert "warning: out of memory at step 1 with 16 samples in a batch of this process: batches are done in 2" in (
        said(capsys)
    )


def test_evaluation_and_validation_halve_batches_too(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = faulty.data()
    model = faulty.net(8, always=True)
    with pytest.raises(TrainingError, match="out of memory in evaluation at batch 1 with 16 samples.*halve=True"):
        evaluate(model, data["test"])
    with pytest.warns(UserWarning, match="out of memory in evaluation at batch 1.*2 pieces"):
        found = evaluate(model, data["test"], halve=True)
    model.room = 0
    assert found == pytest.approx(evaluate(model, data["test"]))


def test_warnings_are_shown_as_such(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def odd(*args: object, **options: object) -> None:
        warnings.warn("the disk is [almost] full", stacklevel=1)
        raise OutputError("the disk is full")

    monkeypatch.setattr("secateur.runs.prune.prune_run", odd)
    assert main(["prune"]) == 1
    assert said(capsys) == "warning: the disk is [almost] full error: the disk is full"


# ---------------------------------------------------------------------- what is left of a run


def copied(cut_off: Path, place: Path) -> Path:
    shutil.copytree(cut_off, place, dirs_exist_ok=True)
    return place / "run.unfinished"


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def test_a_damaged_newest_checkpoint(
    place: Path, cut_off: Path, whole: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    flip(copied(cut_off, place) / "tuned" / "step-00000004" / "tensors.safetensors")
    assert main(["resume", "run"]) == 0
    error = said(capsys)
    assert "step-00000004 is damaged: ValueError: its content does not match its hash" in error
    assert "going back to step-00000002, the one before" in error
    assert hashes(place / "run") == whole


def test_files_of_two_checkpoints_in_each_others_place(
    place: Path, cut_off: Path, whole: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = (copied(cut_off, place) / "tuned" / name for name in ("step-00000002", "step-00000004"))
    (old / "tensors.safetensors").rename(place / "aside")
    (new / "tensors.safetensors").rename(old / "tensors.safetensors")
    (place / "aside").rename(new / "tensors.safetensors")
    assert main(["resume", "run"]) == 1
    assert "no checkpoint in" in (error := said(capsys))
    assert "start once more, and what they were of is done anew" in error
    assert main(["resume", "run"]) == 0  # the fine-tuning alone is done anew
    assert hashes(place / "run") == whole


def test_a_damaged_pruned_network_is_made_again(
    place: Path, cut_off: Path, whole: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    flip(copied(cut_off, place) / "pruned" / "model.safetensors")
    assert main(["resume", "run"]) == 0
    assert "warning: the pruned network that was kept can't be used" in said(capsys)
    assert hashes(place / "run") == whole


def test_settings_that_are_gone_are_not_taken_for_the_defaults(
    place: Path, cut_off: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied(cut_off, place) / "config.yaml").write_text("")
    assert main(["resume", "run"]) == 1
    assert "config.yaml is damaged: it holds 0 settings" in said(capsys)


def test_a_run_is_resumed_where_it_is(
    place: Path,
    cut_off: Path,
    whole: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Named by what is unfinished of it, and from another directory: before, it began again in that one."""
    copied(cut_off, place / "moved")
    (place / "here").mkdir()
    monkeypatch.chdir(place / "here")
    assert main(["resume", "../moved/run.unfinished"]) == 0
    assert "Saved in ../moved/run " in " ".join(capsys.readouterr().out.split())
    assert hashes(place / "moved" / "run") == whole
    assert (names(place / "here"), names(place / "moved")) == ([], ["run"])


def test_tidying_up_leaves_the_files_of_runs_beside_it_alone(place: Path) -> None:
    """Before, the end of "run" took the directory that "run.v2" was writing to."""
    beside = [".run.v2.abcdefgh.partial", ".run.v2.unfinished.abcdefgh.partial", "run.v2.unfinished", ".run.notes"]
    mine = [".run.abcdefgh.partial", ".run.unfinished.abcdefgh.partial", ".run.abcdefgh.old"]
    for name in (*beside, *mine):
        (place / name).mkdir()
    assert main([*UNTRAINED, "--epochs", "0", "--train-epochs", "0", "--out", "run"]) == 0
    assert names(place) == sorted([*beside, "run"])
