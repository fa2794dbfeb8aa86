"""Passes of data through a model as it is: where its weights are used, and what comes to them.

Shape letters: G groups, R rows, K features of a group with the window.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from secateur.calibration.contraction import Contraction, Convolution
from secateur.calibration.watching import Key, Watch, writable
from secateur.errors import DataError
from secateur.modules import Walk, named_tensors
from secateur.progress import Advance
from secateur.sparsity.layers import Layer
from secateur.sparsity.statistics import Statistics
from secateur.tracing.shadow import copied, evaluating
from secateur.tracing.surroundings import quiet_backends, seed_draws

PLACES = 2**15  # places of a convolution's window, over all the data: neighbouring ones say nearly the same


class Call(Protocol):
    """Something that a module is run on: a batch of data, or what a block of a model was given.

    Attributes:
        number: from 0.
        given: the batch; where it is a mapping with an ``attention_mask``, padding is left out.
    """

    @property
    def number(self) -> int: ...

    @property
    def given(self) -> Any: ...

    def run(self, model: nn.Module) -> Any:
        """Run the module; returns its output."""
        ...


@dataclass(kw_only=True)
class Uses:
    """Where a model uses the weights that are to be pruned.

    Attributes:
        order: all uses of weights, so that every run that was seen goes through its own in this order.
        times: how often each is used in a run, most.
        odd: weights whose use is no product with the matrix as it is, with the reason.
    """

    order: list[Key] = field(default_factory=list[Key])
    times: dict[str, int] = field(default_factory=dict[str, int])
    odd: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def several(self) -> frozenset[str]:
        """Weights that a run uses more than once."""
        return frozenset(name for name, times in self.times.items() if times > 1)


def find_uses(model: nn.Module, layers: Mapping[str, Layer], calls: Iterable[Call]) -> Uses:
    """Run the model on the first batch, and on more until every weight was reached."""
    found = Uses()
    with evaluated(model) as copy:
        for call in calls:
            seed_draws()
            with _Noting(copy, layers, found):
                call.run(copy)
            if layers.keys() <= found.times.keys():
                break
    return found


class _Noting(Watch):
    """Notes the uses of weights."""

    def __init__(self, model: nn.Module, layers: Mapping[str, Layer], found: Uses) -> None:
        super().__init__(model)
        self.layers, self.found = layers, found
        self.next = 0  # the place after the last use

    def _place(self, key: Key) -> None:
        """A use that no earlier run came to stands before what follows in this one."""
        order = self.found.order
        if key not in order:
            order.insert(self.next, key)
        self.next = max(self.next, order.index(key) + 1)

    def used(self, key: Key, number: int, found: Contraction, compute: Callable[[], Tensor]) -> Tensor:
        self._place(key)
        if (layer := self.layers.get(key[0])) is not None:
            self.found.times[key[0]] = max(self.found.times.get(key[0], 0), key[1] + 1)
            if not is_whole(found, layer):
                self.found.odd[key[0]] = "it is used in parts, or the other way round"
        return compute()


def is_whole(use: Contraction, layer: Layer) -> bool:
    """Whether a use is a product of inputs with a layer's whole matrix."""
    wanted = layer.parameter if not layer.transposed else layer.parameter.T
    have = use.weight if isinstance(use, Convolution) else use.weight.mT
    return have.shape == wanted.shape and have.stride() == wanted.stride() and use.groups == layer.groups


def rows_of(use: Contraction, call: Call, most: int | None = None) -> Iterator[Tensor]:
    """What a use of a weight was given, (R, G, K) in the order of `secateur.sparsity.matrices`, part by part.

    Args:
        call: what runs; rows of padding are left out.
        most: places of a convolution that are looked at; all where there are no more.
    """
    if not isinstance(use, Convolution):
        kept = unpadded(use, call.given)
        yield use.rows(kept)
        return
    pick = use.pick(use.count(), call.number) if most is None else use.pick(max(most, 1), call.number)
    yield by_place(use.rows(pick), use.window)


def by_place(rows: Tensor, window: int) -> Tensor:
    """Features of a convolution, (R, G, channels x places), in the order of `secateur.sparsity.matrices`."""
    return rows if window == 1 else rows.unflatten(2, (-1, window)).transpose(2, 3).flatten(2)


def unpadded(use: Contraction, given: Any) -> Tensor | None:
    """The rows of a use that are no padding, where the batch has an ``attention_mask`` (samples, tokens) and the rows
    are the tokens of one sample after another; None for all rows.
    """
    mask: Any = given.get("attention_mask") if isinstance(given, Mapping) else None
    if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.numel() != use.count() or bool((mask != 0).all()):
        return None
    return (mask.reshape(-1) != 0).nonzero()[:, 0].to(use.x.device)


def collect(
    model: nn.Module,
    layers: Mapping[str, Layer],
    calls: Sequence[Call],
    needs: frozenset[str],
    step: Advance = lambda done=None, total=None: None,
) -> dict[str, Statistics]:
    """What comes to weights in the model as it is, over all their uses.

    Args:
        needs: "inputs", "gram".
        step: called after each batch.

    Raises:
        DataError: NaN or infinite activations.
    """
    found = {name: Statistics() for name in layers}
    with evaluated(model) as copy:
        for call in calls:
            seed_draws()
            with _Collecting(copy, layers, found, call, "gram" in needs, PLACES // len(calls)):
                call.run(copy)
            check_sound(found, f"batch {call.number}")
            step()
    return found


def check_sound(found: Mapping[str, Statistics], where: str) -> None:
    """Refuse activations or gradients that are NaN or infinite.

    Raises:
        DataError: naming the first weight that sees them.
    """
    if bad := [name for name, one in found.items() if not one.sound]:
        raise DataError(
            f"{where} of the calibration data gives NaN or infinite values, first at {bad[0]}: drop the batch, or find "
            "out why the model fails on it (half precision overflows beyond 65504)"
        )


class _Collecting(Watch):
    """Adds up what weights are given."""

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, Layer],
        found: Mapping[str, Statistics],
        call: Call,
        gram: bool,
        places: int,
    ) -> None:
        super().__init__(model)
        self.layers, self.found, self.call, self.gram, self.places = layers, found, call, gram, places

    def used(self, key: Key, number: int, found: Contraction, compute: Callable[[], Tensor]) -> Tensor:
        layer = self.layers.get(key[0])
        if layer is not None and is_whole(found, layer):
            with torch.no_grad():
                for rows in rows_of(found, self.call, self.places):
                    self.found[key[0]].add(rows, gram=self.gram)
        return compute()


@contextmanager
def evaluated(model: nn.Module) -> Generator[nn.Module]:
    """A copy in evaluation mode whose parameters are the model's memory, under flags of their own."""
    tensors = named_tensors(model)
    own = {id(tensors[name]) for name in writable(model)}

    def take(tensor: Tensor) -> Tensor:
        values = tensor.detach().clone() if id(tensor) in own or tensor.is_inference() else tensor.detach()
        return nn.Parameter(values, requires_grad=False) if isinstance(tensor, nn.Parameter) else values

    with quiet_backends(model):
        yield evaluating(copied(Walk(model), take))
