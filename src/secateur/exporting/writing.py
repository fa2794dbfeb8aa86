"""``sc.export``: a model as a file for another runtime, which appears only once it was read back and compared."""

import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from secateur.changes import Changed, model_of
from secateur.errors import ExportError, OutputError, SecateurError
from secateur.exporting import onnx_files, pt2_files, weights_files
from secateur.exporting.calls import Call, call_of, reference
from secateur.exporting.capturing import Captured, capture
from secateur.exporting.checking import Difference, compare
from secateur.exporting.exported import Exported, Format
from secateur.exporting.latency import latency
from secateur.exporting.sizes import captured_at, checked_at, ladder, names
from secateur.files import flush
from secateur.inputs import as_call
from secateur.modules import Walk, check_original
from secateur.progress import Advance, progress_bar
from secateur.provenance import recall

FORMATS: dict[str, Format] = {".onnx": "onnx", ".pt2": "pt2", ".safetensors": "safetensors"}


def export(
    model_or_result: nn.Module | Changed,
    path: str | Path,
    args: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic: bool = True,
    opset: int | None = None,
    external_data: bool = False,
    dense: nn.Module | None = None,
    threads: int = 1,
    seconds: float = 5.0,
    overwrite: bool = False,
) -> Exported:
    """Write a model as ONNX or as a program of ``torch.export``, or its weights alone, and compare the file with it.

    The file is read back and run (ONNX by onnxruntime, on the CPU) on the example inputs; where the batch may differ,
    on a single sample and on a larger batch, too. Only a file whose outputs agree appears in its place: to 1e-4 of
    their scale in float32, 1e-9 in float64, and exactly where they are whole numbers. The model, whose evaluation mode
    is what is written, is left as it is. No path of this machine and no value of the example inputs is in the file.

    Args:
        model_or_result: what `prune` gave, or any model.
        path: ends in ``.onnx``, in ``.pt2`` or in ``.safetensors``, which says the format. A ``.pt2`` file carries a
            pickle stream: read it only from where you trust it. A ``.safetensors`` file holds the weights as plain
            tensors, zeros and all, for other tools; it needs no inputs, and is compared bit by bit.
        args, kwargs: example inputs; those that the model was pruned or saved with where none are given. What holds no
            tensor becomes a part of the program.
        dynamic: let the batch differ from call to call, for tokens the length of a sequence, too, as far as the model
            allows. Where it does not, the size is fixed, and ``notes`` says why.
        opset: of ONNX, whole number; what torch recommends by default.
        external_data: put the weights beside the file, in ``NAME.onnx.data``. Beyond 1.5 GiB they are there anyhow.
        dense: the model as it was before pruning. It is exported and checked in the same way, and both are timed in
            onnxruntime, in turns. The file of the dense model is not kept.
        threads: that onnxruntime has for the timing.
        seconds: to spend on the timing.
        overwrite: replace a file that is there.

    Returns:
        The file with its inputs and outputs, how far it is from the model, and the latency if ``dense`` was given.

    Raises:
        ExportError: the model can't be exported, or the file computes something else. Then there is no file.
        OutputError: the place is taken or can't be written.
        MissingExtra: onnx, onnxscript or onnxruntime is not installed, and ONNX was asked for.

    Example:
        >>> import tempfile
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
        >>> written = export(net, Path(tempfile.mkdtemp()) / "net.pt2", torch.randn(2, 4))
        >>> written.inputs, written.outputs
        ({'input': ('batch', 4)}, ('output',))
    """
    model = model_of(model_or_result)
    check_original(Walk(model), ExportError)
    target = Path(path)
    kind = _format(target, overwrite, onnx_only=opset is not None or external_data or dense is not None)
    if kind == "safetensors":
        with _workplace(target) as work:
            exported = weights_files.write(model, work / target.name)
            _publish(exported.files, target)
        return exported.moved(target.parent)
    call = call_of(model, *_inputs(model, args, kwargs))
    with progress_bar(f"exporting {target.name}") as advance, _workplace(target) as work:
        written = _Written(kind, opset, external_data, dynamic, advance)
        exported, captured = written.at(model, call, work / target.name)
        if dense is not None:
            exported = replace(exported, latency=_timed(written, dense, exported, captured, call, threads, seconds))
        _publish(exported.files, target)
    return exported.moved(target.parent)


def _format(target: Path, overwrite: bool, *, onnx_only: bool) -> Format:
    """The format that a path names, once the place is known to be free and the packages to be there."""
    kind = FORMATS.get(target.suffix.lower())
    if kind is None:
        raise ExportError(
            f"{target} ends in neither .onnx, .pt2 nor .safetensors, and so does not say which format to write"
        )
    if onnx_only and kind != "onnx":
        raise ExportError("opset=, external_data= and dense= are for ONNX: give a path that ends in .onnx")
    if target.is_dir() or (os.path.lexists(target) and not overwrite):
        what = "is a directory" if target.is_dir() else "exists already"
        raise OutputError(f"{target} {what}: choose another place{'' if target.is_dir() else ', or overwrite it'}")
    if kind == "onnx":
        onnx_files.packages()
    return kind


