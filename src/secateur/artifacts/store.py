"""``sc.save`` and ``sc.load``: safetensors and JSON in a directory or a single file, and no pickle anywhere.

``model.safetensors`` holds the weights, ``plan.json`` the last change, ``probe.safetensors`` example inputs and
outputs, ``README.md`` the model card, and ``artifact.json``, written last, what rebuilds the model, with the hash of
each of the others.
"""

import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor, fx, nn

from secateur import nests
from secateur.artifacts import forms, probe
from secateur.artifacts.about import About
from secateur.artifacts.bounds import Limits, Meter
from secateur.artifacts.build import Build
from secateur.artifacts.card import card
from secateur.artifacts.decoding import decode_graph
from secateur.artifacts.forms import Saved, open_saved
from secateur.artifacts.graphs import encode_graph
from secateur.artifacts.keeping import kept, remember_kept
from secateur.artifacts.record import FORMAT, MODEL, PLAIN, PLAN, PROBE, is_file_name
from secateur.artifacts.rehearsal import rehearse
from secateur.artifacts.removed import Keep
from secateur.artifacts.weights import fill, stored
from secateur.changes import Change, Changed, change_from_dict, model_of
from secateur.errors import ArtifactError, SecateurError
from secateur.files import RunDirectory
from secateur.inputs import as_call
from secateur.modules import Walk, check_original
from secateur.packed import size_bytes
from secateur.planning.plan import Plan
from secateur.provenance import history, recall, remember
from secateur.pruning import Result
from secateur.rebuilding import as_module, handed_out

# ---------------------------------------------------------------------- saving


def save(
    model_or_result: nn.Module | Changed,
    path: str | Path,
    build: str | Mapping[str, Any] | None = None,
    *,
    args: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    about: About | Mapping[str, Any] | None = None,
    figures: Mapping[str, Any] | None = None,
    extra: Mapping[str, Mapping[str, Tensor]] | None = None,
    keep_removed: Keep = False,
    dense: nn.Module | None = None,
    plain: bool = False,
    overwrite: bool = False,
) -> None:
    """Write a pruned model so that it loads anywhere.

    Args:
        model_or_result: what `prune`, `shorten` or `deepen` gave, perhaps trained on since, or its model.
        path: a directory, made if it is not there (other files in it stay); or a single file, of a name that ends in
            ``.safetensors``.
        build: ``"package.module:callable"`` that makes the dense model, or ``{"callable": ..., "args": {...}}`` with
            JSON arguments; `load` then needs no ``model=``. Not needed where the class was rewritten. Arguments that
            ask for trained weights (``weights``, ``pretrained`` and the like) are kept as None or False, since the
            weights are in the file.
        args, kwargs: example inputs for the probe; those that the model was pruned with where none are given.
        about: what only you know: name, licence, data ..., for the model card; see `About`.
        figures: ``{"dense": F, "pruned": F, "tuned": F}`` with the columns of report.json; those of the result, or of
            the model's history, where none are given.
        extra: further tensors to keep beside the model, each group in a file of its own: ``{"removed": tensors}``. Read
            them with `read_tensors`.
        keep_removed: keep what `secateur.undo` needs: True for the removed slices and the old values of whatever has
            changed since (refitted weights, training), so that undoing gives the dense model to the bit, in at most its
            size; "slices" for the removed slices alone.
        dense: the model that was pruned, for ``keep_removed``; not needed for a result of `prune` while that model is
            still there, or for a loaded model whose result keeps them.
        plain: write tensors that hold zeros as they are, for other tools. By default each is packed where that takes
            fewer bytes (a mask and values, N:M places and values, or blocks), and loads as it was, to the bit.
        overwrite: replace a result that is there.

    Raises:
        OutputError: the place is taken or can't be written.
        ArtifactError: no example inputs are known, what was removed is not known any more, or something can't be
            stored, such as what `secateur.accelerate` made.

    Example:
        >>> import tempfile, torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> result = sc.prune(net, torch.randn(1, 4), keep=0.5)
        >>> file = Path(tempfile.mkdtemp()) / "small.safetensors"
        >>> sc.save(result, file, about={"licence": "mit", "data": "random numbers"})
        >>> sc.load(file, model=net)[0]
        Linear(in_features=4, out_features=4, bias=True)
    """
    model = model_of(model_or_result)
    check_original(Walk(model), ArtifactError)
    known = None
    if not isinstance(model_or_result, nn.Module):
        known = {k: model_or_result.report[k] for k in ("dense", "pruned")}
    if dense is None and isinstance(model_or_result, Result):
        dense = model_or_result.ancestry.model if keep_removed else None
    plans, positional, keywords = _provenance(model, args, kwargs)
    place = Path(path)
    forms.check_free(place, overwrite=overwrite)
    builder = None if build is None else Build.of(build)
    rewritten = any(plan.rewrites for plan in plans)
    inputs, probed = probe.encode(positional, keywords)
    outputs = probe.outputs_of(model, positional, keywords)
    probed |= {f"output.{k}": t.cpu().contiguous().clone() for k, t in enumerate(outputs)}
    weights, aliases = stored(model)
    record: dict[str, Any] = {
        "format": FORMAT,
        "version": PLAIN,
        "class": plans[0].model if rewritten else f"{type(model).__module__}:{type(model).__qualname__}",
        "build": builder and vars(builder),
        "graph": None,
        "earlier": [plan.to_dict() for plan in plans[:-1]],
        "aliases": aliases,
        "parameters": [name for name, _ in model.named_parameters()],
        "frozen": [name for name, p in model.named_parameters() if not p.requires_grad],
        "probe": inputs,
        "about": About.of(about if about is not None else recall(model, "about")).to_dict(),
        **_made(model, figures or known),
    }
    if rewritten and isinstance(model, fx.GraphModule):
        record["graph"] = _graph(model, record, weights, probed, needed=builder is None)
    texts = {PLAN: forms.dumped(plans[-1].to_dict())}
    forms.write(
        place,
        record,
        texts,
        {MODEL: weights, PROBE: probed, **_named({**kept(model, keep_removed, dense), **(extra or {})})},
        card(record, loading(RunDirectory.name_of(place), record)),
        plain=plain,
        overwrite=overwrite,
    )


