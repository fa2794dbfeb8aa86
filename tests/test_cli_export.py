"""``secateur export``: what it prints, what it writes, and how it ends."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.cli import main
from secateur.examples import SimpleNet


def kept_net(hidden: int = 8) -> nn.Module:
    return nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, 2))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with two results: one with its graph and how it was built, one with neither."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("saved")
    result = sc.prune(SimpleNet(), torch.randn(2, 1, 10, 10), keep=0.5)
    sc.save(result, folder / "digits", "secateur.examples:SimpleNet")
    sc.save(sc.prune(kept_net(), torch.randn(2, 4), keep=0.5), folder / "kept")
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def test_both_formats_and_the_latency_beside_the_dense_network(
    saved: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(saved / "digits"), "--format", "onnx", "pt2", "--out", "small", "--compare-with", "dense"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert names(place) == ["small.onnx", "small.pt2"]
    for text in ("Exporting to small.onnx", "batch x 1 x 10 x 10", "latency in onnxruntime", "1 thread, in turns"):
        assert text in out
    assert out.count("of the scale apart") == 2
    x = torch.randn(3, 1, 10, 10)
    expected = sc.load(saved / "digits")(x)
    torch.testing.assert_close(torch.export.load("small.pt2").module()(x), expected)


def test_the_result_names_the_file_and_the_input_the_sizes(
    saved: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(saved / "digits"), "--format", "pt2", "--input", "4x1x10x10", "--static"]) == 0
    assert names(place) == ["digits.pt2"]
    assert "4 x 1 x 10 x 10" in capsys.readouterr().out


def test_a_class_that_was_kept_comes_from_the_named_model(
    saved: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    words = ["export", str(saved / "kept"), "--model", f"{Path(__file__).stem}:kept_net", "--out", "deep.pt2"]
    assert main(words) == 0
    assert names(place) == ["deep.pt2"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["digits", "--out", "a.onnx", "--format", "pt2"], 1, "give --out a.pt2"),
        (["digits", "--format", "pt2", "--compare-with", "dense"], 1, "add onnx to --format"),
        (["digits", "--format", "pt2", "--opset", "18"], 1, "--opset is of ONNX"),
        (["digits", "--format", "tflite"], 2, 'Choose from: "onnx", "pt2"'),
        (["digits", "--out", "there.onnx"], 1, "there.onnx exists already"),
        (["nothing"], 1, "holds no saved result"),
        (["kept"], 1, "name the original network with --model"),
        (["digits", "--outt", "a"], 2, "See: secateur export --help"),
    ],
)
def test_what_is_asked_for_wrongly(
    words: list[str], code: int, said: str, saved: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "there.onnx").write_text("mine")
    assert main(["export", str(saved / words[0]), *words[1:]]) == code
    assert said in " ".join(capsys.readouterr().err.split())
    assert names(place) == ["there.onnx"]
    assert (place / "there.onnx").read_text() == "mine"


def test_ctrl_c_leaves_no_half_file(
    saved: Path, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("secateur.exporting.writing.compare", stop)
    assert main(["export", str(saved / "digits"), "--format", "pt2"]) == 130
    assert "by Ctrl-C during: Exporting to digits.pt2" in capsys.readouterr().err
    assert names(place) == []
