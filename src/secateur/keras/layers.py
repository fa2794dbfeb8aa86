"""What the config of each layer must say when its weights have other shapes.

A rule gets the layer and its new sizes, and returns the entries of its config that change. Layers without weights of
their own adapt to what they are given, but for those in `CALLED`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from secateur.axes import Expr, Prod, size_of
from secateur.errors import SurgeryError
from secateur.origins import Attribute


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes after pruning.

    Attributes:
        names: of every variable, by its id.
        shapes: new shape of every variable, by name.
        dims: what the dims of the variables that change are made of, by name.
        axes: new size of every axis that changes.
        settings: sizes that layers use when they are called, and their new values.
    """

    names: Mapping[int, str]
    shapes: Mapping[str, tuple[int, ...]]
    dims: Mapping[str, tuple[Expr, ...]]
    axes: Mapping[str, int]
    settings: Sequence[tuple[Attribute, int]]

    def of(self, variable: Any) -> tuple[int, ...]:
        """The new shape of a variable."""
        return self.shapes[self.names[id(variable)]]

    def leading(self, variable: Any, dim: int, size: int) -> int:
        """The new size of the leading part of a dim, which had the given size: groups of a convolution.

        Raises:
            SurgeryError: the dim has no such part.
        """
        name = self.names[id(variable)]
        if size == 1 or name not in self.dims:
            return size
        expr, old, new = self.dims[name][dim], 1, 1
        for factor in expr.factors if isinstance(expr, Prod) else (expr,):
            if old == size:
                break
            old, new = old * factor.size, new * size_of(factor, self.axes)
        if old != size:
            raise SurgeryError(f"{name}: dim {dim} is not made of {size} groups")
        return new


Rule = Callable[[Any, Sizes], dict[str, Any]]
RULES: dict[str, Rule] = {}
WRAPPED: dict[str, dict[str, str]] = {  # layers in layers: by entry of the config, the attribute
    "Bidirectional": {"layer": "forward_layer", "backward_layer": "backward_layer"},
    "TimeDistributed": {"layer": "layer"},
    "SpectralNormalization": {"layer": "layer"},
    "RNN": {"cell": "cell"},
    "StackedRNNCells": {"cells": "cells"},
}
FOLLOWING = {  # their weights have the shape of what they are given
    "BatchNormalization", "LayerNormalization", "RMSNormalization", "UnitNormalization", "Normalization", "PReLU",
    "Attention", "AdditiveAttention",
}  # fmt: skip
OPAQUE = {
    "TorchModuleWrapper": "a torch module",
    "JaxLayer": "a function of JAX",
    "FlaxLayer": "a module of Flax",
    "TFSMLayer": "a SavedModel",
}
"""Layers that hold what no config of Keras describes."""
FIXED = {"STFTSpectrogram": "its weights are the transform itself"}
"""Layers whose weights stay as they are, and why."""
CALLED = {"Reshape": ("target_shape", "newshape")}
"""What uses sizes when it is called: attributes, and entries of the config, that may hold them."""
HEADS = {"MultiHeadAttention": "_inverse_sqrt_key_dim", "GroupedQueryAttention": "_inverse_sqrt_head_dim"}
"""Attention with a scale that follows from its head size: where it is held."""


def called(operation: Any) -> str | None:
    """The attribute, and entry of the config, that holds sizes which an operation uses when it is called."""
    return next((name for name in CALLED.get(type(operation).__name__, ()) if hasattr(operation, name)), None)


def rule(*classes: "str | type") -> Callable[[Rule], Rule]:
    """Say how the config of a layer class of your own follows its weights.

    The function gets the layer and its new `Sizes`, and returns the entries of ``layer.get_config()`` that change.

    Example:
        >>> @rule("Scaled")
        ... def scaled(layer, sizes):
        ...     return {"units": sizes.of(layer.kernel)[-1]}
    """

    def register(function: Rule) -> Rule:
        for kind in classes:
            RULES[kind if isinstance(kind, str) else kind.__name__] = function
        return function

    return register


