"""Where a model's outputs are empty (a detector that finds nothing): what its modules gave, to compare in their place.

What a module gives in the same shape in both models holds no removed unit, so it must be the same in both. That says as
much as outputs would where every tensor that was pruned takes part in something that is compared.
"""

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from functools import partial, reduce
from operator import or_
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from secateur.modules import named_parts
from secateur.tracing.rules.registry import tensors_among, tensors_of
from secateur.tracing.running import tensors_in

Place = tuple[str, int, int]  # a module, which call of it, and which of the tensors that it gives


class Ancestors(TorchDispatchMode):
    """Which of the tensors that it is told of each tensor is computed from."""

    def __init__(self) -> None:
        super().__init__()
        self._names: list[str] = []
        self._known: MutableMapping[Tensor, int] = WeakTensorKeyDictionary()  # a bit for each name

    def introduce(self, tensors: Mapping[str, Tensor]) -> None:
        for k, tensor in enumerate(tensors.values(), len(self._names)):
            self._known[tensor] = self._of([tensor]) | 1 << k
        self._names += tensors

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        from_ = self._of(tensors_among((*args, *kwargs.values())))
        for tensor in tensors_of(out):
            self._known[tensor] = self._of([tensor]) | from_
        return out

    def _of(self, tensors: Iterable[Tensor]) -> int:
        return reduce(or_, (self._known.get(t, 0) for t in tensors), 0)

    def of(self, tensors: Iterable[Tensor]) -> set[str]:
        """The names of all that the tensors are computed from."""
        bits = self._of(tensors)
        return {name for k, name in enumerate(self._names) if bits >> k & 1}


class Watch:
    """Keeps what each call of each module of one model gives, where it is wanted."""

    def __init__(self) -> None:
        self.given: dict[Place, Tensor] = {}
        self._calls: dict[str, int] = {}

    def on(self, model: nn.Module, wanted: Callable[[Place, Tensor], bool]) -> None:
        for path, module in named_parts(model):
            module.register_forward_hook(partial(self._note, path, wanted))

    def _note(self, path: str, wanted: Callable[[Place, Tensor], bool], module: nn.Module, args: Any, out: Any) -> None:
        call = self._calls[path] = self._calls.get(path, 0) + 1
        for k, tensor in enumerate(tensors_in(out)):
            if tensor.is_floating_point() and tensor.numel() and wanted((path, call, k), tensor):
                self.given[path, call, k] = tensor

    def pairs(self, other: "Watch") -> list[tuple[Tensor, Tensor]]:
        """What both models give in the same place and shape."""
        both = [(t, other.given[at]) for at, t in self.given.items() if at in other.given]
        return [(a, b) for a, b in both if a.shape == b.shape]
