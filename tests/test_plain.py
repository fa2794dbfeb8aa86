"""Settings from YAML files and flags."""

from pathlib import Path

import pytest

from secateur.config import PruneSettings
from secateur.errors import ConfigError
from secateur.plain import merged, read_yaml


def test_flags_win_over_the_file_and_the_file_over_defaults() -> None:
    flags = PruneSettings(seed=3, epochs=7).to_dict() | {"out": Path("o"), "only": (), "ignore": ()}
    found = merged(PruneSettings, flags, {"seed"}, {"seed": 1, "epochs": 2}, "c.yaml")
    assert (found.seed, found.epochs) == (3, 2)


def test_a_budget_flag_puts_aside_the_threshold_of_the_file() -> None:
    flags = {"budget": "macs=0.5", "threshold": None, "keep": None}
    found = merged(PruneSettings, flags, {"budget"}, {"threshold": 0.8}, "c.yaml")
    assert (found.budget, found.threshold) == ("macs=0.5", None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b", "holds a list"),
        ("a: [", "can't read the settings"),
        ("!!python/object:os.system {}", "can't read the settings"),
    ],
)
def test_files_that_are_no_settings(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_yaml(tmp_path / "c.yaml")


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no settings file"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "c.yaml").write_text("# nothing\n")
    assert read_yaml(tmp_path / "c.yaml") == {}
