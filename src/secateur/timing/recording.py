"""Which operations a model runs, with the dims of their tensors: one pass of a copy under the tracer."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import MeasureError, SecateurError
from secateur.graph import Graph
from secateur.inputs import as_call as as_inputs
from secateur.inputs import fresh
from secateur.modules import named_tensors
from secateur.timing.operations import Call, Operand, as_call
from secateur.tracing.finished import finished, live
from secateur.tracing.rules import Dims, Op
from secateur.tracing.shadow import separate
from secateur.tracing.sizes import SizeMode
from secateur.tracing.surroundings import quiet_backends, seed_draws
from secateur.tracing.tracer import Tracer

# What costs nothing worth timing: it looks at a tensor, or makes a small one.
FREE = {"aten::detach", "aten::lift_fresh", "aten::empty", "aten::arange", "aten::scalar_tensor", "aten::_unsafe_view"}

Noted = tuple[str, dict[str, Any], list[Dims], str]  # overload, arguments, dims of the outputs, device


def record(model: nn.Module, graph: Graph, args: Any, kwargs: Mapping[str, Any] | None = None) -> list[Call]:
    """The operations of one forward pass, in order; views, which compute nothing, left out.

    Raises:
        MeasureError: the model does not run.
    """
    if any(t.is_meta for t in model.parameters()):
        raise MeasureError(
            f"{type(model).__name__} is on the meta device, where nothing can be timed: load its weights"
        )
    inputs = as_inputs(args, kwargs)
    tensors = named_tensors(model)
    first = {id(tensors[name]): name for name in reversed(tensors)}
    noted: list[Noted] = []
    with quiet_backends():
        copy = separate(model)
        tracer = Tracer(keeping=False)
        axes = {n: tracer.algebra.fresh(info.size, n) for n, info in {**graph.axes, **graph.frozen}.items()}
        for name, tensor in named_tensors(copy).items():
            tracer.introduce(
                tensor, [live(d, axes, tracer.algebra) for d in graph.tensors[first[id(tensors[name])]].dims]
            )
        tracer.noted = lambda op, results: _note(op, results, noted)
        seed_draws()
        try:
            with tracer, SizeMode(tracer, tagging=False):
                positional, keywords = fresh(inputs)
                copy(*positional, **keywords)
        except SecateurError:
            raise
        except Exception as error:
            raise MeasureError(f"{type(model).__name__} can't be timed: {type(error).__name__}: {error}") from error
    return [
        as_call(
            overload,
            [(name, _finished(value)) for name, value in arguments.items()],
            [[finished(d) for d in dims] for dims in outputs],
            graph.axes.keys(),
            device,
        )
        for overload, arguments, outputs, device in noted
    ]


def _note(op: Op, results: Collection[Dims], noted: list[Noted]) -> None:
    """Take down an operation, without its tensors: dims that are unified later are finished at the end."""
    if op.said.is_view or op.name in FREE or not (op.operands and op.outputs()):
        return
    arguments = {name: _described(op, value) for name, value in op.arguments.items()}
    noted.append((op.said.overload, arguments, [list(dims) for dims in results], op.operands[0].device.type))


def _described(op: Op, value: Any) -> Any:
    if isinstance(value, Tensor):
        strides = value.stride()
        order = tuple(sorted(range(value.dim()), key=lambda k: (-strides[k], k)))
        return Operand(tuple(op.dims(value)), str(value.dtype).removeprefix("torch."), order)
    if isinstance(value, list | tuple):
        return tuple(_described(op, item) for item in value)  # pyright: ignore[reportUnknownVariableType]
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _finished(value: Any) -> Any:
    if isinstance(value, Operand):
        return Operand(tuple(finished(d) for d in value.dims), value.dtype, value.order)
    if isinstance(value, tuple):
        return tuple(map(_finished, value))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return str(value) if isinstance(value, torch.device) else value
