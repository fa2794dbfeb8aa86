"""YAML from anyone: values, and nothing else."""

import time
from pathlib import Path

import pytest

from secateur.errors import ConfigError
from secateur.plain import read_yaml
from secateur.settings_files import MAX_BYTES, MAX_VALUES, read_settings

LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + k)}: &{chr(98 + k)} [{','.join([f'*{chr(97 + k)}'] * 9)}]\n" for k in range(8)
)
MERGES = "m0: &m0 {k: 1}\n" + "".join(
    f"m{k}: &m{k} {{<<: [{','.join([f'*m{k - 1}'] * 9)}], k{k}: 1}}\n" for k in range(1, 10)
)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: !!python/object/apply:os.system ['touch canary']", "could not determine a constructor for the tag"),
        ("model: !!python/name:os.system", "could not determine a constructor for the tag"),
        ("model: !own {a: 1}", "could not determine a constructor for the tag '!own'"),
        (LAUGHS, f"aliases stand for more than {MAX_VALUES:,} values: write out what is meant"),
        (MERGES, f"aliases stand for more than {MAX_VALUES:,} values"),
        ("a: &a [*a]", "the value in line 1 holds itself"),
        ("a: " + "[" * 5000, "values lie too deep in each other"),
        ("seed: 1\nseed: 2", "seed stand there more than once"),
        ("seed: " + "1" * 5000, "Exceeds the limit"),
        ("seed: 2001-99-99", "month must be in 1..12"),
        ("? [a]\n: 1", "unhashable key"),
        ("#" * (MAX_BYTES + 1), f"is larger than {MAX_BYTES:,} bytes"),
    ],
)
def test_what_is_refused(text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    began = time.process_time()
    with pytest.raises(ConfigError, match=message):
        read_yaml(written(tmp_path, text))
    assert time.process_time() - began < 20  # a merge of merges takes for ever where it is read
    assert not (tmp_path / "canary").exists()


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(ConfigError, match="can't read the settings in"):
        read_yaml(tmp_path / "settings.yaml")


def test_aliases_of_ordinary_use_and_the_largest_file_are_read(tmp_path: Path) -> None:
    text = "base: &base {lr: 0.1, epochs: 3}\nmine: {<<: *base, epochs: 5}\nagain: *base\n"
    found = read_settings(written(tmp_path, text + "#" * (MAX_BYTES - len(text))))
    assert found == {"base": {"lr": 0.1, "epochs": 3}, "mine": {"lr": 0.1, "epochs": 5}, "again": found["base"]}
