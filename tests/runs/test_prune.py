"""The run behind `secateur prune`, from training to the directory that it leaves."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.config import PruneSettings
from secateur.data import load_data
from secateur.errors import DataError, OutputError, PlanError, UnknownImportance, UnreachableBudget
from secateur.plain import read_yaml
from secateur.runs import prune as run
from secateur.runs.prune import Outcome, prune_run
from secateur.runs.unfinished import Unfinished
from secateur.timing import LatencyTable, latency_table, settling
from secateur.tuning import evaluate
from support.clocks import by_work

FILES = {
    "config.yaml",
    "model.safetensors",
    "plan.json",
    "report.json",
    "report.html",
    "artifact.json",
    "training.json",
}


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[PruneSettings, Outcome]:
    """The embedded example, trained for a moment."""
    settings = PruneSettings(
        budget="params=0.3", train_epochs=3, epochs=2, out=tmp_path_factory.mktemp("runs") / "quick"
    )
    return settings, prune_run(settings)


def test_the_directory_holds_everything(quick: tuple[PruneSettings, Outcome]) -> None:
    settings, outcome = quick
    assert outcome.path == settings.out
    assert outcome.interrupted == outcome.advice == ""
    assert {file.name for file in settings.out.iterdir()} >= FILES
    assert [entry.name for entry in settings.out.parent.iterdir()] == ["quick"]
    assert PruneSettings.from_mapping(read_yaml(settings.out / "config.yaml")) == settings.resolved()


def test_the_report_has_the_documented_form(quick: tuple[PruneSettings, Outcome]) -> None:
    settings, outcome = quick
    report = json.loads((settings.out / "report.json").read_text())
    assert report == outcome.report.to_dict()
    keys = {"version", "command", "seed", "model", "dense", "pruned", "tuned", "proof", "axes", "plan", "environment"}
    found = set(report) - {"dead_units"}  # there where some units never wake
    found_out = {"trial", "compensation", "latency_cut_per_mac_cut"}  # latency was measured before and after
    assert found == keys | found_out
    assert report["trial"]["chosen"] in report["trial"]["distances"]
    assert report["compensation"]["how"] == "lstsq"
    assert report["compensation"]["distance"] < report["compensation"]["distance_before"]
    figures = {
        "params",
        "macs",
        "size_bytes",
        "latency_ms",
        "throughput",
        "training_step_ms",
        "peak_memory_bytes",
        "metrics",
    }
    for column in ("dense", "pruned", "tuned"):
        assert set(report[column]) == figures
        assert 0 <= report[column]["metrics"]["accuracy"] <= 1
    assert report["dense"]["params"] == 81194
    assert report["pruned"]["params"] == report["tuned"]["params"] <= 0.3 * 81194
    assert report["proof"]["status"] == "proved"
    assert [set(row) for row in report["axes"]] == [{"name", "kind", "before", "after"}] * 4
    assert (
        report["command"].startswith("secateur prune --train-epochs 3 --epochs 2")
        or "--budget params=0.3" in report["command"]
    )


def test_the_result_loads_and_answers_alike(quick: tuple[PruneSettings, Outcome]) -> None:
    settings, outcome = quick
    loaded = sc.load(settings.out)
    images = torch.randn(5, 1, 10, 10)
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(images), outcome.model(images))
    assert sum(p.numel() for p in loaded.parameters()) == outcome.report["tuned"]["params"]


def test_the_page_shows_the_run(quick: tuple[PruneSettings, Outcome]) -> None:
    page = (quick[0].out / "report.html").read_text(encoding="utf-8")
    assert page.count('class="chart"') == 4
    assert "sc.load(" in page
    assert "params=0.3" in page


def test_the_same_settings_give_the_same_network(quick: tuple[PruneSettings, Outcome], tmp_path: Path) -> None:
    settings, outcome = quick
    again = prune_run(
        PruneSettings.from_mapping(read_yaml(settings.out / "config.yaml") | {"out": str(tmp_path / "again")})
    )
    for name, tensor in outcome.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    assert again.report["tuned"]["metrics"] == outcome.report["tuned"]["metrics"]


def test_each_step_is_watched(tmp_path: Path) -> None:
    seen: list[str] = []

    class Step:
        def advance(self, done: int, total: int) -> None:
            assert 0 <= done <= total

        def note(self, text: str) -> None:
            assert text

    @contextmanager
    def watch(title: str) -> Iterator[Step]:
        seen.append(title)
        yield Step()

    outcome = prune_run(PruneSettings(train_epochs=0, epochs=0, out=tmp_path / "run"), watch=watch)
    assert "hardly better than guessing among 10 classes" in outcome.advice
    assert seen == ["Loading model and data", "Tracing, scoring, pruning, proving", "Testing", "Measuring", "Saving"]
    assert json.loads((tmp_path / "run" / "report.json").read_text())["tuned"] is None


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnreachableBudget):
        prune_run(PruneSettings(budget="params=5", train_epochs=0, epochs=0, out=tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def test_a_criterion_of_data_looks_at_the_training_data(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []
    prune = run.prune
    monkeypatch.setattr(run, "prune", lambda *args, **chosen: given.append(chosen) or prune(*args, **chosen))
    settings = PruneSettings(importance="fisher", budget="params=0.5", train_epochs=0)
    model, data = run.prepare(settings)
    result = run.prune_model(model, data, settings)
    assert len(given[0]["data"]) == min(run.CALIBRATION_BATCHES, len(list(data.train)))
    assert sum(row["after"] < row["before"] for row in result.axes) > 0


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        (PruneSettings(importance="magic"), UnknownImportance),
        (PruneSettings(budget="params=5"), UnreachableBudget),
        (PruneSettings(only=("nothing",)), PlanError),
    ],
)
def test_what_cannot_be_done_is_said_before_training(
    settings: PruneSettings, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "train_dense", lambda *_: pytest.fail("trained"))
    with pytest.raises(error):
        prune_run(replace(settings, out=tmp_path / "run"))


def test_a_full_directory_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.txt").write_text("")
    monkeypatch.setattr(run, "prepare", lambda *_: pytest.fail("worked"))
    with pytest.raises(OutputError, match="not empty"):
        prune_run(PruneSettings(out=tmp_path))


class _Interrupting:
    """Batches of which only so many passes are not cut short by Ctrl-C."""

    def __init__(self, batches: Any, passes: int) -> None:
        self.batches, self.passes = list(batches), passes

    def __iter__(self) -> Iterator[Any]:
        self.passes -= 1
        for batch in self.batches:
            if self.passes < 0:
                raise KeyboardInterrupt
            yield batch


def test_ctrl_c_while_tuning_keeps_the_best_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_data("digits", batch_size=512)
    stopping = replace(data, train=_Interrupting(data.train, passes=5))  # two to look at, two to tune, one to stop in
    monkeypatch.setattr(run, "load_data", lambda *_, **__: stopping)
    outcome = prune_run(PruneSettings(train_epochs=0, epochs=9, out=tmp_path / "run"))
    assert outcome.interrupted.startswith("the fine-tuning was stopped after")
    assert outcome.interrupted.endswith(f"state after epoch {outcome.histories['tuned'].best_epoch}")
    assert sum(p.numel() for p in sc.load(tmp_path / "run").parameters()) == outcome.report["tuned"]["params"]


def test_ctrl_c_while_training_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_data("digits", batch_size=512)
    monkeypatch.setattr(run, "load_data", lambda *_, **__: replace(data, train=_Interrupting(data.train, passes=1)))
    with pytest.raises(KeyboardInterrupt):
        prune_run(PruneSettings(train_epochs=3, out=tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def test_fast_widths_and_their_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run takes ``auto``, and what timed operations predict is told on the scale of what was measured."""

    def table(model: nn.Module, graph: sc.Graph, args: Any, kwargs: Any = None) -> LatencyTable:
        return latency_table(model, graph, args, kwargs, timer=by_work, whole=1.0)

    monkeypatch.setattr(settling, "latency_table", table)
    monkeypatch.setattr(settling, "whole_seconds", lambda models, *_: dict(zip(models, (1.0, 0.6), strict=True)))
    settings = PruneSettings(budget="macs=0.5", multiple_of="auto", epochs=0, train_epochs=0, out=tmp_path / "fast")
    report = prune_run(settings).report
    dense, pruned = report["dense"], report["pruned"]
    assert dense["predicted_latency_ms"] == pytest.approx(dense["latency_ms"])
    assert 0.2 < pruned["predicted_latency_ms"] / dense["latency_ms"] < 1


