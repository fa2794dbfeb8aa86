"""Which weights sum over the units of an axis: where units are repeated, these are divided among the copies.

A sum of products has two sides, and one of them is to carry the division. A weight does where everything that reads it
sums over the same dim; else the parameters that the other side scales with (`scales`), as where attention multiplies
queries and keys, or where a head is tied to an embedding.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from secateur.axes import Expr, Sum, resolve
from secateur.graph import AxisInfo, Consumer, named
from secateur.tracing.build import Names
from secateur.tracing.rules.registry import Op
from secateur.tracing.scales import Masks, NotLinear, back, ranges
from secateur.tracing.tracer import Tracer

Place = tuple[int, int]  # the id of a parameter, and a dim of it


class Consumers:
    """Finds the weights that sum over the axes of a trace.

    Args:
        tracer: after the run.
        names: of its axes.
        parameters: the stand-ins of the run, by name.
        recomputed: ids of tensors that surgery computes anew, which nothing has to be done to.
    """

    def __init__(self, tracer: Tracer, names: Names, parameters: dict[str, Tensor], recomputed: set[int]) -> None:
        self.tracer, self.names = tracer, names
        self.first = {id(t): (name, t) for name, t in reversed(parameters.items())}
        self.roots: dict[int, frozenset[int]] = {}  # by id of a tensor
        self.events = [e for e in tracer.contractions if not any(self._anew(t, recomputed) for t, _ in e[2])]
        self.direct: dict[int, dict[Place, Masks]] = {}  # by id of the operation: the weights that it sums over itself
        self.readers: dict[int, set[int]] = {}  # by id of the parameter: the operations that compute with it

    def find(self, infos: dict[str, AxisInfo]) -> list[Consumer]:
        """The consumers; axes whose units can't be repeated get the reason."""
        for dim, why in self.tracer.once:
            _note(infos, named([self.names.finish(dim)]), why)
        wanted = [(e, axes) for e in self.events if (axes := _free(named([self.names.finish(e[1])]), infos))]
        self._read()
        for (op, _, ends, _), _ in wanted:
            for tensor, dim in ends:
                if self.tracer.is_weight(tensor):
                    self.direct.setdefault(id(op), {}).update(self._reach(tensor, dim) or {})
        found: dict[Consumer, None] = {}
        for (op, _, ends, place), axes in wanted:
            some = self._consumers(op, ends, axes)
            found.update(dict.fromkeys(some))
            if not some:
                _note(infos, axes, f"no weights can be divided among the copies for {op.name} at {place}")
        return list(found)

    def _read(self) -> None:
        """Which operations compute with each parameter, as it is or with weights that are computed from it."""
        for op in {id(op): op for op, _ in self.tracer.made.values()}.values():
            if not self._of_weights(op):
                for tensor in op.operands:
                    for root in self._roots(tensor):
                        self.readers.setdefault(root, set()).add(id(op))

    def _roots(self, tensor: Tensor) -> frozenset[int]:
        """The ids of the parameters and buffers that a weight is computed from; none of an activation or a constant."""
        found = self.roots.get(id(tensor))
        if found is None:
            made = self.tracer.made.get(id(tensor))
            self.roots[id(tensor)] = frozenset()  # an operation may give what it took
            if not self.tracer.is_weight(tensor):
                found = frozenset[int]()
            elif made is None:
                found = frozenset({id(tensor)} & self.first.keys())
            elif self._of_weights(made[0]):
                found = frozenset[int]().union(*map(self._roots, made[0].operands))
            else:
                found = frozenset[int]()
            self.roots[id(tensor)] = found
        return found

    def _of_weights(self, op: Op) -> bool:
        """Whether an operation computes a weight from others, numbers apart."""
        wide = [t for t in op.operands if t.dim()]
        return bool(wide) and all(map(self.tracer.is_weight, op.outputs())) and all(map(self._roots, wide))

    def _anew(self, tensor: Tensor, recomputed: set[int]) -> bool:
        """Whether a tensor is computed from nothing but what surgery computes anew."""
        roots = self._roots(tensor)
        return bool(roots) and roots <= recomputed

    def _consumers(self, op: Op, ends: Iterable[tuple[Tensor, int]], axes: list[str]) -> list[Consumer]:
        """The weights of the first side that can carry the division; none where no side can."""
        for tensor, dim in ends:
            places = self._reach(tensor, dim)
            if places is None or (self.tracer.is_weight(tensor) and not self._alone(op, places)):
                continue
            some = [self._consumer(place, masks, axes) for place, masks in places.items()]
            if all(c.axes for c in some):
                return some
        return []

    def _alone(self, op: Op, places: Mapping[Place, Masks]) -> bool:
        """Whether whatever reads the parameters sums over the same dims of them."""
        others = ((place, reader) for place in places for reader in self.readers.get(place[0], set()) - {id(op)})
        return all(place in self.direct.get(reader, {}) for place, reader in others)

    def _consumer(self, place: Place, masks: Masks, axes: list[str]) -> Consumer:
        at, dim = place
        name, tensor = self.first[at]
        own = named([self.names.finish(self.tracer.dims(tensor)[dim])])
        return Consumer(tensor=name, dim=dim, positions=ranges(masks[dim]), axes=tuple(n for n in axes if n in own))

    def _reach(self, tensor: Tensor, dim: int) -> dict[Place, Masks] | None:
        """The dims of parameters that a dim of a tensor is made of, with the positions; None where nobody knows."""
        made = self.tracer.made
        full = [torch.ones(s, dtype=torch.bool) for s in tensor.shape]
        try:
            whole = _joined(back(tensor, full, made))
            left, found = dict(whole), dict[Place, Masks]()
            for start in _starts(self.tracer.dims(tensor)[dim]):
                probe = torch.zeros(tensor.shape[dim], dtype=torch.bool)
                probe[start] = True
                for at, masks in _joined(back(tensor, [*full[:dim], probe, *full[dim + 1 :]], made)).items():
                    differ = [k for k, m in enumerate(masks) if not torch.equal(m, whole[at][k])]
                    found.update({(at, k): whole[at] for k in differ})
                    if differ:
                        left.pop(at, None)
                if not left:
                    break
        except NotLinear:
            return None
        return found if found and not left else None


def _joined(reached: Iterator[tuple[Tensor, Masks]]) -> dict[int, Masks]:
    """The positions of each parameter, by its id, on whichever way they were reached."""
    found: dict[int, Masks] = {}
    for parameter, masks in reached:
        old = found.get(id(parameter))
        found[id(parameter)] = masks if old is None else [a | b for a, b in zip(old, masks, strict=True)]
    return found


def _starts(dim: Expr) -> list[int]:
    """Where the parts of a dim begin."""
    dim = resolve(dim)
    parts = dim.parts if isinstance(dim, Sum) else (dim,)
    return [sum(p.size for p in parts[:k]) for k in range(len(parts))]


def _free(axes: Iterable[str], infos: Mapping[str, AxisInfo]) -> list[str]:
    return [n for n in dict.fromkeys(axes) if n in infos and not infos[n].frozen]


def _note(infos: dict[str, AxisInfo], axes: Iterable[str], why: str) -> None:
    for name in _free(axes, infos):
        infos[name] = replace(infos[name], once=tuple(dict.fromkeys([*infos[name].once, why])))
