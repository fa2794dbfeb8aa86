"""The run behind ``secateur undo``: put removed units back, and save the network."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from secateur import artifacts, digests
from secateur.artifacts.record import RECORD
from secateur.config import ModelSettings
from secateur.errors import ArtifactError, OutputError
from secateur.models import build_model, build_spec
from secateur.provenance import history
from secateur.undoing import Restore, undo


@dataclass(frozen=True, kw_only=True)
class Undone:
    """What a run left.

    Attributes:
        model: the network of the dense architecture.
        restored: "dense", the network that was pruned, or "trained", its present weights with the removed ones.
        weights: the hash of its weights; None where they have none.
    """

    model: nn.Module
    restored: str
    weights: str | None

    def describe(self) -> str:
        """In words."""
        if self.restored == "dense":
            return (
                f"The dense network as it was pruned, bit for bit (its weights have the hash {str(self.weights)[:12]})."
            )
        return "The weights as they are now, with the removed units, as they were, put back between them."


def undo_run(
    result: Path, out: Path, *, model: ModelSettings | None, restore: Restore, trust: bool, overwrite: bool
) -> Undone:
    """Do everything that ``secateur undo`` does.

    Args:
        result: a saved result.
        out: where the network is saved: a directory, or a file that ends in .safetensors.
        model: the original network, where the result does not say how it is built.
        restore, trust: see `secateur.undo`.
        overwrite: replace a result in the same place.

    Raises:
        SecateurError: anything that can't be done, as one of its kinds. Nothing is written then.
    """
    if (out / RECORD).exists() and not overwrite:
        raise OutputError(f"{out} holds a saved result already; choose another place, or give --overwrite")
    try:
        made = undo(result, build_model(model) if model is not None else None, restore=restore, trust=trust)
    except ArtifactError as error:
        hint = " On the command line: --model (and --model-args), or --trust" if model is None else ""
        raise ArtifactError(f"{error}{hint}") from error
    build = artifacts.read_record(result)["build"]
    if model is not None:
        build = {"callable": build_spec(model), "args": model.model_args}
    artifacts.save(made, out, build=build, overwrite=overwrite)
    return Undone(model=made, restored=str(history(made)[-1]["restored"]), weights=digests.of_model(made))
