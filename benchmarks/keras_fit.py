"""Must show: a Keras CNN trained under TensorFlow, pruned to a third of its parameters, tuned with ``fit``.

    KERAS_BACKEND=tensorflow python benchmarks/keras_fit.py --seeds 0 1 2 --out docs/keras_fit.md

A small CNN learns Fashion-MNIST under TensorFlow. `secateur.keras.prune` takes it to a third of its parameters, with
calibration on training images, and ``fit`` tunes the result; beside it units chosen at random, tuned alike, the dense
network trained as long, and gradual pruning during ``fit`` (`secateur.keras.Prune`). Test images are looked at once, by
finished networks. Latencies are of batches of 100 under TensorFlow, in compiled functions, in turns. No torch is
imported in this process.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np

import secateur.keras

KERAS: Any = keras
DATA = Path(__file__).resolve().parents[2] / "shared/data/fashion_mnist/fashion_mnist.npz"
TRAIN, CALIBRATION = 20_000, 1024  # images
BATCH = 64
BUDGET = "params=0.33"
HEAD = """# A Keras network, pruned and tuned under TensorFlow

`{command}`

{setting}. A CNN of {params:,} parameters learns Fashion-MNIST: {train:,} training images, drawn by the seed,
{epochs} epochs of batches of {batch} by Adam at 1e-3, then {tuning} more at 3e-4 after pruning, for the dense network
too. Pruned to a third of its parameters (`{budget}`), the weights refitted on {calibration:,} training images; all
10,000 test images. Mean ± standard deviation over seeds {seeds}. Latency is that of the dense network's in the same
rounds, of batches of 100 in a compiled function of TensorFlow, other work on the machine.

| network | test accuracy in % | as cut | parameters | file with the optimizer | latency |
| --- | --- | --- | --- | --- | --- |
"""


def build() -> Any:
    """A small CNN with batch norms."""
    layers = KERAS.layers
    return KERAS.Sequential(
        [
            KERAS.Input((28, 28, 1)),
            layers.Conv2D(32, 3, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ]
    )


def train(model: Any, x: np.ndarray, y: np.ndarray, epochs: int, rate: float, callbacks: tuple[Any, ...] = ()) -> None:
    """``fit`` with a new optimizer."""
    loss = KERAS.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(KERAS.optimizers.Adam(rate), loss, metrics=["accuracy"])
    model.fit(x, y, epochs=epochs, batch_size=BATCH, verbose=0, callbacks=list(callbacks))


def accuracy(model: Any, x: np.ndarray, y: np.ndarray) -> float:
    """In percent."""
    return 100 * float((model.predict(x, batch_size=500, verbose=0).argmax(-1) == y).mean())


def latencies(models: dict[str, Any], x: np.ndarray, rounds: int = 30) -> dict[str, float]:
    """Median seconds of a batch, in turns."""
    import tensorflow as tf  # pyright: ignore[reportMissingTypeStubs, reportMissingImports]

    TF: Any = tf
    runs = {
        name: TF.function(lambda batch, model=model: model(batch, training=False)) for name, model in models.items()
    }
    batch, times = TF.constant(x), {name: list[float]() for name in models}
    for turn in range(rounds + 3):
        for name, run in runs.items():
            start = time.perf_counter()
            run(batch).numpy()
            if turn >= 3:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def size(model: Any, folder: Path) -> int:
    """Bytes of the model in a file, its optimizer included."""
    file = folder / "size.keras"
    model.save(file)
    count = file.stat().st_size
    file.unlink()
    return count


def run(seed: int, options: Any) -> dict[str, dict[str, float]]:
    """All networks of a seed."""
    KERAS.utils.set_random_seed(seed)
    with np.load(DATA) as arrays:
        data = {name: arrays[name] for name in arrays.files}
    x, y, tx, ty = (data[n] for n in ("x_train", "y_train", "x_test", "y_test"))
    rows = np.random.default_rng(seed).permutation(len(x))[:TRAIN]
    x, y = x[rows, ..., None].astype("float32") / 255, y[rows].astype("int32")
    tx, ty = tx[..., None].astype("float32") / 255, ty.astype("int32")
    dense = build()
    train(dense, x, y, options.epochs, 1e-3)
    calibration = [x[k : k + 128] for k in range(0, CALIBRATION, 128)]
    models: dict[str, Any] = {}
    cut: dict[str, float] = {}
    for name, importance in (("pruned, tuned", "auto"), ("random units, tuned", "random")):
        pruned = secateur.keras.prune(dense, x[:1], budget=BUDGET, data=calibration, importance=importance, seed=seed)
        cut[name] = accuracy(pruned.model, tx, ty)
        train(pruned.model, x, y, options.tuning, 3e-4)
        models[name] = pruned.model
    gradual = KERAS.models.clone_model(dense)
    gradual.set_weights(dense.get_weights())
    steps = secateur.keras.Prune(x[:1], budget=BUDGET, steps=2, data=calibration)
    train(gradual, x, y, options.tuning, 3e-4, (steps,))
    assert steps.result is not None
    models["gradually pruned during fit"] = steps.result.model
    train(dense, x, y, options.tuning, 3e-4)
    models = {"dense, trained as long": dense, **models}
    times = latencies(models, x[:100])
    return {
        name: {
            "accuracy": accuracy(model, tx, ty),
            **({"cut": cut[name]} if name in cut else {}),
            "params": model.count_params(),
            "bytes": size(model, options.folder),
            "latency": times[name] / times["dense, trained as long"],
        }
        for name, model in models.items()
    }


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    if not values:
        return ""
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="A Keras network pruned and tuned under TensorFlow.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--tuning", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = [run(seed, options) for seed in options.seeds]
    assert "torch" not in sys.modules
    lines: list[str] = []
    for name in found[0]:
        rows = [result[name] for result in found]
        means = {key: statistics.mean(row[key] for row in rows) for key in ("params", "bytes", "latency")}
        right, cut = [row["accuracy"] for row in rows], [row["cut"] for row in rows if "cut" in row]
        lines.append(
            f"| {name} | {spread(right)} | {spread(cut)} "
            f"| {means['params']:,.0f} | {means['bytes'] / 1e3:,.0f} kB | {100 * means['latency']:.0f} % |"
        )
    head = HEAD.format(
        command=f"python benchmarks/keras_fit.py --seeds {' '.join(map(str, options.seeds))} --epochs {options.epochs} "
        f"--tuning {options.tuning}",
        setting=f"Keras {KERAS.__version__} on {KERAS.config.backend()}",
        params=build().count_params(),
        train=TRAIN,
        epochs=options.epochs,
        tuning=options.tuning,
        batch=BATCH,
        budget=BUDGET,
        calibration=CALIBRATION,
        seeds=", ".join(map(str, options.seeds)),
    )
    text = head + "\n".join(lines) + "\n"
    if options.out:
        options.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
