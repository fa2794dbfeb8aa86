"""``secateur shorten`` and ``secateur deepen``: what they write, and how they end."""

import json
import sys
from pathlib import Path

import pytest

import secateur as sc
from secateur.cli import main
from secateur.config import DeepenSettings, ShortenSettings
from secateur.errors import ConfigError
from secateur.examples import SimpleNet

NETWORKS = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x):
        return x + self.outer(torch.relu(self.inner(x)))

class Net(nn.Sequential):
    def __init__(self, depth=4):
        torch.manual_seed(0)
        super().__init__(nn.Linear(6, 8), *(Block() for _ in range(depth)), nn.Linear(8, 3))

def loaders(count=64):
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(count, 6, generator=generator), torch.arange(count) % 3)]
    return {"train": data, "validation": data, "test": data}
"""
NET = ["--model", "blocky:Net", "--data", "blocky:loaders"]
FILES = {
    "README.md",
    "artifact.json",
    "config.yaml",
    "model.safetensors",
    "plan.json",
    "probe.safetensors",
    "report.html",
    "report.json",
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory with a module of a user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "blocky", raising=False)
    (tmp_path / "blocky.py").write_text(NETWORKS)
    return tmp_path


def test_shorten(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shorten", *NET, "--blocks", "2", "--importance", "loss", "--out", "short"]) == 0
    out = capsys.readouterr().out
    assert "2 blocks of 4 that could go went by the loss" in " ".join(out.split())
    assert "secateur shorten --model blocky:Net --data blocky:loaders --blocks 2 --importance loss --out short" in out
    assert {file.name for file in (place / "short").iterdir()} == FILES
    report = json.loads((place / "short/report.json").read_text())
    assert report["pruned"]["params"] < report["dense"]["params"]
    assert "accuracy" in report["pruned"]["metrics"]
    assert report["compensation"]["refitted"] > 0
    assert report["compensation"]["distance"] < report["compensation"]["distance_before"]
    assert "Compensated by least squares on 64 samples" in " ".join(out.split())
    assert "Blocks" in (place / "short/report.html").read_text()
    assert len(sc.load(place / "short")) == 4
    assert main(["show", "short"]) == 0
    assert main(["shorten", "--config", "short/config.yaml", "--out", "again"]) == 0
    assert json.loads((place / "again/plan.json").read_text()) == json.loads((place / "short/plan.json").read_text())


def test_named_blocks_are_made_up_for_unless_told_not_to(place: Path) -> None:
    for how, expected in (([], True), (["--compensate", "none"], False)):
        words = ["shorten", *NET, "--drop", "2", *how, "--out", "short", "--overwrite"]
        assert main(words) == 0
        report = json.loads((place / "short/report.json").read_text())
        assert ("compensation" in report) == expected
        assert len(sc.load(place / "short")) == 5


def test_deepen(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["deepen", "--model", "blocky:Net", "--input", "2x6", "--after", "1", "3", "--out", "deep"]
    assert main(words) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "the deeper model computes what the original computes" in out
    assert "dense → deeper" in out
    assert {file.name for file in (place / "deep").iterdir()} == FILES
    assert len(sc.load(place / "deep")) == 8
    tuning = ["tune", "deep", "--trust", "--data", "blocky:loaders", "--epochs", "1", "--out", "tuned"]
    assert main(tuning) == 0
    assert len(sc.load(place / "tuned", trust=True)) == 8
    assert json.loads((place / "tuned/report.json").read_text())["depth"]["inserted"] == ["1", "3"]
    assert "deepened and tuned with secateur" in (place / "tuned/report.html").read_text()


def test_the_embedded_example_deeper(place: Path) -> None:
    assert main(["deepen", "--after", "fc1", "--input", "2x1x10x10", "--out", "deep"]) == 0
    assert len(sc.load(place / "deep", model=SimpleNet()).fc1) == 2


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["shorten", *NET], 1, "nothing given"),
        (["shorten", *NET, "--blocks", "1", "--keep", "0.5"], 1, "blocks and keep given"),
        (["shorten", *NET, "--blocks", "9"], 1, "only 4 of this Net can"),
        (["shorten", *NET, "--drop", "0"], 1, "nothing of the shape of an input"),
        (["shorten", "--blocks", "1"], 1, "no block of this SimpleNet can be left out"),
        (["shorten", *NET, "--blocks", "many"], 2, "See: secateur shorten --help"),
        (["deepen", "--input", "2x1x10x10"], 1, "after names no module"),
        (["deepen", "--input", "2x1x10x10", "--after", "fc9"], 1, "no module 'fc9'"),
        (["deepen", "--nonsense"], 2, "See: secateur deepen --help"),
    ],
)
def test_misuse_leaves_nothing(
    words: list[str], code: int, said: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == code
    error = " ".join(capsys.readouterr().err.split())
    assert said in error
    assert "Traceback" not in error
    assert {path.name for path in place.iterdir()} <= {"blocky.py", "__pycache__"}


@pytest.mark.parametrize("command", ["shorten", "deepen"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    for flag in {
        "shorten": ("--blocks", "--keep", "--budget", "--drop", "--rescore", "--compensate"),
        "deepen": ("--after", "--times"),
    }[command]:
        assert flag in out


@pytest.mark.parametrize(
    ("how", "said"),
    [({"keep": 2.0}, "keep=2.0"), ({"blocks": 0}, "at least 1"), ({"budget": "x"}, "budget"), ({}, "nothing given")],
)
def test_settings_that_make_no_sense(how: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ShortenSettings(**how)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="times=0"):
        DeepenSettings(after=("fc1",), times=0)
