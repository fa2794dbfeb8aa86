"""The runs behind `secateur replay` and `secateur undo`, on the embedded example."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import secateur as sc
from secateur.artifacts import read_record, read_tensors
from secateur.cli import main
from secateur.config import PruneSettings, ReplaySettings
from secateur.errors import ConfigError, SurgeryError
from secateur.examples import SimpleNet
from secateur.modules import named_tensors
from secateur.plain import read_yaml
from secateur.reporting import Report
from secateur.runs.prune import prune_run
from secateur.runs.replay import planning_of, replay_run

FILES = {"config.yaml", "model.safetensors", "plan.json", "report.json", "report.html", "artifact.json"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `secateur prune` with all that undoing needs, in ``run``, and other weights, in ``new.safetensors``."""
    folder = tmp_path_factory.mktemp("replay")
    prune_run(
        PruneSettings(budget="params=0.3", train_epochs=2, epochs=1, min_units=2, keep_removed=True, out=folder / "run")
    )
    torch.manual_seed(0)
    dense = sc.undo(folder / "run", model=SimpleNet())
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.add_(0.02 * parameter.abs().mean() * torch.randn_like(parameter))
    save_file(dense.state_dict(), folder / "new.safetensors")
    return folder


def test_a_run_with_data(place: Path) -> None:
    settings = ReplaySettings(
        plan=place / "run", weights=place / "new.safetensors", data="digits", keep_removed=True, out=place / "again"
    )
    done = replay_run(settings)
    assert done.path == settings.out
    assert {file.name for file in settings.out.iterdir()} >= FILES
    assert ReplaySettings.from_mapping(read_yaml(settings.out / "config.yaml")) == settings
    report = Report.load(settings.out)
    assert report["proof"]["status"] == "proved"
    assert report["replay"]["scores"] == "saved"
    assert report["replay"]["correlation"] > 0.8
    assert report["compensation"]["how"] == "lstsq"
    assert report["pruned"]["metrics"].keys() == {"loss", "accuracy"}
    assert report["pruned"]["params"] == Report.load(place / "run")["pruned"]["params"]
    assert "The plan was made for other weights." in (settings.out / "report.html").read_text()
    record = read_record(settings.out)
    assert [step["step"] for step in record["history"]] == ["replay"]
    assert record["history"][0]["figures"]["metrics"] == report["pruned"]["metrics"]
    assert record["figures"]["pruned"]["metrics"] == report["pruned"]["metrics"]
    again = sc.undo(settings.out, model=SimpleNet())
    wanted: nn.Module = SimpleNet()
    wanted.load_state_dict(load_file(place / "new.safetensors"))
    assert all(torch.equal(t, named_tensors(again)[n]) for n, t in named_tensors(wanted).items())


def test_the_settings_of_the_earlier_run_lead_the_fresh_plan(place: Path) -> None:
    planning = planning_of(place / "run")
    assert planning["min_units"] == 2
    assert planning["scope"] == "global"
    assert planning_of(place / "run" / "plan.json") == {}


def test_a_plan_alone_without_data(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["replay", str(place / "run" / "plan.json"), "--model", "simplenet", "--out", str(place / "bare")]
    assert main([*words, "--weights", str(place / "new.safetensors")]) == 1, "a bare plan holds no inputs"
    assert "no example inputs are known" in " ".join(capsys.readouterr().err.split())
    assert not (place / "bare").exists()
    words[1] = str(place / "run")
    assert main([*words, "--weights", str(place / "new.safetensors")]) == 0
    report = Report.load(place / "bare")
    assert report["pruned"]["metrics"] == {}
    assert report.get("compensation") is None
    assert report["replay"]["status"] in capsys.readouterr().out.lower()


def test_lineage_difference_and_undo(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(place / "run")]) == 0
    out = capsys.readouterr().out
    assert "Lineage" in out
    assert "1 prune" in out
    assert "2 tune" in out
    assert read_record(place / "run")["history"][1]["parent"][:12] in out
    assert main(["diff", str(place / "run"), str(place / "run")]) == 0
    assert "0 axes differ" in capsys.readouterr().out
    assert main(["undo", str(place / "run"), "--out", str(place / "whole")]) == 0
    assert "The dense network as it was pruned, bit for bit" in capsys.readouterr().out
    assert sum(p.numel() for p in sc.load(place / "whole", model=SimpleNet()).parameters()) == 81194
    assert main(["undo", str(place / "whole")]) == 1
    assert "does not hold what was removed" in " ".join(capsys.readouterr().err.split())


def test_training_on_keeps_what_was_kept(place: Path) -> None:
    assert main(["tune", str(place / "run"), "--epochs", "1", "--out", str(place / "tuned")]) == 0
    assert read_tensors(place / "tuned", "removed")
    wanted, again = (sc.undo(place / name, model=SimpleNet()) for name in ("run", "tuned"))
    assert all(torch.equal(t, named_tensors(again)[n]) for n, t in named_tensors(wanted).items())
    assert [step["step"] for step in read_record(place / "tuned")["history"]] == ["prune", "tune", "tune"]


def test_what_does_not_go(place: Path) -> None:
    with pytest.raises(ConfigError, match=r"give the new weights .*; compensate=mean needs data"):
        ReplaySettings(compensate="mean")
    with pytest.raises(ConfigError, match="does not say how its network is built"):
        replay_run(
            ReplaySettings(plan=place / "run/plan.json", weights=place / "new.safetensors", out=place / "nowhere")
        )
    other = ReplaySettings(
        plan=place / "run", model="torch.nn:Linear", model_args={"in_features": 3, "out_features": 3},
        weights=place / "linear.safetensors", out=place / "nowhere",
    )  # fmt: skip
    save_file(nn.Linear(3, 3).state_dict(), place / "linear.safetensors")
    with pytest.raises(SurgeryError, match="another architecture"):
        replay_run(other)
    assert not (place / "nowhere").exists()
