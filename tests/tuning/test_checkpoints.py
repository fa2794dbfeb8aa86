"""Checkpoints under bad disks and bad luck: never a wrong number, never the last whole one lost."""

import errno
import json
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from secateur import digests
from secateur.errors import ArtifactError, OutputError
from secateur.tuning import checkpoints
from secateur.tuning.checkpoints import Checkpoints, read, write

STATE = {"step": 3, "weights": {"a": torch.arange(6.0), "b": torch.tensor(True)}, "rates": (0.1, float("inf"))}


def same(state: Any) -> bool:
    return (
        set(state) == set(STATE)
        and state["step"] == 3
        and state["rates"] == (0.1, float("inf"))
        and torch.equal(state["weights"]["a"], torch.arange(6.0))
        and bool(state["weights"]["b"])
    )


def number(state: dict[str, Any] | None) -> int:
    assert state is not None
    return int(state["step"])


def filled(folder: Path, *steps: int) -> Checkpoints:
    keeper = Checkpoints(folder, every=1)
    for step in steps:
        keeper.save(step, {"step": step, "weights": torch.full((4,), float(step))})
    return keeper


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_last_two_stay(tmp_path: Path) -> None:
    filled(tmp_path, 1, 2, 10)
    assert names(tmp_path) == ["step-00000002", "step-00000010"]


def test_the_same_step_again_replaces_the_first(tmp_path: Path) -> None:
    keeper = filled(tmp_path, 1, 2)
    keeper.save(2, {"step": 20})
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    assert number(keeper.latest()) == 20


@pytest.mark.parametrize("file", ["state.json", "tensors.safetensors"])
def test_a_flipped_bit_anywhere_is_seen(tmp_path: Path, file: str) -> None:
    """At 150 random places of each file: what is read is what was written, or is refused."""
    write(tmp_path / "one", STATE)
    path = tmp_path / "one" / file
    whole = path.read_bytes()
    draw, refused = random.Random(0), 0
    for _ in range(150):
        at, bit = draw.randrange(len(whole)), draw.randrange(8)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        try:
            assert same(read(tmp_path / "one"))
        except ArtifactError:
            refused += 1
    assert refused >= 140


@pytest.mark.parametrize("file", ["state.json", "tensors.safetensors"])
def test_a_file_that_is_cut_off_anywhere_is_seen(tmp_path: Path, file: str) -> None:
    write(tmp_path / "one", STATE)
    path = tmp_path / "one" / file
    whole = path.read_bytes()
    for length in sorted(random.Random(1).sample(range(len(whole)), 40)):
        path.write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match="is damaged"):
            read(tmp_path / "one")


def hostile(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "state.json").write_text(text) and None


def forged(state: Any) -> Callable[[Path], None]:
    """A state with right hashes."""

    def damage(folder: Path) -> None:
        record = json.loads((folder / "state.json").read_text())
        body = json.dumps(state)
        record |= {"state": body, "sha256": digests.of_text(body)}
        (folder / "state.json").write_text(json.dumps(record))

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "state.json").unlink(),
        lambda folder: (folder / "tensors.safetensors").unlink(),
        lambda folder: shutil.rmtree(folder) or folder.mkdir(),
        lambda folder: (folder / "state.json").write_bytes(b"\xff\xfe\x00"),
        hostile(""),
        hostile("[]"),
        hostile("null"),
        hostile("3"),
        hostile("[" * 100_000),
        hostile('{"version": 1}'),
        hostile('{"version": 2, "state": "{}"}'),
        hostile('{"version": 1, "state": 3, "sha256": 3, "tensors": 3}'),
        hostile('{"version": ' + "9" * 5000 + "}"),
        forged([]),
        forged({"$tuple": 5}),
        forged({"$pairs": [[{}, 1]]}),
        forged({"$tensor": "nothing"}),
    ],
)
def test_the_one_before_is_taken_where_the_newest_is_damaged(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    keeper = filled(tmp_path, 1, 2)
    damage(tmp_path / "step-00000002")
    with pytest.warns(
        UserWarning,
        match=r"step-00000002 (is damaged|has version)[^~]*set aside as damaged-00000002; going back to step-00000001",
    ):
        assert number(keeper.latest()) == 1
    assert number(keeper.latest()) == 1  # without another warning


def test_what_is_saved_after_a_damaged_one_stays(tmp_path: Path) -> None:
    """Before, the damaged one counted as the newest for ever, and the good ones went as the oldest."""
    keeper = filled(tmp_path, 90, 100)
    for path in (tmp_path / "step-00000090", tmp_path / "step-00000100"):
        (path / "state.json").write_text("{}")
    with (
        pytest.warns(UserWarning, match="going back to step-00000090"),
        pytest.raises(ArtifactError, match="no checkpoint in .* is whole"),
    ):
        keeper.latest()
    assert keeper.latest() is None
    for step in (1, 2, 3):
        keeper.save(step, {"step": step})
    assert names(tmp_path) == ["damaged-00000090", "damaged-00000100", "step-00000002", "step-00000003"]
    assert number(keeper.latest()) == 3


@pytest.mark.parametrize("broken", ["save_file", "_file_digest", "flush", "os.replace"])
def test_a_full_disk_leaves_the_last_one_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    keeper = filled(tmp_path, 1)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"secateur.tuning.checkpoints.{broken}", full)
        with pytest.warns(
            UserWarning,
            match=r"no checkpoint could be written at step 2 .*No space left.*the last one is step-00000001",
        ):
            assert keeper.save(2, {"step": 2, "x": torch.zeros(3)}) is None
    assert names(tmp_path) == ["step-00000001"]
    assert keeper.save(3, {"step": 3}) is not None
    assert number(keeper.latest()) == 3


def test_half_a_file_on_a_full_disk_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    keeper = filled(tmp_path, 1)

    def half(tensors: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoints, "save_file", half)
    with pytest.warns(UserWarning, match="No space left"):
        keeper.save(2, {"step": 2})
    assert names(tmp_path) == ["step-00000001"]


def test_a_place_that_cannot_be_written_to_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="no checkpoint can be written to .*Give a folder that can be written to"):
        Checkpoints(tmp_path / "file" / "checkpoints")

    def refused(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    with pytest.raises(OutputError, match="Read-only file system"):
        Checkpoints(tmp_path / "other")


def test_what_a_killed_run_left_half_goes(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    left = tmp_path / ".step-00000002.abc.partial"
    (left / "new").mkdir(parents=True)
    (left / "new" / "tensors.safetensors").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("somebody's")
    (tmp_path / "step-1").mkdir()
    keeper = Checkpoints(tmp_path)
    assert names(tmp_path) == ["notes.txt", "step-00000001", "step-1"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert number(keeper.latest()) == 1
    keeper.clear()
    assert names(tmp_path) == ["notes.txt", "step-1"]


def test_others_may_read_a_checkpoint(tmp_path: Path) -> None:
    """A folder made by mkdtemp is for its owner's eyes only."""
    filled(tmp_path, 1)
    assert (tmp_path / "step-00000001").stat().st_mode & 0o777 == 0o777 & ~checkpoints_umask()


def checkpoints_umask() -> int:
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask
