"""``secateur.keras.prune`` and the callback, in processes that run Keras on TensorFlow and never import torch."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HEAD = """
import json, os, sys
os.environ["KERAS_BACKEND"] = "tensorflow"
import keras, numpy as np
from keras import layers
import secateur.keras
keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
x = rng.standard_normal((96, 10)).astype("float32")
y = (x[:, 0] * x[:, 1] > 0).astype("int32")
model = keras.Sequential([keras.Input((10,)), layers.Dense(32, "relu"), layers.Dense(24, "relu"), layers.Dense(2)])
model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
model.fit(x, y, epochs=2, verbose=0)
"""
TAIL = """
assert "torch" not in sys.modules, "torch was imported"
print(json.dumps(said))
"""


def run(code: str) -> Any:
    pytest.importorskip("tensorflow", reason="tensorflow is not installed")
    done = subprocess.run([sys.executable, "-c", HEAD + code + TAIL], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_pruned_in_a_process_of_its_own_and_trained_on() -> None:
    said = run("""
pruned = secateur.keras.prune(model, x[:2], budget="params=0.5", data=[x[:32], (x[32:64], y[32:64])])
before = [float(keras.ops.convert_to_numpy(v).sum()) for v in model.trainable_variables]
pruned.model.fit(x, y, epochs=1, verbose=0)
said = {
    "params": [model.count_params(), pruned.model.count_params()],
    "proof": pruned.report["proof"]["status"],
    "iterations": int(pruned.model.optimizer.iterations),
    "units": [layer.units for layer in pruned.model.layers],
    "text": str(pruned),
}
""")
    assert said["params"][1] <= 0.5 * said["params"][0]
    assert said["proof"] == "proved"
    assert said["iterations"] == 9  # three batches an epoch: the optimizer went on
    assert said["units"][0] < 32
    assert "Compensated by least squares" in said["text"]


def test_errors_come_back_as_what_they_are() -> None:
    said = run("""
said = []
for settings in ({"budget": "params=0.0001"}, {"importance": "l3"}, {"keep": 0.5, "threshold": 0.5}):
    try:
        secateur.keras.prune(model, x[:2], **settings)
    except secateur.SecateurError as error:
        said.append([type(error).__name__, str(error)])
""")
    assert [name for name, _ in said] == ["UnreachableBudget", "UnknownImportance", "PlanError"]
    assert "give exactly one" in said[2][1]


def test_gradual_pruning_during_fit() -> None:
    said = run("""
pruning = secateur.keras.Prune(x[:2], budget="params=0.5", steps=2, every=1, begin=1)
model.fit(x, y, epochs=4, verbose=0, callbacks=[pruning])
small = pruning.result.model
said = {
    "budgets": pruning.budgets,
    "params": [model.count_params(), small.count_params()],
    "difference": float(np.abs(np.asarray(small(x)) - np.asarray(model(x))).max()),
    "scale": float(np.abs(np.asarray(model(x))).max()),
    "proof": pruning.result.report["proof"]["status"],
}
""")
    assert said["budgets"] == pytest.approx([1 - 0.5 * (1 - 0.5**3), 0.5])
    assert said["params"][1] <= 0.5 * said["params"][0]
    assert said["proof"] == "proved"
    assert said["difference"] < 1e-4 * said["scale"]  # what was cut had been silent while training


def test_a_result_is_converted_to_litert() -> None:
    said = run("""
import tensorflow as tf
small = secateur.keras.prune(model, x[:2], budget="params=0.5").model
sizes, differences = [], []
for net in (model, small):
    content = tf.lite.TFLiteConverter.from_keras_model(net).convert()
    lite = tf.lite.Interpreter(model_content=content)
    lite.allocate_tensors()
    lite.set_tensor(lite.get_input_details()[0]["index"], x[:1])
    lite.invoke()
    out = lite.get_tensor(lite.get_output_details()[0]["index"])
    sizes.append(len(content))
    differences.append(float(np.abs(out - np.asarray(net(x[:1]))).max()))
said = {"sizes": sizes, "differences": differences}
""")
    assert said["sizes"][1] < 0.75 * said["sizes"][0]  # of so small a model the file is half overhead
    assert max(said["differences"]) < 1e-5


def test_settings_that_make_no_sense_are_refused() -> None:
    from secateur.errors import PlanError
    from secateur.keras import Prune

    for settings in ({"budget": "macs=2"}, {"budget": "latency=5ms"}, {"steps": 0}, {"schedule": "never"}):
        with pytest.raises(PlanError):
            Prune(np.zeros((1, 4)), **settings)


def test_a_torch_backend_works_without_another_process_too(tmp_path: Path) -> None:
    import keras

    import secateur.keras

    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
    small = secateur.keras.prune(model, np.zeros((1, 6), "float32"), keep=0.5).model
    assert small.layers[0].units == 4
