"""ONNX files: written by ``torch.onnx``, cleaned of what they need not tell, and run by onnxruntime."""

import importlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.errors import ExportError, MissingExtra
from secateur.exporting.calls import Call, first_line
from secateur.exporting.capturing import Captured, quiet

LARGEST = 1536 * 2**20  # bytes of weights in one file: protobuf ends at 2 GiB
KEPT = ("namespace",)  # what a node may tell of its origin: the modules that it is in, by name and class

Run = Callable[[Call], list[Tensor]]


def packages() -> tuple[Any, Any]:
    """The packages onnx and onnxruntime.

    Raises:
        MissingExtra: one of those that ONNX needs is not installed.
    """
    found: dict[str, Any] = {}
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            with quiet():
                found[name] = importlib.import_module(name)
        except ImportError as error:
            raise MissingExtra(name, "onnx", "exporting to ONNX") from error
    return found["onnx"], found["onnxruntime"]


def write(captured: Captured, outputs: list[str], path: Path, *, opset: int | None, external_data: bool = False) -> int:
    """Write a captured program as an ONNX file, beside it ``NAME.data`` where the weights go there. Returns the opset.

    Raises:
        ExportError: an operation has no form in ONNX, or not in this opset.
    """
    onnx, _ = packages()
    size = sum(t.numel() * t.element_size() for t in captured.program.state_dict.values())
    try:
        with quiet():
            program = torch.onnx.export(
                captured.program, dynamo=True, verbose=False, opset_version=opset,
                output_names=free_names(outputs, {n for n in captured.inputs if n}),
            )  # fmt: skip
            assert program is not None
            program.save(path, external_data=external_data or size > LARGEST)
    except Exception as error:
        raise ExportError(f"torch.onnx can't write this model: {_cause(error)}") from error
    proto = onnx.load(path, load_external_data=False)
    _clean(proto, captured.symbols)
    onnx.save(proto, path)
    with quiet():
        onnx.checker.check_model(str(path))
    written = next(int(item.version) for item in proto.opset_import if item.domain == "")
    if opset is not None and written != opset:
        raise ExportError(
            f"opset={opset} was asked for, but torch could only write this model in opset {written}. Ask for that, or "
            "for none"
        )
    return written


def free_names(names: list[str], taken: set[str]) -> list[str]:
    """The names of outputs, changed where an input or an earlier output has the same.

    >>> free_names(["x", "y", "y"], {"x"})
    ['x_out', 'y', 'y_out']
    """
    free: list[str] = []
    for name in names:
        while name in taken or name in free:
            name += "_out"
        free.append(name)
    return free


def _cause(error: BaseException) -> str:
    """The error that the exporter's own wraps: its message is a page of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {first_line(error)}"


def _clean(proto: Any, symbols: Mapping[str, str]) -> None:
    """Drop file names, lines and notes of the exporter, and call the free sizes what they are."""
    del proto.metadata_props[:]
    for graph in [proto.graph, *proto.functions]:
        for message in _messages(graph):
            message.doc_string = ""
            kept = [(item.key, item.value) for item in message.metadata_props if item.key in KEPT]
            del message.metadata_props[:]
            for key, value in kept:
                message.metadata_props.add(key=key, value=value)
            if message.DESCRIPTOR.name == "ValueInfoProto":
                _rename_sizes(message, symbols)


def _messages(graph: Any) -> Iterator[Any]:
    """A graph or function, and all in it that may carry notes."""
    yield graph
    for part in ("input", "output", "value_info", "initializer"):
        held = getattr(graph, part, ())
        yield from (item for item in held if not isinstance(item, str))  # a function's inputs are names
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield from _messages(inner)


def _rename_sizes(value: Any, symbols: Mapping[str, str]) -> None:
    for dim in value.type.tensor_type.shape.dim:
        if dim.dim_param:
            dim.dim_param = symbols.get(dim.dim_param, dim.dim_param)


def session(path: Path, threads: int | None = None) -> Any:
    """onnxruntime's session on the CPU for a file.

    Raises:
        ExportError: onnxruntime can't run it.
    """
    _, runtime = packages()
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    if threads is not None:
        options.intra_op_num_threads = options.inter_op_num_threads = threads
    try:
        return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has classes of its own for each status
        raise ExportError(f"onnxruntime can't load what was written: {first_line(error)}") from error


def feed(opened: Any, captured: Captured, call: Call) -> dict[str, Any]:
    """The inputs of a session, by name, as arrays."""
    wanted = {item.name for item in opened.get_inputs()}
    named = zip(captured.inputs, call.leaves, strict=True)
    return {name: leaf.detach().cpu().numpy() for name, leaf in named if name is not None and name in wanted}


def runner(path: Path, captured: Captured) -> Run:
    """What runs a file on the inputs of a call."""
    opened = session(path)

    def run(call: Call) -> list[Tensor]:
        try:
            return [torch.from_numpy(array) for array in opened.run(None, feed(opened, captured, call))]
        except Exception as error:
            raise ExportError(f"onnxruntime can't run what was written: {first_line(error)}") from error

    return run
