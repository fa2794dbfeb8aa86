"""Loads one of everything that secateur reads while an audit hook listens: ``FOLDER FORMATS [keras|hf]``.

Everything is written first. Then the hook is set, and each load is a line of JSON: its name, and the events that the
hook heard of it. The last lines are of a pickle that names a class, and of a shell: loads that the hook must hear.
"""

import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

import secateur as sc
from secateur.data import load_data
from secateur.models import load_weights
from secateur.plain import read_yaml
from secateur.reporting import Report
from secateur.tuning.checkpoints import Checkpoints
from support.networks import LiteralNet, Mlp, example

HEARD = ("pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "socket.connect")
heard: list[str] = []
FOLDER, FORMATS = Path(sys.argv[1]), Path(sys.argv[2])
Loads = dict[str, Callable[[], Any]]


def results() -> Loads:
    """Saved results: of every format version, kept and rewritten, directories and single files; plans and reports."""
    loads: Loads = {f"result {path.name}": lambda path=path: sc.load(path) for path in sorted(FORMATS.glob("v*-*"))}
    small = sc.prune(LiteralNet(), example(LiteralNet()), keep=0.5)
    sc.save(small, FOLDER / "rewritten")
    dense = Mlp()
    kept = sc.prune(dense, torch.randn(2, 4), keep=0.5)
    sc.save(kept, FOLDER / "kept.safetensors", keep_removed=True)
    kept.plan.save(FOLDER / "plan.json")
    kept.report.save(FOLDER / "report.json")
    return {
        **loads,
        "result rewritten": lambda: sc.load(FOLDER / "rewritten"),
        "result kept": lambda: sc.load(FOLDER / "kept.safetensors", model=Mlp()),
        "undo": lambda: sc.undo(FOLDER / "kept.safetensors", model=Mlp()),
        "replay": lambda: sc.replay(Mlp(), FOLDER / "kept.safetensors"),
        "from_pretrained": lambda: sc.from_pretrained(FOLDER / "rewritten"),
        "plan": lambda: sc.Plan.load(FOLDER / "plan.json"),
        "report": lambda: Report.load(FOLDER / "report.json"),
    }


def training() -> Loads:
    """Checkpoints of a training, which goes on from them."""
    data = [(torch.randn(8, 4), torch.randint(2, (8,))) for _ in range(4)]
    given: dict[str, Any] = {"lr": 0.01, "checkpoints": FOLDER / "training", "every": 1}
    sc.tune(Mlp(), data, epochs=1, **given)
    return {
        "checkpoint": lambda: Checkpoints(FOLDER / "training").latest(),
        "training that goes on": lambda: sc.tune(Mlp(), data, epochs=2, **given),
    }


def weights() -> Loads:
    """Weights as safetensors and as a checkpoint of torch's, which is a pickle that torch reads without classes."""
    save_file(Mlp().state_dict(), FOLDER / "weights.safetensors")
    torch.save(Mlp().state_dict(), FOLDER / "weights.pt")
    return {
        name: lambda name=name: load_weights(Mlp(), FOLDER / name) for name in ("weights.safetensors", "weights.pt")
    }


def data() -> Loads:
    """Arrays, settings and embedded data."""
    images = {f"x_{part}": np.zeros((20, 4, 4), np.uint8) for part in ("train", "test")}
    labels = {f"y_{part}": np.arange(20) % 2 for part in ("train", "test")}
    np.savez(FOLDER / "stored.npz", **images, **labels)
    np.savez_compressed(FOLDER / "packed.npz", **images, **labels)
    (FOLDER / "config.yaml").write_text("model: simplenet\nbudget: macs=0.5\n")
    return {
        "digits": lambda: list(load_data("digits").test),
        "npz, stored": lambda: list(load_data(f"npz:{FOLDER / 'stored.npz'}").train),
        "npz, packed": lambda: list(load_data(f"npz:{FOLDER / 'packed.npz'}").train),
        "settings": lambda: read_yaml(FOLDER / "config.yaml"),
    }


def keras() -> Loads:
    """A Keras model's file."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras as library

    from secateur.keras.loading import load

    library.Sequential([library.Input((4,)), library.layers.Dense(3)]).save(FOLDER / "net.keras")
    return {"keras": lambda: load(FOLDER / "net.keras")}


def hugging_face() -> Loads:
    """A data set of Hugging Face's on the disk."""
    import datasets

    rows = datasets.Dataset.from_dict({"input_ids": [[1, 2, 3]] * 20, "labels": [0, 1] * 10})
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(FOLDER / "hf")
    return {"hf": lambda: list(load_data(f"hf:{FOLDER / 'hf'}").train)}


def bad() -> Loads:
    """Loads that the hook has to hear."""
    pickled = pickle.dumps(Path("x"))
    return {"A PICKLE": lambda: pickle.loads(pickled), "A SHELL": lambda: os.system("true")}


def listen(event: str, _: Any) -> None:
    """The hook: it can't be taken away again, hence the process."""
    if event in HEARD:
        heard.append(event)


asked = sys.argv[3] if len(sys.argv) > 3 else ""
parts = {"keras": [keras], "hf": [hugging_face]}.get(asked, [results, training, weights, data])
loads: Loads = {name: load for part in [*parts, bad] for name, load in part().items()}
sys.addaudithook(listen)
for name, load in loads.items():
    heard.clear()
    load()
    sys.stdout.write(json.dumps([name, sorted(set(heard))]) + "\n")
