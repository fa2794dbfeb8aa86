"""A probe: example inputs with the outputs that the saved model gave, so that loading can be checked."""

from collections.abc import Mapping
from typing import Any, cast

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


def decode(inputs: Any, tensors: Mapping[str, Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inputs that `encode` described.

    Raises:
        ArtifactError: it describes none.
    """
    try:
        made = nests.decode(inputs, tensors.__getitem__)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"the probe has no inputs: {type(error).__name__}: {error}") from error
    match made:
        case (tuple() as args, dict() as kwargs):
            return cast("tuple[Any, ...]", args), cast("dict[str, Any]", kwargs)
        case _:
            raise ArtifactError("the probe has no inputs: it describes no call")


def check(model: nn.Module, inputs: Any, tensors: Mapping[str, Tensor]) -> None:
    """Run the probe and compare.

    Raises:
        ArtifactError: the loaded model does not run it, or gives other outputs.
    """
    args, kwargs = decode(inputs, tensors)
    count = sum(name.startswith("output.") for name in tensors)
    expected = [tensors[name] for k in range(count) if (name := f"output.{k}") in tensors]
    if not count or len(expected) != count:
        raise ArtifactError("the probe has no outputs, or not all of them")
    try:
        got = outputs_of(model, args, kwargs)
    except Exception as error:
        raise ArtifactError(f"the loaded model does not run its probe: {type(error).__name__}: {error}") from error
    shapes, wanted = ([_shown(t) for t in outputs] for outputs in (got, expected))
    if shapes != wanted:
        raise ArtifactError(
            f"the loaded model gives outputs of other shapes than when it was saved: {', '.join(shapes)}, not "
            f"{', '.join(wanted)}"
        )
    for k, (a, b) in enumerate(zip(expected, got, strict=True)):
        if off := _difference(a, b.cpu()):
            raise ArtifactError(
                f"the loaded model gives other outputs on its probe than when it was saved: output {k} {off}. Its code "
                "or its weights are not those that were saved. Load it with the code of that time."
            )


def _shown(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _difference(expected: Tensor, got: Tensor) -> str:
    """How far two tensors of one kind are apart, in words; empty where they are close enough."""
    if not (expected.is_floating_point() or expected.is_complex()):
        unequal = int((expected != got).sum())
        return f"differs in {unequal} of {expected.numel()} values" if unequal else ""
    finite = expected[expected.isfinite()].abs()
    scale = max(finite.max().item(), 1e-30) if finite.numel() else 1e-30
    allowed = TOLERANCE.get(expected.dtype, 1e-4)
    if torch.allclose(expected, got, rtol=0, atol=allowed * scale, equal_nan=True):
        return ""
    if not torch.equal(expected.isfinite(), got.isfinite()):
        return "has NaN or infinite values in other places"
    apart = (expected - got)[expected.isfinite()].abs().max().item() / scale
    return f"is off by {apart:.2g} of its scale {scale:.3g}, where {allowed:g} is allowed"
