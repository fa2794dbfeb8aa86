"""Every layer of Keras that owns weights is pruned here, or refused by name."""

import inspect
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import torch
from keras import layers

import secateur as sc
from secateur.errors import ModelError
from secateur.keras.layers import FIXED, FOLLOWING, OPAQUE, RULES, WRAPPED
from support.keras_models import example, tokens

SIGNAL, IMAGE, VOLUME, VECTOR, WORDS = (10, 4), (8, 8, 4), (5, 5, 5, 4), (6,), (7,)
Make = Callable[[Any], Any]


def lstm(dims: int) -> tuple[tuple[int, ...], Make]:
    kind = getattr(layers, f"ConvLSTM{dims}D")
    return (3, *[5] * dims, 4), lambda x: layers.Flatten()(kind(6, 2)(kind(8, 2, return_sequences=True)(x)))


def attended(attention: Any) -> Make:
    return lambda x: attention([layers.Dense(8)(x), layers.Dense(8)(x)])


def between(layer: Any) -> Make:
    """A layer that has the width of what it is given, between two that can be pruned."""
    return lambda x: layer(layers.Dense(8)(x))


LAYERS: dict[str, tuple[tuple[int, ...], Make]] = {
    "Dense": (VECTOR, lambda x: layers.Dense(8, activation="tanh")(x)),
    "EinsumDense": (SIGNAL, lambda x: layers.EinsumDense("abc,cde->abde", (10, 3, 8), bias_axes="de")(x)),
    "Conv1D": (SIGNAL, lambda x: layers.Conv1D(8, 3, activation="relu")(x)),
    "Conv2D": (IMAGE, lambda x: layers.Conv2D(8, 3, activation="relu")(x)),
    "Conv3D": (VOLUME, lambda x: layers.Conv3D(8, 3, activation="relu")(x)),
    "Conv1DTranspose": (SIGNAL, lambda x: layers.Conv1DTranspose(8, 3)(x)),
    "Conv2DTranspose": (IMAGE, lambda x: layers.Conv2DTranspose(8, 3)(x)),
    "Conv3DTranspose": (VOLUME, lambda x: layers.Conv3DTranspose(8, 2)(x)),
    "DepthwiseConv1D": (SIGNAL, lambda x: layers.DepthwiseConv1D(3)(layers.Conv1D(8, 1)(x))),
    "DepthwiseConv2D": (IMAGE, lambda x: layers.DepthwiseConv2D(3, depth_multiplier=2)(layers.Conv2D(8, 1)(x))),
    "SeparableConv1D": (SIGNAL, lambda x: layers.SeparableConv1D(8, 3)(layers.Conv1D(6, 1)(x))),
    "SeparableConv2D": (IMAGE, lambda x: layers.SeparableConv2D(8, 3)(layers.Conv2D(6, 1)(x))),
    "BatchNormalization": (IMAGE, lambda x: layers.BatchNormalization()(layers.Conv2D(8, 3)(x))),
    "LayerNormalization": (VECTOR, between(layers.LayerNormalization())),
    "RMSNormalization": (VECTOR, between(layers.RMSNormalization())),
    "UnitNormalization": (VECTOR, between(layers.UnitNormalization())),
    "GroupNormalization": (IMAGE, lambda x: layers.GroupNormalization(4)(layers.Conv2D(8, 3)(x))),
    "SpectralNormalization": (IMAGE, lambda x: layers.SpectralNormalization(layers.Conv2D(8, 3))(x)),
    "Normalization": (VECTOR, lambda x: layers.Dense(8)(layers.Normalization(mean=1.0, variance=4.0)(x))),
    "PReLU": (VECTOR, between(layers.PReLU())),
    "Embedding": (WORDS, lambda x: layers.Embedding(20, 8)(x)),
    "ReversibleEmbedding": (WORDS, lambda x: layers.ReversibleEmbedding(20, 8)(x)),
    "MultiHeadAttention": (SIGNAL, lambda x: layers.MultiHeadAttention(4, 6, value_dim=5, output_shape=7)(x, x)),
    "GroupedQueryAttention": (
        SIGNAL,
        lambda x: layers.GroupQueryAttention(6, 4, 2)(layers.Dense(8)(x), layers.Dense(8)(x)),
    ),
    "Attention": (SIGNAL, attended(layers.Attention(use_scale=True))),
    "AdditiveAttention": (SIGNAL, attended(layers.AdditiveAttention())),
    "SimpleRNN": (SIGNAL, lambda x: layers.SimpleRNN(8)(x)),
    "LSTM": (SIGNAL, lambda x: layers.LSTM(8)(layers.LSTM(6, return_sequences=True)(x))),
    "GRU": (SIGNAL, lambda x: layers.GRU(8, reset_after=False)(layers.GRU(6, return_sequences=True)(x))),
    "RNN": (SIGNAL, lambda x: layers.RNN(layers.LSTMCell(8))(x)),
    "StackedRNNCells": (SIGNAL, lambda x: layers.RNN([layers.GRUCell(8), layers.SimpleRNNCell(6)])(x)),
    "Bidirectional": (SIGNAL, lambda x: layers.Bidirectional(layers.GRU(8), merge_mode="sum")(x)),
    "TimeDistributed": (SIGNAL, lambda x: layers.TimeDistributed(layers.Dense(8))(x)),
    "ConvLSTM1D": lstm(1),
    "ConvLSTM2D": lstm(2),
    "ConvLSTM3D": lstm(3),
}
CELLS = {"LSTMCell", "GRUCell", "SimpleRNNCell"}  # in RNN and StackedRNNCells above


