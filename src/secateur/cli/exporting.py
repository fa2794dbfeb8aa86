"""The body of ``secateur export``: a saved result as files for other runtimes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from secateur.artifacts import read_record
from secateur.artifacts.build import Build
from secateur.cli.saved import load_saved, saved_inputs
from secateur.config import ModelSettings
from secateur.errors import ConfigError, OutputError
from secateur.exporting import Exported, export
from secateur.models import build_model
from secateur.runs.steps import Watch

Format = Literal["onnx", "pt2", "safetensors"]
FORMATS: tuple[Format, ...] = ("onnx", "pt2", "safetensors")


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What is asked of each file.

    Attributes:
        opset: of ONNX.
        static: fix all sizes of the inputs.
        compare_with: "dense" times the dense network, too.
        threads: of the timing.
        overwrite: replace files that are there.
    """

    opset: int | None = None
    static: bool = False
    compare_with: Literal["dense"] | None = None
    threads: int = 1
    overwrite: bool = False


def files(result: Path, formats: tuple[Format, ...], out: Path | None) -> dict[Format, Path]:
    """The file of each format. Its ending says the format where none is named, and follows the format where one is.

    >>> files(Path("runs/half"), ("onnx", "pt2"), None)
    {'onnx': PosixPath('half.onnx'), 'pt2': PosixPath('half.pt2')}

    Raises:
        ConfigError: the format and the ending contradict each other.
    """
    place = out if out is not None else Path(result.resolve().name)
    ending = place.suffix.lower().removeprefix(".")
    known = ending if out is not None and ending in FORMATS else None
    wanted = tuple(dict.fromkeys(formats or (known or FORMATS[0],)))
    if known is not None and len(wanted) == 1 and wanted != (known,):
        raise ConfigError(
            f"--out {out} ends in .{known}, but --format is {wanted[0]}: give --out {place.with_suffix('')}.{wanted[0]}"
        )
    stem = place.with_suffix("") if known is not None else place
    return {kind: stem.with_name(f"{stem.name}.{kind}") for kind in wanted}


def export_saved(
    result: Path,
    targets: Mapping[Format, Path],
    wishes: Wishes,
    *,
    inputs: tuple[tuple[Any, ...], dict[str, Any]] | None,
    model: ModelSettings | None,
    trust: bool,
    watch: Watch,
) -> Iterator[Exported]:
    """Export a saved result to each of the files, one after the other.

    Raises:
        SecateurError: it can't be loaded, exported, or compared with the dense network.
    """
    if wishes.opset is not None and "onnx" not in targets:
        raise ConfigError("--opset is of ONNX: add onnx to --format")
    taken = [str(path) for path in targets.values() if path.exists() and not wishes.overwrite]
    if taken:
        raise OutputError(f"{' and '.join(taken)} exists already: choose another place with --out, or give --overwrite")
    if wishes.compare_with is not None and "onnx" not in targets:
        raise ConfigError("--compare-with measures in onnxruntime: add onnx to --format")
    with watch(f"Loading {result}"):
        network = load_saved(result, model, trust=trust)
        dense = _dense(result, model, trust) if wishes.compare_with is not None else None
    args, kwargs = inputs or saved_inputs(result)
    for kind, path in targets.items():
        with watch(f"Exporting to {path}") as step:
            only_onnx: dict[str, Any] = {"opset": wishes.opset, "dense": dense, "threads": wishes.threads}
            written = export(
                network, path, args, kwargs, dynamic=not wishes.static, overwrite=wishes.overwrite,
                **(only_onnx if kind == "onnx" else {}),
            )  # fmt: skip
            if kind != "safetensors":
                step.note(f"{written.difference:.1e} of the outputs' scale from the network")
        yield written


def _dense(result: Path, model: ModelSettings | None, trust: bool) -> nn.Module:
    """The network before pruning: the one that was named, else the one that the result says how to build."""
    if model is not None:
        return build_model(model)
    build: Any = read_record(result)["build"]
    if build is None:
        raise ConfigError(f"{result} does not say how its dense network is built: name it with --model (--model-args)")
    return Build.of(build)(trust=trust)
