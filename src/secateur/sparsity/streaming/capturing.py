"""What the model gives to its first block, and what else it gives to each of them: masks, positions, whatever it is.

The model's own forward runs with blocks that only note what they are given, and hand on the first of it. So nothing is
assumed about what blocks take; what is assumed, and checked, is that they hand one tensor from one to the next.

"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from secateur.calibration.batches import Batch
from secateur.errors import ModelError
from secateur.inputs import fresh
from secateur.modules import Walk
from secateur.sparsity.streaming.skeleton import Skeleton
from secateur.tracing.surroundings import seed_draws


@dataclass(frozen=True, kw_only=True)
class Given:
    """What one block is given beside the activations, for one batch.

    Attributes:
        name: of the keyword by which it gets the activations; empty where they are the first positional input.
        args: further positional inputs.
        kwargs: further keyword inputs.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def run(self, block: nn.Module, hidden: Tensor) -> Any:
        """Run the block; what was given stays as it is."""
        args, kwargs = fresh(self.args), fresh(dict(self.kwargs))
        if self.name:
            return block(*args, **{self.name: hidden.clone()}, **kwargs)
        return block(hidden.clone(), *args, **kwargs)


@dataclass(kw_only=True)
class Captured:
    """What the blocks are given, for one batch.

    Attributes:
        hidden: the activations before the first block.
        given: what else, for each block.
    """

    hidden: Tensor
    given: list[Given] = field(default_factory=list[Given])


class _Enough(BaseException):
    """Ends a forward pass of which nothing more is wanted."""


class Capture:
    """Runs the part of a model that lies before its blocks.

    Args:
        skeleton: the model; what it needs is loaded when it is called, and kept until it is emptied.
        blocks: its blocks, by path.
    """

    def __init__(self, skeleton: Skeleton, blocks: Sequence[tuple[str, nn.Module]]) -> None:
        self.skeleton, self.blocks = skeleton, blocks
        self.form: Callable[[Tensor], Any] | None = None
        self._blank: list[Tensor] = []  # what blocks give besides, as NaN
        self._known: dict[str, list[Tensor]] = {}
        self._last: Tensor | None = None

    def __call__(self, batch: Batch) -> Captured:
        """What the blocks are given on one batch.

        Raises:
            ModelError: the blocks hand on more than one tensor, or something happens between them.
            DataError: the model fails.
        """
        found: list[Captured] = []
        hooks = self._loading()
        try:
            for number, (_, block) in enumerate(self.blocks):
                vars(block)["forward"] = self._noting(number, found)
            seed_draws()
            batch.run(self.skeleton.model)
        except _Enough:
            pass
        finally:
            for _, block in self.blocks:
                vars(block).pop("forward", None)
            for hook in hooks:
                hook.remove()
        if not found or len(found[0].given) != len(self.blocks):
            passed = len(found[0].given) if found else 0
            raise ModelError(
                f"{type(self.skeleton.model).__name__} runs {passed} of its {len(self.blocks)} blocks on batch "
                f"{batch.number}: load it and prune it in memory"
            )
        return found[0]

    def _loading(self) -> list[Any]:
        """Modules outside the blocks get their weights when they are called."""
        inner = {id(module) for _, block in self.blocks for module in block.modules()}
        hooks: list[Any] = []
        for path, module in Walk(self.skeleton.model).named:
            if id(module) not in inner and (module._parameters or module._buffers):

                def load(module: nn.Module, args: Any, path: str = path) -> None:
                    self.skeleton.load(path, module, whole=False)

                hooks.append(module.register_forward_pre_hook(load))
        return hooks

    def _noting(self, number: int, found: list[Captured]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            name = "" if args and isinstance(args[0], Tensor) else "hidden_states"
            hidden = args[0] if not name else kwargs.pop(name, None)
            if not isinstance(hidden, Tensor) or hidden.is_meta:
                raise ModelError(f"{self.blocks[number][0]} gets no activations as its first input: prune it in memory")
            if number == 0:
                found.append(Captured(hidden=hidden.detach().clone()))
            elif not found or hidden is not self._last:
                raise ModelError(
                    f"{type(self.skeleton.model).__name__} does something to the activations before "
                    f"{self.blocks[number][0]}: load it and prune it in memory"
                )
            rest = args[1:] if not name else args
            self._check_apart((rest, kwargs), self.blocks[number][0])
            given = Given(name=name, args=self._once(rest, "a"), kwargs=self._once(kwargs, "k"))
            found[0].given.append(given)
            if number == len(self.blocks) - 1:
                raise _Enough
            if self.form is None:
                self.form = self._form(number, given, hidden)
            self._last = hidden.clone()
            return self.form(self._last)

        return forward

    def _once(self, values: Any, where: str) -> Any:
        """The same values with each tensor held once, however often blocks and batches are given its like."""

        def held(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            known = self._known.setdefault(f"{where} {value.dtype} {tuple(value.shape)}", [])
            for other in known:
                if torch.equal(other, value):
                    return other
            known.append(value.detach().clone())
            return known[-1]

        return tree_map(held, values)

    def _form(self, number: int, given: Given, hidden: Tensor) -> Callable[[Tensor], Any]:
        """How a block gives its output: as a tensor, or as the first of a tuple; found by running it."""
        path, block = self.blocks[number]
        noting = vars(block).pop("forward")
        self.skeleton.load(path, block)
        out = given.run(block, hidden)
        vars(block)["forward"] = noting
        output_of(out, path)
        if isinstance(out, Tensor):
            return lambda tensor: tensor
        kind: Any = type(cast("Sequence[Any]", out))
        rest = tree_map(self._blanked, list(cast("Sequence[Any]", out))[1:])
        return lambda tensor: kind([tensor, *rest])

    def _blanked(self, value: Any) -> Any:
        """NaN in the place of what a block gives besides the activations: whoever uses it shall be seen."""
        if not isinstance(value, Tensor):
            return value
        self._blank.append(torch.full_like(value, torch.nan) if value.is_floating_point() else torch.zeros_like(value))
        return self._blank[-1]

    def _check_apart(self, values: Any, path: str) -> None:
        """Blocks get nothing that other blocks give but the activations."""
        for leaf in tree_leaves(values):
            if not isinstance(leaf, Tensor):
                continue
            if any(leaf is blank for blank in self._blank) or (leaf.is_floating_point() and bool(leaf.isnan().any())):
                raise ModelError(
                    f"{path} takes more than the activations from the blocks before it: load the model and prune it in "
                    "memory"
                )


def output_of(out: Any, path: str) -> Tensor:
    """The activations among what a block gives: its output, or the first of several.

    Raises:
        ModelError: that is no tensor.
    """
    if isinstance(out, tuple | list) and out:
        out = cast("Sequence[Any]", out)[0]
    if not isinstance(out, Tensor):
        raise ModelError(f"{path} gives a {type(out).__name__}, not activations: load the model and prune it in memory")
    return out
