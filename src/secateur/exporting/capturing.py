"""``torch.export`` of a model, with sizes that may differ, and without a trace of the machine that made it."""

import contextlib
import logging
import warnings
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import SymInt, Tensor, fx, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.export.graph_signature import InputKind, TensorArgument
from torch.utils._pytree import tree_map

from secateur.errors import ExportError
from secateur.exporting.calls import Call, Marks, exportable, first_line
from secateur.inputs import fresh
from secateur.tracing.surroundings import quiet_backends

LOUD = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")  # the loggers of exporters


@dataclass(frozen=True)
class Captured:
    """A captured program.

    Attributes:
        program: of torch.export.
        call: the inputs that it was captured with.
        inputs: a name for each leaf of the inputs; None where the leaf is no tensor.
        shapes: of each named input, with the name of a size that may differ.
    """

    program: ExportedProgram
    call: Call
    inputs: tuple[str | None, ...]
    shapes: dict[str, tuple[int | str, ...]]

    @property
    def symbols(self) -> dict[str, str]:
        """The names of our sizes for torch's symbols."""
        values = {node.name: node.meta.get("val") for node in self.program.graph.nodes if node.op == "placeholder"}
        found: dict[str, str] = {}
        for name, shape in self.shapes.items():
            for ours, theirs in zip(shape, values[name].shape, strict=True):
                if isinstance(ours, str):
                    found[str(theirs)] = ours
        return found


def capture(model: nn.Module, call: Call, marks: Marks) -> Captured:
    """Capture a model on inputs.

    Raises:
        ExportError: torch.export can't, or it fixed a size that is marked.
    """
    args, kwargs = fresh((call.args, call.kwargs))
    own = Call(args, kwargs, call.bound)
    shapes: Any = ShapesCollection()
    for leaf, mark in zip(own.leaves, marks, strict=True):
        if mark:
            shapes[leaf] = dict.fromkeys(mark, Dim.AUTO)
    try:
        with quiet(), quiet_backends():
            program = torch.export.export(
                exportable(model, own), args, kwargs, dynamic_shapes=shapes if any(marks) else None, strict=False
            )
    except Exception as error:
        raise ExportError(
            f"torch.export can't capture {type(model).__name__}: {type(error).__name__}: {first_line(error)}"
        ) from error
    _forget_places(program)
    program.example_inputs = tree_map(lambda v: torch.zeros_like(v) if isinstance(v, Tensor) else v, (args, kwargs))
    named = [
        spec.arg.name if isinstance(spec.arg, TensorArgument) else None
        for spec in program.graph_signature.input_specs
        if spec.kind is InputKind.USER_INPUT
    ]
    return Captured(program, own, tuple(named), _shapes(program, named, marks))


def _shapes(program: ExportedProgram, named: list[str | None], marks: Marks) -> dict[str, tuple[int | str, ...]]:
    """The shape of each input; every marked size must have stayed free."""
    values: dict[str, Any] = {n.name: n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder"}
    found: dict[str, tuple[int | str, ...]] = {}
    for name, mark in zip(named, marks, strict=True):
        if name is None:
            continue
        shape = values[name].shape
        fixed = [size for dim, size in mark.items() if not isinstance(shape[dim], SymInt)]
        if fixed:
            raise ExportError(f"the code of the model fixes the {fixed[0]} of {name}")
        found[name] = tuple(mark[dim] if dim in mark else int(size) for dim, size in enumerate(shape))
    return found


def _forget_places(program: ExportedProgram) -> None:
    """Drop the files and lines that each operation came from: paths of this machine."""
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Exporters warn of their own insides, and log what they try in vain; neither is for a user to act on."""
    loggers = [logging.getLogger(name) for name in LOUD]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
