"""What undoing needs: the slices that pruning removed, and the old values of what has changed of the rest.

In ``removed.safetensors`` the entries of each tensor that were removed are called ``removed/NAME``, and the old values
of those that stayed and have changed since ``kept/NAME``: both flat, in the order of the dense tensor.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secateur import digests
from secateur.artifacts.weights import stored
from secateur.changes import Change
from secateur.errors import ArtifactError
from secateur.planning.plan import Plan
from secateur.provenance import pruned_from
from secateur.surgery.lengths import recomputed
from secateur.surgery.reindex import take

MARK = "complete"  # the entry that says whether all old values are there
Keep = bool | Literal["slices"]
Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Removed:
    """What a result keeps of its dense model.

    Attributes:
        removed: entries that pruning removed, flat, by the name of their tensor.
        kept: old values of what stayed and has changed since, flat, by name.
        dense: all of the dense model's tensors, where that is known. A loaded model remembers them, so that it can be
            trained on and saved again.
        complete: whether ``kept`` has all that has changed.
    """

    removed: Mapping[str, Tensor]
    kept: Mapping[str, Tensor]
    complete: bool
    dense: Mapping[str, Tensor] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Removed":
        return self  # nobody writes to it

    def to_tensors(self) -> dict[str, Tensor]:
        """For a file."""
        mark = torch.tensor([self.complete])
        groups = {"removed": self.removed, "kept": self.kept}
        return {MARK: mark} | {f"{g}/{n}": t for g, tensors in groups.items() for n, t in tensors.items()}

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> "Removed":
        """Read what `to_tensors` gave.

        Raises:
            ArtifactError: it is something else.
        """
        groups: dict[str, dict[str, Tensor]] = {"removed": {}, "kept": {}}
        mark = tensors.get(MARK)
        for key, tensor in tensors.items():
            group, _, name = key.partition("/")
            if key != MARK and (group not in groups or not name or tensor.dim() != 1):
                raise ArtifactError(f"these are no removed slices: {key} is not called removed/NAME or kept/NAME")
            if key != MARK:
                groups[group][name] = tensor
        if mark is None or mark.dtype != torch.bool or mark.numel() != 1:
            raise ArtifactError("these are no removed slices: nothing says whether they are complete")
        return Removed(removed=groups["removed"], kept=groups["kept"], complete=bool(mark))


def removed_of(dense: nn.Module, model: nn.Module, changes: Sequence[Change], keep: Keep) -> Removed:
    """What undoing needs of a dense model.

    Args:
        dense: the model that was pruned, as it was.
        model: what became of it.
        changes: by which; prunings alone.
        keep: True for all, so that undoing gives the dense model exactly; "slices" for what was removed.

    Raises:
        ArtifactError: a change that is no pruning.
    """
    plans, tensors = prunings(changes), stored(dense)[0]
    follows = {name for plan in plans for name in (scale.tensor for scale in plan.scales)}
    ids = {id(tensor) for tensor, _ in recomputed(dense)}
    named: dict[str, Tensor] = dict(dense.named_parameters()) | dict(dense.named_buffers())
    follows |= {name for name, tensor in named.items() if id(tensor) in ids}
    return split(tensors, all_names(model), plans, None if keep is True else follows)


def split(
    dense: Mapping[str, Tensor], now: Mapping[str, Tensor], plans: Sequence[Plan], always: set[str] | None
) -> Removed:
    """What is gone of tensors, and what has changed.

    Args:
        dense: all tensors of the dense model.
        now: those of the model that became of it.
        plans: by which.
        always: names whose old values are kept if they have changed; None for all. Tensors that are not there any more
            are kept in any case.
    """
    removed: dict[str, Tensor] = {}
    kept: dict[str, Tensor] = {}
    for name, tensor in dense.items():
        flat, at = tensor.reshape(-1), positions(name, tuple(tensor.shape), plans)
        gone = torch.ones(flat.numel(), dtype=torch.bool)
        gone[at] = False
        if gone.any():
            removed[name] = flat[gone].clone()
        left = now.get(name)
        if left is None or ((always is None or name in always) and not _same(left.reshape(-1), flat[at])):
            kept[name] = flat[at].clone()
    return Removed(removed=removed, kept=kept, complete=always is None)


def positions(name: str, shape: Shape, plans: Sequence[Plan]) -> Tensor:
    """Where the entries of a tensor that stay lay in the dense one, flat, in their order now.

    Raises:
        ArtifactError: a plan speaks of positions that the tensor does not have.
    """
    at = torch.arange(torch.Size(shape).numel()).reshape(shape)
    for plan in plans:
        kept = plan.kept.get(name, {})
        if any(dim >= at.dim() or (len(units) and int(units.max()) >= at.shape[dim]) for dim, units in kept.items()):
            raise ArtifactError(f"the plan does not fit {name} of shape {list(shape)}")
        at = take(at, kept)
    return at.reshape(-1)


def joined(name: str, shape: Shape, plans: Sequence[Plan], stays: Tensor, gone: Tensor | None) -> Tensor:
    """A dense tensor of the entries that stayed and those that were removed.

    Raises:
        ArtifactError: they are not as many as there are places, or of two types.
    """
    at = positions(name, shape, plans)
    places = torch.ones(torch.Size(shape).numel(), dtype=torch.bool)
    places[at] = False
    parts = [stays, *([] if gone is None else [gone])]
    counts = [int(at.numel()), int(places.sum())]
    if [part.numel() for part in parts] != counts[: len(parts)] or (gone is None and counts[1]):
        raise ArtifactError(f"the removed slices of {name} are not those of a tensor of shape {list(shape)}")
    if len({part.dtype for part in parts}) > 1:
        raise ArtifactError(f"the removed slices of {name} are {gone.dtype if gone is not None else ''}, the rest not")
    whole = stays.new_empty(places.numel())
    whole[at] = stays.reshape(-1)
    if gone is not None:
        whole[places] = gone
    return whole.reshape(shape)


def prunings(changes: Sequence[Change]) -> tuple[Plan, ...]:
    """The changes, if all of them are prunings.

    Raises:
        ArtifactError: naming those that are not.
    """
    plans = tuple(change for change in changes if isinstance(change, Plan))
    if len(plans) < len(changes):
        others = sorted({type(change).__name__ for change in changes if not isinstance(change, Plan)})
        raise ArtifactError(f"only pruning can be undone, and {', '.join(others)} came in between or after it")
    return plans


def all_names(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model under each of their names."""
    tensors, aliases = stored(model)
    return tensors | {alias: tensors[name] for alias, name in aliases.items()}


def check_parent(dense: nn.Module, history: Sequence[Mapping[str, Any]]) -> None:
    """Raise unless a dense model is, to the bit, the one that was pruned.

    Raises:
        ArtifactError: it is another one, or has changed since.
    """
    parent = pruned_from(history)
    if parent is not None and digests.of_model(dense) != parent:
        raise ArtifactError(
            f"this {type(dense).__name__} has not the weights that were pruned (hash {parent[:12]}): they were changed "
            "since, or it is another model. Pass dense=<the model as it was pruned>"
        )


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two flat tensors have the same bits."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)) if a.numel() else True
