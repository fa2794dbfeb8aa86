"""``sc.undo``: the units that pruning removed are put back."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from secateur import digests
from secateur.artifacts import open_saved
from secateur.artifacts.build import Build
from secateur.artifacts.forms import Saved
from secateur.artifacts.keeping import kept_removed
from secateur.artifacts.record import MODEL, PLAN
from secateur.artifacts.removed import Removed, joined, prunings
from secateur.artifacts.store import read_inputs
from secateur.artifacts.weights import stored
from secateur.changes import change_from_dict
from secateur.errors import ArtifactError, SurgeryError
from secateur.modules import named_tensors
from secateur.planning import Plan
from secateur.provenance import note_step, pruned_from, remember
from secateur.surgery.apply import check_fit, factor, put
from secateur.surgery.lengths import recomputed
from secateur.surgery.reindex import take

Restore = Literal["auto", "dense", "trained"]


def undo(
    path: str | Path, model: nn.Module | None = None, *, restore: Restore = "auto", trust: bool = False
) -> nn.Module:
    """The model of a saved result with the units that pruning removed put back, in evaluation mode.

    "dense" gives the model that was pruned, bit for bit: the result has to hold its old values, or nothing but the
    pruning may have changed them. "trained" keeps what the weights that stayed have become since (refitted, trained on)
    and puts the removed slices, as they were, back between them: biases that compensation gave to layers stay, weights
    of queries lose the factor that they were given for a smaller head size, and weights that surgery computes anew
    (lengths of weight normalisation) have their old values.

    The result is a model like any other: it was not pruned, and can be saved, pruned and trained.

    Args:
        path: a directory or single file, saved with ``keep_removed``.
        model: an instance of the original (dense) architecture, with any weights; it is left as it is. Needed where no
            ``build`` was stored.
        restore: "dense" or "trained"; "auto" is "dense" where that is possible.
        trust: import the module that ``build`` names, if it is not imported yet.

    Raises:
        ArtifactError: the result does not hold what was removed, or not enough of it; it is damaged; or something else
            than pruning was done to the model.

    Example:
        >>> import tempfile, torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> file = Path(tempfile.mkdtemp()) / "half.safetensors"
        >>> sc.save(sc.prune(net, torch.randn(1, 4), keep=0.5), file, keep_removed=True)
        >>> again = sc.undo(file, model=net)
        >>> all(torch.equal(a, b) for a, b in zip(again.parameters(), net.parameters()))
        True
    """
    if restore not in ("auto", "dense", "trained"):
        raise ArtifactError(f'restore={restore!r}: give "auto", "dense" or "trained"')
    saved = open_saved(path)
    found = kept_removed(saved)
    if found is None:
        raise ArtifactError(
            f"{saved.path} does not hold what was removed: save results with keep_removed=True (--keep-removed)"
        )
    plans = prunings([change_from_dict(data) for data in (*saved.record["earlier"], saved.json(PLAN))])
    parent = pruned_from(saved.record["history"])
    whole = _instance(saved, model, trust)
    if plans:
        try:
            check_fit(plans[0], whole)
        except SurgeryError as error:
            raise ArtifactError(f"{saved.path} does not fit: {error}") from error
    if restore != "trained":
        _fill(whole, {n: _old(n, t, found, _weights(saved), plans) for n, t in stored(whole)[0].items()})
        exact = found.complete or (parent is not None and digests.of_model(whole) == parent)
        if exact and parent is not None and digests.of_model(whole) != parent:
            raise ArtifactError(
                f"what {saved.path} keeps does not give the weights that were pruned (hash {parent[:12]})"
            )
        if exact:
            return _finished(whole, saved, "dense")
        if restore == "dense":
            raise ArtifactError(
                f"{saved.path} holds the removed slices alone, and the rest has changed since: the dense model is not "
                'to be had again. restore="trained" puts the slices back into the weights as they are'
            )
    given = tuple(name for plan in plans for name in plan.biases)
    if given:
        whole = Plan(axes={}, tensors={}, model=type(whole).__name__, biases=given).apply(whole).eval()
    weights = _unscaled(_weights(saved), whole, plans)
    _fill(whole, {n: _new(n, t, found, weights, plans) for n, t in stored(whole)[0].items()})
    return _finished(whole, saved, "trained")


def _instance(saved: Saved, model: nn.Module | None, trust: bool) -> nn.Module:
    """A model of the dense architecture of our own."""
    if model is not None:
        made = copy.deepcopy(model)
        remember(made, "plans", None)
        return made.eval()
    if saved.record["build"] is None:
        raise ArtifactError(
            f"this result does not say how {saved.record['class']} is built: pass model=<an instance of it with the "
            "original sizes>"
        )
    return Build.of(saved.record["build"])(trust=trust).eval()


def _weights(saved: Saved) -> dict[str, Tensor]:
    """The result's tensors, under each of their names."""
    tensors = saved.tensors(MODEL)
    return tensors | {alias: tensors[name] for alias, name in saved.record["aliases"].items() if name in tensors}


