"""``secateur prune --model net.keras``."""

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
from keras import layers


def test_a_keras_file_becomes_a_smaller_keras_file(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    net = keras.Sequential(
        [
            keras.Input((10, 10, 1)),
            layers.Conv2D(16, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(24, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    net.save(tmp_path / "net.keras")
    call = "-m secateur prune --model net.keras --data digits --budget params=0.5 --train-epochs 1 --epochs 1 --out run"
    done = subprocess.run([sys.executable, *call.split()], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["proof"]["status"] == "proved"
    small = keras.models.load_model(tmp_path / "run" / "model.keras")
    assert small.count_params() <= 0.5 * net.count_params() + 64  # moving averages are no parameters of the budget
    assert small.layers[0].filters < 16 or small.layers[3].units < 24
    out = np.asarray(small(np.zeros((1, 10, 10, 1), "float32")).detach())
    assert out.sum() == np.float32(1.0) or abs(out.sum() - 1) < 1e-6
    assert "keras.models.load_model" in (tmp_path / "run" / "report.html").read_text()
    assert any(json.loads((tmp_path / "run" / "training.json").read_text()))
