"""Pruning inside ``transformers.Trainer``.

A checkpoint that the trainer writes after pruning holds ``secateur_plans.json`` beside the weights. Resuming builds the
original architecture, as the user's code says; the callback makes it small when the weights are about to be loaded.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from secateur.errors import MissingExtra, RemapError
from secateur.integrations.pruner import Pruner, Prunes, one_process
from secateur.integrations.record import FILE, Record, first_that_fits
from secateur.modules import named_tensors
from secateur.planning.schedules import Schedule

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise MissingExtra("transformers", "transformers", "pruning inside its Trainer") from error


class PruneCallback(Prunes, TrainerCallback):
    """Prunes the model of a ``Trainer`` in the middle of training, once or bit by bit.

    The model becomes smaller in place, and the optimizer goes on with what it has learnt of the weights that stay;
    the learning rate, the scaler and the count of steps are untouched. The trainer forgets its best checkpoint so far,
    whose weights are of another size. With ``uniform=True`` checkpoints say their widths in ``config.json``, and load
    without secateur.

    Args:
        example: example inputs, as for `secateur.prune`: usually a dict of keyword inputs.
        at: after how many steps of the optimizer to prune; several steps for pruning bit by bit.
        schedule: how a budget is reached over several steps: "linear", "cubic", "geometric" or a callable.
        also: copies of the model that are cut as it is: an ``AveragedModel``, a module, or a dict of tensors by name.
        settings: further settings of `secateur.prune`, such as budget, importance, data and uniform;
            ``keep_class=True`` is always set. By default half of the MACs go.

    Raises:
        PlanError: steps that don't rise, or ``keep_class=False``.

    Example:
        >>> callback = PruneCallback({"input_ids": [[1]]}, at=[20, 40], uniform=True)
        >>> callback.at
        (20, 40)
    """

    def __init__(
        self,
        example: Any,
        *,
        at: int | Sequence[int],
        schedule: str | Schedule = "cubic",
        also: Sequence[Any] = (),
        **settings: Any,
    ) -> None:
        self._pruner = Pruner(example, at=at, schedule=schedule, settings=settings)
        self.also = tuple(also)
        self._hook: Any = None

    def prepare_(self, model: nn.Module, checkpoint: str | Path) -> nn.Module:
        """Make a model of the original sizes as small as the one in a checkpoint, in place. Returns it.

        The trainer's own checkpoints need no such call: they are found in its output directory.

        Raises:
            RemapError: the model is of other sizes.
            ArtifactError: the checkpoint's plans can't be read.
        """
        return self.resume_(stored(checkpoint), model, self.also)

    def resume_(self, record: Record, model: nn.Module, things: Sequence[Any]) -> nn.Module:
        """Make a model as small as a record says, and go on from there."""
        self._pruner.record = record
        return record.prepare_(model, things)

    # ------------------------------------------------------------------ called by the trainer

    def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Wait for weights of a smaller model."""
        if isinstance(model, nn.Module):
            self._hook = model.register_load_state_dict_pre_hook(_Waiting(self, Path(args.output_dir), kwargs))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Know what was pruned before; a run from the beginning leaves nothing of an earlier one."""
        one_process(args.world_size, "this Trainer")
        if self._hook is not None:
            self._hook.remove()  # copies of the model need not hold it
            self._hook = None
        if state.global_step == 0:
            (Path(args.output_dir) / FILE).unlink(missing_ok=True)
            return
        known = _known(Path(args.output_dir), state.global_step)
        if known is None:
            return
        if not known.is_carried_out(kwargs["model"]) or (self.record.plans and self.record != known):
            raise RemapError(
                "the model was not made small, or made by other plans than those of the checkpoint: call "
                "callback.prepare_(model, checkpoint) with its folder before you build the Trainer"
            )
        self._pruner.record = known

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Prune where it is time."""
        if not self._pruner.due(state.global_step):
            return
        self._pruner.prune_(kwargs["model"], state.global_step, (kwargs["optimizer"], *self.also))
        state.best_metric = state.best_model_checkpoint = state.best_global_step = None
        if args.should_save:  # before any checkpoint of the smaller model is there
            self.record.save(Path(args.output_dir) / FILE)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the plans beside the weights."""
        if self.record.plans and args.should_save:
            self.record.save(_folder(Path(args.output_dir), state.global_step) / FILE)


def prepare_(model: nn.Module, checkpoint: str | Path) -> nn.Module:
    """Make a model of the original sizes as small as the one in a checkpoint, in place, for its weights. Returns it.

    For checkpoints whose config can't say their widths (without ``uniform=True``).

    Args:
        model: of the original architecture.
        checkpoint: a folder that the trainer wrote; one from before pruning leaves the model as it is.

    Raises:
        RemapError: the model is of other sizes.
        ArtifactError: the checkpoint's plans can't be read.
    """
    return stored(checkpoint).prepare_(model)


def stored(checkpoint: str | Path) -> Record:
    """The plans beside a checkpoint; none for one from before pruning."""
    file = Path(checkpoint) / FILE
    if file.is_file() or not Path(checkpoint).is_dir():
        return Record.load(file)
    return _known(Path(checkpoint).parent, _step(Path(checkpoint))) or Record()


class _Waiting:
    """Makes the model small when weights of a smaller one are about to be loaded into it."""

    def __init__(self, callback: PruneCallback, runs: Path, held: Mapping[str, Any]) -> None:
        optimizer = held.get("optimizer")  # of the user's own making; the trainer makes its own later
        self.callback, self.runs = callback, runs
        self.things = callback.also if optimizer is None else (optimizer, *callback.also)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Waiting":
        return self

    def __call__(self, model: nn.Module, state: Mapping[str, Any], *_: Any) -> None:
        shapes = {name: tensor.shape for name, tensor in named_tensors(model).items()}
        wrong = [name for name in state if name in shapes and state[name].shape != shapes[name]]
        if not wrong:
            return
        record = first_that_fits(_records(self.runs), state)
        if record is None:
            raise RemapError(
                f"the checkpoint's {wrong[0]} is {list(state[wrong[0]].shape)}, the model's {list(shapes[wrong[0]])}, "
                f"and no plan in {self.runs} leads from one to the other: call callback.prepare_(model, checkpoint) "
                "with its folder before you build the Trainer"
            )
        self.callback.resume_(record, model, self.things)


def _records(runs: Path) -> Iterator[Record]:
    """Of all checkpoints of a run, the latest first, and of the run itself."""
    folders = sorted(runs.glob("checkpoint-*"), key=_step, reverse=True)
    for file in (*(folder / FILE for folder in folders), runs / FILE):
        if file.is_file():
            yield Record.load(file)


def _known(runs: Path, step: int) -> Record | None:
    """What had been pruned at a step of a run; None where nothing is written of it."""
    for file in (_folder(runs, step) / FILE, runs / FILE):
        if file.is_file():
            return Record.load(file).until(step)
    return None


def _folder(runs: Path, step: int) -> Path:
    return runs / f"checkpoint-{step}"


def _step(folder: Path) -> int:
    number = folder.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1