# ---------------------------------------------------------------------- bounds on the validation split


def test_a_bound_is_kept_to_on_the_validation_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_data("digits", batch_size=256)
    monkeypatch.setattr(run, "load_data", lambda *_, **__: data)
    notes: list[str] = []

    class Step:
        def advance(self, done: int, total: int) -> None: ...

        def note(self, text: str) -> None:
            notes.append(text)

    @contextmanager
    def watch(title: str) -> Iterator[Step]:
        yield Step()

    settings = PruneSettings(max_loss_increase=0.1, train_epochs=3, epochs=0, out=tmp_path / "run")
    outcome = prune_run(settings, watch=watch)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    found = report["held_out"]
    assert found == outcome.report["held_out"]
    assert found["pruned"] == pytest.approx(evaluate(outcome.model, data.validation or [])["loss"], abs=1e-6)
    assert 0 < found["worse"] <= found["bound"] == 0.1
    assert report["pruned"]["macs"] < report["dense"]["macs"]
    assert any(note.startswith("round 1: ") for note in notes)
    assert "Held-out loss: dense" in (tmp_path / "run" / "report.html").read_text()
    assert sc.Report.load(tmp_path / "run") == outcome.report


def test_a_bound_needs_a_validation_split_and_never_takes_the_test_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = replace(load_data("digits"), validation=None)
    monkeypatch.setattr(run, "load_data", lambda *_, **__: data)
    monkeypatch.setattr(run, "train_dense", lambda *_: pytest.fail("trained"))
    with pytest.raises(
        DataError, match="max_drop is kept to on a validation split, never on the test split, and digits"
    ):
        prune_run(PruneSettings(max_drop=1.0, out=tmp_path / "run"))