def _made(model: nn.Module, figures: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the record says of how the model was made: the whole history, and its gist.

    Raises:
        ArtifactError: the history holds what JSON does not have.
    """
    past = history(model)
    try:
        steps = nests.plain(past)
        columns = nests.plain(figures or _columns(past))
    except TypeError as error:
        raise ArtifactError(f"the model's history can't be stored: {error}") from error

    def first(name: str, kind: type) -> Any:
        return next((done[name] for done in steps if type(done.get(name)) is kind), None)

    def last(name: str, kind: type) -> Any:
        return next((done[name] for done in reversed(steps) if type(done.get(name)) is kind), None)

    return {
        "parent": first("parent", str),
        "importance": last("importance", str),
        "seed": last("seed", int),
        "data": last("data", str),
        "figures": columns,
        "history": steps,
    }


def _columns(past: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    """The columns of report.json, as far as a history knows them."""
    found: dict[str, Any] = {}
    for done in past:
        if done.get("before") and "dense" not in found:
            found["dense"] = done["before"]
        if done["figures"]:
            found["tuned" if done["step"] == "tune" else "pruned"] = done["figures"]
    return found


def _named(extra: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Mapping[str, Tensor]]:
    """Further tensors by the names of their files.

    Raises:
        ArtifactError: a name that can't be that of a file of its own.
    """
    made = {f"{name}{forms.ENDING}": tensors for name, tensors in extra.items()}
    if wrong := [name for name in made if not is_file_name(name) or name in (MODEL, PROBE)]:
        raise ArtifactError(f"extra tensors can't be called {wrong}: use letters, digits, - and _, and no taken name")
    return made


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
        fill(made, weights, record)
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


# ---------------------------------------------------------------------- loading


def load(path: str | Path, model: nn.Module | None = None, *, trust: bool = False) -> nn.Module:
    """The saved model, in evaluation mode, checked against its probe.

    Args:
        path: the directory or the single file that `save` or a run wrote.
        model: an instance of the original (dense) architecture, with any weights; it is left as it is. Needed where the
            class was kept and no ``build`` was stored.
        trust: import the module that ``build`` names, if it is not imported yet, and set no bounds to what building
            and running the model may take, nor to what building it may fetch.

    Raises:
        ArtifactError: the result is truncated, altered or foreign, does not fit the model, or gives other outputs
            than when it was saved; the message says what differs.
    """
    saved, given = open_saved(path), model
    record, model = saved.record, as_module(given)
    try:
        weights, tensors = saved.tensors(MODEL), saved.tensors(PROBE)
        made = _rebuild(saved, weights, model, trust)
        fill(made, weights, record)
        inputs = probe.decode(record["probe"], tensors)
        if not trust:
            size = max(saved.size_bytes, size_bytes(weights.values()))  # what was packed weighs more than its file
            rehearse(made, inputs[0], inputs[1], Limits.of_probe(size))
        probe.check(made, record["probe"], tensors)
        remember(made, "inputs", inputs)
        remember(made, "history", tuple(record["history"]))
        remember(made, "about", About.of(record["about"]))
        remember_kept(made, saved)
    except SecateurError as error:
        raise (
            error if isinstance(error, ArtifactError) else ArtifactError(f"{saved.path} does not fit: {error}")
        ) from error
    except Exception as error:  # whatever a foreign file may cause
        raise ArtifactError(f"{saved.path} can't be rebuilt: {type(error).__name__}: {error}") from error
    return made if model is given else handed_out(made)


def _rebuild(saved: Saved, weights: Mapping[str, Tensor], model: nn.Module | None, trust: bool) -> nn.Module:
    record = saved.record
    plans = [change_from_dict(data) for data in (*record["earlier"], saved.json(PLAN))]
    if model is None and record["graph"] is not None:
        made = _from_graph(record, weights)
    else:
        made = model if model is not None else _build(saved, trust=trust)
        for plan in plans:
            made = plan.apply(made).eval()
    remember(made, "plans", tuple(plans))
    return made


def _build(saved: Saved, *, trust: bool) -> nn.Module:
    """The dense model, by the callable that the record names."""
    record = saved.record
    if record["build"] is None:
        raise ArtifactError(
            f"this result keeps its class, {record['class']}, and does not say how to build it: pass "
            f"model=<an instance of it with the "
            'original sizes>, or save it with build="package.module:callable"'
        )
    with nullcontext() if trust else Meter(Limits.of_build(saved.size_bytes), strict=False):
        return Build.of(record["build"])(trust=trust)


def loading(place: str, record: Mapping[str, Any]) -> str:
    """Python that loads a saved result, in a line."""
    quoted = json.dumps(place)
    if record["graph"] is not None:
        return f"sc.load({quoted})"
    if record["build"] is not None:
        return f"sc.load({quoted}, trust=True)  # imports {record['build']['callable'].partition(':')[0]}"
    return f"sc.load({quoted}, model=...)  # an instance of {record['class']} with its original sizes"


# ---------------------------------------------------------------------- what else is in it


def read_record(path: str | Path) -> dict[str, Any]:
    """The contents of artifact.json, after checking every file against its hash.

    Raises:
        ArtifactError: it is no result of ours, or one that was truncated or altered.
    """
    return open_saved(path).record


def read_inputs(path: str | Path) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example inputs that a result was saved with, positional and keyword.

    Raises:
        ArtifactError: as `read_record`, or it describes no inputs.
    """
    saved = open_saved(path)
    return probe.decode(saved.record["probe"], saved.tensors(PROBE))


def read_tensors(path: str | Path, name: str) -> dict[str, Tensor]:
    """Further tensors that a result was saved with: ``read_tensors("small", "removed")``.

    Raises:
        ArtifactError: as `read_record`, or it has none of that name.
    """
    return open_saved(path).tensors(f"{name}{forms.ENDING}")


def add_tensors(path: str | Path, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Keep further tensors in a result that is there: ``add_tensors("small", "removed", tensors)``.

    They lie in a file of their own, ``removed.safetensors``, which the record names and hashes. A group of the same
    name is replaced.

    Raises:
        ArtifactError: as `read_record`, or the name is taken or can't be that of a file.
        OutputError: it can't be written.
    """
    forms.add(open_saved(path), _named({name: tensors}))
