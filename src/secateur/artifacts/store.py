"""``sc.save`` and ``sc.load``: a directory of safetensors and JSON, and no pickle anywhere.

``model.safetensors`` holds the weights, ``plan.json`` the plan, ``probe.safetensors`` example inputs and outputs, and
``artifact.json``, written last, what rebuilds the model, with the hash of each of the others.
"""

import hashlib
import importlib
import inspect
import json
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn

from secateur import nests
from secateur.artifacts import probe
from secateur.artifacts.graphs import decode_graph, encode_graph
from secateur.changes import Change, change_from_dict
from secateur.depth.result import DepthResult
from secateur.errors import ArtifactError, OutputError, SecateurError
from secateur.files import atomic, write_text
from secateur.inputs import as_call
from secateur.modules import named_tensors
from secateur.planning.plan import Plan
from secateur.provenance import recall, remember
from secateur.pruning import Result
from secateur.surgery.apply import put

FORMAT, VERSION = "secateur", 1
FILES = ("model.safetensors", "plan.json", "probe.safetensors")
MAX_JSON = 256 * 2**20  # bytes of artifact.json or plan.json that are read


@dataclass(frozen=True)
class Build:
    """How the dense model is built again: ``package.module:callable`` and JSON keyword arguments."""

    callable: str
    args: dict[str, Any]

    @staticmethod
    def of(build: "str | Mapping[str, Any]") -> "Build":
        spec, args = (build, {}) if isinstance(build, str) else (build.get("callable"), build.get("args") or {})
        if not isinstance(spec, str) or spec.count(":") != 1 or not all(spec.split(":")):
            raise ArtifactError(
                f'build={build!r}: write "package.module:callable", or {{"callable": ..., "args": {{...}}}}'
            )
        try:
            json.dumps(args, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ArtifactError(f"the arguments of build={spec} are no JSON: {error}") from error
        return Build(spec, dict(args))

    def __call__(self, *, trust: bool) -> nn.Module:
        """Build the dense model. Without ``trust`` nothing is imported, and nothing is called that need not be a model.

        Raises:
            ArtifactError: it wants trust, or does not build a module.
        """
        module, _, name = self.callable.partition(":")
        if not (trust or module in sys.modules or module.startswith("secateur.")):
            raise ArtifactError(
                f"this result is built by {self.callable}, and loading it would import {module}. If you trust that "
                "code, pass trust=True or import it first; or pass model=<an instance of the original architecture>."
            )
        try:
            target: Any = importlib.import_module(module)
            for part in name.split("."):
                target = getattr(target, part)
        except (ImportError, AttributeError) as error:
            raise ArtifactError(f"{self.callable}, which builds the model, can't be found: {error}") from error
        if not (trust or _builds_models(target)):
            raise ArtifactError(
                f"{self.callable} need not build a model: it is neither a module class, nor code of your own, nor a "
                "function that says it returns a module. If you trust it, pass trust=True."
            )
        try:
            built = target(**self.args)
        except Exception as error:
            raise ArtifactError(
                f"{self.callable} could not build the model: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(built, nn.Module):
            raise ArtifactError(f"{self.callable} gave a {type(built).__name__}, not a torch.nn.Module")
        return built


def _builds_models(target: Any) -> bool:
    """Whether something that a file names may be called: a file could name ``os.system`` too."""
    if isinstance(target, type):
        return issubclass(target, nn.Module)
    if not inspect.isfunction(target):
        return False
    returned: Any = target.__annotations__.get("return")
    if isinstance(returned, type) and issubclass(returned, nn.Module):
        return True
    file = Path(target.__code__.co_filename)
    installed = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return file.is_file() and not any(file.is_relative_to(place) for place in installed)


# ---------------------------------------------------------------------- saving


def save(
    model_or_result: nn.Module | Result | DepthResult,
    path: str | Path,
    build: str | Mapping[str, Any] | None = None,
    *,
    args: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a pruned model so that it loads anywhere.

    Args:
        model_or_result: what `prune`, `shorten` or `deepen` gave, perhaps trained on since, or its model.
        path: a directory; made if it is not there. Other files in it stay.
        build: ``"package.module:callable"`` that makes the dense model, or ``{"callable": ..., "args": {...}}`` with
            JSON arguments; `load` then needs no ``model=``. Not needed where the class was rewritten.
        args, kwargs: example inputs for the probe; those that the model was pruned with where none are given.
        overwrite: replace a result that is there.

    Raises:
        OutputError: the place is taken or can't be written.
        ArtifactError: no example inputs are known, or something can't be stored.
    """
    model = model_or_result if isinstance(model_or_result, nn.Module) else model_or_result.model
    plans, positional, keywords = _provenance(model, args, kwargs)
    folder = Path(path)
    if (folder / "artifact.json").exists() and not overwrite:
        raise OutputError(f"{folder} holds a saved result already; choose another place, or pass overwrite=True")
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; give a directory")
    builder = None if build is None else Build.of(build)
    rewritten = any(plan.rewrites for plan in plans)
    inputs, tensors = probe.encode(positional, keywords)
    outputs = probe.outputs_of(model, positional, keywords)
    tensors |= {f"output.{k}": t.cpu().contiguous().clone() for k, t in enumerate(outputs)}
    stored, aliases = _stored(model)
    record = {
        "format": FORMAT,
        "version": VERSION,
        "class": plans[0].model if rewritten else f"{type(model).__module__}:{type(model).__qualname__}",
        "build": builder and vars(builder),
        "graph": None,
        "earlier": [plan.to_dict() for plan in plans[:-1]],
        "aliases": aliases,
        "parameters": [name for name, _ in model.named_parameters()],
        "frozen": [name for name, p in model.named_parameters() if not p.requires_grad],
        "probe": inputs,
    }
    if rewritten and isinstance(model, fx.GraphModule):
        record["graph"] = _graph(model, record, stored, tensors, needed=builder is None)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} can't be made: {error}") from error
    (folder / "artifact.json").unlink(missing_ok=True)  # from here to the last write the directory is no result
    for name, content in (("model.safetensors", stored), ("probe.safetensors", tensors)):
        with atomic(folder / name) as temporary:
            save_file(content, temporary, metadata={"format": "pt"})
    write_text(folder / "plan.json", json.dumps(plans[-1].to_dict(), indent=1) + "\n")
    record["files"] = {name: _fingerprint(folder / name) for name in FILES}
    write_text(folder / "artifact.json", json.dumps(record, indent=1, allow_nan=False) + "\n")


def _graph(
    model: fx.GraphModule, record: Mapping[str, Any], weights: Mapping[str, Tensor], probed: Any, *, needed: bool
) -> dict[str, Any] | None:
    """The graph as JSON, read back and checked; None where it can't be stored and need not be.

    Raises:
        ArtifactError: it can't be stored, and nothing else would rebuild the model.
    """
    try:
        graph = encode_graph(model)
        made = _from_graph({**record, "graph": graph}, weights)
        _fill(made, weights, record)
        probe.check(made, record["probe"], probed)
    except Exception as error:
        if not needed:
            return None
        raise ArtifactError(
            f"the graph of this rewritten model can't be stored ({error}). Save it with "
            'build="package.module:callable" and load it from its class.'
        ) from error
    return graph


def _from_graph(record: Mapping[str, Any], weights: Mapping[str, Tensor]) -> nn.Module:
    parameters = set(record["parameters"])
    return decode_graph(record["graph"], {n: (t, n in parameters) for n, t in weights.items()})


def _provenance(
    model: nn.Module, args: Any, kwargs: Mapping[str, Any] | None
) -> tuple[tuple[Change, ...], tuple[Any, ...], dict[str, Any]]:
    plans, inputs = recall(model, "plans"), recall(model, "inputs")
    if args is not None or kwargs:
        inputs = as_call(args, kwargs)
    if inputs is None:
        raise ArtifactError("no example inputs are known for the probe: pass args= (and kwargs=) to sc.save")
    positional, keywords = inputs
    return plans or (Plan(axes={}, tensors={}, model=type(model).__name__),), positional, keywords


def _stored(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every parameter and buffer once, those that ``state_dict`` leaves out included; and the other names of tied
    ones.
    """
    first: dict[int, str] = {}
    stored: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for name, tensor in named_tensors(model).items():
        if id(tensor) in first:
            aliases[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
            stored[name] = tensor.detach().cpu().contiguous().clone()
    return stored, aliases


def _fingerprint(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return {"sha256": digest.hexdigest(), "bytes": path.stat().st_size}


# ---------------------------------------------------------------------- loading


def load(path: str | Path, model: nn.Module | None = None, *, trust: bool = False) -> nn.Module:
    """The saved model, in evaluation mode, checked against its probe.

    Args:
        path: the directory that `save` or a run wrote.
        model: an instance of the original (dense) architecture, with any weights; it is left as it is. Needed where the
            class was kept and no ``build`` was stored.
        trust: import the module that ``build`` names, if it is not imported yet.

    Raises:
        ArtifactError: the result is truncated, altered or foreign, does not fit the model, or gives other outputs
        than when
            it was saved.
    """
    folder = Path(path)
    record = read_record(folder)
    try:
        weights, tensors = _read(folder / "model.safetensors"), _read(folder / "probe.safetensors")
        made = _rebuild(folder, record, weights, model, trust)
        _fill(made, weights, record)
        probe.check(made, record["probe"], tensors)
        remember(made, "inputs", nests.decode(record["probe"], tensors.__getitem__))
    except SecateurError as error:
        raise error if isinstance(error, ArtifactError) else ArtifactError(f"{folder} does not fit: {error}") from error
    except Exception as error:  # whatever a foreign file may cause
        raise ArtifactError(f"{folder} can't be rebuilt: {type(error).__name__}: {error}") from error
    return made


def read_record(folder: Path) -> dict[str, Any]:
    """The contents of artifact.json, after checking every file against its hash.

    Raises:
        ArtifactError: it is no result of ours, or one that was truncated or altered.
    """
    file = folder / "artifact.json"
    if not file.is_file():
        raise ArtifactError(
            f"{folder} holds no saved result (there is no artifact.json); give the directory that sc.save "
            f"or a run wrote"
        )
    record = read_json(file)
    if record.get("format") != FORMAT or record.get("version") != VERSION:
        raise ArtifactError(
            f"{file} is of format {record.get('format')!r}, version {record.get('version')!r}; this "
            f"secateur reads {FORMAT!r}, version {VERSION}"
        )
    files: Any = record.get("files")
    for name in FILES:
        wanted: Any = cast("dict[str, Any]", files).get(name) if isinstance(files, dict) else None
        if not (folder / name).is_file():
            raise ArtifactError(f"{folder / name} is missing")
        if _fingerprint(folder / name) != wanted:
            raise ArtifactError(
                f"{folder / name} is not the file that was saved: it was truncated or altered. Copy it "
                f"again from where it was made."
            )
    return record


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file of bounded size; repeated keys are refused.

    Raises:
        ArtifactError: it can't be read.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({k for k, _ in pairs}) != len(pairs):
            raise ValueError("a key is repeated")
        return dict(pairs)

    try:
        if file.stat().st_size > MAX_JSON:
            raise ArtifactError(f"{file} is larger than {MAX_JSON} bytes")
        data: Any = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{file} can't be read: {error}") from error
    if not isinstance(data, dict):
        raise ArtifactError(f"{file} holds no JSON object")
    return cast("dict[str, Any]", data)


def _read(file: Path) -> dict[str, Tensor]:
    """The tensors of a file, each in memory of its own: in the file they lie where the header ends, and kernels round
    differently where a tensor does not start at a full word of the vector unit.
    """
    try:
        return {name: tensor.clone() for name, tensor in load_file(file).items()}
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{file} can't be read: {error}") from error


def _rebuild(
    folder: Path, record: Mapping[str, Any], weights: Mapping[str, Tensor], model: nn.Module | None, trust: bool
) -> nn.Module:
    plans = [change_from_dict(data) for data in (*record["earlier"], read_json(folder / "plan.json"))]
    if model is None and record["graph"] is not None:
        made = _from_graph(record, weights)
    else:
        made = model if model is not None else _build(record)(trust=trust)
        for plan in plans:
            made = plan.apply(made).eval()
    remember(made, "plans", tuple(plans))
    return made


def _build(record: Mapping[str, Any]) -> Build:
    if record["build"] is None:
        raise ArtifactError(
            f"this result keeps its class, {record['class']}, and does not say how to build it: pass "
            f"model=<an instance of it with the "
            'original sizes>, or save it with build="package.module:callable"'
        )
    return Build.of(record["build"])


def _fill(model: nn.Module, weights: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Put the stored weights in place; every tensor of the model must be there with its shape and kind."""
    aliases, frozen = record["aliases"], set(record["frozen"])
    tensors = named_tensors(model)
    missing = [n for n in tensors if n not in weights and n not in aliases]
    extra = [n for n in (*weights, *aliases) if n not in tensors]
    wrong = [n for n, t in weights.items() if n in tensors and tensors[n].shape != t.shape]
    if missing or extra or wrong:
        raise ArtifactError(
            f"the weights don't fit {type(model).__name__}: {len(missing)} missing, {len(extra)} unknown, "
            f"{len(wrong)} of another shape; "
            f"{(missing + extra + wrong)[0]} first"
        )
    filled = {n: _like(tensors[n], t, n not in frozen) for n, t in weights.items()}
    for name in tensors:
        put(model, name, filled[aliases.get(name, name)])


def _like(old: Tensor, new: Tensor, trained: bool) -> Tensor:
    if not isinstance(old, nn.Parameter):
        return new
    return nn.Parameter(new, requires_grad=trained and (new.is_floating_point() or new.is_complex()))
