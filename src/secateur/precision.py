"""The proof's precision, for code that casts to one of its own."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

FLOATING = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


class Precise(TorchDispatchMode):
    """Whatever floating type code asks for (``x.to(torch.bfloat16)``), it gets this one.

    So a model whose code insists on a low precision is compared with its smaller self in a high one.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("dtype") in FLOATING:
            kwargs = {**kwargs, "dtype": self.dtype}
        return func(*args, **kwargs)