def _old(name: str, tensor: Tensor, found: Removed, now: Mapping[str, Tensor], plans: Sequence[Plan]) -> Tensor:
    """A tensor of the dense model, as far as its old values are known."""
    stays = found.kept.get(name, now.get(name))
    return _joined(name, tensor, stays, found, plans)


def _new(name: str, tensor: Tensor, found: Removed, now: Mapping[str, Tensor], plans: Sequence[Plan]) -> Tensor:
    """A tensor with its present values and the removed ones."""
    stays = now.get(name, found.kept.get(name))
    return _joined(name, tensor, stays, found, plans)


def _joined(name: str, tensor: Tensor, stays: Tensor | None, found: Removed, plans: Sequence[Plan]) -> Tensor:
    if stays is None:
        raise ArtifactError(f"{name} is neither among the weights nor among what was kept")
    return joined(name, tuple(tensor.shape), plans, stays, found.removed.get(name))


def _unscaled(weights: dict[str, Tensor], dense: nn.Module, plans: Sequence[Plan]) -> dict[str, Tensor]:
    """Weights of queries without the factors for smaller heads; weights that surgery computes anew left out."""
    tensors = named_tensors(dense)
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    factors: dict[str, Tensor] = {}
    for plan in plans:
        before = {name: list(shape) for name, shape in shapes.items()}
        for name, kept in plan.kept.items():
            for dim, units in kept.items() if name in shapes else ():
                shapes[name][dim] = len(units)
        factors = {name: take(one, plan.kept.get(name, {})) for name, one in factors.items()}
        for scale in plan.scales:
            name = scale.tensor
            whole = factors.get(name, torch.ones(shapes[name], dtype=torch.float64))
            factors[name] = whole * factor(scale, before[name], plan.kept.get(name, {}))
    found = dict(weights)
    for name, one in factors.items():
        found[name] = (weights[name] / one).to(weights[name].dtype)
    computed = {id(tensor) for tensor, _ in recomputed(dense)}
    for name, tensor in tensors.items():
        if id(tensor) in computed and any(name in plan.kept for plan in plans):
            found.pop(name, None)
    return found


def _fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors in place, tied ones once.

    Raises:
        ArtifactError: one is of another type than the model's.
    """
    present = named_tensors(model)
    first: dict[int, Tensor] = {}
    for name, old in present.items():
        if id(old) not in first:
            new = tensors[name]
            if new.is_floating_point() != old.is_floating_point() or new.is_complex() != old.is_complex():
                raise ArtifactError(f"{name} is {new.dtype} in the result, {old.dtype} in {type(model).__name__}")
            parameter = isinstance(old, nn.Parameter)
            first[id(old)] = nn.Parameter(new, requires_grad=old.requires_grad) if parameter else new
        put(model, name, first[id(old)])


def _finished(model: nn.Module, saved: Saved, restored: str) -> nn.Module:
    """Let the model remember where it is from."""
    remember(model, "inputs", read_inputs(saved.path))
    remember(model, "history", tuple(saved.record["history"]))
    first = next((step.get("before") for step in saved.record["history"] if isinstance(step.get("before"), dict)), None)
    note_step(model, "undo", figures=first if restored == "dense" else None, restored=restored)
    return model
