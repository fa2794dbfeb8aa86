"""``sc.tune``: train a pruned model on until its accuracy is back."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import Any, Literal

import torch
from torch import nn

from secateur.changes import Changed
from secateur.errors import TrainingError
from secateur.modules import kept_modes, named_parameters
from secateur.objectives import Loss
from secateur.safety.adversarial import Adversarial
from secateur.sparsity.living import KeptMasks
from secateur.tuning import metrics, randomness, ranges
from secateur.tuning.averaging import Average
from secateur.tuning.best import Best
from secateur.tuning.callbacks import Callback
from secateur.tuning.checkpoints import EVERY, Checkpoints
from secateur.tuning.choosing import Asked, Coming, Rate, chosen
from secateur.tuning.counting import check_again, steps_per_epoch
from secateur.tuning.distilling import Distillation, is_causal
from secateur.tuning.history import Epoch, History
from secateur.tuning.loop import Pace, Run
from secateur.tuning.metrics import Metric
from secateur.tuning.objective import objective
from secateur.tuning.optimizers import MakeOptimizer, make_optimizer
from secateur.tuning.parts import labels_of, size_of
from secateur.tuning.processes import Processes, processes
from secateur.tuning.ranging import loader_as_found
from secateur.tuning.recipes import EPOCHS, Recipe
from secateur.tuning.robust import Attacker
from secateur.tuning.schedules import Fraction, fractions
from secateur.tuning.searching import Search
from secateur.tuning.session import Judge, Session
from secateur.tuning.trainable import What, trainable
from secateur.zeros import zeros_kept


def tune(
    model: nn.Module | Changed,
    train: Iterable[Any],
    validate: Iterable[Any] | None = None,
    *,
    epochs: int | None = None,
    lr: Rate = "auto",
    optimizer: str | MakeOptimizer = "auto",
    weight_decay: float = Recipe.weight_decay,
    schedule: str | Fraction = "cosine",
    warmup: float = Recipe.warmup,
    teacher: nn.Module | Distillation | None = None,
    distill: float = Recipe.distill,
    temperature: float = Recipe.temperature,
    train_only: What = "all",
    freeze_statistics: bool = False,
    adversarial: Adversarial | None = None,
    keep_zeros: bool = True,
    loss: Loss | None = None,
    metric: Metric | None = None,
    larger: bool | None = None,
    patience: int | None = None,
    keep: Literal["best", "last"] = "best",
    clip: float | None = None,
    accumulate: int = 1,
    ema: float | None = None,
    halve: bool = False,
    precision: str | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
    checkpoints: str | Path | None = None,
    every: int | str = EVERY,
    on_epoch: Callable[[Epoch], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> History:
    """Train a model in place, and leave it in its best state.

    It runs on what ``accelerate launch`` or ``torchrun`` start, too: several processes share every batch, and give the
    result of one.

    The best state is the latest one whose validation accuracy lies at most one standard error below the highest: a few
    hundred samples can't tell such states apart, and the later one was trained at a lower rate. Where targets are no
    classes it is the one of lowest validation loss, with a metric the one of its best value. The state that the model
    came with is one of the candidates. Without ``validate``, or with ``keep="last"``, the last
    state stays.

    Args:
        model: trained in place; the modes of its modules are left as they were. A result, of `secateur.prune`,
            `secateur.sparsify` or another, stands for its model.
        train: training batches, iterable again and again. One with ``set_epoch`` is told the epoch, counted from 0.
        validate: batches to choose the best state by.
        epochs: passes over ``train``, at least 1; 10 if not given.
        lr: the highest learning rate, above 0; "auto" finds it by a range test on training batches; or a `Search`.
        optimizer: "adamw", "adam", "sgd" (Nesterov momentum 0.9), or a callable ``(parameters, lr=, weight_decay=)``;
            "auto" takes the better of AdamW and SGD by range tests.
        weight_decay: decoupled for "adamw", an L2 penalty for "adam" and "sgd".
        schedule: how the rate falls after the warm-up: "cosine", "linear", "constant", "steps", or a function from the
            share of the run to the share of the highest rate.
        warmup: fraction of all steps during which the rate rises, in [0, 1).
        teacher: a model whose class scores are imitated besides the labels (Hinton et al. 2015, arXiv:1503.02531), or a
            `Distillation`, which takes features too.
        distill: weight of the teacher against the labels, in [0, 1].
        temperature: softens the scores of teacher and model, above 0.
        train_only: what trains, as for `trainable`: "all", "norms", "biases", "head", "low-rank", names, patterns.
        freeze_statistics: whether batch norms keep their running statistics.
        adversarial: attacks on the inputs, which training then makes the model resist; see `Adversarial`. The best
            state is chosen under attack, and each epoch's row says both.
        keep_zeros: whether weights that `secateur.sparsify` removed stay exactly zero (`secateur.keep_masks`). With
            False they train like the others.
        loss: ``(output, target) -> scalar``; by default the model's own ``output.loss`` where it has one, else
            cross-entropy.
        metric: what validation goes by: a name such as "f1", a metric of torchmetrics, or ``(model, batches) ->
            number``.
        larger: whether a larger metric is better; None asks the metric.
        patience: end after so many epochs without a better validation; needs ``validate``.
        keep: "best", or "last" for the last state whatever validation says.
        clip: largest norm of the gradient, above 0.
        accumulate: batches of a step of the optimizer, at least 1.
        ema: decay in (0, 1) of an average of the weights that is validated and kept in their stead.
        halve: whether a batch that does not fit in memory is done in halves, with the gradient of the whole.
        precision: "no", "fp16" or "bf16"; None is what ``accelerate launch`` says, else "no".
        device: where to train; None is Accelerate's choice, a GPU where there is one.
        seed: of everything random. The global random states are left as they were.
        callbacks: told of every step; see `Callback`.
        checkpoints: a folder for what takes the run up again. With one that holds a run of the same settings, training
            goes on from there: on a CPU, with one process, to the same bits as if it had not been disturbed.
        every: how often a checkpoint is written: a number of steps, or a time such as "30s".
        on_epoch: called after each epoch with its row.
        progress: called after each step with the steps done and the steps in all.

    Returns:
        The run, epoch by epoch. After Ctrl-C it ends with ``interrupted=True``, the model in its best state so far.

    Raises:
        TrainingError: the loss is not finite, there is no batch, the loader raises, memory does not suffice, or a
            setting is out of its range. The model is then in its best state so far.
        OutputError: no checkpoint can be written to the folder.
        MissingExtra: Accelerate, Optuna or torchmetrics is not installed, and is needed.

    Example:
        >>> net = torch.nn.Linear(2, 2)
        >>> batch = (torch.eye(2).repeat(8, 1), torch.arange(2).repeat(8))
        >>> history = tune(net, [batch], [batch], epochs=20, lr=0.1, device="cpu")
        >>> history.epochs[-1].validation_accuracy
        1.0
    """
    model = model if isinstance(model, nn.Module) else model.model
    epochs = EPOCHS if epochs is None else epochs
    number = None if isinstance(lr, str | Search) else lr
    ranges.check(
        {
            "epochs": epochs,
            "lr": number,
            "weight_decay": weight_decay,
            "warmup": warmup,
            "distill": distill,
            "temperature": temperature,
            "accumulate": accumulate,
            "clip": clip,
            "patience": patience,
            "ema": ema,
        },
        *_contradictions(validate, keep=keep, metric=metric, patience=patience),
    )
    larger = metrics.larger_is_better(metric, larger)
    started = time.perf_counter()
    with ExitStack() as stack:
        these = stack.enter_context(processes(device, precision))
        if ema is not None and these.sharded:
            raise TrainingError("ema does not go with FSDP: train with DDP, or without ema")
        if adversarial is not None and these.sharded:
            raise TrainingError("adversarial does not go with FSDP: train with DDP")
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(kept_modes(model))
        stack.enter_context(randomness.as_found(these.device))
        kept = _kept(model, callbacks, these) if keep_zeros else None
        stack.enter_context(trainable(model, train_only, freeze_statistics=freeze_statistics, keep_zeros=keep_zeros))
        if kept is not None:
            stack.enter_context(KeptMasks(*kept))
        pace = _pace(train, these, seed, epochs, accumulate, clip, halve, schedule, warmup)
        taught = _taught(teacher, distill, temperature, these)
        keeper = Checkpoints(checkpoints, every=every) if checkpoints is not None else None
        coming = Coming(
            tune=tune,
            train=train,
            validate=validate,
            teacher=taught,
            objective=lambda these, lesson: objective(these, loss, lesson, adversarial),
            steps=pace.total,
            options={
                "weight_decay": weight_decay,
                "schedule": schedule,
                "warmup": warmup,
                "adversarial": adversarial,
                "loss": loss,
                "metric": metric,
                "larger": larger,
                "clip": clip,
                "accumulate": accumulate,
                "halve": halve,
                "precision": precision,
                "device": device,
                "keep_zeros": keep_zeros,
                "seed": seed,
            },
        )
        rate, maker, choice = chosen(Asked(lr=lr, optimizer=optimizer, model=model), coming, these, keeper)
        wrapped, stepper = these.prepare(
            model, lambda trained: make_optimizer(maker, trained, lr=rate, weight_decay=weight_decay)
        )
        lesson = None if taught is None else stack.enter_context(taught.on(these.unwrap(wrapped)))
        run = Run(
            wrapped,
            stepper,
            train,
            objective(these, loss, lesson, adversarial),
            these,
            pace,
            seed=seed,
            average=None if ema is None else Average(these.unwrap(wrapped), ema),
            callbacks=callbacks,
            progress=progress if these.main else None,
            weigh=size_of if loss is not None else partial(labels_of, shifted=is_causal(these.unwrap(wrapped))),
        )
        randomness.seed_all(seed, these.rank)
        attacking = None if adversarial is None else Attacker.of(adversarial, these, loss).validating
        judge = None if validate is None else Judge(validate, run, loss, metric, seed, attacking)
        best = Best(validated=validate is not None, larger=larger, last=keep == "last")
        settings = {"seed": seed, "accumulate": accumulate}
        settings |= {} if adversarial is None else {"adversarial": str(adversarial)}
        session = Session(run, model, keeper, judge, best, settings, started)
        session.history.choice = choice
        with session.interrupts.listening(SIGINT, *([SIGTERM] if keeper is not None else [])):
            return session.train(epochs, patience, on_epoch if these.main else None)


def _kept(
    model: nn.Module, callbacks: Sequence[Callback], these: Processes
) -> tuple[dict[str, nn.Parameter], dict[str, torch.Tensor]] | None:
    """The weights of a model that was made sparse, and their masks; None where there is nothing to keep.

    Raises:
        TrainingError: FSDP would shard them.
    """
    free = {name for callback in callbacks for name in callback.frees(model)}
    masks = {name: mask for name, mask in zeros_kept(model).items() if name not in free}
    if masks and these.sharded:
        raise TrainingError(
            f"{', '.join(list(masks)[:3])} are sparse, and their zeros can't be kept where FSDP shards them: train "
            "with DDP, or with keep_zeros=False"
        )
    have = named_parameters(model)
    return ({name: have[name] for name in masks}, masks) if masks else None


def _contradictions(
    validate: Iterable[Any] | None, *, keep: str, metric: Metric | None, patience: int | None
) -> Iterator[str]:
    if keep not in ("best", "last"):
        yield f"keep={keep!r} must be 'best' or 'last'"
    if metric is not None:
        metrics.check(metric)
    needs = [name for name, value in (("metric", metric), ("patience", patience)) if value is not None]
    if validate is None and needs:
        yield f"{' and '.join(needs)} need validate=: batches that are not trained on"
    if validate is not None:
        check_again(validate, "validate")


def _pace(
    train: Iterable[Any],
    these: Processes,
    seed: int,
    epochs: int,
    accumulate: int,
    clip: float | None,
    halve: bool,
    schedule: str | Fraction,
    warmup: float,
) -> Pace:
    """How steps are made; counting batches draws from the data's own stream, and leaves the loader as it was."""
    data = randomness.DataDraws(seed)
    data.start(0)
    with data(), loader_as_found(train):
        per_epoch = steps_per_epoch(train, accumulate, several=these.count > 1)
    total = epochs * per_epoch
    return Pace(
        total=total,
        accumulate=accumulate,
        clip=clip,
        fraction=fractions(schedule, total, warmup),
        halve=halve,
        per_epoch=per_epoch,
    )


def _taught(
    teacher: nn.Module | Distillation | None, distill: float, temperature: float, these: Processes
) -> Distillation | None:
    """The teacher, on the device; None where there is none, or it counts for nothing."""
    if teacher is None:
        return None
    if not isinstance(teacher, Distillation):
        if not distill:
            return None
        teacher = Distillation(teacher, weight=distill, temperature=temperature)
    teacher.teacher.to(these.device)
    return teacher