def _inputs(model: nn.Module, args: Any, kwargs: Mapping[str, Any] | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if args is not None or kwargs:
        return as_call(args, kwargs)
    known = recall(model, "inputs")
    if known is None:
        raise ExportError(f"no example inputs of {type(model).__name__} are known: pass args= (and kwargs=)")
    return cast("tuple[tuple[Any, ...], dict[str, Any]]", known)


@dataclass(frozen=True)
class _Written:
    """How files are written: the settings of one export."""

    kind: Format
    opset: int | None
    external_data: bool
    dynamic: bool
    advance: Advance

    def at(self, model: nn.Module, call: Call, path: Path) -> tuple[Exported, Captured]:
        """Write and check a file, with as many free sizes as the model allows."""
        expected = reference(model, call)
        if self.kind == "onnx":
            _check_types(model, call)
        rungs = list(ladder(call)) if self.dynamic else list(ladder(call))[-1:]
        wanted, failed = set(names(rungs[0])), ""
        for marks in rungs:
            try:
                captured = capture(model, call.of_sizes(marks, captured_at(call, marks)), marks)
                opset = self._write(captured, [name for name, _ in expected], path)
                run = onnx_files.runner(path, captured) if self.kind == "onnx" else pt2_files.runner(path)
                self.advance()
                calls = [call, *(call.of_sizes(marks, sizes) for sizes in checked_at(call, marks))]
                worst = [_check(model, run, each, self.kind) for each in calls]
            except ExportError as error:
                if marks is rungs[-1]:
                    raise
                failed = failed or str(error)
                continue
            files = tuple(file for file in (path, path.with_name(f"{path.name}.data")) if file.exists())
            fixed = sorted(wanted - set(names(marks)))
            return Exported(
                path=path,
                format=self.kind,
                files=files,
                size_bytes=sum(file.stat().st_size for file in files),
                inputs=captured.shapes,
                outputs=tuple(_outputs(captured, [name for name, _ in expected])),
                opset=opset,
                difference=max(d.share for d in worst),
                checks=tuple(_described(each, marks) for each in calls),
                notes=(f"the {' and the '.join(fixed)} can't differ from call to call: {failed}",) if fixed else (),
            ), captured
        raise AssertionError("the last rung of the ladder returns or raises")

    def _write(self, captured: Captured, outputs: list[str], path: Path) -> int | None:
        self.advance()
        path.with_name(f"{path.name}.data").unlink(missing_ok=True)  # of a rung that failed
        if self.kind == "pt2":
            return pt2_files.write(captured, path)
        return onnx_files.write(captured, outputs, path, opset=self.opset, external_data=self.external_data)


def _outputs(captured: Captured, outputs: list[str]) -> list[str]:
    return onnx_files.free_names(outputs, {name for name in captured.inputs if name})


def _check_types(model: nn.Module, call: Call) -> None:
    """numpy, through which onnxruntime is fed, has no bfloat16."""
    tensors = [*model.parameters(), *(leaf for leaf in call.leaves if isinstance(leaf, Tensor))]
    if any(t.dtype is torch.bfloat16 for t in tensors):
        raise ExportError(
            f"{type(model).__name__} computes in bfloat16, which onnxruntime can't on a CPU, so the file could not be "
            "checked. Export model.float()"
        )


def _check(model: nn.Module, run: Callable[[Call], list[Tensor]], call: Call, kind: Format) -> Difference:
    """Compare a file with the model on one call."""
    batch = next((leaf.shape[0] for leaf in call.leaves if isinstance(leaf, Tensor) and leaf.dim()), 1)
    what = "ONNX in onnxruntime" if kind == "onnx" else "the program of torch.export"
    return compare(reference(model, call), run(call), f"{what}, on a batch of {batch},")


def _described(call: Call, marks: Any) -> str:
    """The sizes of a call, in words."""
    sizes = {
        name: leaf.shape[dim]
        for leaf, mark in zip(call.leaves, marks, strict=True)
        for dim, name in cast("Mapping[int, str]", mark).items()
    }
    return " and ".join(f"{name} {size}" for name, size in sizes.items()) or "the example inputs"


def _timed(
    written: _Written,
    dense: nn.Module,
    exported: Exported,
    captured: Captured,
    call: Call,
    threads: int,
    seconds: float,
) -> Any:
    """The latency of the dense model and of the pruned one."""
    path = exported.path.with_name(f"dense-{exported.path.name}")
    try:
        _, before = written.at(dense, call, path)
    except SecateurError as error:
        raise ExportError(f"the dense model could not be exported for the comparison: {error}") from error
    pair = [(path, before), (exported.path, captured)]
    sessions = [onnx_files.session(file, threads) for file, _ in pair]
    inputs = [onnx_files.feed(opened, of, call) for opened, (_, of) in zip(sessions, pair, strict=True)]
    batch = next((leaf.shape[0] for leaf in call.leaves if isinstance(leaf, Tensor) and leaf.dim()), 1)
    dense_side, pruned_side = zip(sessions, inputs, strict=True)
    return latency(dense_side, pruned_side, threads=threads, seconds=seconds, batch=int(batch))


@contextmanager
def _workplace(target: Path) -> Generator[Path]:
    """A hidden directory beside the target, gone in the end whatever happens."""
    try:
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    except OSError as error:
        raise OutputError(f"can't write beside {target}: {error.strerror or error}. Choose another place") from error
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _publish(files: tuple[Path, ...], target: Path) -> None:
    """Move finished files to their place. Weights that lie beside a file come first: a file never lacks its own."""
    try:
        if len(files) > 1:
            target.unlink(missing_ok=True)
        for file in reversed(files):
            flush(file)
            os.replace(file, target.with_name(file.name))
        flush(target.parent)
    except OSError as error:
        raise OutputError(f"can't write {target}: {error.strerror or error}. Choose another place") from error
