"""The run behind `secateur adapt`: its directory, what works on it, and what is taken up again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import secateur as sc
from secateur.adapting.head import Head
from secateur.cli.app import execute
from secateur.cli.ending import FAILED, MISUSED
from secateur.config import AdaptSettings, TuneSettings
from secateur.errors import ConfigError, DataError
from secateur.examples import SimpleNet
from secateur.modules import named_tensors
from secateur.plain import read_yaml
from secateur.provenance import recall
from secateur.reporting import Report
from secateur.runs.adapt import adapt_run
from secateur.runs.prune import Outcome
from secateur.runs.resume import resume_run
from secateur.runs.tune import tune_run
from secateur.tuning import evaluate
from support.stopping import Stops


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digits 5, 6 and 7, numbered from 0: 60 of each to train on, 30 each to validate by and to test on."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    found: Any = load_digits()
    images = np.pad(found.images, ((0, 0), (1, 1), (1, 1)))[:, None].astype("float32") / 16
    at = {digit: np.flatnonzero(found.target == digit) for digit in (5, 6, 7)}
    parts = {"train": (0, 60), "val": (60, 90), "test": (90, 120)}
    arrays: dict[str, Any] = {}
    for name, (start, stop) in parts.items():
        chosen = np.concatenate([rows[start:stop] for rows in at.values()])
        arrays |= {f"x_{name}": images[chosen], f"y_{name}": found.target[chosen].astype("int64") - 5}
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(path, **arrays)
    return f"npz:{path}"


@pytest.fixture(scope="module")
def settings(data: str, tmp_path_factory: pytest.TempPathFactory) -> AdaptSettings:
    out = tmp_path_factory.mktemp("runs") / "adapted"
    return AdaptSettings(data=data, budget="params=0.5", epochs=3, lr=3e-3, out=out, checkpoint_every="1")


@pytest.fixture(scope="module")
def quick(settings: AdaptSettings) -> Outcome:
    return adapt_run(settings)


def test_the_directory_is_like_any_other(settings: AdaptSettings, quick: Outcome) -> None:
    names = {file.name for file in settings.out.iterdir()}
    assert names >= {"config.yaml", "model.safetensors", "plan.json", "report.json", "report.html", "artifact.json"}
    assert [entry.name for entry in settings.out.parent.iterdir()] == ["adapted"]
    assert AdaptSettings.from_mapping(read_yaml(settings.out / "config.yaml")) == settings.resolved()
    report = Report.load(settings.out)
    assert report.to_dict() == quick.report.to_dict()
    assert report["pruned"]["params"] <= 0.5 * report["dense"]["params"]
    assert report["tuned"]["metrics"]["accuracy"] > 0.6
    assert report["dense"]["latency_ms"] > 0
    found = report["adapted"]
    assert (found["before"], found["after"], found["samples"]) == (10, 3, [60, 60, 60])
    assert found["measured_on"] == "test"
    assert set(found["choices"]) == {"dense", "tuned"}
    assert "stayed frozen" in (settings.out / "report.html").read_text()


def test_it_loads(settings: AdaptSettings, quick: Outcome) -> None:
    images = torch.randn(4, 1, 10, 10)
    loaded = sc.load(settings.out)
    assert torch.equal(loaded(images), quick.model(images))
    again = sc.load(settings.out, model=SimpleNet())
    assert torch.allclose(again(images), quick.model(images), atol=1e-6)
    assert isinstance(recall(loaded, "plans")[0], Head)


def test_it_is_shown(settings: AdaptSettings, quick: Outcome, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["show", str(settings.out)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Adapted: 3 classes in place of 10, by a new fc3." in said
    assert "Made by secateur adapt --data npz:" in said


def test_it_is_tuned_on(settings: AdaptSettings, quick: Outcome, data: str) -> None:
    out = settings.out.with_name("tuned")
    tuned = tune_run(TuneSettings(result=settings.out, data=data, epochs=1, out=out))
    assert tuned is not None
    assert tuned.report["adapted"] == quick.report["adapted"]
    images = torch.randn(4, 1, 10, 10)
    assert torch.equal(sc.load(out)(images), tuned.model(images))


def test_the_old_classes_teach_nothing(settings: AdaptSettings, quick: Outcome, data: str, tmp_path: Path) -> None:
    torch.save(SimpleNet().state_dict(), tmp_path / "old.pt")
    wrong = TuneSettings(
        result=settings.out, model="simplenet", weights=tmp_path / "old.pt", data=data, out=tmp_path / "out"
    )
    with pytest.raises(ConfigError, match="adapted to other classes"):
        tune_run(wrong)


def test_a_result_is_adapted_in_turn(settings: AdaptSettings, quick: Outcome, data: str, tmp_path: Path) -> None:
    again = AdaptSettings(
        result=settings.out, classes=4, data=data, train_only="head", budget="params=0.7", out=tmp_path / "again"
    )
    outcome = adapt_run(again)
    assert [type(change).__name__ for change in recall(outcome.model, "plans")] == ["Head", "Plan", "Head", "Plan"]
    images = torch.randn(4, 1, 10, 10)
    assert sc.load(again.out)(images).shape == (4, 4)
    assert torch.equal(sc.load(again.out)(images), outcome.model(images))
    assert again.to_command() == (
        f"secateur adapt {settings.out} --classes 4 --data {data} --budget params=0.7 --train-only head "
        f"--out {tmp_path / 'again'}"
    )


@pytest.mark.parametrize(
    "title", ["Training the adapted network", "Tracing, scoring, pruning, proving", "Fine-tuning the pruned network"]
)
def test_a_stopped_run_ends_with_the_same_bits(
    settings: AdaptSettings, quick: Outcome, tmp_path: Path, title: str
) -> None:
    stopped = replace(settings, out=tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        adapt_run(stopped, watch=Stops(title))
    assert not stopped.out.exists()
    if title == "Training the adapted network":
        assert not list(tmp_path.iterdir()), "nothing was worth keeping"
        return
    outcome = resume_run(stopped.out)
    assert outcome is not None
    wanted = named_tensors(quick.model)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in named_tensors(outcome.model).items())
    assert [entry.name for entry in tmp_path.iterdir()] == ["stopped"]


def test_nothing_is_pruned_if_all_is_kept(settings: AdaptSettings, tmp_path: Path) -> None:
    kept = replace(settings, budget=None, keep=1.0, train_only="head", out=tmp_path / "kept")
    outcome = adapt_run(kept)
    assert outcome.report["tuned"] is None
    assert outcome.report["dense"]["params"] == outcome.report["pruned"]["params"]
    assert "accuracy" in evaluate(outcome.model, [(torch.randn(4, 1, 10, 10), torch.tensor([0, 1, 2, 0]))])


def test_units_are_scored_by_what_the_new_labels_need() -> None:
    assert AdaptSettings().resolved().importance == "fisher"
    assert AdaptSettings(importance="l1").resolved().importance == "l1"
    assert AdaptSettings(threshold=0.5).resolved().importance == "auto"


def test_settings_that_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match=r"schedule=cubic is for secateur prune.*classes=1 must be at least 2"):
        AdaptSettings(schedule="cubic", budget="macs=0.5", classes=1)
    with pytest.raises(ConfigError, match=r"train_epochs=3.*head_epochs=0.*leave out either weights or the result"):
        AdaptSettings(train_epochs=3, head_epochs=0, result=Path("a"), weights=Path("b"))


def test_data_that_will_not_do(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="classes=2, but the training data has 3 classes, with labels from 0 to 2"):
        adapt_run(AdaptSettings(data=data, classes=2, out=tmp_path / "out"))
    for name in ("train/ants", "train/bees", "val/ants", "val/bees"):
        (tmp_path / "photos" / name).mkdir(parents=True)
    assert execute(["adapt", "--data", f"imagefolder:{tmp_path / 'photos'}", "--out", str(tmp_path / "out")]) == FAILED
    said = " ".join(capsys.readouterr().err.split())
    assert "no image in" in said
    assert "every class needs some" in said
    (tmp_path / "one" / "train" / "ants").mkdir(parents=True)
    assert execute(["adapt", "--data", f"imagefolder:{tmp_path / 'one'}", "--out", str(tmp_path / "out")]) == FAILED
    assert "at least two; there is only 'ants'" in " ".join(capsys.readouterr().err.split())
    assert execute(["adapt", "--clases", "3"]) == MISUSED
    assert "secateur adapt --help" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["adapt", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "secateur adapt photos --data imagefolder:drawings --out drawings" in said
    for flag in ("--classes", "--head-epochs", "--train-only", "--budget", "--out", "--epochs", "--weights"):
        assert flag in said
    assert "--train-epochs" not in said
