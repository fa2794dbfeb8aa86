"""Ctrl-C and a polite kill: the run stops between two steps, writes a checkpoint, and can be taken up again."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from secateur.tuning import Callback, tune
from secateur.tuning.callbacks import Run
from support import several
from support.several import begin, results


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_stops_a_child_after_its_step_and_the_run_goes_on_with_the_same_bits(
    tmp_path: Path, name: str
) -> None:
    child = begin("signalled", tmp_path)
    child.send_signal(signal.Signals[name])
    _, told = child.communicate(timeout=60)
    assert child.returncode == 0, told[-3000:]
    (found,) = results("signalled", tmp_path, 1)
    steps = found["history"]["steps"]
    assert found["history"]["interrupted"]
    assert 3 <= steps < 120
    assert [path.name for path in (tmp_path / "signalled").iterdir()] == [f"step-{steps:08d}"]
    resumed = several.signalled(tmp_path, Callback())
    assert resumed["history"]["resumed"] == steps
    (tmp_path / "other").mkdir()
    whole = several.signalled(tmp_path / "other", Callback())
    assert all(torch.equal(value, resumed["state"][key]) for key, value in whole["state"].items())


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_ends_the_loaders_workers_too(tmp_path: Path) -> None:
    """Which the loader takes for an error, and the run for what it is."""
    child = begin("worked", tmp_path)
    os.killpg(child.pid, signal.SIGINT)
    _, told = child.communicate(timeout=60)
    assert child.returncode == 0, told[-3000:]
    (found,) = results("worked", tmp_path, 1)
    steps = found["history"]["steps"]
    assert found["history"]["interrupted"]
    assert [path.name for path in (tmp_path / "worked").iterdir()] == [f"step-{steps:08d}"]


class Press(Callback):
    """Ctrl-C, so many times, after a step."""

    def __init__(self, step: int, times: int, number: signal.Signals = signal.SIGINT) -> None:
        self.step, self.times, self.number, self.after = step, times, number, False

    def after_step(self, run: Run) -> None:
        if run.step == self.step:
            for _ in range(self.times):
                signal.raise_signal(self.number)
            self.after = True


def train(press: Callback, *rest: Any, **options: Any) -> Any:
    settings: dict[str, Any] = {"epochs": 3, "lr": 0.05, "device": "cpu", "callbacks": [press], **options}
    return tune(several.net(), several.batches(), *rest, **settings)


def test_the_second_ctrl_c_acts_at_once(tmp_path: Path) -> None:
    """In the midst of what goes on, so without a checkpoint."""
    press = Press(4, 2)
    history = train(press, checkpoints=tmp_path, every="1h")
    assert history.interrupted
    assert not press.after
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_loader_that_fails_after_ctrl_c_is_no_fault_of_its_own(tmp_path: Path) -> None:
    class Dies(list[Any]):
        def __iter__(self) -> Any:
            yield from list.__iter__(self)
            signal.raise_signal(signal.SIGINT)
            raise RuntimeError("DataLoader worker (pid 5) exited unexpectedly")

    settings: dict[str, Any] = {"epochs": 3, "lr": 0.05, "device": "cpu"}
    history = tune(several.net(), Dies(several.batches()), checkpoints=tmp_path, every="1h", **settings)
    assert (history.interrupted, history.steps) == (True, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_the_first_ctrl_c_lets_the_step_end(tmp_path: Path) -> None:
    press = Press(4, 1)
    history = train(press, checkpoints=tmp_path, every="1h")
    assert (history.interrupted, history.steps, press.after) == (True, 4, True)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"]


def test_ctrl_c_in_the_first_validation_stops_after_the_next_step(tmp_path: Path) -> None:
    def judge(model: Any, batches: Any) -> float:
        if model.training:
            raise AssertionError
        signal.raise_signal(signal.SIGINT)
        return 1.0

    history = train(Callback(), several.batches(), metric=judge, checkpoints=tmp_path, every="1h")
    assert (history.interrupted, len(history.epochs), history.steps) == (True, 0, 1)


def test_ctrl_c_at_the_end_of_an_epoch_stops_before_the_next() -> None:
    class Late(Callback):
        def on_epoch(self, run: Run, row: Any) -> None:
            if row.epoch in (2, 3):
                signal.raise_signal(signal.SIGINT)

    first = train(Late())
    assert (first.interrupted, len(first.epochs)) == (True, 2)


def test_a_polite_kill_without_checkpoints_acts_as_ever() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        history = train(Press(4, 1, signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]
    assert not history.interrupted
