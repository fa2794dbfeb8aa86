"""Where a model's outputs are empty (a detector that finds nothing): what its modules gave, to compare in their place.

What a module gives in the same shape in both models holds no removed unit, so it must be the same in both. That says as
much as outputs would where every tensor that was pruned takes part in something that is compared.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from secateur.modules import named_parts, named_tensors
from secateur.tracing.running import tensors_in


class Ancestors(TorchDispatchMode):
    """Which tensors each tensor is computed from, by id."""

    def __init__(self) -> None:
        super().__init__()
        self.parents: dict[int, set[int]] = {}
        self.alive: list[Tensor] = []  # ids stay unique while their tensors live

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given = [v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
        made = [v for v in tree_leaves(out) if isinstance(v, Tensor)]
        for tensor in made:
            self.parents.setdefault(id(tensor), set()).update(map(id, given))
        self.alive += [*given, *made]
        return out

    def of(self, tensors: Iterable[Tensor]) -> set[int]:
        """The ids of all that the tensors are computed from, and their own."""
        found: set[int] = set()
        waiting = [id(t) for t in tensors]
        while waiting:
            at = waiting.pop()
            if at not in found:
                found.add(at)
                waiting += self.parents.get(at, ())
        return found


class Watch:
    """Keeps what each call of each module of one model gives."""

    def __init__(self) -> None:
        self.given: dict[tuple[str, int, int], Tensor] = {}  # by module, call, and place among what it gives
        self.tensors: dict[str, Tensor] = {}
        self._calls: dict[str, int] = {}

    def on(self, model: nn.Module) -> None:
        self.tensors = named_tensors(model)
        for path, module in named_parts(model):
            module.register_forward_hook(partial(self._note, path))

    def _note(self, path: str, module: nn.Module, args: Any, out: Any) -> None:
        call = self._calls[path] = self._calls.get(path, 0) + 1
        self.given |= {(path, call, k): t for k, t in enumerate(tensors_in(out)) if t.is_floating_point()}

    def pairs(self, other: "Watch") -> list[tuple[Tensor, Tensor]]:
        """What both models give in the same place and shape."""
        both = [(t, other.given[at]) for at, t in self.given.items() if at in other.given]
        return [(a, b) for a, b in both if a.shape == b.shape and a.numel()]
