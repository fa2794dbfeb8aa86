"""Pruning inside Lightning's ``Trainer``, of the package ``lightning`` or ``pytorch_lightning``.

A checkpoint that is written after pruning holds the plans beside the weights, as JSON data under ``secateur_plans``.
Resuming builds the original architecture, as the user's code says; the callback makes it small before the weights are
loaded.
"""

import importlib
import pickle
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.errors import ArtifactError, MissingExtra, RemapError
from secateur.integrations.pruner import Pruner, Prunes, one_process
from secateur.integrations.record import Record
from secateur.planning.schedules import Schedule

KEY = "secateur_plans"
PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def _callback_class() -> Any:
    """Lightning's ``Callback``, of the package that the program uses, else of the one that is installed."""
    for name in (*(name for name in PACKAGES if name in sys.modules), *PACKAGES):
        try:
            return importlib.import_module(name).Callback
        except ImportError:
            continue
    raise MissingExtra("pytorch-lightning", "lightning", "pruning inside its Trainer")


_Callback: Any = _callback_class()


class PruneCallback(Prunes, _Callback):
    """Prunes the model of a Lightning ``Trainer`` in the middle of training, once or bit by bit.

    The module becomes smaller in place, and its optimizers go on with what they have learnt of the weights that stay.
    Schedulers, the scaler and the count of steps are untouched. Averages that other callbacks keep
    (``WeightAveraging``, ``StochasticWeightAveraging``) become smaller, too. ``ModelCheckpoint`` forgets its best
    checkpoint so far, whose weights are of another size; the files stay.

    Args:
        example: example inputs of the module, as for `secateur.prune`; by default its ``example_input_array``.
        at: after how many steps (``trainer.global_step``) to prune; several steps for pruning bit by bit.
        part: the name of the submodule to prune, "" for the whole ``LightningModule``; ``example`` is then its inputs.
        schedule: how a budget is reached over several steps: "linear", "cubic", "geometric" or a callable.
        also: copies of what is pruned, which are cut as it is: a module, an ``AveragedModel``, a dict of tensors.
        settings: further settings of `secateur.prune`, such as budget, importance and data; ``keep_class=True`` is
            always set. By default half of the MACs go.

    Raises:
        PlanError: steps that don't rise, or ``keep_class=False``.
    """

    def __init__(
        self,
        example: Any = None,
        *,
        at: int | Sequence[int],
        part: str = "",
        schedule: str | Schedule = "cubic",
        also: Sequence[Any] = (),
        **settings: Any,
    ) -> None:
        self._pruner = Pruner(example, at=at, schedule=schedule, settings=settings)
        self.part, self.also = part, tuple(also)

    # ------------------------------------------------------------------ called by the trainer

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Wait for a checkpoint: callbacks see it after the weights were loaded, the module before."""
        one_process(trainer.world_size, "this Trainer")
        vars(pl_module)["on_load_checkpoint"] = _Waiting(self, trainer, pl_module)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the module as it was."""
        vars(pl_module).pop("on_load_checkpoint", None)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """No checkpoint comes any more."""
        for module in (pl_module, *(_part(copy, "") for copy in averages(trainer))):
            vars(module).pop("on_load_checkpoint", None)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Prune where it is time."""
        if not self._pruner.due(trainer.global_step):
            return
        if self._pruner.example is None:
            self._pruner.example = _example(pl_module, self.part)
        copies = [_part(copy, self.part) for copy in averages(trainer)]
        model = pl_module.get_submodule(self.part)
        self._pruner.prune_(model, trainer.global_step, (*trainer.optimizers, *copies, *self.also))
        for kept in trainer.checkpoint_callbacks:
            _forget_best(kept)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Put the plans beside the weights."""
        if self.record.plans:
            checkpoint[KEY] = self.record.to_dict()

    def resume_(self, record: Record, trainer: Any, pl_module: Any) -> None:
        """Make the module as small as a record says, and go on from there."""
        self._pruner.record = record
        copies = [_part(copy, self.part) for copy in averages(trainer)]
        record.prepare_(pl_module.get_submodule(self.part), (*trainer.optimizers, *copies, *self.also))


def prepare_(module: Any, checkpoint: str | Path | Mapping[str, Any], *, part: str = "") -> Any:
    """Make a module of the original sizes as small as the one in a checkpoint, in place, for its weights. Returns it.

    Args:
        module: a ``LightningModule`` as the user's code builds it.
        checkpoint: a file that the trainer wrote, or what ``torch.load`` gave of it; one from before pruning leaves the
            module as it is.
        part: the submodule that was pruned.

    Raises:
        RemapError: the module is of other sizes.
        ArtifactError: the file can't be read without running code that is in it, or its plans can't be read.
    """
    stored(_read(checkpoint)).prepare_(module.get_submodule(part))
    return module


def _read(checkpoint: str | Path | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(checkpoint, Mapping):
        return checkpoint
    try:
        return torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise ArtifactError(
            f"{checkpoint} can't be read as plain data: {error}. If you trust it, read it yourself, and give what you "
            "read."
        ) from error


def stored(checkpoint: Mapping[str, Any]) -> Record:
    """The plans in a checkpoint; none in one from before pruning."""
    return Record.from_dict(checkpoint[KEY]) if KEY in checkpoint else Record()


def averages(trainer: Any) -> list[nn.Module]:
    """The averaged models that the trainer's other callbacks keep."""
    kept = (getattr(callback, "_average_model", None) for callback in trainer.callbacks)
    return [model for model in kept if isinstance(model, nn.Module)]


class _Waiting:
    """Stands in the place of the module's ``on_load_checkpoint``, which is called before its weights are loaded."""

    def __init__(self, callback: PruneCallback, trainer: Any, module: Any) -> None:
        self.callback, self.trainer, self.module = callback, trainer, module

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Waiting":
        return self

    def __call__(self, checkpoint: dict[str, Any]) -> None:
        self.callback.resume_(stored(checkpoint), self.trainer, self.module)
        type(self.module).on_load_checkpoint(self.module, checkpoint)


def _forget_best(checkpoints: Any) -> None:
    """The best checkpoints so far are of another size; what they were measured at says nothing of the smaller model."""
    if hasattr(checkpoints, "best_k_models"):
        checkpoints.best_k_models = {}
        checkpoints.best_model_score = None
        checkpoints.best_model_path = checkpoints.kth_best_model_path = ""


def _part(copy: nn.Module, part: str) -> nn.Module:
    """The part of an averaged module that was pruned."""
    inner: Any = copy.module if isinstance(copy, torch.optim.swa_utils.AveragedModel) else copy
    return inner.get_submodule(part)


def _example(module: Any, part: str) -> Any:
    example = None if part else getattr(module, "example_input_array", None)
    if example is None:
        raise RemapError(
            "example inputs are needed to prune: PruneCallback(example, ...), those of the submodule where part= names "
            "one, or the module's example_input_array"
        )
    return example
