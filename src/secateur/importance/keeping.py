"""The scores that a plan was made by, as a model and a saved result remember them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.errors import ArtifactError


@dataclass(frozen=True, kw_only=True)
class KeptScores:
    """Importance of the units of a dense model.

    Attributes:
        importance: the criterion, as `secateur.pruning.in_words` calls it.
        axes: for each prunable axis a float32 vector (units,), higher = kept longer.
    """

    importance: str
    axes: Mapping[str, Tensor]


NAME = "importance"
"""The entry of a file of scores that holds the criterion's name, as bytes; names of axes have a colon in them."""


def to_tensors(kept: KeptScores) -> dict[str, Tensor]:
    """Scores as tensors by name, for a file.

    >>> to_tensors(KeptScores(importance="l2", axes={"0.weight:0": torch.ones(2)}))["importance"]
    tensor([108,  50], dtype=torch.uint8)
    """
    scores = {axis: values.detach().float().cpu().contiguous() for axis, values in kept.axes.items()}
    return {**scores, NAME: torch.tensor(list(kept.importance.encode()), dtype=torch.uint8)}


def from_tensors(tensors: Mapping[str, Tensor]) -> KeptScores:
    """Read what `to_tensors` gave.

    Raises:
        ArtifactError: it is something else.
    """
    name = tensors.get(NAME)
    scores = {axis: values for axis, values in tensors.items() if axis != NAME}
    wrong = [axis for axis, values in scores.items() if values.dim() != 1 or values.dtype != torch.float32]
    if name is None or name.dtype != torch.uint8 or name.dim() != 1 or wrong:
        raise ArtifactError(
            f"these are no scores of units: {', '.join(wrong) or 'the name of the criterion is missing'}"
        )
    try:
        text = bytes(name.tolist()).decode()
    except UnicodeDecodeError as error:
        raise ArtifactError(f"these are no scores of units: the name of their criterion is no text: {error}") from error
    return KeptScores(importance=text, axes=scores)
