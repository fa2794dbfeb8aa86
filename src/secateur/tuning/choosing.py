"""The learning rate and the optimizer, chosen by evidence: once for a run, however often it is taken up again."""

import json
import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from secateur.errors import SecateurError, TrainingError
from secateur.files import write_json
from secateur.tuning import randomness
from secateur.tuning.callbacks import Callback
from secateur.tuning.checkpoints import Checkpoints
from secateur.tuning.distilling import Distillation, Lesson
from secateur.tuning.gradients import Objective
from secateur.tuning.history import History
from secateur.tuning.mending import FACTOR, better, last_third, mean, mend
from secateur.tuning.optimizers import NAMED, MakeOptimizer
from secateur.tuning.parts import size_of
from secateur.tuning.processes import Processes
from secateur.tuning.ranging import (
    SAFETY,
    TOLERANCE,
    Bench,
    Point,
    Reading,
    duplicate,
    loader_as_found,
    range_test,
    read,
    side,
    steps_for,
)
from secateur.tuning.schedules import fractions
from secateur.tuning.searching import Search, Short, search

Rate = float | Literal["auto"] | Search
DEFAULT = "adamw"
CANDIDATES = ("adamw", "sgd")  # the first wins ties
FILE = "choice.json"
RULE = (
    f"the highest rate at which the smoothed loss of a range test is within {TOLERANCE:g} standard errors of its "
    f"lowest value, divided by {SAFETY:g}; then by {FACTOR:g} as long as nothing is learnt where that rate is held; "
    f"of several optimizers the one whose short run at its own rate ends lower"
)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a user left to evidence.

    Args:
        lr: a rate, "auto" for range tests, or a `Search`.
        optimizer: a name, a callable, or "auto". With a rate that was given, "auto" is AdamW: a rate speaks of one
            optimizer.
        model: whose choice it is.
    """

    lr: Rate
    optimizer: str | MakeOptimizer
    model: nn.Module

    @property
    def candidates(self) -> dict[str, str | MakeOptimizer]:
        """Optimizers to choose among, by name; one that was given as a callable by its own."""
        if callable(self.optimizer):
            return {getattr(self.optimizer, "__name__", type(self.optimizer).__name__): self.optimizer}
        if self.optimizer != "auto":
            return {self.optimizer: self.optimizer}
        names = self.lr.optimizers if isinstance(self.lr, Search) else CANDIDATES
        return {name: name for name in names}

    def to_dict(self) -> dict[str, Any]:
        """As plain data, by which a stored choice is known again."""
        sizes = {name: list(value.shape) for name, value in self.model.named_parameters()}
        how = self.lr.to_dict() if isinstance(self.lr, Search) else self.lr
        return {"lr": how, "optimizers": list(self.candidates), "parameters": sizes}


@dataclass(frozen=True, kw_only=True)
class Coming:
    """The run to come, of which short ones are made on copies of the model.

    Args:
        tune: the function that makes it.
        train, validate: its batches.
        teacher: None where there is none.
        objective: as for `Bench`.
        steps: of the whole run.
        options: keyword arguments of ``tune`` that short runs have in common with it.
    """

    tune: Callable[..., History]
    train: Iterable[Any]
    validate: Iterable[Any] | None
    teacher: Distillation | None
    objective: Callable[[Processes, Lesson | None], Objective]
    steps: int
    options: Mapping[str, Any]

    def bench(self, model: nn.Module) -> Bench:
        """For range tests."""
        names = ("accumulate", "clip", "halve", "weight_decay", "device", "precision", "seed")
        return Bench(
            model=model,
            train=self.train,
            teacher=self.teacher,
            objective=self.objective,
            steps=steps_for(self.steps),
            **{name: self.options[name] for name in names},
        )

    def short(self, model: nn.Module) -> Short:
        """For searches."""
        options, teacher = self.options, self.teacher

        def run(optimizer: str | MakeOptimizer, lr: float, epochs: int, callback: Callback) -> History:
            with randomness.as_found(), loader_as_found(self.train), loader_as_found(self.validate):
                more: dict[str, Any] = {"epochs": epochs, "lr": lr, "optimizer": optimizer, "callbacks": [callback]}
                copied = duplicate(model)
                return self.tune(copied, self.train, self.validate, teacher=teacher, **more, **options)

        plain: dict[str, Any] = {
            name: value for name, value in options.items() if isinstance(value, str | float | int | None)
        }
        if teacher is not None:
            plain["teacher"] = [teacher.weight, teacher.temperature, teacher.feature_weight]
        if options["adversarial"] is not None:
            plain["adversarial"] = str(options["adversarial"])
        return Short(
            run=run,
            samples=self._validation_samples,
            larger=bool(options["larger"]),
            settings=plain,
        )

    def _validation_samples(self) -> int:
        """How many samples there are to validate on; 0 without validation."""
        with randomness.as_found(), loader_as_found(self.validate):
            return sum(size_of(batch) for batch in self.validate or ())


def chosen(
    asked: Asked, coming: Coming, these: Processes, keeper: Checkpoints | None = None
) -> tuple[float, str | MakeOptimizer, dict[str, Any] | None]:
    """The rate and the optimizer of a run, and how they were chosen; None where nothing was to choose.

    What was chosen is written beside the checkpoints at once, and taken from there when the run is taken up again.

    Args:
        asked: what is wanted.
        coming: what it is for.
        these: the main one's choice holds for all.
        keeper: where the choice is kept.

    Raises:
        TrainingError: no rate will do; the checkpoints are of a run that was asked for otherwise.
    """
    if not isinstance(asked.lr, Search | str):
        return asked.lr, DEFAULT if asked.optimizer == "auto" else asked.optimizer, None
    _check_names(asked)
    record = these.of_main(lambda: None if keeper is None else stored(keeper, asked))
    if record is None:
        started = time.perf_counter()
        candidates = asked.candidates
        if isinstance(asked.lr, Search):
            found = search(asked.lr, coming.short(asked.model), these, candidates, asked.model)
        else:
            bench = coming.bench(asked.model)
            fraction = fractions(coming.options["schedule"], bench.steps, coming.options["warmup"])
            steady = fractions("constant", bench.steps, coming.options["warmup"])
            found = by_range(bench, candidates, fraction, steady)
        seconds = time.perf_counter() - started
        made = {**found, "seconds": seconds, "asked": asked.to_dict()}
        record = these.of_main(lambda: keep(made, keeper))
    return float(record["lr"]), asked.candidates[record["optimizer"]], record


def _check_names(asked: Asked) -> None:
    if isinstance(asked.lr, str) and asked.lr != "auto":
        raise TrainingError(f"lr={asked.lr!r} must be a number, 'auto', or a Search")
    unknown = [name for name, made in asked.candidates.items() if isinstance(made, str) and name not in NAMED]
    if unknown:
        raise TrainingError(
            f"unknown optimizer {', '.join(map(repr, unknown))}: it is 'auto', {', '.join(map(repr, NAMED))}, or a "
            f"callable (parameters, lr=, weight_decay=)"
        )


# ---------------------------------------------------------------------- by range tests


def by_range(
    bench: Bench,
    candidates: Mapping[str, str | MakeOptimizer],
    fraction: Callable[[int], float],
    steady: Callable[[int], float],
) -> dict[str, Any]:
    """Choose by range tests: each optimizer's rate, lowered where it can't be held, then the optimizer.

    Each then trains a copy of the model at its own rate, all for equal steps on the same batches. Compared are the
    losses of the last third; of two optimizers one is better where the mean of the differences is more than a standard
    error below zero, else the earlier one stays.

    Args:
        fraction: the share of the highest rate at each step, as in the run to come.
        steady: the same for a rate that is held.

    Returns:
        What `History.choice` holds.

    Raises:
        TrainingError: no optimizer has a rate.
    """
    rows: list[dict[str, Any]] = []
    ends: dict[str, list[float]] = {}
    failures: dict[str, SecateurError] = {}
    for name, optimizer in candidates.items():
        try:
            points = range_test(bench, optimizer)
            reading = read(points, bench.steps)
        except TrainingError as error:
            failures[name] = error
            rows.append({"optimizer": name, "failed": str(error)})
            continue
        start = [loss for _, loss in points[: 2 * side(bench.steps) + 1]]
        mended = mend(lambda lr, made=optimizer: bench.run(made, lr, steady), reading.lr, start, bench.steps)
        row = {"optimizer": name, **_evidence(points, reading), "lr": mended.lr, "read": reading.lr}
        row["tried"] = [[lr, _finite(loss)] for lr, loss in mended.tried.items()]
        if len(candidates) > 1:
            ends[name] = last_third(bench.run(optimizer, mended.lr, fraction), bench.steps)
            row["final_loss"] = _finite(mean(ends[name]))
        rows.append(row)
    good = [row for row in rows if "lr" in row]
    if not good:
        raise TrainingError("; ".join(f"{name}: {error}" for name, error in failures.items()))
    best = good[0]
    for row in good[1:]:
        if better(ends[row["optimizer"]], ends[best["optimizer"]]):
            best = row
    if best.get("final_loss", 0.0) is None:
        raise TrainingError(
            f"no learning rate can be chosen: the loss exploded in the short runs of {', '.join(ends)} at the rates "
            f"that their range tests chose, and at lower ones. Give lr= and optimizer="
        )
    return {"lr": best["lr"], "optimizer": best["optimizer"], "rule": RULE, "steps": bench.steps, "candidates": rows}


def _evidence(points: Sequence[Point], reading: Reading) -> dict[str, Any]:
    curve = [[*point, smooth] for point, smooth in zip(points, reading.smoothed, strict=True)]
    return {
        "lr": reading.lr,
        "stable": reading.stable,
        "risen": reading.risen,
        "lowest_loss": reading.lowest,
        "standard_error": reading.error,
        "curve": [[_finite(number) for number in row] for row in curve],
    }


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


# ---------------------------------------------------------------------- what was chosen before


def keep(record: dict[str, Any], keeper: Checkpoints | None) -> dict[str, Any]:
    """Write a choice beside the checkpoints, if there are to be any; the choice as it reads back."""
    if keeper is not None:
        write_json(keeper.folder / FILE, record)
    return json.loads(json.dumps(record, allow_nan=False))


def stored(keeper: Checkpoints, asked: Asked) -> dict[str, Any] | None:
    """The choice of the run whose checkpoints these are; None where there are none, and nothing was chosen for it.

    Raises:
        TrainingError: there are checkpoints, but for them nothing, or something else, was to choose.
    """
    record = _written(keeper.folder / FILE)
    going_on = bool(keeper.found())
    if record is None and going_on:
        record = ((keeper.latest() or {}).get("history") or {}).get("choice")
    wanted = json.loads(json.dumps(asked.to_dict()))
    if record is not None and record.get("asked") == wanted:
        return record
    if going_on:
        raise TrainingError(
            f"the checkpoints in {keeper.folder} are of a run whose learning rate and optimizer were "
            + ("given" if record is None else "asked for otherwise, or of another model")
            + ": give the same lr= and optimizer=, or another folder"
        )
    return None


def _written(path: Path) -> dict[str, Any] | None:
    try:
        record: Any = json.loads(path.read_text(encoding="utf-8"))
        record = {**record, "lr": float(record["lr"]), "optimizer": str(record["optimizer"])}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        warnings.warn(f"{path} can't be read ({error}): passed over", stacklevel=2)
        return None
    return record
