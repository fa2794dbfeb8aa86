"""``secateur prune --protect``: which samples, and what the run reports of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from secateur.config import PruneSettings
from secateur.data import Data, load_data
from secateur.errors import ConfigError, DataError
from secateur.plain import read_yaml
from secateur.reporting import Report
from secateur.runs import protecting
from secateur.runs.prune import prepare, prune_run


def settings(**given: Any) -> PruneSettings:
    return PruneSettings(**{"budget": "macs=0.5", **given})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"protect_share": 1.0}, r"protect_share=1.0 must be in \[0, 1\)"),
        ({"protect_share": 0.3}, "protect_share=0.3 is for protect, which is not given"),
        ({"protect_args": {"a": 1}}, "protect_args are for protect, which is not given"),
        (
            {"protect": "class:1", "budget": None},
            "with a threshold importance=auto is l2.*give a budget",
        ),
        ({"protect": "class:1", "schedule": "cubic"}, "protect goes with pruning at once: leave out schedule=cubic"),
    ],
)
def test_settings_that_contradict_each_other(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(**given)


def test_a_threshold_with_a_criterion_on_data_will_do() -> None:
    assert settings(protect="class:1", budget=None, importance="reconstruction").resolved().threshold == 0.8


def test_settings_go_through_yaml_and_the_command_line(tmp_path: Path) -> None:
    asked = settings(protect="class:3,5", protect_share=0.3)
    (tmp_path / "config.yaml").write_text(asked.to_yaml())
    assert PruneSettings.from_mapping(read_yaml(tmp_path / "config.yaml")) == asked
    assert "--protect class:3,5 --protect-share 0.3" in asked.to_command()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"protect": "class:3,x"}, ConfigError, "classes are whole numbers from 0, such as class:3 or class:3,5"),
        ({"protect": "class:77"}, DataError, "protect=class:77 names no sample of the training split"),
        ({"protect": "class:3,77"}, DataError, "protect=class:77 names no sample of the training split"),
        ({"protect": "class:88,3,77"}, DataError, "protect=class:77,88 names no sample of the training split"),
        ({"protect": "nowhere"}, DataError, "unknown data 'nowhere'"),
        ({"protect": "class:3", "importance": "l2"}, ConfigError, "importance=l2 looks at weights alone"),
        ({"protect": "npz:missing.npz"}, DataError, "no file 'missing.npz'"),
    ],
)
def test_what_can_not_be_protected_is_said_before_any_training(
    given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        prepare(settings(**given))


def test_classes_of_our_own_data() -> None:
    data = load_data("digits")
    picked = protecting.of_classes(data.calibration, frozenset({3, 5}), "training")
    batches = list(picked)
    assert batches
    assert {int(label) for _, y in batches for label in y} == {3, 5}
    assert all(len(x) == len(y) for x, y in batches)
    every = [int(label) for _, y in data.test for label in y]
    test = protecting.of_classes(data.test, frozenset({3, 5}), "test")
    assert sum(len(y) for _, y in test) == sum(label in (3, 5) for label in every)


@pytest.mark.parametrize("form", ["pair", "mapping"])
def test_classes_of_a_users_loader(form: str) -> None:
    x, y = torch.arange(8.0)[:, None], torch.tensor([0, 1, 2, 0, 1, 2, 0, 0])
    loader: list[Any] = [(x[:4], y[:4]), (x[4:6], y[4:6]), (x[6:], y[6:])]
    if form == "mapping":
        loader = [{"x": a, "labels": b, "scale": torch.tensor(2.0)} for a, b in loader]
    picked = protecting.of_classes(loader, frozenset({1}), "training")
    found = [batch["x"] if form == "mapping" else batch[0] for batch in picked]
    assert [t.flatten().tolist() for t in found] == [[1.0], [4.0]]
    assert [t.flatten().tolist() for t in found] == [[1.0], [4.0]], "again and again"


def test_each_class_of_a_users_loader_has_a_sample() -> None:
    x, y = torch.arange(8.0)[:, None], torch.tensor([0, 1, 2, 0, 1, 2, 0, 0])
    loader = [(x[:4], y[:4]), (x[4:], y[4:])]
    with pytest.raises(DataError, match=r"protect=class:5,77 names no sample of the test split"):
        protecting.of_classes(loader, frozenset({77, 2, 5}), "test")
    with pytest.raises(DataError, match=r"protect=class:2 names no sample of the test split"):
        protecting.of_classes([(x[:2], y[:2]), (x[4:5], y[4:5])], frozenset({1, 2}), "test")
    assert len(list(protecting.of_classes(loader, frozenset({1, 2}), "test"))) == 2


def test_classes_need_a_class_for_each_sample() -> None:
    for batch in (
        torch.zeros(2, 3),
        (torch.zeros(2, 3), torch.zeros(2, 3)),
        (torch.zeros(2), torch.zeros(2, 2).long()),
    ):
        with pytest.raises(DataError, match="picks samples by their class, and a batch of the data has not one class"):
            protecting.of_classes([batch], frozenset({1}), "training")


def test_other_data_are_calibrated_on_training_and_measured_on_test_samples() -> None:
    data = load_data("digits")
    other = Data(train=[(torch.zeros(4, 1, 10, 10), torch.zeros(4).long())], validation=None, test=data.test)
    guard = protecting.guard(other, settings(protect="digits", protect_share=0.2), 2)
    assert len(guard.batches) == 2
    assert guard.share == 0.2
    assert sum(len(y) for _, y in guard.test) == sum(len(y) for _, y in data.test)


def test_a_run_reports_it_before_and_after_tuning(tmp_path: Path) -> None:
    asked = settings(budget="params=0.3", train_epochs=1, epochs=1, protect="class:3", out=tmp_path / "run")
    outcome = prune_run(asked)
    report = Report.load(asked.out)
    assert report.to_dict() == outcome.report.to_dict() == json.loads((asked.out / "report.json").read_text())
    found = report["protected"]
    assert found["seen"] == []
    assert list(found["figures"]["protected"]) == ["dense", "without", "with", "tuned"]
    tests = sum(int((y == 3).sum()) for _, y in load_data("digits").test)
    assert {row["samples"] for row in found["figures"]["protected"].values()} == {tests}
    assert found["figures"]["general"]["tuned"]["accuracy"] == pytest.approx(report["tuned"]["metrics"]["accuracy"])
    assert found["figures"]["general"]["with"]["accuracy"] == pytest.approx(report["pruned"]["metrics"]["accuracy"])
    assert '<section id="protected"' in (asked.out / "report.html").read_text()
    assert "--protect class:3" in report["command"]
