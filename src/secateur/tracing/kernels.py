"""Results of operations for inputs that torch's own kernels refuse: tensors without values, and float64."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode


def _grouped_mm(x: Tensor, weight: Tensor, ends: Tensor, *rest: Any, **more: Any) -> Tensor:
    """Rows sorted by group (S, K), a matrix for each group (G, K, N), and where each group's rows end, (G,)."""
    out = x.new_zeros((x.shape[0], weight.shape[-1]))
    if not _is_empty(x):
        start = 0
        for matrix, end in zip(weight, ends.tolist(), strict=True):
            out[start:end] = x[start:end] @ matrix
            start = max(start, end)
    return out


def _is_empty(tensor: Tensor) -> bool:
    """Whether the tensor has no values, only a shape."""
    return isinstance(tensor, FakeTensor) or tensor.device.type == "meta"


KERNELS: dict[str, Callable[..., Tensor]] = {"aten::_grouped_mm": _grouped_mm}


def call(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The result of an operation, from a kernel of ours where torch has none."""
    kernel = KERNELS.get(func._schema.name)
    if kernel is None or (args[0].dim(), args[1].dim()) != (2, 3):
        return func(*args, **kwargs)
    refused = _is_empty(args[0]) or args[0].dtype == torch.float64
    return (kernel if refused else func)(*args, **kwargs)


class Kernels(TorchDispatchMode):
    """Lets a model run where it needs these kernels."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        return call(func, args, kwargs or {})
