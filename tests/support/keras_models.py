"""Keras models of many kinds, small, under whatever backend: each a model and an example."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

Made = tuple[Any, Any]
SAME = """
import os, sys
os.environ["KERAS_BACKEND"] = "{backend}"
import keras, numpy as np
for name in sys.argv[2:]:
    model = keras.models.load_model(f"{{sys.argv[1]}}/{{name}}.keras")
    saved = np.load(f"{{sys.argv[1]}}/{{name}}.npz")
    arrays = [saved[f"arr_{{k}}"] for k in range(len(saved.files) - 1)]
    inputs, wanted = arrays[: int(saved["inputs"])], arrays[int(saved["inputs"]) :]
    out = model(inputs if len(inputs) > 1 else inputs[0], training=False)
    for got, want in zip(out if isinstance(out, (list, tuple)) else [out], wanted):
        difference = float(np.abs(np.asarray(got) - want).max())
        assert difference <= 1e-4 * max(float(np.abs(want).max()), 1e-3), (name, difference)
assert not {{"torch", "secateur"}} & set(sys.modules), "imported"
print("same")
"""
"""Loads models in a process of their own: the arguments are a folder, and the names of models in it."""
MODELS: dict[str, Callable[[], Made]] = {}


def example(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def model(function: Callable[[], Made]) -> Callable[[], Made]:
    MODELS[function.__name__] = function
    return function


@model
def sequential() -> Made:
    net = keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            layers.Rescaling(2.0),
            layers.Conv2D(8, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(16, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(4),
        ]
    )
    return net, example(2, 12, 12, 3)


@model
def residual() -> Made:
    inputs = keras.Input((10, 10, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same", use_bias=False)(inputs)))
    y = layers.Conv2D(6, 3, padding="same", activation="swish")(x)
    y = layers.Conv2D(8, 3, padding="same")(y)
    x = layers.GlobalAveragePooling2D()(layers.Add()([x, y]))
    return keras.Model(inputs, layers.Dense(4)(x)), example(2, 10, 10, 3)


@model
def unet() -> Made:
    inputs = keras.Input((16, 16, 3))
    a = layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    x = layers.SeparableConv2D(12, 3, padding="same", activation="relu")(layers.MaxPooling2D()(a))
    x = layers.Conv2DTranspose(8, 2, strides=2)(x)
    x = layers.DepthwiseConv2D(3, padding="same")(layers.Concatenate()([x, a]))
    x = layers.UpSampling2D()(layers.AveragePooling2D(2)(x))
    return keras.Model(inputs, layers.Conv2D(2, 1)(x)), example(2, 16, 16, 3)


@model
def convolutions() -> Made:
    inputs = keras.Input((12, 12, 4))
    x = layers.Conv2D(12, 3, groups=2, activation="relu")(inputs)
    x = layers.Conv2D(12, 1, groups=4, activation="relu")(x)
    x = layers.GroupNormalization(4)(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2)(x)
    x = layers.Permute((3, 1, 2))(x)
    x = layers.Permute((2, 3, 1))(x)
    x = layers.PReLU(shared_axes=[1, 2])(layers.ZeroPadding2D()(x))
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalMaxPooling2D()(x))), example(2, 12, 12, 4)


@model
def one_and_three_dims() -> Made:
    signal, volume = keras.Input((20, 2)), keras.Input((6, 6, 6, 1))
    x = layers.Conv1DTranspose(6, 3)(layers.SeparableConv1D(8, 3, activation="relu")(layers.Conv1D(6, 3)(signal)))
    x = layers.GlobalAveragePooling1D()(layers.DepthwiseConv1D(3)(x))
    y = layers.Conv3DTranspose(4, 2)(layers.Conv3D(6, 3, activation="relu")(volume))
    y = layers.GlobalAveragePooling3D()(y)
    out = layers.Dense(3)(layers.Concatenate()([x, y]))
    return keras.Model([signal, volume], out), [example(2, 20, 2), example(2, 6, 6, 6, 1)]


@model
def transformer() -> Made:
    inputs = keras.Input((8, 8, 3))
    x = layers.Reshape((16, 24))(layers.Conv2D(24, 2, strides=2)(inputs))
    for _ in range(2):
        y = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(3, 8)(y, y)])
        y = layers.Dense(48, activation="gelu")(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dense(24)(y)])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(5)(x)), example(2, 8, 8, 3)


@model
def grouped_queries() -> Made:
    inputs = keras.Input((10,), dtype="int32")
    x = layers.Embedding(40, 16)(inputs)
    y = layers.RMSNormalization()(x)
    x = layers.Add()([x, layers.GroupQueryAttention(4, 4, 2)(y, y)])
    x = layers.EinsumDense("abc,cd->abd", output_shape=(None, 12), bias_axes="d", activation="relu")(x)
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x))), tokens(2, 10, 40)


@model
def recurrent() -> Made:
    inputs = keras.Input((9,), dtype="int32")
    x = layers.Embedding(30, 12)(inputs)
    x = layers.Bidirectional(layers.LSTM(8, return_sequences=True))(x)
    x = layers.GRU(8, return_sequences=True)(x)
    x = layers.TimeDistributed(layers.Dense(6, activation="relu"))(x)
    return keras.Model(inputs, layers.Dense(3)(layers.SimpleRNN(5)(x))), tokens(2, 9, 30)


@model
def shared_and_nested() -> Made:
    inner_inputs = keras.Input((8,))
    inner = keras.Model(inner_inputs, layers.Dense(8)(layers.Dense(10, activation="relu")(inner_inputs)), name="inner")
    shared = layers.Dense(8, activation="relu")
    left, right = keras.Input((5,), name="left"), keras.Input((5,), name="right")
    a, b = inner(shared(left)), inner(shared(right))
    both = layers.Multiply()([a, layers.Subtract()([a, b])])
    block = keras.Sequential([layers.Dense(6, activation="relu"), layers.Dense(4)], name="block")
    return keras.Model([left, right], [layers.Dense(2)(both), block(both)]), [example(2, 5), example(2, 5, seed=1)]


@model
def functions() -> Made:
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, activation="relu")(inputs)
    x = keras.ops.reshape(x, (-1, 16, 8)) * 2.0 + 1.0
    x = keras.ops.mean(keras.ops.transpose(x, (0, 2, 1)), axis=-1)
    return keras.Model(inputs, layers.Dense(3)(x)), example(2, 6, 6, 3)


def tokens(count: int, length: int, words: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, words, (count, length)).astype("int32")