class _InterruptingOnce:
    """Batches of which one pass, counted from 1, is cut short by Ctrl-C."""

    def __init__(self, batches: Any, number: int) -> None:
        self.batches, self.number = batches, number

    def __iter__(self) -> Iterator[Any]:
        self.number -= 1
        if self.number == 0:
            raise KeyboardInterrupt
        return iter(self.batches)


def test_ctrl_c_in_the_search_keeps_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_data("digits", batch_size=512)
    assert data.validation is not None
    stopping = replace(data, validation=_InterruptingOnce(data.validation, 6))  # twice to look, the dense, two rounds
    monkeypatch.setattr(run, "load_data", lambda *_, **__: stopping)
    outcome = prune_run(PruneSettings(max_drop=100, train_epochs=0, epochs=1, out=tmp_path / "run"))
    assert outcome.interrupted.startswith("the search within max_drop=100 was stopped after 2 rounds; kept is the")
    assert outcome.interrupted.endswith("not tuned; resuming begins this search anew")
    assert "tuned" not in outcome.histories
    assert 0.78 < outcome.report["pruned"]["macs"] / outcome.report["dense"]["macs"] <= 0.81
    kept = Unfinished(tmp_path / "run").checkpoints("pruned") / "artifact.json"
    assert not kept.exists(), "or resuming would take the search for finished, and stop again"


def test_what_scores_and_refits_is_not_augmented() -> None:
    data = load_data("digits", batch_size=256, seed=1)
    plain = run.calibration_batches(data, PruneSettings(), 2)
    source = data.validation.source  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    known = {image.numpy().tobytes() for image in source.inputs}
    assert all(image.numpy().tobytes() in known for images, _ in plain for image in images)
    shifted = next(iter(data.train))[0]
    assert any(image.numpy().tobytes() not in known for image in shifted)
