"""Why a network does not run on some inputs, and what to do about it, as far as that can be found out.

Shape letters: N samples, C channels, H rows, W columns.
"""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from secateur.inputs import as_call, run

SIZES = (28, 32, 64, 96, 112, 128, 160, 192, 224, 256, 299, 320, 384)  # sides of images that are tried, in pixels
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def advice(model: nn.Module, args: Any) -> str:
    """A sentence on what the model takes instead of these inputs; empty if that can't be told.

    Args:
        model: does not run on the inputs.
        args: a tuple of positional inputs or a dict of keyword inputs, for one sample.
    """
    found = _last_layer(model, args)
    if found is None:
        return ""
    name, layer, given = found
    said = _kind(name, layer, given) or _channels(name, layer, given)
    if said:
        return said
    positional, named = as_call(args)
    images = positional[0] if len(positional) == 1 and not named else None
    if not isinstance(images, Tensor) or images.dim() != 4:
        return _features(name, layer, given)
    side = _side(model, images)
    if side is None:
        return _features(name, layer, given)
    return f"It runs on images of {side}x{side}: bring them to that size, with --image-size {side} where they are files"


def _last_layer(model: nn.Module, args: Any) -> tuple[str, nn.Module, Tensor] | None:
    """The layer that a run came to last, its name, and what it was given."""
    last: list[tuple[str, nn.Module, Tensor]] = []

    def watch(name: str, layer: nn.Module) -> Any:
        def note(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs and isinstance(inputs[0], Tensor):
                last[:] = [(name, layer, inputs[0])]

        return layer.register_forward_pre_hook(note)

    with ExitStack() as stack:
        for name, layer in model.named_modules():
            if not list(layer.children()):
                stack.callback(watch(f"layer {name}" if name else "the model", layer).remove)
        _runs(model, args)
    return last[0] if last else None


def _kind(name: str, layer: nn.Module, given: Tensor) -> str:
    """A layer that gets numbers of another kind than it takes."""
    weight = getattr(layer, "weight", None)
    if isinstance(layer, nn.Embedding) and given.is_floating_point():
        return f"{name} looks up whole numbers, and gets {_type(given)}: give tokens as int64"
    if isinstance(weight, Tensor) and not isinstance(layer, nn.Embedding) and given.dtype != weight.dtype:
        scale = " / 255" if given.dtype == torch.uint8 else ""
        return f"{name} takes {_type(weight)}, and gets {_type(given)}: give x.to(torch.{_type(weight)}){scale}"
    return ""


def _channels(name: str, layer: nn.Module, given: Tensor) -> str:
    """A convolution that gets another number of channels than it takes."""
    if not isinstance(layer, CONVOLUTIONS):
        return ""
    wanted, spatial = layer.in_channels, len(layer.kernel_size)
    if given.dim() == spatial + 1:
        return (
            f"{name} takes batches of {wanted} channels, and gets {tuple(given.shape)}: put in the dim that is missing"
        )
    if given.dim() != spatial + 2 or given.shape[1] == wanted:
        return ""
    got = given.shape[1]
    said = f"{name} takes {wanted} channels, and gets {got}: "
    if given.shape[-1] == wanted:
        return f"{said}the channels come last. Put them first, x.movedim(-1, 1)"
    if got == 1:
        return f"{said}repeat the one, x.expand(-1, {wanted}, ...), np.repeat(x[:, None], {wanted}, 1) in an .npz"
    if wanted == 1:
        return f"{said}take their mean, x.mean(1, keepdim=True), or build the model for {got}, with --model-args"
    return f"{said}give those that it takes, or build the model for {got}, with --model-args"


def _features(name: str, layer: nn.Module, given: Tensor) -> str:
    """A linear layer that gets another number of features than it takes."""
    if isinstance(layer, nn.Linear) and given.shape[-1:] != (layer.in_features,):
        got = given.shape[-1] if given.dim() else "a number"
        return (
            f"{name} takes {layer.in_features} features, and gets {got}: give samples of the size that it was made for"
        )
    return ""


def _side(model: nn.Module, images: Tensor) -> int | None:
    """The side in pixels of square images that the model runs on, among the usual ones."""
    for side in SIZES:
        if _runs(model, images.new_zeros(1, images.shape[1], side, side)):
            return side
    return None


def _runs(model: nn.Module, args: Any) -> bool:
    try:
        with torch.no_grad():
            run(model, args)
    except Exception:  # whatever the model's code raises on inputs that it was not made for
        return False
    return True


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
