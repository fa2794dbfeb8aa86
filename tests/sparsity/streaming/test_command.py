"""``secateur sparsify --checkpoint``."""

from pathlib import Path

import numpy as np
import pytest

import secateur as sc
from secateur.cli.app import execute
from secateur.config import SparsifySettings
from secateur.errors import ConfigError, DataError
from secateur.runs.checkpoint import read_tokens
from support.streamed import VOCAB, contents, model_of, written


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    np.save(tmp_path / "tokens.npy", np.arange(4 * 9, dtype=np.int32).reshape(4, 9) % VOCAB)
    return tmp_path / "tokens.npy"


def test_a_checkpoint_by_command(tmp_path: Path, tokens: Path, capsys: pytest.CaptureFixture[str]):
    dense, out = written(model_of("llama"), tmp_path / "dense"), tmp_path / "by-command"
    words = ["sparsify", "--checkpoint", str(dense), "--tokens", str(tokens), "--calibration", "3", "--out", str(out)]
    assert execute([*words, "--pattern", "2:4", "--compensate", "sparsegpt"]) == 0
    assert str(out) in capsys.readouterr().out.replace("\n", "")
    data = read_tokens(tokens)[:3].split(1)
    sc.sparsify(dense, output=tmp_path / "called", data=data, pattern=sc.NM(2, 4), compensate="sparsegpt")
    assert contents(out) == contents(tmp_path / "called")
    assert execute(words) == 1
    assert "is there already" in " ".join(capsys.readouterr().err.split())


def test_settings_that_do_not_go_together():
    with pytest.raises(ConfigError, match="together with model, device: it has weights of its own"):
        SparsifySettings(checkpoint=Path("a"), model="mynets:Net", device="cuda")
    with pytest.raises(ConfigError, match="tokens=t.npy are for a checkpoint"):
        SparsifySettings(tokens=Path("t.npy"))
    settings = SparsifySettings(checkpoint=Path("a"), tokens=Path("t.npy"), activations="disk")
    assert settings.to_command() == "secateur sparsify --checkpoint a --tokens t.npy --activations disk"


def test_tokens_that_are_none(tmp_path: Path):
    file = tmp_path / "tokens.npy"
    with pytest.raises(DataError, match="can't read the tokens"):
        read_tokens(file)
    for array, match in (
        (np.zeros(3, int), r"int64 of shape \(3,\)"),
        (np.zeros((2, 3)), "float64"),
        (np.full((1, 2), -1), "below 0"),
    ):
        np.save(file, array)
        with pytest.raises(DataError, match=match):
            read_tokens(file)
