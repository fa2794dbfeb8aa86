"""Widths that a layer only says, and hands to no call of torch: ``print(model)`` must not lie about these either."""

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from secateur.modules import Walk
from secateur.tracing.sizes import SizeMode

SAID: tuple[tuple[type[nn.Module], str], ...] = ((nn.GroupNorm, "num_channels"), (_NormBase, "num_features"))


def watch_widths(walk: Walk, sizes: SizeMode) -> None:
    """Note the width of norms that have neither affine parameters nor statistics, whenever one is called."""
    for module in walk.modules:
        for kind, name in SAID:
            if isinstance(module, kind) and not [*module.parameters(), *module.buffers()]:
                module.register_forward_pre_hook(partial(_note, sizes, name), with_kwargs=True)


def _note(sizes: SizeMode, name: str, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    x = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
    if x is None:
        return
    dim = sizes.tracer.dims(x)[0 if isinstance(module, _InstanceNorm) and x.dim() == module._get_no_batch_dim() else 1]
    if dim.size == getattr(module, name):
        sizes.note(type(module), getattr(module, name), dim, ())
