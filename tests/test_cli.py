"""The command: what it prints, what it writes, and how it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import secateur as sc
from secateur.cli import main
from secateur.cli.commands import COMMANDS
from secateur.examples import SimpleNet

QUICK = ["--train-epochs", "1", "--epochs", "1"]
NETWORKS = """
import torch
from torch import nn

def small(width=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(100, width), nn.ReLU(), nn.Linear(width, 10))

def single():
    return nn.Sequential(nn.Flatten(), nn.Linear(100, 10))

def colors():
    return nn.Conv2d(3, 8, 3)

def loaders(count=64):
    data = [(torch.randn(count, 100), torch.arange(count) % 10)]
    return {"train": data, "validation": data, "test": data}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory with a module of a user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "users_own", raising=False)
    (tmp_path / "users_own.py").write_text(NETWORKS)
    return tmp_path


def fails(words: list[str], capsys: pytest.CaptureFixture[str], code: int = 1) -> str:
    """The error of a command line that fails; no traceback, nothing left behind."""
    before = sorted(Path.cwd().iterdir())
    assert main(words) == code
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert [path for path in sorted(Path.cwd().iterdir()) if path not in before and path.name != "__pycache__"] == []
    return " ".join(error.split())


# ---------------------------------------------------------------- help and usage


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--help"],
        *([command, "--help"] for command in COMMANDS),
    ],
)
def test_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    assert "secateur" in capsys.readouterr().out


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    main(["prune", "--help"])
    out = capsys.readouterr().out
    for flag in (
        "--model",
        "--model-args",
        "--weights",
        "--data",
        "--importance",
        "--threshold",
        "--budget",
        "--scope",
        "--epochs",
        "--lr",
    ):
        assert flag in out
    for flag in (
        "--seed",
        "--device",
        "--out",
        "--config",
        "--debug",
        "--overwrite",
        "--ignore",
        "--min-units",
        "--multiple-of",
        "--keep",
    ):
        assert flag in out
    assert "secateur prune --budget params=0.1 --out tenth" in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == sc.__version__


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prun"], 'Unknown command "prun"'),
        (["prune", "--treshold", "1"], "Did you mean --threshold? See: secateur prune --help"),
        (["prune", "--scope", "here"], 'Choose from: "global", "local"'),
        (["prune", "--epochs", "many"], "unable to convert"),
        (["prune", "extra"], "extra"),
        (["show"], "requires an argument"),
    ],
)
def test_a_wrong_command_line_is_code_2(
    place: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in fails(words, capsys, code=2)


# ---------------------------------------------------------------- prune


def test_prune_show_measure(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", *QUICK, "--keep", "0.5", "--out", "deep/run"]) == 0
    out = capsys.readouterr().out
    for text in (
        "Training the dense network ...",
        "dense",
        "tuned",
        "Proved:",
        "fewer",
        "deep/run/report.html",
        "Repeat it",
        "--keep 0.5",
    ):
        assert text in out
    report = json.loads(Path("deep/run/report.json").read_text())
    assert report["pruned"]["params"] < 0.5 * report["dense"]["params"]

    assert main(["show", "deep/run"]) == 0
    shown = capsys.readouterr().out
    for text in ("Proved:", "model.safetensors", "the network's weights", 'sc.load("deep/run")', "secateur prune"):
        assert text in shown

    assert main(["measure", "deep/run"]) == 0
    assert f"{report['tuned']['params']:,}" in capsys.readouterr().out

    assert (
        main(["prune", "--config", "deep/run/config.yaml", "--overwrite", "--budget", "params=0.2", "--epochs", "0"])
        == 0
    )
    again = json.loads(Path("deep/run/report.json").read_text())
    assert again["tuned"] is None
    assert again["pruned"]["params"] <= 0.2 * 81194


def test_a_users_own_network_data_and_weights(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(100, 12), torch.nn.ReLU(), torch.nn.Linear(12, 10)
    )
    save_file(network.state_dict(), "w.safetensors")
    words = [
        "--model",
        "users_own:small",
        "--model-args.width",
        "12",
        "--weights",
        "w.safetensors",
        "--data",
        "users_own:loaders",
    ]
    assert main(["prune", *words, "--data-args", '{"count": 32}', "--keep", "0.5", "--epochs", "2"]) == 0
    out = capsys.readouterr().out
    assert "Training the dense network" not in out
    report = json.loads(Path("secateur-run/report.json").read_text())
    assert (report["dense"]["params"], report["tuned"]["params"]) == (1342, 676)
    assert "width=12" in Path("secateur-run/report.html").read_text()
    import users_own  # pyright: ignore[reportMissingImports]

    assert sc.load("secateur-run", model=users_own.small(12))[1].out_features == 6
    assert (
        main(["measure", "secateur-run", "--model", "users_own:small", "--model-args.width", "12", "--input", "1x100"])
        == 0
    )
    assert "676" in capsys.readouterr().out


def test_nothing_is_imported_from_a_result_without_trust(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "users_own:small", "--data", "users_own:loaders", "--keep", "0.5", "--epochs", "0"]
    assert main(["prune", *words]) == 0
    del sys.modules["users_own"]
    capsys.readouterr()
    error = fails(["measure", "secateur-run", "--input", "1x100"], capsys)
    assert "imports users_own:small: allow that with --trust, or name the original network with --model" in error
    assert "users_own" not in sys.modules
    assert main(["measure", "secateur-run", "--input", "1x100", "--trust"]) == 0


# ---------------------------------------------------------------- inspect and measure


def test_inspect(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect"]) == 0
    out = capsys.readouterr().out
    for text in ("conv1.weight:0", "fc1.weight:0", "fc3.weight:0"):
        assert text in out


def test_inspect_explains_dims(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--explain", "fc1.weight:1", "conv1.bias:0"]) == 0
    out = capsys.readouterr().out
    assert "fc1.weight, dim 1: 576 = (channels 16 x hidden1 6 x hidden2 6)" in out
    assert "conv1.bias, dim 0: 6 = channels 6" in out
    assert "The nearest names are fc1.weight" in fails(["inspect", "--explain", "fc1.wight:1"], capsys)


def test_inspect_with_inputs_of_a_shape(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--model", "users_own:colors", "--input", "2x3x8x8"]) == 0
    assert "weight:0" in capsys.readouterr().out
    assert "is no shape" in fails(["inspect", "--input", "2by3"], capsys)
    for command in ("inspect", "measure"):  # of nobody's choosing: the embedded digits, one channel
        said = fails([command, "--model", "users_own:colors"], capsys)
        assert "These inputs came from --data digits." in said
        assert "with --input, such as --input 1x3x224x224" in said
    assert "is no shape" in fails(["inspect", "--input", "2x3:int63"], capsys)


def test_measure(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure"]) == 0
    out = capsys.readouterr().out
    assert "81,194" in out
    assert "latency" in out


# ---------------------------------------------------------------- bad input


def test_unknown_importance(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = fails(["prune", *QUICK, "--importance", "magic"], capsys)
    for text in ("error:", "'magic'", "l1", "l2", "random"):
        assert text in error


def test_impossible_budget(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = fails(["prune", *QUICK, "--budget", "params=5"], capsys)
    assert "params" in error
    assert "smallest" in error


@pytest.mark.parametrize("words", [["--budget", "macs=0.5", "--threshold", "1"], ["--keep", "0.5", "--threshold", "1"]])
def test_two_ways_to_choose(place: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "given together" in fails(["prune", *words], capsys)


def test_nothing_to_prune(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = fails(["prune", "--model", "users_own:single"], capsys)
    for text in ("no axis that can be pruned", "1.weight:0", "an output of the model"):
        assert text in error


def test_data_that_does_not_fit(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = fails(["prune", "--model", "users_own:colors"], capsys)
    for text in ("users_own:colors does not run on the data digits", "(1, 1, 10, 10)", "--data"):
        assert text in error


def test_data_that_is_not_there(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere" in fails(["prune", "--data", "imagefolder:nowhere"], capsys)
    assert "unknown data 'fish'" in fails(["prune", "--data", "fish"], capsys)


def test_nan_weights(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = SimpleNet().state_dict()
    state["fc2.bias"][3] = float("nan")
    save_file(state, "w.safetensors")
    error = fails(["prune", "--weights", "w.safetensors"], capsys)
    assert "fc2.bias" in error
    assert "NaN" in error


def test_output_directory_that_is_not_empty(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("run").mkdir()
    Path("run/thesis.tex").write_text("years of work")
    for words in ([], ["--overwrite"]):
        assert "thesis.tex" in fails(["prune", *QUICK, "--out", "run", *words], capsys)
    assert Path("run/thesis.tex").read_text() == "years of work"


def test_a_settings_file_with_a_misspelt_name(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("c.yaml").write_text("threshhold: 0.5\n")
    assert "c.yaml: unknown setting 'threshhold' (did you mean 'threshold'?)" in fails(
        ["prune", "--config", "c.yaml"], capsys
    )
    assert "no settings file" in fails(["prune", "--config", "none.yaml"], capsys)


@pytest.mark.parametrize("command", ["show", "measure"])
def test_what_is_no_result(place: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere" in fails([command, "nowhere"], capsys)
    Path("foreign").mkdir()
    Path("foreign/report.json").write_text('{"a": 1}')
    Path("foreign/artifact.json").write_text('{"a": 1}')
    assert "foreign" in fails([command, "foreign"], capsys)


@pytest.mark.parametrize("command", ["show", "measure"])
@pytest.mark.parametrize("file", ["model.safetensors", "plan.json", "artifact.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "altered"])
def test_damaged_results(
    place: Path, command: str, file: str, damage: str, small_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = small_run / file
    whole = path.read_bytes()
    try:
        if damage == "missing":
            path.unlink()
        elif damage == "truncated":
            path.write_bytes(whole[: len(whole) // 2])
        else:
            path.write_bytes(whole[:-40] + bytes(byte ^ 1 for byte in whole[-40:-20]) + whole[-20:])
        assert "error:" in fails([command, str(small_run)], capsys)
    finally:
        path.write_bytes(whole)
    assert main([command, str(small_run)]) == 0


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result of the embedded example."""
    path = tmp_path_factory.mktemp("results") / "run"
    assert main(["prune", "--train-epochs", "0", "--epochs", "0", "--out", str(path)]) == 0
    return path


def test_an_unexpected_error_is_told_in_a_line(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a [bug] of ours")

    monkeypatch.setattr("secateur.runs.prune.prune_run", explode)
    error = fails(["prune"], capsys)
    assert error == "error: unexpected ZeroDivisionError: a [bug] of ours. See where it comes from with --debug"
    assert main(["prune", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


# ---------------------------------------------------------------- other processes


def run(code: list[str], place: Path) -> "subprocess.Popen[str]":
    """A process of its own, in the given directory."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [*sys.path, os.environ.get("PYTHONPATH")]))}
    return subprocess.Popen(
        [sys.executable, *code], cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("package", ["cyclopts", "yaml"])
def test_missing_extra(place: Path, package: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from secateur.cli import main; sys.exit(main(['prune']))"
    with run(["-c", code], place) as process:
        _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "pip install 'secateur[cli]'" in error
    assert "Traceback" not in error
    assert sorted(path.name for path in place.iterdir()) == ["users_own.py"]


@pytest.mark.parametrize(
    ("settings", "step", "kept"),
    [
        (["--train-epochs", "100000"], "Training the dense network", False),
        (["--train-epochs", "0", "--epochs", "100000"], "Fine-tuning the pruned network", True),
    ],
)
def test_ctrl_c(place: Path, settings: list[str], step: str, kept: bool) -> None:
    with run(["-m", "secateur", "prune", *settings], place) as process:
        assert process.stdout is not None
        seen = ""
        while step not in seen:
            letter = process.stdout.read(1)
            assert letter, seen
            seen += letter
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in error
    names = {path.name for path in place.iterdir()} - {"users_own.py"}
    if kept:
        assert "the fine-tuning was stopped after" in error
        assert "Go on with: secateur resume secateur-run" in error
        assert names == {"secateur-run", "secateur-run.unfinished"}
        assert sc.load(place / "secateur-run")
        noted = json.loads((place / "secateur-run" / "report.json").read_text())["environment"]["interrupted"]
        assert "the fine-tuning was stopped after" in noted
    else:
        assert f"during: {step}. Go on with: secateur resume secateur-run" in error
        assert names == {"secateur-run.unfinished"}


def test_a_reader_that_has_had_enough(place: Path) -> None:
    with run(["-c", "import sys; from secateur.cli import main; sys.exit(main(['inspect']))"], place) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.wait(timeout=60)
        assert process.stderr is not None
        assert process.stderr.read() == ""


# ---------------------------------------------------------------- hints


def test_hints_of_the_embedded_example(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["hints", "--train-epochs", "1", "--hints", "l1", "bn_scale", "--units-per-axis", "3", "--samples", "64"]
    assert main([*words, "--out", "deep/check"]) == 0
    out = capsys.readouterr().out
    for text in (
        "Training the dense network ...",
        "Checking hints ... 2 hints, 12 units",
        "SimpleNet: rank correlation of each hint with the truth",
        "loss without a quarter of an axis",
        "at random",
        "fc1.weight:0",
        "3 of 120",
        "deep/check/hints.html",
    ):
        assert text in out
    assert sorted(path.name for path in Path("deep/check").iterdir()) == ["hints.html", "hints.json", "hints.svg"]
    found = json.loads(Path("deep/check/hints.json").read_text())
    assert {row["name"] for row in found["hints"]} == {"l1", "bn_scale"}
    error = fails([*words, "--out", "deep/check"], capsys)
    assert "is not empty" in error
    assert main([*words, "--out", "deep/check", "--overwrite"]) == 0
    assert json.loads(Path("deep/check/hints.json").read_text()) == found


def test_hints_of_a_users_own_network(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["hints", "--model", "users_own:small", "--data", "users_own:loaders", "--hints", "l2"]
    assert main([*words, "--truth", "output"]) == 0
    assert "how far the outputs move when it is silenced" in capsys.readouterr().out
    assert sorted(path.name for path in place.iterdir() if path.name != "__pycache__") == ["users_own.py"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--hints", "l2", "randm"], "no importance is called 'randm'"),
        (
            ["--units-per-axis", "2", "--samples", "0"],
            "units_per_axis=2 must be at least 3; samples=0 must be at least",
        ),
        (["--only", "fc9"], "'fc9' name no axis, kind, module or tensor"),
    ],
)
def test_hints_that_can_not_be_checked(
    place: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in fails(["hints", "--train-epochs", "0", *words], capsys)


# ---------------------------------------------------------------- grow


def test_grow(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A network grows, and its saved result again; the function stays."""
    assert main(["grow", "--input", "1x1x10x10", "--axis", "fc1.weight:0=240", "--noise", "0.1", "--out", "wider"]) == 0
    out = capsys.readouterr().out
    assert "before → grown" in out
    assert "Proved: the new model computes what the original computes" in out
    assert main(["grow", "wider", "--axis", "fc1.weight:0=300", "--out", "widest"]) == 0
    assert json.loads((place / "widest/report.json").read_text())["command"].startswith("secateur grow wider ")
    capsys.readouterr()
    assert main(["show", "widest"]) == 0
    assert main(["measure", "widest"]) == 0
    first, last = sc.load("wider"), sc.load("widest")
    assert (first.fc1.out_features, last.fc1.out_features) == (240, 300)
    x = torch.randn(2, 1, 10, 10)
    assert torch.allclose(first(x), last(x), atol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no axis to grow: give --axis"),
        (["--axis", "fc1.weight:0"], "write AXIS=WIDTH"),
        (["--axis", "fc1.weight:0=2", "--axis", "fc1.weight:0=3"], "given twice"),
        (["--axis", "fc1.weight:0=2"], "grow makes axes wider"),
        (["--axis", "nothing:0=2"], "is no axis of"),
    ],
)
def test_grow_says_what_is_wrong(
    place: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in " ".join(fails(["grow", "--input", "1x1x10x10", *words], capsys).split())
    assert not (place / "secateur-grown").exists()
