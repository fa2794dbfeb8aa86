"""In which order the weights of a block are pruned: that of their uses; those that get the same inputs go together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from secateur.calibration.contraction import Contraction, Product
from secateur.calibration.watching import Key, Watch
from secateur.memory import release
from secateur.sparsity.layers import Layer
from secateur.sparsity.passing import Call, is_whole
from secateur.sparsity.streaming.sharing import Group
from secateur.tracing.surroundings import seed_draws


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Weights of a block that are pruned together, since they are given the same inputs.

    Attributes:
        names: within the block, in the order of their uses.
        several: a run uses it more than once, and all uses count.
    """

    names: tuple[str, ...]
    several: bool = False


@dataclass(kw_only=True)
class Order:
    """In which order the weights of a block are pruned.

    Attributes:
        stages: one after the other.
        odd: weights whose use is no product with the matrix as it is.
    """

    stages: list[Stage] = field(default_factory=list[Stage])
    odd: list[str] = field(default_factory=list[str])


def find_order(block: nn.Module, layers: Mapping[str, Layer], calls: Sequence[Call]) -> Order:
    """Run the block on the first batch, and on more until every weight was reached."""
    found, seen = Order(), set[str]()
    for call in calls:
        watch = _Noting(block, layers)
        seed_draws()
        with watch:
            call.run(block)
        stages = [replace(s, names=tuple(n for n in s.names if n not in seen)) for s in watch.found()]
        found.stages += [stage for stage in stages if stage.names]
        found.odd += [name for name in watch.odd if name not in found.odd]
        seen |= watch.times.keys()
        if layers.keys() <= seen:
            break
    release()
    return found


class _Noting(Watch):
    """Notes which weights are used, in which order, and which of them on the same inputs."""

    def __init__(self, model: nn.Module, layers: Mapping[str, Layer]) -> None:
        super().__init__(model)
        self.layers = layers
        self.times: dict[str, int] = {}
        self.odd: dict[str, None] = {}
        self.stages: list[list[str]] = []
        self.inputs: tuple[Any, ...] = ()
        self.held: Tensor | None = None  # so that nothing else comes to lie in its memory

    def used(self, key: Key, number: int, found: Contraction, compute: Callable[[], Tensor]) -> Tensor:
        if (layer := self.layers.get(key[0])) is not None:
            self.times[key[0]] = key[1] + 1
            if not is_whole(found, layer):
                self.odd.setdefault(key[0])
            elif key[1] == 0:
                self._note(key[0], found)
        return compute()

    def _note(self, name: str, found: Contraction) -> None:
        x = found.x
        inputs = (x.data_ptr(), x.dtype, x.shape, x.stride(), x._version)
        if isinstance(found, Product) and self.held is not None and inputs == self.inputs:
            self.stages[-1].append(name)
        else:
            self.stages.append([name])
        self.inputs, self.held = inputs, x if isinstance(found, Product) else None

    def found(self) -> list[Stage]:
        """The stages; weights of several uses each have one of their own."""
        stages: list[Stage] = []
        for names in self.stages:
            sound = [name for name in names if name not in self.odd]
            stages += [Stage(names=(n,), several=True) for n in sound if self.times[n] > 1]
            if once := tuple(n for n in sound if self.times[n] == 1):
                stages.append(Stage(names=once))
        return stages


def agreed(mine: Order, group: Group) -> Order:
    """The first process's order, and then what others saw that it did not."""
    orders: list[Order] = group.gathered(mine)
    found, seen = Order(), set[str]()
    for order in orders:
        stages = [replace(s, names=tuple(n for n in s.names if n not in seen)) for s in order.stages]
        found.stages += [stage for stage in stages if stage.names]
        found.odd += [name for name in order.odd if name not in found.odd]
        seen |= {name for stage in order.stages for name in stage.names}
    stages = [replace(s, names=tuple(n for n in s.names if n not in found.odd)) for s in found.stages]
    return Order(stages=[stage for stage in stages if stage.names], odd=found.odd)