@pytest.mark.parametrize("name", LAYERS)
def test_pruned_and_proved(name: str) -> None:
    keras.utils.set_random_seed(1)
    shape, make = LAYERS[name]
    words = shape == WORDS
    inputs = keras.Input(shape, dtype="int32" if words else "float32")
    x = make(inputs)
    x = layers.Dense(6, activation="relu")(layers.Flatten()(x) if len(x.shape) > 2 else x)
    model = keras.Model(inputs, layers.Dense(3)(x))
    given = torch.from_numpy(tokens(2, shape[0], 20) if words else example(2, *shape))
    for weight in model.trainable_variables:  # zeros and ones hide mistakes
        weight.assign(np.random.default_rng(0).uniform(0.2, 0.9, weight.shape) * np.asarray(1.0, "float32"))
    result = sc.prune(model, given, keep=0.5)
    small: Any = result.model
    assert result.proof.status in ("proved", "shape-checked")
    first = {v.path: tuple(v.shape) for v in model.trainable_variables}
    now = {v.path: tuple(v.shape) for v in small.trainable_variables}
    assert list(first) == list(now)
    own = [p for p in first if not p.startswith("dense") and first[p] != ()] or list(first)
    assert any(now[path] != first[path] for path in own), (
        f"nothing of {name} got smaller: {[(n, a.frozen) for n, a in result.graph.frozen.items()]}"
    )
    again = keras.Model.from_config(small.get_config())
    again.set_weights(small.get_weights())
    with torch.no_grad():
        assert torch.equal(again(given), small(given))


def owns_weights(kind: type) -> bool:
    """Whether the code of a layer makes weights, or holds a layer that might."""
    own = [
        k for k in kind.__mro__ if k.__module__.startswith("keras.src.") and k.__name__ not in ("Layer", "Operation")
    ]
    code = "".join(inspect.getsource(k) for k in own)
    return "add_weight(" in code or "self.cell" in code or "EinsumDense(" in code or issubclass(kind, layers.Wrapper)


def test_every_layer_that_owns_weights_is_known() -> None:
    kinds = {k.__name__: k for k in vars(layers).values() if inspect.isclass(k)}
    owners = {name for name, kind in kinds.items() if owns_weights(kind)}
    assert {"Dense", "LSTM", "MultiHeadAttention", "BatchNormalization"} <= owners
    known = {*LAYERS, *CELLS, *OPAQUE, *FIXED, "Wrapper"}
    assert owners <= known, f"neither pruned in these tests nor refused: {sorted(owners - known)}"
    assert {*LAYERS, *CELLS} <= {*RULES, *FOLLOWING, *WRAPPED}


def test_a_torch_module_in_a_keras_model_is_refused_by_name() -> None:
    inputs = keras.Input((6,))
    x = layers.TorchModuleWrapper(torch.nn.Linear(6, 8), output_shape=(None, 8))(inputs)
    model = keras.Model(inputs, layers.Dense(3)(x))
    with pytest.raises(ModelError, match="TorchModuleWrapper.*holds a torch module"):
        sc.prune(model, torch.zeros(1, 6), keep=0.5)
