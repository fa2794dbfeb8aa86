"""What the example inputs did not reach: it keeps its sizes, and so does what it would share with the rest."""

from collections.abc import Iterable, Iterator, Mapping

from torch import nn

from secateur.axes import Axis, Expr, Leaf, leaves, resolve
from secateur.tracing.tracer import Tracer

Dims = Mapping[str, list[Expr]]


def freeze_unread(tracer: Tracer, dims: Dims) -> None:
    """What computes nothing on the example inputs (spare rows of a table, a layer for training) may on others."""
    computed = _computed(tracer)
    for axis in _axes(e for exprs in dims.values() for e in exprs):
        if axis.order not in computed:
            tracer.algebra.freeze(axis, "the forward pass on the example inputs never reads it")


def freeze_alternatives(tracer: Tracer, model: nn.Module, dims: Dims) -> None:
    """Where values decided which of several like modules run (experts in a list), other inputs may run the others in
    their place: what those that ran share with the rest of the model must keep the size that the others expect.
    """
    computed = _computed(tracer)
    orders = {name: {a.order for a in _axes(exprs)} for name, exprs in dims.items()}
    read = {name: bool(own & computed) for name, own in orders.items() if own}
    if all(read.values()):
        return
    for path, ran, idle in _alternatives(model, read):
        inside = f"{path}{ran}."
        outside = {order for n, own in orders.items() if not n.startswith(inside) for order in own}
        reason = f"{path}{idle} would run in the place of {inside[:-1]}, but the example inputs do not reach it"
        for axis in _axes(e for n, es in dims.items() if n.startswith(inside) for e in es):
            if axis.order in outside:
                tracer.algebra.freeze(axis, reason)


def _alternatives(model: nn.Module, read: Mapping[str, bool]) -> Iterator[tuple[str, str, str]]:
    """For each child that ran beside one of its class that did not: the path to both, and their names.

    Args:
        read: for each tensor, whether the forward pass computed with it.
    """

    def state(prefix: str) -> bool | None:
        found = [value for name, value in read.items() if name.startswith(prefix)]
        return any(found) if found else None

    for path, parent in model.named_modules():
        prefix = f"{path}." if path else ""
        states = {name: state(f"{prefix}{name}.") for name, _ in parent.named_children()}
        for name, child in parent.named_children():
            idle = next((n for n, c in parent.named_children() if type(c) is type(child) and states[n] is False), None)
            if states[name] and idle is not None:
                yield prefix, name, idle


def _computed(tracer: Tracer) -> set[int]:
    return {axis.order for axis in _axes(tracer.computed.values())}


def _axes(exprs: Iterable[Expr]) -> list[Axis]:
    found: list[Axis] = []
    for whole in map(resolve, exprs):
        if isinstance(whole, Axis):
            found.append(whole)
        elif not isinstance(whole, Leaf):
            found += (leaf for leaf in leaves(whole) if isinstance(leaf, Axis))
    return found
