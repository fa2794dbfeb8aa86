"""``secateur disinfect``: what it writes, and how it ends."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import secateur as sc
from secateur.cli import main
from secateur.config import DisinfectSettings
from secateur.errors import ConfigError
from secateur.plain import read_yaml
from secateur.reporting import Report
from secateur.runs.disinfect import disinfect_run
from support.poisoned import TARGET, build, corner, samples, trained
from support.stopping import Stops

FILES = {
    "artifact.json",
    "config.yaml",
    "model.safetensors",
    "plan.json",
    "probe.safetensors",
    "report.html",
    "report.json",
}
NET = ["--model", "support.poisoned:build", "--data", "digits", "--weights", "bad.safetensors"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory with the weights of a network that has a backdoor."""
    monkeypatch.chdir(tmp_path)
    save_file(trained(0.1).state_dict(), tmp_path / "bad.safetensors")
    return tmp_path


def settings(**others: object) -> DisinfectSettings:
    given = {"model": "support.poisoned:build", "weights": Path("bad.safetensors"), "samples": 200, "tune_epochs": 1}
    given |= {"method": "fine-pruning", "max_drop": 5.0, "search_steps": 2}
    given |= {"trigger": "support.poisoned:corner", "target": TARGET}
    return DisinfectSettings(**{**given, **others})  # pyright: ignore[reportArgumentType]


def test_a_run_writes_a_result_that_loads(place: Path) -> None:
    outcome = disinfect_run(settings())
    report = Report.load(outcome.path)
    assert {file.name for file in outcome.path.iterdir()} >= FILES
    assert report["disinfected"]["method"] == "fine-pruning"
    assert report["dense"]["metrics"]["attack_success"] > 0.95
    assert set(report["tuned"]["metrics"]) >= {"accuracy", "attack_success"}
    assert report["pruned"]["params"] < report["dense"]["params"]
    x = samples("test")[0]
    assert torch.equal(sc.load(outcome.path, model=build())(x), outcome.model(x))
    assert DisinfectSettings.from_mapping(read_yaml(outcome.path / "config.yaml")) == settings()
    assert "removed by dormant units" in (outcome.path / "report.html").read_text()


@pytest.mark.usefixtures("place")
def test_a_saved_result_is_named_by_its_own_network() -> None:
    light: Any = {"method": "none", "samples": 60, "tune_epochs": 0, "trigger": None, "target": None}
    disinfect_run(settings(out=Path("saved"), **light))
    light |= {"result": Path("saved"), "weights": None, "trust": True}
    outcome = disinfect_run(settings(model="simplenet", out=Path("out"), **light))
    assert outcome.report["model"] == Report.load("out")["model"] == "Sequential"
    page = Path("out/report.html").read_text()
    assert "Sequential" in page
    assert "simplenet" not in page.split("<pre")[0]
    named = disinfect_run(settings(out=Path("named"), **light))
    assert named.report["model"] == "support.poisoned:build"


@pytest.mark.usefixtures("place")
def test_nothing_found_is_said_and_nothing_removed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["disinfect", *NET, "--samples", "100", "--search-steps", "2", "--out", "same"]) == 0
    assert "No backdoor found: nothing was removed" in " ".join(capsys.readouterr().out.split())
    report = json.loads(Path("same/report.json").read_text())
    assert report["pruned"]["params"] == report["dense"]["params"]
    assert report["tuned"] is None


def test_ctrl_c_before_the_end_leaves_nothing(place: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        disinfect_run(settings(out=Path("out")), watch=Stops("Measuring"))
    assert not (place / "out").exists()
    assert {file.name for file in place.iterdir()} == {"bad.safetensors"}


def test_settings_that_contradict_each_other_are_refused_together() -> None:
    with pytest.raises(ConfigError, match=r"heldout=1.0 must be in \(0, 1\).*trigger and target go together"):
        DisinfectSettings(heldout=1.0, target=3)
    with pytest.raises(ConfigError, match="samples=1.*max_drop=-1.*tune_epochs=-1.*tune_lr=0"):
        DisinfectSettings(samples=1, max_drop=-1, tune_epochs=-1, tune_lr=0.0)
    with pytest.raises(ConfigError, match="target=-1 must be a class, a whole number from 0"):
        DisinfectSettings(trigger="package.module:stamp", target=-1)


@pytest.mark.usefixtures("place")
def test_a_target_that_the_network_does_not_know_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["disinfect", *NET, "--trigger", "support.poisoned:corner", "--target", "99", "--out", "out"]) != 0
    assert "target=99" in " ".join(capsys.readouterr().err.split())
    assert not Path("out").exists()


@pytest.mark.usefixtures("place")
def test_a_trigger_that_nobody_can_import_is_named() -> None:
    with pytest.raises(ConfigError, match="trigger: .*nowhere"):
        disinfect_run(settings(trigger="nowhere:stamp"))
    assert "support.poisoned" in sys.modules
    assert callable(corner)
