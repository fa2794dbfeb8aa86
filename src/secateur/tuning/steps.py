"""What the steps of a gradual pruning gave, and the states that take one up again."""

import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from secateur.errors import ArtifactError, TrainingError
from secateur.proof import Proof
from secateur.tuning.checkpoints import Checkpoints, read
from secateur.tuning.history import History


@dataclass(frozen=True, kw_only=True)
class PruningStep:
    """One surgery, and the training after it.

    Attributes:
        number: from 1; the step of the schedule that it ends.
        budget: what it had to cost, as in `Budget`, by kind.
        cost: what it costs, as shares of the original: params, macs, bytes.
        proof: the comparison with the network before it, silenced.
        compensation: what refitting did, as in report.json; None where there was none.
        cut: loss, and accuracy in [0, 1], on the validation batches right after the surgery; empty without them.
        history: the training after it; None where there was none, or not yet.
    """

    number: int
    budget: Mapping[str, float | int | str]
    cost: Mapping[str, float]
    proof: Proof
    compensation: Mapping[str, Any] | None = None
    cut: Mapping[str, float]
    history: History | None = None

    def describe(self) -> str:
        """The step in a few words."""
        kinds = [kind for kind in self.budget if kind in self.cost] or ["macs"]
        left = ", ".join(f"{100 * self.cost[kind]:.1f} % of the {kind}" for kind in kinds)
        score = f", validation {_score(self.cut)} as cut" if self.cut else ""
        best = self.history.epochs[self.history.best_epoch - 1] if self.history and self.history.best_epoch else None
        if best is not None and best.validation_loss is not None:
            found = {"loss": best.validation_loss, "accuracy": best.validation_accuracy}
            score += f", {_score({name: value for name, value in found.items() if value is not None})} trained"
            score += "" if best.robust_accuracy is None else f", {100 * best.robust_accuracy:.1f} % under attack"
        return f"step {self.number}: {left}{score}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in report.json."""
        return {
            "step": self.number,
            "budget": dict(self.budget),
            "cost": dict(self.cost),
            "proof": {**asdict(self.proof), "normalised": list(self.proof.normalised)},
            "compensation": None if self.compensation is None else dict(self.compensation),
            "cut": dict(self.cut),
            "training": None if self.history is None else self.history.to_dict(),
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "PruningStep":
        """Read what `to_dict` wrote."""
        proof: dict[str, Any] = dict(data["proof"])
        proof["normalised"] = tuple(proof["normalised"])
        return PruningStep(
            number=data["step"],
            budget=data["budget"],
            cost=data["cost"],
            proof=Proof(**proof),
            compensation=data["compensation"],
            cut=data["cut"],
            history=None if data["training"] is None else History.from_dict(data["training"]),
        )


def _score(found: Mapping[str, float]) -> str:
    return f"accuracy {100 * found['accuracy']:.1f} %" if "accuracy" in found else f"loss {found['loss']:.3g}"


class Stages:
    """A folder with the states after the last two stages, and the checkpoints of the training that is going on.

    Args:
        folder: made if it is not there; None keeps nothing.
        asked: the settings on which a state hangs, as plain data.
        every: how often training writes a checkpoint; see `Checkpoints`.

    Raises:
        OutputError: nothing can be written there.
    """

    def __init__(self, folder: str | Path | None, asked: Mapping[str, Any], every: int | str) -> None:
        self.folder = None if folder is None else Path(folder)
        self.asked, self.every = dict(asked), every
        self.kept = None if self.folder is None else Checkpoints(self.folder / "stages", every=1)

    def latest(self) -> tuple[int, dict[str, Any]] | None:
        """How many stages are done, and the state after them; None where none is.

        Raises:
            TrainingError: it is of other settings.
        """
        state = None if self.kept is None else self.kept.latest()
        if state is None:
            return None
        if state["asked"] != self.asked:
            other = [name for name, value in self.asked.items() if state["asked"].get(name) != value]
            raise TrainingError(
                f"{self.folder} holds a gradual pruning with other settings ({', '.join(other)}): give the same ones, "
                "or another folder"
            )
        return state["done"], state

    def after(self, done: int) -> dict[str, Any] | None:
        """The state after so many stages, if it is still there and whole."""
        path = None if self.folder is None else self.folder / "stages" / f"step-{done:08d}"
        with suppress(ArtifactError):
            return None if path is None else read(path)
        return None

    def save(self, done: int, state: Mapping[str, Any]) -> None:
        """Keep the state after a stage, and forget its training."""
        if self.kept is None or self.folder is None:
            return
        if self.kept.save(done, {"done": done, "asked": self.asked, **state}) is not None:
            shutil.rmtree(self.folder / f"training-{done - 1:03d}", ignore_errors=True)

    def training(self, done: int) -> dict[str, Any]:
        """Where the training of a stage keeps its checkpoints, as `tune` takes it."""
        if self.folder is None:
            return {}
        return {"checkpoints": self.folder / f"training-{done:03d}", "every": self.every}
