"""A probe: example inputs with the outputs that the saved model gave, so that loading can be checked."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur import nests
from secateur.errors import ArtifactError
from secateur.inputs import fresh
from secateur.tracing.running import tensors_in
from secateur.tracing.shadow import separate
from secateur.tracing.surroundings import quiet_backends

TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.bfloat16: 2e-2,
    torch.float16: 5e-3,
}  # of the output's scale


def outputs_of(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The model's outputs in evaluation mode, on a copy that shares its tensors."""
    with quiet_backends():
        torch.manual_seed(0)  # the random state is given back; a model that draws numbers draws the same ones each time
        args, kwargs = fresh((args, dict(kwargs)))
        outputs = tensors_in(nn.Module.__call__(separate(model), *args, **kwargs))
        return [t.detach().contiguous() for t in outputs]


def encode(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    """Inputs as JSON that refers to named tensors.

    Raises:
        ArtifactError: an input is neither a tensor nor plain data.
    """
    tensors: dict[str, Tensor] = {}

    def named(tensor: Tensor) -> str:
        name = f"input.{len(tensors)}"
        tensors[name] = tensor.detach().cpu().contiguous().clone()
        return name

    try:
        return nests.encode((args, dict(kwargs)), named), tensors
    except TypeError as error:
        raise ArtifactError(str(error)) from error


def check(model: nn.Module, inputs: Any, tensors: Mapping[str, Tensor]) -> None:
    """Run the probe and compare.

    Raises:
        ArtifactError: the loaded model does not run it, or gives other outputs.
    """
    args, kwargs = nests.decode(inputs, tensors.__getitem__)
    expected = [
        tensors[name] for name in sorted((n for n in tensors if n.startswith("output.")), key=lambda n: int(n[7:]))
    ]
    try:
        got = outputs_of(model, args, kwargs)
    except Exception as error:
        raise ArtifactError(f"the loaded model does not run its probe: {type(error).__name__}: {error}") from error
    if [tuple(t.shape) for t in got] != [tuple(t.shape) for t in expected]:
        raise ArtifactError(
            f"the loaded model gives outputs of other shapes than when it was saved: {[list(t.shape) for t in got]}"
        )
    for a, b in zip(expected, got, strict=True):
        if not _close(a, b.cpu()):
            raise ArtifactError(
                "the loaded model gives other outputs on its probe than when it was saved: its code or "
                "its weights are not those "
                "that were saved. Load it with the code of that time."
            )


def _close(expected: Tensor, got: Tensor) -> bool:
    if not expected.is_floating_point():
        return bool(torch.equal(expected, got))
    scale = expected[expected.isfinite()].abs().max().item() if expected.isfinite().any() else 0.0
    return torch.allclose(
        expected, got, rtol=0, atol=TOLERANCE.get(expected.dtype, 1e-4) * max(scale, 1e-30), equal_nan=True
    )
