"""Keras models in, smaller plain Keras models out, proved; and the same under TensorFlow, without secateur."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import torch

import secateur as sc
from secateur.keras.walking import named_variables
from support.keras_models import MODELS, SAME


def tensors(example: Any) -> Any:
    if isinstance(example, list):
        return tuple(torch.from_numpy(part) for part in example)
    return torch.from_numpy(example)


def outputs(model: Any, example: Any) -> list[np.ndarray]:
    with torch.no_grad():
        out = model(example, training=False)
    return [o.numpy() for o in (out if isinstance(out, list | tuple) else [out])]


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Every model halved, saved with its inputs and outputs."""
    folder, found = tmp_path_factory.mktemp("keras"), {}
    for name, build in MODELS.items():
        keras.utils.set_random_seed(1)
        keras.backend.clear_session()
        model, example = build()
        result = sc.prune(model, tensors(example), keep=0.5)
        small: Any = result.model
        small.save(folder / f"{name}.keras")
        parts = example if isinstance(example, list) else [example]
        np.savez(folder / f"{name}.npz", *parts, *outputs(small, example), inputs=len(parts))
        found[name] = model, example, result
    return folder, found


@pytest.mark.parametrize("name", MODELS)
def test_the_smaller_model_is_proved_and_plain_keras(name: str, pruned: tuple[Path, dict[str, Any]]) -> None:
    model, _, result = pruned[1][name]
    assert result.proof.status == "proved"
    assert type(result.model) is type(model)
    assert result.model.count_params() < 0.75 * model.count_params()
    config = str(result.model.get_config())
    assert "secateur" not in config


def test_configs_say_the_new_sizes(pruned: tuple[Path, dict[str, Any]]) -> None:
    models = {name: result.model for name, (_, _, result) in pruned[1].items()}
    assert [layer.units for layer in models["sequential"].layers if hasattr(layer, "units")] == [8, 4]
    attention = next(la for la in models["transformer"].layers if isinstance(la, keras.layers.MultiHeadAttention))
    assert (attention.num_heads, attention.key_dim) != (3, 8)
    reshape = next(la for la in models["transformer"].layers if isinstance(la, keras.layers.Reshape))
    assert reshape.target_shape == (16, 12)
    first, second = (la for la in models["convolutions"].layers if type(la) is keras.layers.Conv2D)
    assert (first.filters, first.groups) == (6, 1) or first.filters % first.groups == 0
    assert second.get_config()["filters"] == second.kernel.shape[-1]


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_another_backend_gives_the_same_without_secateur(backend: str, pruned: tuple[Path, dict[str, Any]]) -> None:
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    code = SAME.format(backend=backend)
    done = subprocess.run(
        [sys.executable, "-c", code, str(pruned[0]), *MODELS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "same"


def test_the_model_given_stays_as_it_is() -> None:
    model, example = MODELS["residual"]()
    before = [np.asarray(w) for w in model.get_weights()], outputs(model, example), str(model.get_config())
    sc.prune(model, tensors(example), keep=0.5, data=[tensors(example)] * 2)
    assert all(np.array_equal(a, b) for a, b in zip(before[0], model.get_weights(), strict=True))
    assert np.array_equal(before[1][0], outputs(model, example)[0])
    assert str(model.get_config()) == before[2]


def test_compensation_reaches_the_keras_model() -> None:
    keras.utils.set_random_seed(0)
    model, _ = MODELS["sequential"]()
    data = list(torch.randn(64, 12, 12, 3).split(16))
    bare, refitted = (
        sc.prune(model, data[0], keep=0.5, importance="l2", data=data, compensate=how).model for how in (None, "lstsq")
    )
    wanted = outputs(model, data[0])[0]
    errors = [float(np.square(outputs(small, data[0])[0] - wanted).mean()) for small in (bare, refitted)]
    assert errors[1] < errors[0]


def test_the_steps_take_keras_models_too() -> None:
    model, example = MODELS["residual"]()
    x = tensors(example)
    graph = sc.trace(model, x)
    plan = sc.plan(graph, sc.score(model, graph), budget=sc.Budget(macs=0.5))
    small: Any = plan.apply(model)
    assert isinstance(small, keras.Model)
    assert (
        sc.measure(small, x, training=False, memory=False).macs
        <= 0.5 * sc.measure(model, x, training=False, memory=False).macs
    )


def test_a_compiled_model_trains_on_with_its_optimizer() -> None:
    keras.utils.set_random_seed(0)
    model, example = MODELS["residual"]()
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    x, y = np.repeat(example, 8, 0), np.zeros(16)
    model.fit(x, y, epochs=1, batch_size=8, verbose=0)
    result = sc.prune(model, tensors(example), keep=0.5)
    small: Any = result.model
    assert int(small.optimizer.iterations) == 2
    old, new = (m.optimizer._momentums[0].value.detach() for m in (model, small))
    assert old.shape != new.shape
    name = next(n for n, v in named_variables(model).items() if v is model.trainable_variables[0])
    for dim, positions in result.plan.kept[name].items():
        old = old.index_select(dim, positions)
    assert torch.equal(old, new)
    small.fit(x, y, epochs=1, batch_size=8, verbose=0)
    assert int(small.optimizer.iterations) == 4


def test_a_saved_result_is_loaded_into_the_original_keras_model(tmp_path: Path) -> None:
    model, example = MODELS["sequential"]()
    result = sc.prune(model, tensors(example), keep=0.5)
    sc.save(result, tmp_path / "small")
    again: Any = sc.load(tmp_path / "small", model=model)
    assert isinstance(again, keras.Model)
    assert np.array_equal(outputs(again, example)[0], outputs(result.model, example)[0])


def test_a_bound_on_held_out_data() -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(2)])
    x = torch.randn(256, 6, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x.numpy(), y.numpy(), epochs=8, verbose=0)
    result = sc.prune(model, x[:2], max_drop=2.0, validate=[(x, y)])
    small: Any = result.model
    assert small.count_params() < model.count_params()
    right = [100 * float((m(x, training=False).argmax(-1) == y).double().mean()) for m in (model, small)]
    assert right[0] - right[1] <= 2.0
