"""Pruning in steps behind `secateur prune`: its files, its settings, resuming, and Ctrl-C."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import secateur as sc
from secateur.config import PruneSettings
from secateur.errors import ConfigError
from secateur.plain import read_yaml
from secateur.runs.prune import Outcome, prune_run
from secateur.runs.resume import resume_run
from secateur.runs.unfinished import Unfinished
from secateur.tuning import course
from support.results import hashes

SHORT: dict[str, Any] = {
    "budget": "params=0.3",
    "schedule": "cubic",
    "steps": 2,
    "train_epochs": 1,
    "epochs": 1,
    "batch_size": 256,
    "compensate": "none",
    "importance": "l2",
    "checkpoint_every": "2",
}


class CutOff(Exception):
    """Stands for a power cut."""


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[PruneSettings, Outcome]:
    """The embedded example, trained for a moment and pruned in two steps."""
    settings = PruneSettings(**SHORT, out=tmp_path_factory.mktemp("runs") / "quick")
    return settings, prune_run(settings)


def test_report_and_curves_of_every_step(quick: tuple[PruneSettings, Outcome]) -> None:
    settings, outcome = quick
    report = json.loads((settings.out / "report.json").read_text())
    assert report == outcome.report.to_dict()
    found = report["gradual"]
    assert [step["step"] for step in found["steps"]] == [1, 2]
    assert [step["proof"]["status"] for step in found["steps"]] == ["proved"] * 2
    assert found["steps"][0]["cost"]["params"] > found["steps"][1]["cost"]["params"]
    assert found["steps"][1]["cost"]["params"] <= 0.3
    curves = json.loads((settings.out / "training.json").read_text())
    assert list(curves) == ["dense", "step-1", "tuned"], "the training after the last step is the fine-tuning"
    assert curves["step-1"]["epochs"] == found["steps"][0]["training"]["epochs"]
    page = (settings.out / "report.html").read_text(encoding="utf-8")
    assert "Training between the steps of pruning" in page
    assert "Pruned bit by bit by a cubic schedule" in page
    assert report["pruned"]["params"] <= 0.3 * report["dense"]["params"]


def test_the_result_loads_and_repeats(quick: tuple[PruneSettings, Outcome]) -> None:
    settings, outcome = quick
    images = torch.randn(3, 1, 10, 10)
    with torch.no_grad():
        assert torch.equal(sc.load(settings.out).eval()(images), outcome.model(images))
    assert PruneSettings.from_mapping(read_yaml(settings.out / "config.yaml")) == settings.resolved()
    assert "--schedule cubic --steps 2" in outcome.report["command"]
    assert [path.name for path in settings.out.parent.iterdir()] == ["quick"]


@pytest.mark.parametrize("at", [1, 2])
def test_resumed_bit_for_bit(
    quick: tuple[PruneSettings, Outcome], at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off in the first or in the second surgery."""
    seen = 0
    further = course.Surgeon.further

    def broken(*args: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == at:
            raise CutOff
        return further(*args)

    with monkeypatch.context() as patch:
        patch.setattr(course.Surgeon, "further", broken)
        with pytest.raises(CutOff):
            prune_run(PruneSettings(**SHORT, out=tmp_path / "run"))
    assert Unfinished(tmp_path / "run").worth_keeping
    assert resume_run(tmp_path / "run") is not None
    assert hashes(tmp_path / "run") == hashes(quick[0].out)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_ctrl_c_keeps_the_last_complete_step_and_goes_on(
    quick: tuple[PruneSettings, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = 0
    further = course.Surgeon.further

    def stopped(*args: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == 2:
            raise KeyboardInterrupt
        return further(*args)

    with monkeypatch.context() as patch:
        patch.setattr(course.Surgeon, "further", stopped)
        outcome = prune_run(PruneSettings(**SHORT, out=tmp_path / "run"))
    words = "the gradual pruning was stopped at step 2 of 2; kept is the network after step 1, not tuned"
    assert outcome.interrupted == words
    assert sum(p.numel() for p in sc.load(tmp_path / "run").parameters()) == outcome.report["pruned"]["params"]
    assert "tuned" not in outcome.histories
    done = resume_run(tmp_path / "run")
    assert done is not None
    assert not done.interrupted
    assert hashes(tmp_path / "run") == hashes(quick[0].out)


@pytest.mark.parametrize(
    ("extra", "names"),
    [
        ({"gradual": "soft"}, ["dense", "masked", "tuned"]),
        ({"gradual": "regularised", "schedule": "linear"}, ["dense", "masked", "tuned"]),
        ({"rewind": "weights"}, ["dense", "step-1", "tuned"]),
        ({"rewind": "rates", "schedule": "geometric"}, ["dense", "step-1", "tuned"]),
    ],
    ids=str,
)
def test_every_way(extra: dict[str, Any], names: list[str], tmp_path: Path) -> None:
    outcome = prune_run(PruneSettings(**{**SHORT, **extra}, out=tmp_path / "run"))
    assert list(outcome.histories) == names
    assert outcome.report["pruned"]["params"] <= 0.3 * outcome.report["dense"]["params"]
    assert outcome.report["proof"]["status"] == "proved"


def test_rewinding_tunes_at_the_rates_of_the_dense_training(tmp_path: Path) -> None:
    """The rate at the end of an epoch is that of the dense training's last step, not the end of its own fall to 0."""
    settings = PruneSettings(**{**SHORT, "rewind": "rates", "lr": 0.5}, rewind_at=0.0, out=tmp_path / "run")
    outcome = prune_run(settings)
    last = [curve.epochs[-1].lr for name, curve in outcome.histories.items() if name != "dense"]
    assert len(last) == 2
    assert last[0] == last[1]
    assert 0 < last[0] < settings.train_lr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"schedule=cubic leads to a budget, step by step: give budget=macs=0.5, say, with it; threshold, keep"),
        ({"keep": 0.5}, "say, instead of keep=0.5 with it"),
        ({"max_drop": 1.0}, "max_drop and max_loss_increase have no steps in between"),
        ({"budget": "macs=0.5", "steps": 0, "step_epochs": 0}, "steps=0 must be at least 1; step_epochs=0 must be"),
        ({"budget": "macs=0.5", "gradual": "soft", "rewind": "rates"}, "so it goes with gradual=cut"),
        ({"budget": "macs=0.5", "rewind": "weights", "train_epochs": 0}, "which has none: give train_epochs"),
        ({"budget": "macs=0.5", "rewind": "weights", "rewind_at": 1.0}, r"rewind_at=1.0 must be in \[0, 1\)"),
        ({"budget": "macs=0.5", "gradual": "soft", "compensate": "mean"}, "nothing to make up for with gradual=soft"),
        ({"budget": "macs=0.5", "schedule": "none", "rewind": "rates"}, "rewind=rates is for pruning in steps: give"),
        ({"budget": "macs=0.5", "schedule": "none", "gradual": "soft"}, "gradual=soft is for pruning in steps: give"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PruneSettings(**{"schedule": "cubic", **settings})
