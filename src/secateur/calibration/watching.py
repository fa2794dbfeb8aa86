"""Seeing every operation of a run as it happens, and what each has to do with the model's weights."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.calibration.contraction import KINDS, Contraction, owners
from secateur.modules import Walk, named_parameters, named_tensors
from secateur.tracing.kernels import call
from secateur.tracing.rules.registry import Signature, signature
from secateur.tracing.shadow import copied, evaluating

Key = tuple[str, int]
"""Where a weight is used: the parameter's name, and the how-manieth use of it in the run, from 0."""


STRIDE = 2**20  # numbers of operations between one use of a weight and the next
UNCOUNTED = {"aten::detach", "aten::alias", "aten::lift_fresh"}  # there or not, as gradients and caches will have it


class Watch(TorchDispatchMode):
    """Numbers the operations of one run, and knows those that use a weight.

    Numbers ascend, and begin anew after each use of a weight, at the next multiple of `STRIDE`: what a run does once
    only (a cache that is filled, a mask that is made) moves no numbers but those up to the next use.

    Args:
        model: whose parameters count as weights; the tensors that run must be these.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.owner = owners(named_parameters(model))
        self.uses: dict[str, int] = {}
        self.count = 0  # operations so far

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            return func(*args, **kwargs)
        said = signature(func)
        number, self.count = self.count, self.count + (said.name not in UNCOUNTED)
        kind = KINDS.get(said.name)
        found = kind(said.bind(args, kwargs), self.owner) if kind is not None else None
        if found is None:
            out = call(func, args, kwargs)
            self.ran(number, said, args, kwargs, out)
            return out
        use = self.uses.get(found.name, 0)
        self.uses[found.name] = use + 1
        self.count = (number // STRIDE + 1) * STRIDE
        out = self.used((found.name, use), number, found, lambda: call(func, args, kwargs))
        self.ran(number, said, args, kwargs, out)
        return out

    def used(self, key: Key, number: int, found: Contraction, compute: Callable[[], Tensor]) -> Tensor:
        """An operation is about to use a weight; returns its output."""
        return compute()

    def ran(self, number: int, said: Signature, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
        """An operation has run."""


def running(model: nn.Module, own: Collection[str] | None = None) -> nn.Module:
    """A copy of the model in evaluation mode, to be run: its parameters are the model's own.

    Args:
        own: tensors that it gets copies of, by name; None for all that a run may write to, buffers above all.
    """
    tensors = named_tensors(model)
    mine = {id(tensors[name]) for name in (writable(model) if own is None else own)}

    def take(tensor: Tensor) -> Tensor:
        if id(tensor) not in mine:
            return tensor
        values = tensor.detach().clone()
        return nn.Parameter(values, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values

    return evaluating(copied(Walk(model), take))


def writable(model: nn.Module) -> set[str]:
    """The names of what a run may write to: buffers, and weights whose rows a layer scales down to a norm."""
    scaled = {id(m.weight) for m in model.modules() if getattr(m, "max_norm", None) is not None}
    return {n for n, t in named_tensors(model).items() if not isinstance(t, nn.Parameter) or id(t) in scaled}


def written(model: nn.Module, copy: nn.Module) -> frozenset[str]:
    """The names of what runs of a copy that `running` made write to, as far as its runs so far have shown."""
    now, found = named_tensors(copy), named_tensors(model)
    return frozenset(
        n for n in writable(model) if isinstance(found[n], nn.Parameter) or not torch.equal(now[n], found[n])
    )
