"""Files and run directories are there whole or not at all."""

import json
import os
from pathlib import Path

import pytest

from secateur.errors import OutputError
from secateur.files import RunDirectory, atomic, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def write_half_and_fail(file: Path, error: type[BaseException]) -> None:
    file.write_text("half")
    raise error


def test_text_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    write_text(tmp_path / "a.txt", "new ü")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "new ü"
    assert names(tmp_path) == ["a.txt"]


def test_permissions_are_those_of_an_ordinary_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "")
    (tmp_path / "b.txt").write_text("")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_keeps_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(error), atomic(tmp_path / "a.txt") as temporary:
        write_half_and_fail(temporary, error)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_json_refuses_nan_before_it_writes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert names(tmp_path) == []
    write_json(tmp_path / "a.json", {"x": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}


def test_missing_folder_is_our_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"can't write to .*No such file"):
        write_text(tmp_path / "nowhere" / "a.txt", "")


def test_run_directory_appears_at_once(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "deep" / "run") as run:
        write_text(run.work / "config.yaml", "seed: 0")
        assert not run.path.exists()
        assert run.publish() == tmp_path / "deep" / "run"
    assert names(tmp_path / "deep") == ["run"]
    assert names(tmp_path / "deep" / "run") == ["config.yaml"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failed_run_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), RunDirectory(tmp_path / "run") as run:
        write_half_and_fail(run.work / "config.yaml", error)
    assert names(tmp_path) == []


def test_an_empty_directory_is_fine(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with RunDirectory(tmp_path / "run") as run:
        write_text(run.work / "config.yaml", "")
        run.publish()
    assert names(tmp_path) == ["run"]


def test_a_full_directory_is_refused(tmp_path: Path) -> None:
    write_text(tmp_path / "letter.txt", "mine")
    with pytest.raises(OutputError, match=r"not empty \(letter.txt\).*--out.*--overwrite"):
        RunDirectory(tmp_path)


def test_overwrite_replaces_an_earlier_run(tmp_path: Path) -> None:
    for text in ("first", "second"):
        with RunDirectory(tmp_path / "run", overwrite=True) as run:
            write_text(run.work / "config.yaml", text)
            write_text(run.work / f"{text}.json", "{}")
            run.publish()
    assert names(tmp_path) == ["run"]
    assert names(tmp_path / "run") == ["config.yaml", "second.json"]


def test_overwrite_never_removes_foreign_files(tmp_path: Path) -> None:
    write_text(tmp_path / "config.yaml", "")
    write_text(tmp_path / "thesis.tex", "")
    with pytest.raises(OutputError, match=r"did not write \(thesis.tex\)"):
        RunDirectory(tmp_path, overwrite=True)
    assert names(tmp_path) == ["config.yaml", "thesis.tex"]


def test_overwrite_needs_an_earlier_run(tmp_path: Path) -> None:
    write_text(tmp_path / "invoices.json", "{}")
    with pytest.raises(OutputError, match="did not write"):
        RunDirectory(tmp_path, overwrite=True)


def test_failed_overwrite_keeps_the_earlier_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunDirectory(tmp_path / "run") as run:
        write_text(run.work / "config.yaml", "first")
        run.publish()
    real = os.replace

    def fail_for_work(source: Path, target: Path) -> None:
        if str(source).endswith(".partial"):
            raise OSError("disk on fire")
        real(source, target)

    monkeypatch.setattr(os, "replace", fail_for_work)
    with pytest.raises(OutputError, match="disk on fire"), RunDirectory(tmp_path / "run", overwrite=True) as run:
        run.publish()
    assert (tmp_path / "run" / "config.yaml").read_text() == "first"
    assert names(tmp_path) == ["run"]


def test_a_file_or_the_current_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "run", "")
    with pytest.raises(OutputError, match="is a file"):
        RunDirectory(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="current one"):
        RunDirectory(".")
