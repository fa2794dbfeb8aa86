"""A report is a mapping in the form of report.json that prints as a table."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from secateur.errors import ArtifactError
from secateur.reporting import Report, sentences

KEYS = ["version", "command", "seed", "model", "dense", "pruned", "tuned", "proof", "axes", "plan", "environment"]


def test_form_and_round_trip(data: dict[str, Any], tmp_path: Path) -> None:
    report = Report(data)
    assert list(report) == KEYS
    report.save(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == data
    assert Report.load(tmp_path) == Report.load(tmp_path / "report.json") == report


def test_missing_columns_and_numbers_that_json_lacks(data: dict[str, Any], tmp_path: Path) -> None:
    data["dense"]["latency_ms"] = float("nan")
    del data["tuned"]
    report = Report(data)
    report.save(tmp_path / "report.json")
    assert report["tuned"] is None
    assert report["dense"]["latency_ms"] is None
    assert "tuned" not in str(report)
    assert "dense → pruned" in str(report)


def test_it_is_a_copy(data: dict[str, Any]) -> None:
    report = Report(data)
    data["dense"]["params"] = 1
    report.to_dict()["dense"]["params"] = 2
    assert report["dense"]["params"] == 81194
    assert report.replace(seed=5)["seed"] == 5
    assert report["seed"] == 0


def test_build_fills_in_version_and_environment() -> None:
    report = Report.build(model="net", dense=None)
    assert report["version"]
    assert {"python", "torch", "threads", "device"} <= set(report["environment"])


def test_the_table_has_columns_and_ratios(data: dict[str, Any]) -> None:
    text = str(Report(data))
    for expected in (
        "81,194",
        "32,478",
        "2.50× fewer",
        "97.2 %",
        "85.3 %",
        "96.9 %",
        "-0.3 points",
        "326 kB",
        "0.0820 ms",
        "12.2 k/s",
    ):
        assert expected in text
    assert "Proved: the smaller model computes what the original computes with the removed units silenced" in " ".join(
        text.split()
    )
    assert "3 of 4 axes are narrower; 168 of 226 units are kept (74.3 %)." in text


def test_it_fits_a_terminal_of_80_columns(data: dict[str, Any]) -> None:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(Report(data))
    assert max(map(len, capture.get().splitlines())) <= 80
    assert "…" not in capture.get()


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (0.082, "did not fall: 0.0820 ms before, 0.0820 ms after, the same within noise"),
        (0.1, "did not fall: 0.0820 ms before, 0.100 ms after."),
        (0.05, None),
    ],
)
def test_it_says_plainly_when_latency_did_not_fall(data: dict[str, Any], after: float, said: str | None) -> None:
    data["tuned"]["latency_ms"] = after
    text = " ".join(str(Report(data)).split())
    assert (said in text) if said else ("did not fall" not in text)


@pytest.mark.parametrize(
    ("proof", "said"), [({"status": "shape-checked"}, "Shape-checked only"), (None, "Not proved"), ({}, "Not proved")]
)
def test_what_was_not_proved_is_never_called_proved(data: dict[str, Any], proof: Any, said: str) -> None:
    text = str(Report(data | {"proof": proof}))
    assert said in text
    assert "Proved:" not in text


def test_it_says_plainly_when_nothing_was_removed(data: dict[str, Any]) -> None:
    same = [row | {"after": row["before"]} for row in data["axes"]]
    report = Report(data | {"axes": same, "pruned": data["dense"], "tuned": None})
    assert "No unit of the 4 axes was removed: a higher threshold" in " ".join(str(report).split())
    assert sentences.headline(report) == "nothing removed, accuracy 97.2 % → 97.2 %"


def test_it_says_how_much_of_the_cut_in_macs_shows(data: dict[str, Any]) -> None:
    final = data["tuned"] | {"latency_ms": 0.041, "macs": round(137624 * 0.4)}
    faster = data | {"tuned": final, "pruned": data["pruned"] | {"predicted_latency_ms": 0.04}}
    text = " ".join(str(Report(faster)).split())
    assert "The latency fell by 50.0 %, the MACs by 60.0 %: 0.83 of the cut in MACs." in text
    assert "Latency, predicted" in text
    assert "did not fall" not in text
    assert "0.83 of the cut in MACs" in Report(faster)._repr_html_()
    assert "of the cut in MACs" not in str(Report(data)), "nothing got faster"
    built = Report.build(model="net", dense=data["dense"], pruned=data["pruned"], tuned=final)
    assert built["latency_cut_per_mac_cut"] == pytest.approx(0.5 / 0.6, abs=1e-3)
    assert "latency_cut_per_mac_cut" not in Report.build(model="net", dense=data["dense"])


def test_it_says_why_the_class_was_replaced(data: dict[str, Any]) -> None:
    said = "The network's class was replaced by its graph: view(576) at net.py:30 holds a size"
    report = Report(data | {"plan": {"rewrites": ["view(576) at net.py:30"]}})
    assert said in " ".join(str(report).split())
    assert said.replace("'", "&#x27;") in report._repr_html_()
    assert "replaced" not in str(Report(data))


def test_notebook_escapes(data: dict[str, Any]) -> None:
    data["dense"]["metrics"]["<i>"] = 0.5
    html = Report(data)._repr_html_()
    assert "<table>" in html
    assert "<i>" not in html.lower()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "missing or damaged"),
        ("[]", "is not a report of secateur: it holds a list"),
        ('{"model": 1}', "version, command, seed"),
        (json.dumps(dict.fromkeys(KEYS) | {"dense": 3}), "dense should be objects"),
        (json.dumps(dict.fromkeys(KEYS) | {"axes": [{"name": "a"}]}), "axes should be a list"),
    ],
)
def test_foreign_and_truncated_reports_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(ArtifactError, match=message):
        Report.load(tmp_path)


def test_missing_report(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"report\.json.*missing"):
        Report.load(tmp_path)
