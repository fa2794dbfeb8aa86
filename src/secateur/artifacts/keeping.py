"""What a saved result keeps beside what rebuilds its model: the scores of the units, and what undoing needs."""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from secateur.artifacts.forms import ENDING, Saved
from secateur.artifacts.removed import MARK, Keep, Removed, all_names, check_parent, joined, prunings, removed_of, split
from secateur.artifacts.weights import stored
from secateur.errors import ArtifactError
from secateur.importance.keeping import KeptScores, from_tensors, to_tensors
from secateur.planning.plan import Plan
from secateur.provenance import history, recall, remember

SCORES, REMOVED = "scores", "removed"


def kept(model: nn.Module, keep: Keep, dense: nn.Module | None) -> dict[str, Mapping[str, Tensor]]:
    """Groups of tensors for files of their own.

    Args:
        model: what is saved.
        keep: whether what was removed is kept.
        dense: the model that was pruned; None where only the model itself may remember it.

    Raises:
        ArtifactError: what was removed is not known any more.
    """
    scores: KeptScores | None = recall(model, "scores")
    groups: dict[str, Mapping[str, Tensor]] = {} if scores is None else {SCORES: to_tensors(scores)}
    if keep:
        groups[REMOVED] = _removed(model, keep, dense).to_tensors()
    return groups


def _removed(model: nn.Module, keep: Keep, dense: nn.Module | None) -> Removed:
    changes = recall(model, "plans") or ()
    if dense is not None:
        check_parent(dense, history(model))
        return removed_of(dense, model, changes, keep)
    known: Removed | None = recall(model, REMOVED)
    if known is None:
        raise ArtifactError(
            "keep_removed: what was removed is not known any more. Pass dense=<the model as it was pruned>, or save "
            "the result of sc.prune while that model is still there"
        )
    if known.dense is None:
        return known
    return split(known.dense, all_names(model), prunings(changes), None if keep is True else set(known.kept))


def remember_kept(model: nn.Module, saved: Saved) -> None:
    """Let a model that was loaded remember what its result keeps.

    Raises:
        ArtifactError: a file of them is not what it should be.
    """
    if (scores := kept_scores(saved)) is not None:
        remember(model, "scores", scores)
    if f"{REMOVED}{ENDING}" not in saved.record["files"]:
        return
    tensors = saved.tensors(f"{REMOVED}{ENDING}")
    if MARK not in tensors:  # tensors of the user's own, saved with extra=
        return
    found = Removed.from_tensors(tensors)
    plans = prunings(recall(model, "plans") or ())
    dense = dense_tensors(found, all_names(model), plans, stored(model)[0]) if found.complete else None
    remember(model, REMOVED, Removed(removed=found.removed, kept=found.kept, complete=found.complete, dense=dense))


def dense_tensors(
    found: Removed, now: Mapping[str, Tensor], plans: Sequence[Plan], names: Iterable[str]
) -> dict[str, Tensor]:
    """All tensors of the dense model; those that the model has no more are flat.

    Args:
        found: what is kept of it, all that has changed included.
        now: the model's tensors, under each of their names.
        plans: what became of the dense model.
        names: of the tensors, each once.

    Raises:
        ArtifactError: what is kept does not fit the model.
    """
    given = {name for plan in plans for name in plan.biases}
    shapes = {name: tuple(tensor.shape) for name, tensor in now.items()}
    for plan in reversed(plans):
        shapes |= {name: tuple(d.size for d in t.dims) for t in plan.tensors.values() for name in t.names}
    return {
        name: joined(
            name,
            shapes.get(name, tuple(found.kept[name].shape) if name in found.kept else ()),
            plans,
            found.kept[name] if name in found.kept else now[name],
            found.removed.get(name),
        )
        for name in dict.fromkeys((*names, *found.kept))
        if name not in given
    }


def kept_scores(saved: Saved) -> KeptScores | None:
    """The importance of the dense model's units when it was pruned; None where the result does not hold it.

    Raises:
        ArtifactError: the file is not what it should be.
    """
    name = f"{SCORES}{ENDING}"
    return from_tensors(saved.tensors(name)) if name in saved.record["files"] else None


def kept_removed(saved: Saved) -> Removed | None:
    """What undoing needs; None where the result does not hold it.

    Raises:
        ArtifactError: the file is not what it should be.
    """
    name = f"{REMOVED}{ENDING}"
    return Removed.from_tensors(saved.tensors(name)) if name in saved.record["files"] else None
