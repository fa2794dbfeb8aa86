"""``--robust``: what commands attack, what they print and what reports hold."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from secateur.cli import main
from secateur.config import PruneSettings, TuneSettings
from secateur.config.robust import pair, radii, scale
from secateur.data import load_data
from secateur.errors import ConfigError
from secateur.reporting import Report

NETWORKS = """
import torch
from torch import nn

def small(width=8):
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 5))

def loaders(count=40):
    inputs = torch.randn(count, 6, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
    data = [(inputs, torch.arange(count) % 5)]
    return {"train": data, "validation": data, "test": data}
"""
OF_USERS = ["--model", "attacked_ones:small", "--data", "attacked_ones:loaders"]
ATTACK = ["--robust", "--bounds", "-3:3", "--eps", "0.2", "--samples", "12"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a network and data of a user's, and weights for it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "attacked_ones", raising=False)
    (tmp_path / "attacked_ones.py").write_text(NETWORKS)
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))
    save_file(network.state_dict(), "trained.safetensors")
    return tmp_path


def test_prune_and_measure(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = ["--weights", "trained.safetensors"]
    assert main(["prune", *OF_USERS, *weights, "--keep", "0.5", "--epochs", "1", *ATTACK, "--out", "half"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Attacking ... 12 samples" in out
    assert "Without attacks: accuracy" in out
    report = Report.load("half")
    found = report["robustness"]
    assert list(found["networks"]) == ["dense", "pruned", "tuned"]
    assert set(found["comparisons"]) == {"pruned", "tuned"}
    assert set(found["left_out"]) == {"square", "gaussian_blur", "contrast", "jpeg"}
    page = Path("half/report.html").read_text()
    assert '<section id="robustness"' in page
    assert "Auto-PGD, targeted DLR, L-inf within 0.2" in page
    assert "Pruning and fine-tuning" in page
    config = Path("half/config.yaml").read_text()
    assert "robust: true" in config
    assert "samples: 12" in config

    assert main(["measure", "half", *OF_USERS, *weights, *ATTACK]) == 0
    both = " ".join(capsys.readouterr().out.split())
    assert "dense → pruned" in both
    assert "Not compared" not in both
    assert main(["measure", "half", *OF_USERS, *ATTACK, "--normalise", "none"]) == 0
    alone = " ".join(capsys.readouterr().out.split())
    assert "withstand every attack (L-inf within 0.2)" in alone
    assert "Not compared with the dense network" in alone


def test_tune_attacks_what_it_trained(place: Path) -> None:
    quick = ["--weights", "trained.safetensors", "--keep", "0.5", "--epochs", "0", "--out", "half"]
    assert main(["prune", *OF_USERS, *quick]) == 0
    assert "robustness" not in json.loads(Path("half/report.json").read_text())
    words = ["tune", "half", *OF_USERS, "--epochs", "1", *ATTACK, "--eps", "l2=0.3", "--out", "tuned"]
    words.remove("0.2")
    words.remove("--eps")
    assert main(words) == 0
    found = json.loads(Path("tuned/report.json").read_text())["robustness"]
    assert list(found["networks"]) == ["pruned", "tuned"]
    assert list(found["networks"]["tuned"]["attacked"]) == ["l2"]


def test_inputs_out_of_bounds_are_an_error(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", *OF_USERS, "--robust"]) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "out of bounds=(0.0, 1.0): if they were scaled, give normalise=(mean, std)" in error


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--robust", "--eps", "0", "--samples", "0"], "samples=0 must be at least 1; eps=0: a radius must be above 0"),
        (["--robust", "--normalise", "1:0"], "normalise=1:0: deviations must be above 0"),
        (["--eps", "0.1"], "eps=0.1 says how networks are attacked, and none is: give robust, too"),
        (["--bounds", "0:2", "--samples", "9"], "samples=9 says .* bounds=0:2 says"),
    ],
)
def test_measure_looks_at_settings_of_attacks_first(
    place: Path, capsys: pytest.CaptureFixture[str], words: list[str], match: str
) -> None:
    assert main(["measure", *OF_USERS, *words]) == 1
    said = capsys.readouterr()
    assert not said.out
    assert re.search(match, " ".join(said.err.split()))
    assert "unexpected" not in said.err


def test_settings_of_attacks_without_attacks_are_refused() -> None:
    for settings in (PruneSettings, TuneSettings):
        with pytest.raises(ConfigError, match="eps=0.1 says how networks are attacked, .*: give robust or adversarial"):
            settings(eps="0.1")
        with pytest.raises(ConfigError, match="samples=9 is for robust, which is not given"):
            settings(samples=9, adversarial="pgd", eps="0.1")
        assert settings(eps="0.1", samples=9, robust=True).samples == 9
    assert PruneSettings(max_robust_drop=1.0, eps="0.1", bounds="0:2").bounds == "0:2"


def test_what_the_texts_say() -> None:
    assert radii(" 2/255 ") == {"linf": 2 / 255}
    assert radii("l2=0.5,linf=1") == {"l2": 0.5, "linf": 1.0}
    assert pair("-1:1") == (-1.0, 1.0)
    assert scale("0.4:2") == (0.4, 2.0)
    assert scale("auto") == "auto"


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        PruneSettings(eps="l1=3", bounds="1:0", normalise="0.5", samples=0)
    for text in ("eps=l1=3", "bounds=1:0: the first", "normalise=0.5: write auto", "samples=0"):
        assert text in str(caught.value)
    for settings in (
        {"eps": "8/x"},
        {"eps": "0"},
        {"normalise": "0:0"},
        {"normalise": "0:nan"},
        {"bounds": "0:inf"},
        {"normalise": "0,0:1,1,1"},
    ):
        with pytest.raises(ConfigError, match="no number|above 0|2 means"):
            TuneSettings(**settings)


def test_data_know_how_they_were_scaled(tmp_path: Path) -> None:
    import numpy as np

    images = (torch.rand(40, 3, 8, 8) * 255).byte().numpy()
    labels = np.arange(40) % 2
    np.savez(tmp_path / "d.npz", x_train=images[:30], y_train=labels[:30], x_test=images[30:], y_test=labels[30:])
    data = load_data(f"npz:{tmp_path / 'd.npz'}")
    assert data.scaled is not None
    mean, std = (torch.tensor(side).reshape(3, 1, 1) for side in data.scaled)
    inputs, _ = next(iter(data.test))
    pixels = torch.from_numpy(images[30:]).float() / 255
    torch.testing.assert_close(inputs * std + mean, pixels, atol=1e-5, rtol=0)
    assert load_data("digits").scaled is None
