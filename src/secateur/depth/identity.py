"""What computes the identity at first, and trains from there: silenced copies of residual blocks, identity layers."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from secateur.depth.streams import Call, stream_out
from secateur.inputs import fresh
from secateur.modules import named_parameters
from secateur.proof import perturbed
from secateur.tracing.shadow import copy_with, own_tensor

SAME = 1e-6  # of a tensor's scale, in float32; 1e-12 in float64


def imitable(layer: nn.Module) -> bool:
    """Whether there is an identity of a layer's kind: a linear layer, or a convolution that is not transposed."""
    if isinstance(layer, nn.Linear):
        return True
    return isinstance(layer, _ConvNd) and not isinstance(layer, _ConvTransposeNd)


def identity_layer(like: nn.Module) -> nn.Module:
    """A layer of the width that another one gives, and of its kind and kernel, that computes the identity.

    Chen et al. 2016, "Net2Net", arXiv:1511.05641 (Net2DeeperNet). An even kernel is made odd, so that its middle can
    be the identity; there are no groups and no stride.

    Example:
        >>> x = torch.randn(1, 8, 5, 5)
        >>> layer = identity_layer(nn.Conv2d(3, 8, 3, stride=2))
        >>> layer, torch.equal(layer(x), x)
        (Conv2d(8, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1)), True)
    """
    weight: Any = like.weight
    bias: Any = like.bias
    how: dict[str, Any] = {"bias": bias is not None, "device": weight.device, "dtype": weight.dtype}
    if isinstance(like, nn.Linear):
        layer: Any = nn.Linear(like.out_features, like.out_features, **how)
        eye = torch.eye(like.out_features, dtype=weight.dtype, device=weight.device)
    else:
        convolution: Any = like
        kernel = tuple(k if k % 2 else k + 1 for k in convolution.kernel_size)
        plain = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(kernel)]
        width = convolution.out_channels
        layer = plain(width, width, kernel, padding=tuple(k // 2 for k in kernel), **how)
        eye = torch.zeros_like(layer.weight)
        if not eye.is_meta:
            eye[(*torch.arange(width).repeat(2, 1), *(k // 2 for k in kernel))] = 1
    layer.weight = nn.Parameter(eye, requires_grad=weight.requires_grad)
    if layer.bias is not None:
        layer.bias = nn.Parameter(torch.zeros_like(layer.bias), requires_grad=bias.requires_grad)
    return layer


def silence_(block: nn.Module, names: Iterable[str]) -> None:
    """Set some parameters of a block to zero."""
    known = named_parameters(block)
    with torch.no_grad():
        for name in names:
            known[name].zero_()


def silencers(block: nn.Module, call: Call) -> tuple[str, ...]:
    """The parameters that end a block's branches: with them at zero, and all others at any value, it is the identity.

    All parameters are set to zero, then put back one after the other, in the order in which the block uses them, as
    long as it stays the identity; so of parameters in a row the last one stays at zero. The block's weights are
    disturbed before, so that none of them silences it because it happens to be zero.

    Args:
        block: a module.
        call: one of its calls, with the inputs as they were.

    Returns:
        Names of parameters in the block; none where no parameters at zero make it the identity, which is so where it
        adds to nothing (a plain stack of layers), or normalises the sum (as BERT does).
    """
    noisy = perturbed(block).eval()
    values = {name: p.detach().clone() for name, p in named_parameters(noisy).items()}
    order = _in_order_of_use(noisy, call)
    silence_(noisy, values)
    if not values or not is_identity(noisy, call):
        return ()
    present, zero = named_parameters(noisy), dict.fromkeys(values)
    for name in sorted(values, key=lambda n: order.get(n, -1)):
        with torch.no_grad():
            present[name].copy_(values[name])
        if is_identity(noisy, call):
            del zero[name]
        else:
            present[name].data.zero_()
    return tuple(zero)


def is_identity(block: nn.Module, call: Call) -> bool:
    """Whether a block gives what it is given, on the inputs of a call."""
    args, kwargs = fresh((call.args, call.kwargs))
    with torch.no_grad():
        out = stream_out(nn.Module.__call__(block, *args, **kwargs))
    given = call.stream
    if out is None or out.shape != given.shape or not bool(out.isfinite().all()):
        return False
    scale = float(given.abs().max())
    tolerance = SAME if given.dtype != torch.float64 else 1e-12
    return float((out - given).abs().max()) <= tolerance * scale


def trains(block: nn.Module, names: Iterable[str], call: Call) -> bool:
    """Whether each of the silenced parameters that is to be trained gets a gradient, so that the block can learn."""
    copy = copy_with(block, own_tensor).train(block.training)
    args, kwargs = fresh((call.args, call.kwargs))
    torch.manual_seed(0)
    with torch.inference_mode(False), torch.enable_grad():
        out = stream_out(nn.Module.__call__(copy, *args, **kwargs))
        if out is None or not out.requires_grad:
            return False
        (out * torch.randn_like(out)).sum().backward()
    present = named_parameters(copy)
    wanted = [present[name] for name in names if present[name].requires_grad]
    return all(p.grad is not None and bool(p.grad.any()) for p in wanted)


def carries_input(block: nn.Module, call: Call) -> bool:
    """Whether a block's input reaches its output past all of its matrices, as it does where a block is residual.

    All parameters of two dims and more are set to zero; the output must still follow the input then.
    """
    plain = copy_with(block, own_tensor).eval()
    matrices = [p for p in named_parameters(plain).values() if p.dim() > 1]
    with torch.no_grad():
        for matrix in matrices:
            matrix.zero_()
        outputs: list[Tensor] = []
        for moved in (False, True):
            args, kwargs = call.with_stream(call.stream.flip(0).roll(1, -1) * 1.5 + 1 if moved else call.stream)
            out = stream_out(nn.Module.__call__(plain, *args, **kwargs))
            if out is None or not bool(out.isfinite().all()):
                return False
            outputs.append(out)
    return bool(matrices) and not torch.equal(*outputs)


class _Order(TorchDispatchMode):
    """Notes in which order tensors enter operations first."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self.known = {id(t) for t in tensors}
        self.seen: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if id(leaf) in self.known:
                self.seen.setdefault(id(leaf), len(self.seen))
        return func(*args, **(kwargs or {}))


def _in_order_of_use(block: nn.Module, call: Call) -> dict[str, int]:
    """When each parameter is used first; those that are never used are missing."""
    present = named_parameters(block)
    args, kwargs = fresh((call.args, call.kwargs))
    with torch.no_grad(), _Order(present.values()) as order:
        nn.Module.__call__(block, *args, **kwargs)
    return {name: order.seen[id(p)] for name, p in present.items() if id(p) in order.seen}
