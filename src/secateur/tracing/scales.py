"""Which weights make a query: attention divides by the root of the head size, so they carry the factor of a new one.

From the query back to parameters, through operations that scale with what they are given. What is followed is a mask
for each dim: which positions the query is made of.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.axes import segments
from secateur.tracing.rules.registry import Op

Masks = list[Tensor]  # for each dim, (size,) bool

PASS = {"aten::clone", "aten::_to_copy", "aten::to", "aten::contiguous", "aten::detach", "aten::alias", "aten::neg",
        "aten::dropout", "aten::native_dropout", "aten::lift_fresh_copy"}  # fmt: skip
FACTORS = {"aten::mul", "aten::div"}
TERMS = {"aten::add", "aten::sub"}
VIEWS = {"aten::view", "aten::_unsafe_view", "aten::reshape", "aten::_reshape_alias", "aten::unsqueeze",
         "aten::squeeze", "aten::unflatten", "aten::flatten"}  # fmt: skip
PRODUCTS = {"aten::mm": ("mat2",), "aten::addmm": ("mat2", "self"), "aten::linear": ("weight", "bias"),
            "aten::convolution": ("weight", "bias")}  # fmt: skip
NORMS = {"aten::native_layer_norm", "aten::_fused_rms_norm", "aten::native_group_norm", "aten::layer_norm",
         "aten::rms_norm"}  # fmt: skip


class NotLinear(Exception):
    """What makes the query does not scale with any parameters that are known."""


@dataclass(frozen=True)
class Part:
    """Positions of one dim of a parameter, (size,) bool."""

    parameter: Tensor
    dim: int
    mask: Tensor


def makers(query: Tensor, made: dict[int, tuple[Op, int]]) -> list[Part]:
    """The parameters to scale so that the query scales.

    Args:
        query: a tensor of the trace.
        made: for each tensor, by id, the operation that made it and which of its outputs it is.

    Raises:
        NotLinear: there are none, or they can't be told.
    """
    found: dict[int, Part] = {}
    for parameter, masks in back(query, [torch.ones(s, dtype=torch.bool) for s in query.shape], made):
        partial = [k for k, m in enumerate(masks) if not bool(m.all())]
        if len(partial) > 1:
            raise NotLinear
        dim = partial[0] if partial else 0
        found[id(parameter)] = _together(Part(parameter, dim, masks[dim]), found.get(id(parameter)))
    if not found:
        raise NotLinear
    return list(found.values())


def _together(part: Part, other: Part | None) -> Part:
    """Positions that reach the query on several ways (a rotation takes each twice) are scaled once.

    Raises:
        NotLinear: the two are of different dims.
    """
    whole = next((p for p in (part, other) if p is not None and bool(p.mask.all())), None)
    if other is None or whole is not None:
        return whole or part
    if part.dim != other.dim:
        raise NotLinear
    return Part(part.parameter, part.dim, part.mask | other.mask)


def ranges(mask: Tensor) -> tuple[tuple[int, int], ...]:
    """The runs of True in a mask (size,), as [start, stop)."""
    edges = torch.diff(mask.int(), prepend=torch.zeros(1, dtype=torch.int), append=torch.zeros(1, dtype=torch.int))
    starts, stops = (edges == 1).nonzero().flatten(), (edges == -1).nonzero().flatten()
    return tuple(zip(starts.tolist(), stops.tolist(), strict=True))


def back(tensor: Tensor, masks: Masks, made: dict[int, tuple[Op, int]]) -> Iterator[tuple[Tensor, Masks]]:
    """The parameters that positions of a tensor scale with, each with which of its own positions these are.

    Raises:
        NotLinear: it scales with none that are known.
    """
    if isinstance(tensor, nn.Parameter):
        yield tensor, masks
        return
    if id(tensor) not in made:
        raise NotLinear
    op, output = made[id(tensor)]
    for source, found in _sources(op, output, masks):
        yield from back(source, found, made)


def _sources(op: Op, output: int, masks: Masks) -> Iterator[tuple[Tensor, Masks]]:
    name = op.name
    if name in PRODUCTS:
        yield from _product(op, masks)
    elif name in NORMS:
        for key in ("weight", "bias"):
            if op.arguments.get(key) is not None:
                yield op[key], _aligned(op[key], masks if "group" not in name else [masks[1]])
        if op.arguments.get("weight") is None:
            raise NotLinear
    elif name in FACTORS:
        yield _factor(op), _aligned(_factor(op), masks)
    elif name in TERMS:
        for operand in op.tensors():
            yield operand, _aligned(operand, masks)
        if len(list(op.tensors())) < 2:
            raise NotLinear
    elif name == "aten::_weight_norm_interface":
        yield op["v"], masks  # surgery computes the lengths anew
    elif name in PASS:
        yield next(op.tensors()), masks
    else:
        yield from _moved(op, output, masks)


def _product(op: Op, masks: Masks) -> Iterator[tuple[Tensor, Masks]]:
    """The output's columns are the weight's; the bias is a term."""
    weight, *bias = PRODUCTS[op.name]
    columns = masks[1] if "convolution" in op.name else masks[-1]
    if op.arguments.get("transposed"):
        raise NotLinear
    full = [torch.ones(s, dtype=torch.bool) for s in op[weight].shape]
    at = 1 if weight == "mat2" else 0
    yield op[weight], [*full[:at], columns, *full[at + 1 :]]
    for key in bias:
        if op[key] is not None:
            yield op[key], _aligned(op[key], [columns])


def _factor(op: Op) -> Tensor:
    """Of a product, a parameter that multiplies, else the operand that is no constant table."""
    operands = list(op.tensors())
    if op.name == "aten::div" and len(operands) == 2:
        return operands[0]
    parameters = [t for t in operands if isinstance(t, nn.Parameter)]
    activations = [t for t in operands if not op.tracer.is_weight(t)]
    candidates = parameters or [t for t in activations if t.dim() == op.out.dim()] or activations
    if len(candidates) > 1:
        candidates = [t for t in candidates if _from_weights(t, op.tracer.made)]
    if len(candidates) != 1:
        raise NotLinear
    return candidates[0]


def _from_weights(tensor: Tensor, made: dict[int, tuple[Op, int]]) -> bool:
    try:
        return bool(makers(tensor, made))
    except NotLinear:
        return False


def _aligned(tensor: Tensor, masks: Masks) -> Masks:
    """The masks of an operand that was broadcast, aligned at the right."""
    own = masks[len(masks) - tensor.dim() :]
    return [m if m.shape[0] == s else torch.ones(s, dtype=torch.bool) for m, s in zip(own, tensor.shape, strict=True)]


# ---------------------------------------------------------------------- movements


def _moved(op: Op, output: int, masks: Masks) -> Iterator[tuple[Tensor, Masks]]:
    name = op.name
    if name in VIEWS:
        yield op["self"], _reshaped(masks, op["self"].shape)
    elif name == "aten::permute":
        back = sorted(range(len(masks)), key=lambda k: op["dims"][k] % len(masks))
        yield op["self"], [masks[k] for k in back]
    elif name in ("aten::transpose", "aten::t"):
        a, b = (0, 1) if name == "aten::t" else (op["dim0"] % len(masks), op["dim1"] % len(masks))
        swapped = list(masks)
        swapped[a], swapped[b] = masks[b], masks[a]
        yield op["self"], swapped
    elif name in ("aten::select", "aten::unbind"):
        at = op["dim"] % op["self"].dim()
        one = torch.zeros(op["self"].shape[at], dtype=torch.bool)
        one[int(op["index"]) if name == "aten::select" else output] = True
        yield op["self"], [*masks[:at], one, *masks[at:]]
    elif name in ("aten::slice", "aten::split", "aten::split_with_sizes", "aten::chunk", "aten::narrow"):
        yield op["self"], _sliced(op, output, masks)
    elif name == "aten::expand":
        yield op["self"], _aligned(op["self"], masks)
    elif name == "aten::cat":
        yield from _joined(op, masks)
    else:
        raise NotLinear


def _reshaped(masks: Masks, shape: Sequence[int]) -> Masks:
    """Masks of the dims before a reshape; each has to be independent of the others."""
    found: Masks = []
    for after, before in segments([m.shape[0] for m in masks], shape):
        found += _separated(masks[after], list(shape[before]))
    return found


def _separated(masks: Masks, shape: Sequence[int]) -> Masks:
    if all(bool(m.all()) for m in masks):
        return [torch.ones(s, dtype=torch.bool) for s in shape]
    flat = _whole(masks)
    cube = flat.reshape(tuple(shape))
    others = [tuple(j for j in range(cube.dim()) if j != k) for k in range(cube.dim())]
    found = [cube.any(dim=dims) if dims else cube for dims in others]
    if not torch.equal(_whole(found), flat):
        raise NotLinear
    return found


def _whole(masks: Masks) -> Tensor:
    flat = torch.ones(1, dtype=torch.bool)
    for mask in masks:
        flat = (flat[:, None] & mask[None, :]).flatten()
    return flat


def _sliced(op: Op, output: int, masks: Masks) -> Masks:
    source: Any = op["self"]
    at = int(op["dim"]) % source.dim()
    if op.name in ("aten::slice", "aten::narrow"):
        if op.arguments.get("step", 1) != 1:
            raise NotLinear
        start = int(op["start"] or 0)
        start = max(start + source.shape[at], 0) if start < 0 else start
    else:
        start = sum(int(t.shape[at]) for t in op.outputs()[:output])
    wide = torch.zeros(source.shape[at], dtype=torch.bool)
    wide[start : start + masks[at].shape[0]] = masks[at]
    return [*masks[:at], wide, *masks[at + 1 :]]


def _joined(op: Op, masks: Masks) -> Iterator[tuple[Tensor, Masks]]:
    at, start = op.wrap(op["dim"], op.out), 0
    for tensor in op["tensors"]:
        piece = masks[at][start : start + tensor.shape[at]]
        start += tensor.shape[at]
        if bool(piece.any()):
            yield tensor, [*masks[:at], piece, *masks[at + 1 :]]
