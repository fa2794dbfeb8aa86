"""``secateur sparsify``: what it writes, and how it ends."""

import json
import sys
from pathlib import Path

import pytest
import torch

import secateur as sc
from secateur.cli import main
from secateur.config import SparsifySettings
from secateur.errors import ConfigError

NETWORKS = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))

def loaders(count=64):
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(count, 6, generator=generator), torch.arange(count) % 3)]
    return {"train": data, "validation": data, "test": data}
"""
NET = ["--model", "sparsely:Net", "--data", "sparsely:loaders"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory with a module of a user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "sparsely", raising=False)
    (tmp_path / "sparsely.py").write_text(NETWORKS)
    return tmp_path


def test_sparsify(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sparsify", *NET, "--pattern", "2:4", "--compensate", "sparsegpt", "--out", "sparse"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "44 of 88 weights are zero" in said
    assert "0.weight (shape (8, 6): 6 inputs are no multiple of 4)" in said
    report = json.loads((place / "sparse" / "report.json").read_text())
    assert report["sparsity"]["layers"][0]["error"] > 0
    assert {"accuracy", "loss"} <= set(report["dense"]["metrics"]) & set(report["pruned"]["metrics"])
    page = (place / "sparse" / "report.html").read_text()
    assert "Single weights" in page
    assert "Not proved" not in page
    loaded = sc.load(place / "sparse", trust=True)
    assert int((loaded.get_parameter("2.weight") == 0).sum()) == 32
    card = (place / "sparse" / "README.md").read_text()
    assert 'sc.load("sparse", trust=True)' in card
    assert '- "sparsity"\n' in card
    assert "structured-pruning" not in card
    assert "44 zeros, 88 weights" in card
    assert main(["show", "sparse"]) == 0


def test_training_it_on_keeps_its_zeros(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sparsify", *NET, "--pattern", "2:4", "--out", "sparse"]) == 0
    capsys.readouterr()
    words = [
        "tune",
        "sparse",
        "--trust",
        "--data",
        "sparsely:loaders",
        "--epochs",
        "2",
        "--lr",
        "0.05",
        "--out",
        "tuned",
    ]
    assert main(words) == 0
    assert "Of the sparse weights 50.0 % were zero before training, 50.0 % are after it." in " ".join(
        capsys.readouterr().out.split()
    )
    before, after = (sc.load(place / name, trust=True).get_parameter("2.weight") for name in ("sparse", "tuned"))
    assert torch.equal(before == 0, after == 0)
    assert not torch.equal(before, after)
    assert json.loads((place / "tuned" / "report.json").read_text())["kept_zeros"] == {"before": 0.5, "after": 0.5}
    assert "50.0 % are after it" in (place / "tuned" / "report.html").read_text()


def test_a_file_repeats_it_and_trains_before(place: Path) -> None:
    words = ["sparsify", *NET, "--sparsity", "0.25", "--importance", "fisher", "--train-epochs", "1", "--out", "a"]
    assert main(words) == 0
    assert main(["sparsify", "--config", "a/config.yaml", "--out", "b"]) == 0
    a, b = (sc.load(place / name, trust=True) for name in "ab")
    assert all((x == y).all() for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_nothing_is_left_of_what_fails(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sparsify", *NET, "--pattern", "2:4", "--strict", "--out", "sparse"]) == 1
    assert "can't be pruned as asked: 0.weight" in " ".join(capsys.readouterr().err.split())
    assert not (place / "sparse").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pattern": "half"}, "should be unstructured, n of m as in 2:4"),
        ({"pattern": "4:4"}, "0 < n < m"),
        ({"sparsity": 0.5, "threshold": 1.0}, "give one of the two"),
        ({"sparsity": 1.5}, r"must be in \(0, 1\)"),
        ({"threshold": 0.0}, "must be above 0"),
        ({"pattern": "2:4", "sparsity": 0.3}, "leave sparsity=0.3 out"),
        ({"pattern": "2:4", "allocation": "owl"}, "said already"),
        ({"calibration": 0}, "calibration=0 must be at least 1"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SparsifySettings(**settings)  # type: ignore[arg-type]


def test_what_stays_is_refitted_unless_told_otherwise(place: Path) -> None:
    assert main(["sparsify", *NET, "--out", "a"]) == 0
    assert main(["sparsify", *NET, "--compensate", "none", "--out", "b"]) == 0
    refitted, left = (json.loads((place / name / "report.json").read_text())["sparsity"] for name in "ab")
    assert refitted["compensation"] == "alps"
    assert left["compensation"] is None
    assert all(x["error"] <= y["error"] for x, y in zip(refitted["layers"][:1], left["layers"][:1], strict=True))
    assert SparsifySettings(checkpoint=Path("a")).compensation is None
