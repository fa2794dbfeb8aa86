"""``secateur reallocate``: what it writes, how it is taken up again, and how it ends."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import secateur as sc
from secateur.cli import main
from secateur.config import ReallocateSettings
from secateur.errors import ConfigError, PlanError
from secateur.modules import named_tensors
from secateur.plain import read_yaml
from secateur.reporting import Report
from secateur.runs.prune import Outcome
from secateur.runs.reallocate import prepare, reallocate_run
from secateur.runs.resume import resume_run
from support.stopping import Stops

NETWORKS = """
import torch
from torch import nn

def starved():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 3), nn.ReLU(), nn.Linear(3, 60), nn.ReLU(), nn.Linear(60, 4))

def loaders(count=256):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 16, generator=generator)
    data = [(part, part[:, :4].argmax(1)) for part in x.split(64)]
    return {"train": data, "validation": data, "test": data}
"""
FILES = {
    "README.md",
    "artifact.json",
    "config.yaml",
    "model.safetensors",
    "plan.json",
    "probe.safetensors",
    "report.html",
    "report.json",
    "training.json",
}
NET = ["--model", "starving:starved", "--data", "starving:loaders"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory with a module of a user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "starving", raising=False)
    (tmp_path / "starving.py").write_text(NETWORKS)
    return tmp_path


def test_what_it_leaves(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["reallocate", *NET, "--train-epochs", "2", "--epochs", "2", "--lr", "0.01", "--out", "moved"]
    assert main(words) == 0
    out = " ".join(capsys.readouterr().out.split())
    for said in (
        "Width reallocated",
        "importance of a unit",
        "before → tuned",
        "1 of 2 axes wider, 1 narrower, proved",
    ):
        assert said in out
    folder = place / "moved"
    assert {file.name for file in folder.iterdir()} == FILES
    report = json.loads((folder / "report.json").read_text())
    starved, bloated = report["axes"]
    assert starved["after"] > 3
    assert bloated["after"] < 60
    assert starved["importance"] > bloated["importance"]
    assert 0.99 <= report["pruned"]["macs"] / report["dense"]["macs"] <= 1
    assert "accuracy" in report["tuned"]["metrics"]
    page = (folder / "report.html").read_text()
    assert "reallocated and tuned with secateur" in page
    assert "Fine-tuning of the reallocated network" in page
    loaded = sc.load(folder)
    assert loaded[0].out_features == starved["after"]
    assert main(["show", "moved"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "1 reallocate" in shown
    assert "2 tune" in shown
    assert main(["reallocate", "--config", "moved/config.yaml", "--out", "again"]) == 0
    assert json.loads((place / "again/plan.json").read_text()) == json.loads((folder / "plan.json").read_text())


def test_a_saved_result_is_reallocated(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", *NET, "--keep", "0.67", "--epochs", "0", "--out", "small"]) == 0
    words = ["reallocate", "small", "--trust", "--data", "starving:loaders", "--budget", "params=1.0", "--epochs", "0"]
    assert main([*words, "--out", "moved"]) == 0
    report = Report.load(place / "moved")
    assert report["dense"]["params"] == Report.load(place / "small")["pruned"]["params"]
    assert 0.99 <= report["pruned"]["params"] / report["dense"]["params"] <= 1
    assert not report["tuned"]
    capsys.readouterr()
    assert main(["show", "moved"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "1 prune" in shown
    assert "2 reallocate" in shown
    images = torch.randn(2, 16)
    assert sc.load(place / "moved")(images).shape == (2, 4)


# ---------------------------------------------------------------------- taken up again


def same(first: Outcome, second: Outcome) -> bool:
    a, b = named_tensors(first.model), named_tensors(second.model)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "title", ["Tracing, scoring, moving width, proving", "Training the reallocated network", "Testing"]
)
def test_stopped_anywhere_and_resumed_it_ends_with_the_same_bits(title: str, place: Path) -> None:
    settings = ReallocateSettings(
        model="starving:starved",
        data="starving:loaders",
        train_epochs=2,
        epochs=2,
        lr=0.01,
        checkpoint_every="1",
        out=place / "one",
    )
    undisturbed = reallocate_run(settings)
    other = replace(settings, out=place / "other")
    with pytest.raises(KeyboardInterrupt):
        reallocate_run(other, watch=Stops(title))
    resumed = resume_run(other.out)
    assert isinstance(resumed, Outcome)
    assert same(undisturbed, resumed)
    assert undisturbed.report["axes"] == resumed.report["axes"]
    assert sorted(path.name for path in place.iterdir() if not path.name.startswith("__")) == [
        "one",
        "other",
        "starving.py",
    ]


# ---------------------------------------------------------------------- settings and errors


def test_settings_go_into_the_file_and_the_command() -> None:
    settings = ReallocateSettings(model="a:b", max_share="hidden=0.5", min_units="heads=2", only=("x", "y"), noise=0.1)
    assert settings.limits() == {"max_share": {"hidden": 0.5}, "min_units": {"heads": 2}}
    assert settings.to_command() == (
        "secateur reallocate --model a:b --max-share hidden=0.5 --min-units heads=2 --only x --only y --noise 0.1"
    )


def test_the_file_is_read_again(tmp_path: Path) -> None:
    settings = ReallocateSettings(model="a:b", budget="bytes=0.9", trust=True, out=Path("there"))
    (tmp_path / "c.yaml").write_text(settings.to_yaml(), encoding="utf-8")
    assert ReallocateSettings.from_mapping(read_yaml(tmp_path / "c.yaml")) == settings


def test_a_saved_result_is_not_trained_as_the_example_is() -> None:
    assert ReallocateSettings().resolved().train_epochs == 60
    assert ReallocateSettings(result=Path("x")).resolved().train_epochs == 0
    assert ReallocateSettings(result=Path("x")).resolved().lr == 3e-4


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"budget": "latency=5ms"}, "budget 'latency=5ms': width is moved at one cost, so give one of macs, params"),
        ({"budget": "macs=1,params=1"}, "width is moved at one cost"),
        ({"budget": "much"}, "'much' should be one of"),
        ({"max_growth": 0.5, "noise": 2.0}, "max_growth=0.5 must be at least 1; noise=2.0 must be in"),
        ({"max_share": 0.0, "min_units": 0}, "max_share=0.0 must be a share.*min_units=0 must be a whole number"),
        ({"result": Path("x"), "weights": Path("y")}, "a saved result has its own weights"),
        ({"epochs": -1, "batch_size": 0}, "batch_size=0 must be at least 1; epochs=-1 must be at least 0"),
    ],
)
def test_settings_that_make_no_sense(how: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ReallocateSettings(**how)


def test_a_budget_out_of_reach_is_said_before_the_training(place: Path) -> None:
    settings = ReallocateSettings(
        model="starving:starved", data="starving:loaders", train_epochs=100_000, budget="macs=0.01"
    )
    with pytest.raises(PlanError, match="can't be met within 1 %: the limits allow .* to .*Raise max_share=0.75"):
        prepare(settings)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--budget", "macs=0.01"], 1, "can't be met within 1 %"),
        (["--only", "nothing"], 1, "'nothing' name no axis"),
        (["--importance", "l3"], 1, "no importance is called 'l3'"),
        (["--max-growth", "much"], 2, "See: secateur reallocate --help"),
    ],
)
def test_misuse_leaves_nothing(
    words: list[str], code: int, said: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reallocate", *NET, "--epochs", "0", *words]) == code
    error = " ".join(capsys.readouterr().err.split())
    assert said in error
    assert "Traceback" not in error
    assert {path.name for path in place.iterdir()} <= {"starving.py", "__pycache__"}


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reallocate", "--help"]) == 0
    out = capsys.readouterr().out
    for flag in ("--budget", "--max-share", "--max-growth", "--noise", "--importance", "--epochs", "--trust", "RESULT"):
        assert flag in out
    assert "secateur reallocate photos-half" in out