@rule("Dense")
def _dense(layer: Any, sizes: Sizes) -> dict[str, Any]:
    return {"units": sizes.of(layer._kernel)[-1]}


@rule("EinsumDense")
def _einsum_dense(layer: Any, sizes: Sizes) -> dict[str, Any]:
    """``ab,bc->ac``: letters of the output that the kernel has take the kernel's sizes."""
    kernel, output = layer.equation.replace("...", "").partition(",")[2].split("->")
    new = dict(zip(kernel, sizes.of(layer._kernel), strict=True))
    said = layer.partial_output_shape
    shape: list[int | None] = [said] if isinstance(said, int) else list(said)
    letters = output[len(output) - len(shape) :]
    sized = zip(letters, shape, strict=True)
    return {"output_shape": [None if size is None else new.get(letter, size) for letter, size in sized]}


@rule("Conv1D", "Conv2D", "Conv3D")
def _conv(layer: Any, sizes: Sizes) -> dict[str, Any]:
    kernel = layer._kernel
    return {"filters": sizes.of(kernel)[-1], "groups": sizes.leading(kernel, -1, layer.groups)}


@rule("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")
def _conv_transpose(layer: Any, sizes: Sizes) -> dict[str, Any]:
    return {"filters": sizes.of(layer.kernel)[-2]}


@rule("DepthwiseConv1D", "DepthwiseConv2D")
def _depthwise(layer: Any, sizes: Sizes) -> dict[str, Any]:
    return {"depth_multiplier": sizes.of(layer.kernel)[-1]}


@rule("SeparableConv1D", "SeparableConv2D")
def _separable(layer: Any, sizes: Sizes) -> dict[str, Any]:
    return {
        "filters": sizes.of(layer.pointwise_kernel)[-1],
        "depth_multiplier": sizes.of(layer.depthwise_kernel)[-1],
    }


@rule("GroupNormalization")
def _group_normalization(layer: Any, sizes: Sizes) -> dict[str, Any]:
    weight = layer.gamma if layer.gamma is not None else layer.beta
    if weight is None:
        return {}
    return {"groups": sizes.leading(weight, 0, layer.groups)}


@rule("Embedding", "ReversibleEmbedding")
def _embedding(layer: Any, sizes: Sizes) -> dict[str, Any]:
    rows, width = sizes.of(layer._embeddings)
    return {"input_dim": rows, "output_dim": width}


@rule("MultiHeadAttention")
def _attention(layer: Any, sizes: Sizes) -> dict[str, Any]:
    width, heads, key = sizes.of(layer._query_dense._kernel)
    *_, value = sizes.of(layer._value_dense._kernel)
    out = sizes.of(layer._output_dense._kernel)[2:]
    said = {} if layer._output_shape is None and out == (width,) else {"output_shape": list(out)}
    return {"num_heads": heads, "key_dim": key, "value_dim": value, **said}


@rule("GroupedQueryAttention", "GroupQueryAttention")
def _grouped_attention(layer: Any, sizes: Sizes) -> dict[str, Any]:
    _, heads, head = sizes.of(layer._query_dense._kernel)
    return {
        "num_query_heads": heads,
        "num_key_value_heads": sizes.of(layer._key_dense._kernel)[1],
        "head_dim": head,
    }


@rule("LayerScale")
def _layer_scale(layer: Any, sizes: Sizes) -> dict[str, Any]:
    """Of ConvNeXt in ``keras.applications``."""
    return {"projection_dim": sizes.of(layer.gamma)[0]}


@rule("LSTMCell", "GRUCell", "SimpleRNNCell")
def _cell(layer: Any, sizes: Sizes) -> dict[str, Any]:
    return {"units": sizes.of(layer.recurrent_kernel)[0]}


@rule("LSTM", "GRU", "SimpleRNN")
def _recurrent(layer: Any, sizes: Sizes) -> dict[str, Any]:
    return {"units": sizes.of(layer.cell.recurrent_kernel)[0]}


@rule("ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D")
def _conv_lstm(layer: Any, sizes: Sizes) -> dict[str, Any]:
    return {"filters": sizes.of(layer.cell.recurrent_kernel)[-2]}
