"""Names that lead out of their place, links, and headers that promise more than there is.

`tests/artifacts/test_damage.py` has what a saved result may try; here is what else is read.
"""

import io
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import secateur as sc
from secateur.data import load_data
from secateur.errors import ArtifactError, DataError, HubError, ModelError
from secateur.hub import sharing
from secateur.models import load_weights
from secateur.reporting import Report
from support.networks import Mlp


def small() -> sc.Result:
    return sc.prune(Mlp(), torch.randn(2, 4), keep=0.5)


def test_a_card_that_is_a_link_is_not_uploaded(tmp_path: Path) -> None:
    """No hash says what the card is, so that a result could have any file of its user's uploaded."""
    sc.save(small(), tmp_path / "small")
    (tmp_path / "secret").write_text("key")
    (tmp_path / "small" / "README.md").unlink()
    (tmp_path / "small" / "README.md").symlink_to(tmp_path / "secret")
    with pytest.raises(HubError, match="is a link to .*secret: put the card itself there"):
        sharing._copy(tmp_path / "small", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_file_that_is_a_link_is_checked_like_any_other(tmp_path: Path) -> None:
    """The Hub's cache consists of links; what they lead to must have the hash that the record says."""
    sc.save(small(), tmp_path / "small")
    place = tmp_path / "small" / "model.safetensors"
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    sc.load(tmp_path / "small", model=Mlp())
    place.unlink()
    (tmp_path / "other").write_bytes(b"something else")
    place.symlink_to(tmp_path / "other")
    with pytest.raises(ArtifactError, match=r"model\.safetensors is not the file that was saved"):
        sc.load(tmp_path / "small", model=Mlp())


def test_saving_over_a_link_leaves_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "small").mkdir()
    for name in ("model.safetensors", "plan.json"):
        (tmp_path / "small" / name).symlink_to(tmp_path / "mine")
    sc.save(small(), tmp_path / "small")
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "small" / "model.safetensors").is_symlink()


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def npy(values: np.ndarray, shape: tuple[int, ...] | None = None) -> bytes:
    """An array as a file, whose header may say another shape."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": values.dtype.str, "fortran_order": False, "shape": shape or values.shape}
    )
    return stream.getvalue() + values.tobytes()


def parts() -> dict[str, bytes]:
    images, labels = np.zeros((10, 4, 4), np.uint8), np.arange(10) % 2
    return {
        f"{name}_{part}.npy": npy(values)
        for part in ("train", "test")
        for name, values in (("x", images), ("y", labels))
    }


def test_arrays_whose_names_lead_out_write_nothing(tmp_path: Path) -> None:
    members = {**parts(), "../../x_val.npy": npy(np.zeros(3)), "/tmp/y_val.npy": npy(np.zeros(3))}
    place = tmp_path / "a" / "b"
    place.mkdir(parents=True)
    load_data(f"npz:{archive(place / 'data.npz', members)}")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["data.npz"]


@pytest.mark.parametrize("shape", [(10**12, 4, 4), (2**62, 2**62)])
def test_arrays_that_promise_more_than_there_is(shape: tuple[int, ...], tmp_path: Path) -> None:
    members = {**parts(), "x_train.npy": npy(np.zeros((10, 4, 4), np.uint8), shape)}
    with pytest.raises(DataError, match=r"can't read x_train, .* bytes were announced"):
        load_data(f"npz:{archive(tmp_path / 'data.npz', members)}")


def test_arrays_of_objects_are_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x_train=np.array([object()], object), y_train=np.zeros(1), allow_pickle=True)
    with pytest.raises(DataError):
        load_data(f"npz:{tmp_path / 'data.npz'}")


@pytest.mark.parametrize("claim", [2**40, 2**63, 2**64 - 1])
def test_weights_whose_header_promises_more_than_there_is(claim: int, tmp_path: Path) -> None:
    head = json.dumps({"w": {"dtype": "F32", "shape": [claim // 4], "data_offsets": [0, claim]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + b"\x00" * 16)
    with pytest.raises(ModelError, match="can't read the weights"):
        load_weights(Mlp(), tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", claim) + b"{}")
    with pytest.raises(ModelError, match="can't read the weights"):
        load_weights(Mlp(), tmp_path / "w.safetensors")


def test_a_report_that_lies_too_deep_in_itself(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("[" * 100_000)
    with pytest.raises(ArtifactError, match="can't read the report"):
        Report.load(tmp_path / "report.json")
