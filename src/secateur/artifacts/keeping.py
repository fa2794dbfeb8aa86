"""What a saved result keeps beside what rebuilds its model: the scores of the units."""

from collections.abc import Mapping

from torch import Tensor, nn

from secateur.artifacts.forms import ENDING, Saved
from secateur.importance.keeping import KeptScores, from_tensors, to_tensors
from secateur.provenance import recall, remember

SCORES = "scores"


def kept(model: nn.Module) -> dict[str, Mapping[str, Tensor]]:
    """Groups of tensors that a model remembers, for files of their own."""
    scores: KeptScores | None = recall(model, "scores")
    return {} if scores is None else {SCORES: to_tensors(scores)}


def remember_kept(model: nn.Module, saved: Saved) -> None:
    """Let a model that was loaded remember what its result keeps.

    Raises:
        ArtifactError: a file of them is not what it should be.
    """
    if (scores := kept_scores(saved)) is not None:
        remember(model, "scores", scores)


def kept_scores(saved: Saved) -> KeptScores | None:
    """The importance of the dense model's units when it was pruned; None where the result does not hold it.

    Raises:
        ArtifactError: the file is not what it should be.
    """
    name = f"{SCORES}{ENDING}"
    return from_tensors(saved.tensors(name)) if name in saved.record["files"] else None
