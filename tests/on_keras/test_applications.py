"""Networks of ``keras.applications``, halved on torch, give the same under TensorFlow without secateur."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import torch

import secateur as sc
from support.keras_models import SAME

NETWORKS = ("MobileNetV3Small", "ResNet50", "EfficientNetB0", "DenseNet121", "ConvNeXtTiny")


@pytest.mark.heavy
@pytest.mark.parametrize("name", NETWORKS)
def test_halved(name: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorflow", reason="tensorflow is not installed")
    keras.utils.set_random_seed(1)
    model = getattr(keras.applications, name)(weights=None, input_shape=(64, 64, 3), classifier_activation=None)
    rng = np.random.default_rng(0)
    for weight in model.weights:  # as trained ones are: no bias and no mean is zero, no scale one
        if len(weight.shape) == 1:
            low = 0.5 if "variance" in weight.path or "gamma" in weight.path else -0.2
            weight.assign(rng.uniform(low, low + 0.4, weight.shape).astype("float32"))
    x = torch.from_numpy(rng.uniform(0, 255, (2, 64, 64, 3)).astype("float32"))
    result = sc.prune(model, x, budget=sc.Budget(macs=0.5))
    small: Any = result.model
    assert result.proof.status == "proved"
    assert result.proof.scale > 1e-2
    small.save(tmp_path / "net.keras")
    with torch.no_grad():
        np.savez(tmp_path / "net.npz", x.numpy(), small(x, training=False).numpy(), inputs=1)
    call = [sys.executable, "-c", SAME.format(backend="tensorflow"), str(tmp_path), "net"]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "same"
