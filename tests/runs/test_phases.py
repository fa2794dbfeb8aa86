"""A run that a signal strikes in any of its phases: resumed, it ends with the bits of one that nothing disturbed."""

from pathlib import Path

import pytest

from secateur.runs.resume import resume_run
from support.results import hashes
from support.struck import struck

FAULTY = ("--model", "support.faulty:net", "--data", "support.faulty:data")
SHORT = ("--train-epochs", "2", "--epochs", "2", "--checkpoint-every", "4")
PRUNE = ("prune", *FAULTY, *SHORT, "--budget", "params=0.5")
UNTUNED = ("prune", *FAULTY, "--train-epochs", "2", "--epochs", "0", "--budget", "params=0.5")
TUNE = ("tune", "base", "--data", "support.faulty:data", "--epochs", "2", "--checkpoint-every", "4", "--lr", "auto")
TRUST = ("--trust",)

OFTEN = {
    "between the files of a checkpoint": "secateur.tuning.checkpoints:save_file>*2",
    "a step of the fine-tuning": "secateur.tuning.loop:Run._step*17",
    "the artefact half written": "os:replace>?.partial/model.safetensors",
}
SELDOM = {
    "the pruned network half written": "os:replace>?pruned/model.safetensors",
    "the report about to appear": "os:replace?.partial/report.json",
    "all there, and the checkpoints, too": "secateur.files:RunDirectory.publish>",
    "loading": "secateur.runs.prune:fitting_data",
    "a step of the dense training": "secateur.tuning.loop:Run._step*7",
    "a checkpoint about to appear": "os:replace?dense/.step-00000008",
    "pruning": "secateur.pruning:prove",
    "measuring": "secateur.runs.prune:measure_all",
    "just begun": "os:replace>?/run.unfinished",
    "the first validation": "secateur.tuning.session:Session._consider",
    "the end of an epoch": "secateur.tuning.session:Session._finish>",
    "the end of the dense training": "secateur.tuning.session:Session._finish>*2",
    "a checkpoint flushed": "secateur.tuning.checkpoints:flush>*5",
    "a checkpoint that just appeared": "os:replace>?dense/.step-00000008",
    "scoring": "secateur.pruning:score_all",
    "trying the hints": "secateur.trying:compensate_*2",
    "refitting": "secateur.pruning:compensate_",
    "the report of the pruning about to appear": "os:replace?pruned/report.json",
    "the pruned network's record about to appear": "os:replace?pruned/artifact.json",
    "the pruned network written": "os:replace>?pruned/artifact.json",
    "the last checkpoint about to appear": "os:replace?tuned/.step-00000012",
    "testing": "secateur.runs.prune:evaluate*2",
    "the artefact's record about to appear": "os:replace?.partial/artifact.json",
    "the page written": "os:replace>?.partial/report.html",
    "about to publish": "secateur.files:RunDirectory.publish",
    "tidying up": "secateur.runs.unfinished:Unfinished._remove",
    "tidied up in part": "os:unlink*40",
}
TUNING = {
    "loading": "secateur.runs.tune:prepare",
    "the range test": "secateur.tuning.loop:Run._step*20",
    "the rate about to be written down": "os:replace?choice.json",
    "the rate written down": "os:replace>?choice.json",
    "between the files of a checkpoint": "secateur.tuning.checkpoints:save_file>*2",
    "a checkpoint about to appear": "os:replace?tuned/.step-00000008",
    "testing": "secateur.runs.tune:compare",
    "the artefact half written": "os:replace>?.partial/model.safetensors",
    "the report about to appear": "os:replace?.partial/report.json",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The hashes of a run of `PRUNE` that nothing disturbed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert struck("SIGKILL", "", *PRUNE, "--out", str(out)).code == 0
    return hashes(out)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned network that was not tuned."""
    out = tmp_path_factory.mktemp("runs") / "base"
    assert struck("SIGKILL", "", *UNTUNED, "--out", str(out)).code == 0
    return out


@pytest.fixture(scope="module")
def tuned(base: Path) -> dict[str, str]:
    """The hashes of it, tuned without being disturbed."""
    out = base.with_name("tuned")
    assert struck("SIGKILL", "", *tuning(base), "--out", str(out)).code == 0
    return hashes(out)


def tuning(base: Path) -> tuple[str, ...]:
    return (TUNE[0], str(base), *TUNE[2:], *TRUST)


def check_resumed(out: Path, wanted: dict[str, str]) -> None:
    """It is resumed to the same bits; nothing is left beside it; resumed once more, it stays as it is."""
    assert struck("SIGKILL", "", "resume", str(out)).code == 0
    assert hashes(out) == wanted
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert resume_run(out) is None
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


@pytest.mark.slow
@pytest.mark.parametrize("phase", OFTEN)
def test_killed_in_any_phase(phase: str, whole: dict[str, str], tmp_path: Path) -> None:
    assert struck("SIGKILL", OFTEN[phase], *PRUNE, "--out", str(tmp_path / "run")).code == -9
    check_resumed(tmp_path / "run", whole)


@pytest.mark.heavy
@pytest.mark.parametrize("phase", SELDOM)
def test_killed_in_further_phases(phase: str, whole: dict[str, str], tmp_path: Path) -> None:
    assert struck("SIGKILL", SELDOM[phase], *PRUNE, "--out", str(tmp_path / "run")).code == -9
    check_resumed(tmp_path / "run", whole)


@pytest.mark.heavy
@pytest.mark.parametrize("phase", TUNING)
def test_tuning_killed_in_any_phase(phase: str, base: Path, tuned: dict[str, str], tmp_path: Path) -> None:
    assert struck("SIGKILL", TUNING[phase], *tuning(base), "--out", str(tmp_path / "run")).code == -9
    check_resumed(tmp_path / "run", tuned)


@pytest.mark.heavy
@pytest.mark.parametrize("phase", [name for name in {**OFTEN, **SELDOM} if name not in ("loading", "just begun")])
def test_ctrl_c_in_any_phase(phase: str, whole: dict[str, str], tmp_path: Path) -> None:
    """Either it came too late to stop anything, or what there is can be gone on with, and it says how."""
    out = tmp_path / "run"
    code, said = struck("SIGINT", {**OFTEN, **SELDOM}[phase], *PRUNE, "--out", str(out))
    if code == 0:
        assert phase in ("tidying up", "tidied up in part")
        assert hashes(out) == whole
        return
    assert code == 130
    if phase == "the first validation" and "Nothing was kept" in said:
        assert not list(tmp_path.iterdir())
        return
    assert f"Go on with: secateur resume {out}" in said
    check_resumed(out, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phase", "code"), [("the end of the dense training", 130), ("measuring", 130), ("tidying up", 0)]
)
def test_ctrl_c_at_odd_moments(phase: str, code: int, whole: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    ended = struck("SIGINT", {**OFTEN, **SELDOM}[phase], *PRUNE, "--out", str(out))
    assert ended.code == code
    assert (f"Go on with: secateur resume {out}" in ended.said) == bool(code)
    check_resumed(out, whole)


@pytest.mark.slow
def test_ctrl_c_after_the_rate_was_chosen_keeps_the_choice(base: Path, tuned: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, said = struck("SIGINT", TUNING["the rate written down"], *tuning(base), "--out", str(out))
    assert code == 130
    assert f"Go on with: secateur resume {out}" in said
    assert (tmp_path / "run.unfinished" / "tuned" / "choice.json").exists()
    check_resumed(out, tuned)


@pytest.mark.slow
def test_a_kill_while_an_earlier_result_is_replaced(whole: dict[str, str], tmp_path: Path) -> None:
    """Before, resuming took the earlier result for the run's own, and threw its checkpoints away."""
    out = tmp_path / "run"
    assert struck("SIGKILL", "", *PRUNE, "--seed", "1", "--out", str(out)).code == 0
    assert hashes(out) != whole
    again = (*PRUNE, "--out", str(out), "--overwrite")
    assert struck("SIGKILL", OFTEN["a step of the fine-tuning"], *again).code == -9
    assert struck("SIGKILL", "os:replace?.old/run", "resume", str(out)).code == -9
    assert struck("SIGKILL", "os:replace>?.old/run", "resume", str(out)).code == -9  # the earlier one is out of the way
    check_resumed(out, whole)
