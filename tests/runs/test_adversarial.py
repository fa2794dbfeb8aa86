"""Runs under attack: importance, the floor and the training are those of attacked inputs, from settings to files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from secateur.config import PruneSettings, TuneSettings
from secateur.data import load_data
from secateur.runs import prune as run
from secateur.runs.prune import prune_run
from secateur.runs.tune import tune_run
from secateur.safety import Adversarial, attacked

QUICK: dict[str, Any] = {"adversarial": "pgd", "eps": "1/16", "attack_steps": 1}
ATTACK = Adversarial(eps=1 / 16, steps=1)


def test_a_budget_with_a_floor_then_trained_on(tmp_path: Path) -> None:
    settings = PruneSettings(
        budget="params=0.7", max_robust_drop=90, importance="l1", compensate="none", train_epochs=1, epochs=1,
        out=tmp_path / "run", **QUICK
    )  # fmt: skip
    prune_run(settings)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    found = report["held_out"]
    assert (found["setting"], found["budget"], found["ended_by"]) == ("max_robust_drop", {"params": 0.7}, "budget")
    assert report["pruned"]["params"] <= 0.7 * report["dense"]["params"]
    training = json.loads((tmp_path / "run" / "training.json").read_text())
    rows = [row for history in training.values() for row in history["epochs"]]
    assert len(rows) == 2
    assert all(row["robust_loss"] > row["validation_loss"] for row in rows)
    assert "under attack" in (tmp_path / "run" / "report.html").read_text()

    again = TuneSettings(
        result=tmp_path / "run", out=tmp_path / "tuned", epochs=1, **{**QUICK, "adversarial": "trades"}
    )
    outcome = tune_run(again)
    assert outcome is not None
    assert outcome.history.epochs[0].robust_accuracy is not None


def test_what_pruning_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack, with what the data say of how they were scaled; and for steps, attacked batches among the others."""
    given: dict[str, Any] = {}

    class Enough(Exception):
        """Nothing more is needed."""

    def stop(*args: Any, **options: Any) -> None:
        given.update(options, given=args[4] if len(args) > 4 else None)
        raise Enough

    monkeypatch.setattr(run, "prune", stop)
    monkeypatch.setattr(run.gradual, "prune", stop)
    model, data = run.prepare(PruneSettings(epochs=0, **QUICK))
    with pytest.raises(Enough):
        run.prune_model(model, data, PruneSettings(budget="macs=0.5", **QUICK))
    assert given["adversarial"] == ATTACK
    with pytest.raises(Enough):
        run.prune_model(model, data, PruneSettings(budget="macs=0.5", schedule="cubic", **QUICK))
    batches = given["given"]["data"]
    plain = run.calibration_batches(load_data("digits"), PruneSettings(), len(batches) // 2)
    assert torch.equal(batches[0][0], plain[0][0])
    assert torch.equal(batches[1][0], attacked(model, plain[:1], ATTACK)[0][0])
