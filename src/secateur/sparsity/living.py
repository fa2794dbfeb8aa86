"""``sc.keep_masks``: weights that were removed stay exactly zero, whatever trains the model."""

import weakref
from collections.abc import Iterable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle, unserializable_hook

from secateur.errors import SparsityError
from secateur.modules import named_parameters
from secateur.sparsity.remembering import zero_masks
from secateur.sparsity.stepping import Closure, listen

_KEPT: "weakref.WeakKeyDictionary[nn.Module, list[KeptMasks]]" = weakref.WeakKeyDictionary()
"""What `keep_masks` gave lives as long as the model, held or not."""


def keep_masks(
    model: nn.Module,
    masks: Mapping[str, Tensor] | None = None,
    *,
    only: Iterable[str] = (),
    ignore: Iterable[str] = (),
) -> "KeptMasks":
    """Keep removed weights at exactly zero while the model trains: in a loop of your own, a Trainer, `secateur.tune`.

    A plain loop revives them: gradients, momenta and an average of gradients from before move them. Here gradients of
    removed weights are zero before anything looks at them (clipping, other processes), and after each step of whatever
    optimizer these weights and all of its state that has their shape are zero again: so neither momentum nor weight
    decay can bring one back. The model stays what it is: no parametrization, the same parameters and keys of
    ``state_dict``, so that optimizers, moving averages, DDP, autocast, ``deepcopy`` and ``torch.compile`` see nothing
    of it. A copy of the model is not kept; call it for the copy. Parameters that FSDP shards can't be kept.

    Args:
        model: a sparse model; its weights are changed where ``masks`` say so.
        masks: by the parameter's name, bool, True = stays, as `Sparsified.masks`. None: the zeros that it has, in the
            weights that its history says were pruned; without such a history in all linear and convolutional weights
            with zeros among other numbers.
        only, ignore: names of parameters or modules, or globs, where ``masks`` are not given.

    Returns:
        What keeps them, until its ``remove()``, the end of a ``with``, or the end of the model.

    Raises:
        SparsityError: there is nothing to keep, or masks do not fit.

    Example:
        >>> import torch, secateur as sc
        >>> net = sc.sparsify(torch.nn.Linear(8, 4), sparsity=0.5).model
        >>> optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
        >>> with sc.keep_masks(net) as kept:
        ...     for _ in range(3):
        ...         net(torch.randn(2, 8)).square().sum().backward()
        ...         optimizer.step()
        >>> kept.sparsity, int((net.weight == 0).sum())
        (0.5, 16)
    """
    found = zero_masks(model, only, ignore) if masks is None else dict(masks)
    have = named_parameters(model)
    if masks is not None:
        _check(type(model).__name__, found, have)
    if not found:
        raise SparsityError(
            f"this {type(model).__name__} has no weight with zeros to keep: make it sparse with sc.sparsify, or pass "
            "masks="
        )
    kept = KeptMasks({name: have[name] for name in found}, found)
    _KEPT.setdefault(model, []).append(kept)
    return kept


class KeptMasks:
    """Masks that are kept on weights; see `keep_masks`.

    Attributes:
        weights: the parameters, by name.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor]) -> None:
        first = {id(weights[name]): name for name in reversed(list(weights))}
        self.weights = {name: weights[name] for name in weights if first[id(weights[name])] == name}
        self._gone: dict[str, Tensor] = {}
        self.set(masks)
        self._handles: list[RemovableHandle] = [listen(self)]
        for name, weight in self.weights.items():
            if weight.requires_grad:
                self._handles.append(weight.register_hook(_silencing(weakref.ref(self), name)))

    @property
    def masks(self) -> dict[str, Tensor]:
        """By name, bool, True = stays."""
        return {name: ~self.gone(name) for name in self.weights}

    @property
    def sparsity(self) -> float:
        """Share of these weights that is removed, in [0, 1]."""
        total = sum(gone.numel() for gone in self._gone.values())
        return sum(int(gone.sum()) for gone in self._gone.values()) / max(total, 1)

    def gone(self, name: str) -> Tensor:
        """Where a weight is removed, bool, on the weight's device."""
        if self._gone[name].device != self.weights[name].device:
            self._gone[name] = self._gone[name].to(self.weights[name].device)
        return self._gone[name]

    def set(self, masks: Mapping[str, Tensor]) -> None:
        """Take other masks from now on, and silence what they remove."""
        self._gone = {name: ~masks[name].to(weight.device) for name, weight in self.weights.items()}
        self.apply_()

    @torch.no_grad()
    def apply_(self) -> None:
        """Silence what is removed, in the weights as they are."""
        for name, weight in self.weights.items():
            weight.masked_fill_(self.gone(name), 0)

    def before(self, optimizer: torch.optim.Optimizer, names: list[str], closure: Closure | None) -> Closure | None:
        """Nothing is to be done before a step: gradients are silenced as they come, in a closure as elsewhere."""
        return closure

    def after(self, optimizer: torch.optim.Optimizer, names: list[str]) -> None:
        """Silence weights and the optimizer's state after a step."""
        for name in names:
            weight, gone = self.weights[name], self.gone(name)
            weight.masked_fill_(gone, 0)
            for value in optimizer.state.get(weight, {}).values():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    value.masked_fill_(gone.to(value.device), 0)

    def remove(self) -> None:
        """Keep them no longer; the weights stay as they are."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for held in _KEPT.values():
            held[:] = [other for other in held if other is not self]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


def _silencing(known: "weakref.ref[KeptMasks]", name: str) -> Any:
    """A hook on a weight's gradient that makes it zero where the weight is removed."""

    @unserializable_hook
    def silence(gradient: Tensor) -> Tensor:
        kept = known()
        if kept is None or gradient.layout != torch.strided:
            return gradient
        return gradient.masked_fill(kept.gone(name).to(gradient.device), 0)

    return silence


def _check(model: str, masks: Mapping[str, Tensor], have: Mapping[str, nn.Parameter]) -> None:
    odd = [
        f"{name} {tuple(mask.shape)} {str(mask.dtype).removeprefix('torch.')}"
        + (f" for {tuple(have[name].shape)}" if name in have else ", which it does not have")
        for name, mask in masks.items()
        if name not in have or have[name].shape != mask.shape or mask.dtype != torch.bool
    ]
    if odd:
        raise SparsityError(f"masks do not fit {model}: {'; '.join(odd[:5])}. Give bool tensors of its weights' shapes")
