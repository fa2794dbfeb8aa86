"""What is replayed: a plan, a plan's file, or a saved result with all its changes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur import nests
from secateur.artifacts import open_saved
from secateur.artifacts.forms import ENDING
from secateur.artifacts.keeping import kept_scores
from secateur.artifacts.record import MODEL, PLAN, PROBE
from secateur.changes import Change, change_from_dict
from secateur.errors import ArtifactError
from secateur.importance.keeping import KeptScores
from secateur.inputs import Args, Kwargs
from secateur.planning import Plan
from secateur.provenance import recall
from secateur.pruning import Result
from secateur.strict import parse, read_text


@dataclass(frozen=True, kw_only=True)
class Source:
    """What was done to a model, and what else is known of it.

    Attributes:
        changes: first one first.
        name: what it is called in messages.
        shapes: of all tensors after the changes; None where only a plan is known.
        scores: importance of the dense model's units when it was pruned; None where unknown.
        inputs: example inputs, positional and keyword; None where unknown.
        build: how the dense model is built, ``{"callable": ..., "args": {...}}``; None where unknown.
        record: what artifact.json says; None where only a plan is known.
    """

    changes: tuple[Change, ...]
    name: str
    shapes: Mapping[str, tuple[int, ...]] | None = None
    scores: KeptScores | None = None
    inputs: tuple[Args, Kwargs] | None = None
    build: Mapping[str, Any] | None = None
    record: Mapping[str, Any] | None = None


def source(given: "Source | Plan | Result | Sequence[Change] | str | Path") -> Source:
    """Read what is to be replayed.

    Args:
        given: a plan, a result of `secateur.prune`, several changes, a ``plan.json``, or a saved result.

    Raises:
        ArtifactError: a file that is none of these, or damaged.
    """
    if isinstance(given, Source):
        return given
    if isinstance(given, Result):
        return Source(
            changes=recall(given.model, "plans") or (given.plan,),
            name="the result",
            scores=recall(given.model, "scores"),
            inputs=recall(given.model, "inputs"),
        )
    if isinstance(given, str | Path):
        return _file(Path(given))
    changes = (given,) if isinstance(given, Plan) else tuple(given)
    return Source(changes=changes, name="the plan")


def _file(path: Path) -> Source:
    if path.suffix == ".json" and not path.is_dir():
        return Source(changes=(change_from_dict(parse(read_text(path), str(path))),), name=str(path))
    if path.exists() and not (path.is_dir() or path.suffix == ENDING):
        raise ArtifactError(
            f"{path} is neither a plan (plan.json) nor a saved result; give one that sc.save, plan.save or a run wrote"
        )
    saved = open_saved(path)
    record, probed = saved.record, saved.tensors(PROBE)
    try:
        changes = tuple(change_from_dict(data) for data in (*record["earlier"], saved.json(PLAN)))
        shapes = {name: tuple(tensor.shape) for name, tensor in saved.tensors(MODEL).items()}
        shapes |= {alias: shapes[name] for alias, name in record["aliases"].items()}
        inputs = nests.decode(record["probe"], probed.__getitem__)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{path} is no result that secateur wrote: {type(error).__name__}: {error}") from error
    return Source(
        changes=changes,
        name=str(path),
        shapes=shapes,
        scores=kept_scores(saved),
        inputs=inputs,
        build=record["build"],
        record=record,
    )
