"""Layers and models of users' own: they say how their config follows their weights, or hear what to write."""

from typing import Any

import keras
import pytest
import torch
from keras import layers

import secateur as sc
import secateur.keras
from secateur.errors import ModelError
from secateur.keras.layers import RULES


@keras.saving.register_keras_serializable(package="tests")
class Scaled(layers.Layer):
    """A dense layer without a bias, and a gain for each unit."""

    def __init__(self, width: int, **more: Any) -> None:
        super().__init__(**more)
        self.width = width

    def build(self, shape: Any) -> None:
        self.matrix = self.add_weight(shape=(shape[-1], self.width), name="matrix")
        self.gain = self.add_weight(shape=(self.width,), initializer="ones", name="gain")

    def call(self, x: Any) -> Any:
        return keras.ops.matmul(x, self.matrix) * self.gain

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "width": self.width}


@keras.saving.register_keras_serializable(package="tests")
class Classifier(keras.Model):
    """A subclassed model whose config says its sizes."""

    def __init__(self, hidden: int = 16, classes: int = 3, **more: Any) -> None:
        super().__init__(**more)
        self.hidden, self.classes = hidden, classes
        self.first = layers.Dense(hidden, activation="relu", name="first")
        self.last = layers.Dense(classes, name="last")

    def build(self, shape: Any) -> None:
        self.first.build(shape)
        self.last.build((*shape[:-1], self.hidden))
        self.built = True

    def call(self, x: Any, training: bool = False) -> Any:
        return self.last(self.first(x))

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "hidden": self.hidden, "classes": self.classes}


@pytest.fixture
def rules() -> Any:
    """Rules that a test adds go again."""
    before = dict(RULES)
    yield
    RULES.clear()
    RULES.update(before)


def functional() -> Any:
    inputs = keras.Input((6,))
    x = layers.ReLU()(Scaled(12)(layers.Dense(8, "relu")(inputs)))
    return keras.Model(inputs, layers.Dense(3)(layers.Dense(10, "relu")(x)))


def test_a_layer_that_nobody_knows_stays_whole_and_the_reason_says_what_to_write() -> None:
    result = sc.prune(functional(), torch.randn(2, 6), keep=0.5)
    small: Any = result.model
    assert [layer.units for layer in small.layers if hasattr(layer, "units")] == [8, 5, 3]
    reasons = " ".join(reason for axis in result.graph.frozen.values() for reason in axis.frozen)
    assert "@secateur.keras.rule(Scaled)" in reasons


def test_a_rule_makes_a_layer_prunable(rules: None) -> None:
    @secateur.keras.rule(Scaled)
    def _(layer: Any, sizes: Any) -> dict[str, Any]:
        return {"width": sizes.of(layer.matrix)[-1]}

    result = sc.prune(functional(), torch.randn(2, 6), keep=0.5)
    small: Any = result.model
    assert result.proof.status == "proved"
    assert next(layer for layer in small.layers if isinstance(layer, Scaled)).width == 6


def test_a_subclassed_model_with_a_rule(rules: None) -> None:
    keras.utils.set_random_seed(0)
    model = Classifier()
    x = torch.randn(2, 5)
    model(x)

    @secateur.keras.rule("Classifier")
    def _(layer: Any, sizes: Any) -> dict[str, Any]:
        return {"hidden": sizes.of(layer.first.kernel)[-1]}

    result = sc.prune(model, x, keep=0.25)
    small: Any = result.model
    assert type(small) is Classifier
    assert (small.hidden, small.first.units) == (4, 4)
    assert result.proof.status == "proved"


def test_a_subclassed_model_without_one_hears_what_to_write() -> None:
    model = Classifier()
    model(torch.randn(2, 5))
    with pytest.raises(sc.SecateurError, match=r"@secateur\.keras\.rule\(Classifier\)"):
        sc.prune(model, torch.randn(2, 5), keep=0.25)


def test_a_model_that_was_not_built_is_refused_in_words() -> None:
    with pytest.raises(ModelError, match="no weights yet: call it once"):
        sc.prune(keras.Sequential([layers.Dense(3)]), torch.randn(1, 4))
