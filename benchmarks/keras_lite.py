"""Must show: a pruned Keras model, converted to LiteRT (TFLite), is smaller and faster, and gives the same.

    KERAS_BACKEND=tensorflow python benchmarks/keras_lite.py

The CNN of keras_fit.py, trained for one epoch on a part of Fashion-MNIST, is pruned by budgets of parameters and of
MACs; each model is converted, run by TensorFlow's interpreter on one thread, and compared with Keras. Latencies are
medians of single images, the models in turns.
"""

import argparse
import os
import statistics
import time
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import numpy as np
from keras_fit import DATA, KERAS, build

import secateur.keras

ROUNDS = 500
BUDGETS = ("params=0.33", "macs=0.5", "macs=0.25")


class Lite:
    """A converted model, and its interpreter."""

    def __init__(self, model: Any) -> None:
        import tensorflow as tf  # pyright: ignore[reportMissingTypeStubs, reportMissingImports]

        TF: Any = tf
        self.content: bytes = TF.lite.TFLiteConverter.from_keras_model(model).convert()
        self.interpreter = TF.lite.Interpreter(model_content=self.content, num_threads=1)
        self.interpreter.allocate_tensors()
        self.times: list[float] = []

    def __call__(self, x: np.ndarray) -> np.ndarray:
        run = self.interpreter
        run.set_tensor(run.get_input_details()[0]["index"], x)
        start = time.perf_counter()
        run.invoke()
        self.times.append(time.perf_counter() - start)
        return run.get_tensor(run.get_output_details()[0]["index"])


def main() -> None:
    argparse.ArgumentParser(description="A pruned Keras model as LiteRT.").parse_args()
    KERAS.utils.set_random_seed(0)
    with np.load(DATA) as arrays:
        x, y = arrays["x_train"][:4096, ..., None].astype("float32") / 255, arrays["y_train"][:4096].astype("int32")
    dense = build()
    dense.compile("adam", KERAS.losses.SparseCategoricalCrossentropy(from_logits=True))
    dense.fit(x, y, epochs=1, verbose=0)
    data = [x[k : k + 128] for k in range(0, 1024, 128)]
    models = {"dense": dense}
    models |= {name: secateur.keras.prune(dense, x[:1], budget=name, data=data).model for name in BUDGETS}
    lite = {name: Lite(model) for name, model in models.items()}
    for _ in range(ROUNDS):
        for run in lite.values():
            run(x[:1])
    print("| model | bytes | median ms | largest difference from Keras |\n| --- | --- | --- | --- |")
    for name, run in lite.items():
        difference = float(np.abs(run(x[:1]) - KERAS.ops.convert_to_numpy(models[name](x[:1]))).max())
        print(f"| {name} | {len(run.content):,} | {1e3 * statistics.median(run.times):.4f} | {difference:.1e} |")


if __name__ == "__main__":
    main()
