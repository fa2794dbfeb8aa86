"""A search for the learning rate and the optimizer by short runs, judged on held-out data: a small Optuna study."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from secateur.errors import Diverged, MissingExtra, OutputError, TrainingError
from secateur.tuning.callbacks import Callback, Run
from secateur.tuning.history import Epoch, History
from secateur.tuning.optimizers import NAMED, RATES, MakeOptimizer
from secateur.tuning.processes import Processes

Made = str | MakeOptimizer
ACCURACY = "validation accuracy"
DATABASES = (".db", ".sqlite", ".sqlite3")
AT_RANDOM = 5  # trials before there is a model of what is good
UNPRUNED = 3  # trials of which none ends early
SAMPLED = 1000  # numbers of each parameter by which a model is known again


@dataclass(frozen=True, kw_only=True)
class Search:
    """Look for the learning rate and the optimizer by short training runs: ``tune(..., lr=Search(seconds=300))``.

    Each trial trains a copy of the model for a few epochs, on the schedule and with the settings of the run to come
    (its callbacks and moving average left out), and is judged by the best validation of an epoch: the metric where one
    was given, else the accuracy, else the loss; the test split is never looked at. Of trials that can't be told from
    the best one the one of lowest validation loss wins: a few hundred samples can't tell accuracies that are less than
    a standard error apart. The first trials take the rates that keep what a trained network knows (`RATES`); then
    Optuna's tree-structured Parzen estimator proposes (Bergstra et al. 2011, "Algorithms for Hyper-Parameter
    Optimization"), for each optimizer by itself, and trials below the median of the others after as many epochs end
    early. A loss that diverges ends a trial, too.

    Args:
        seconds: what all trials together may take; None is no limit. No trial begins after that, and one that goes on
            ends with its epoch; but one epoch is always made.
        trials: how many; None is no limit.
        rates: lowest and highest learning rate.
        optimizers: names of optimizers; where `tune` is given one, it is that one.
        epochs: of each trial.
        storage: a file in which trials are kept as they are made, so that a search that was cut off goes on, and one
            that is finished is not made again: an SQLite database where the name ends in .db, .sqlite or .sqlite3, else
            Optuna's journal, lines of JSON. One search at a time may use it. Searches of other models or other settings
            in the same file are kept apart. None keeps nothing.
        seed: of the proposals. With ``trials`` alone as a limit, the same search finds the same.

    Raises:
        TrainingError: a setting out of its range, all listed.
    """

    seconds: float | None = 120
    trials: int | None = None
    rates: tuple[float, float] = (1e-5, 1e-1)
    optimizers: tuple[str, ...] = ("adamw", "sgd")
    epochs: int = 3
    storage: str | Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "optimizers", tuple(self.optimizers))
        low, high = self.rates
        wrong = [f"seconds={self.seconds} must be above 0"] * (self.seconds is not None and not self.seconds > 0)
        wrong += [f"trials={self.trials} must be at least 1"] * (self.trials is not None and self.trials < 1)
        wrong += ["seconds and trials are both None: the search would never end"] * (self.seconds is self.trials)
        wrong += [f"rates={self.rates} must be two rates above 0, the lower one first"] * (
            not 0 < low < high < math.inf
        )
        wrong += ["optimizers is empty"] * (not self.optimizers)
        wrong += [f"optimizer {name!r} is none of {', '.join(NAMED)}" for name in self.optimizers if name not in NAMED]
        wrong += [f"epochs={self.epochs} must be at least 1"] * (self.epochs < 1)
        if wrong:
            raise TrainingError(f"Search: {'; '.join(wrong)}")

    def to_dict(self) -> dict[str, Any]:
        """What makes it another search, as plain data; limits and storage do not."""
        return {"rates": list(self.rates), "epochs": self.epochs, "seed": self.seed}


@dataclass(frozen=True, kw_only=True)
class Short:
    """A short run on a copy of the model.

    Args:
        run: ``(optimizer, lr, epochs, callback) -> history``.
        samples: how many there are to validate on; 0 where there is no validation split.
        larger: whether a larger metric is better.
        settings: all else that the outcome hangs on, as plain data.
    """

    run: Callable[[Made, float, int, Callback], History]
    samples: Callable[[], int]
    larger: bool
    settings: Mapping[str, Any]

    def score(self, row: Epoch) -> tuple[float, str]:
        """What an epoch is worth, higher being better, and the name of what was looked at."""
        if row.robust_loss is not None:
            row = replace(
                row,
                metric=row.robust_metric,
                validation_accuracy=row.robust_accuracy,
                validation_loss=row.robust_loss,
            )
        if row.metric is not None:
            return (row.metric if self.larger else -row.metric), "metric"
        if row.validation_accuracy is not None:
            return row.validation_accuracy, ACCURACY
        assert row.validation_loss is not None
        return -row.validation_loss, "validation loss"


class _Cut(Exception):
    """A trial ends early."""


class _Watch(Callback):
    """Reports a trial's epochs, and ends it where the main process says so."""

    def __init__(self, short: Short, these: Processes, book: "Book") -> None:
        self.short, self.these, self.book = short, these, book
        self.scores: list[float] = []
        self.losses: list[float | None] = []
        self.objective = ""

    def on_epoch(self, run: Run, row: Epoch) -> None:
        score, self.objective = self.short.score(row)
        if not math.isfinite(score):
            raise Diverged(f"the {self.objective} became {score} in epoch {row.epoch}")
        self.scores.append(score)
        self.losses.append(row.validation_loss)
        why = self.these.of_main(lambda: self.book.report(row.epoch, score))
        if why:
            raise _Cut(why)


def search(
    settings: Search, short: Short, these: Processes, candidates: Mapping[str, Made], model: nn.Module
) -> dict[str, Any]:
    """Make trials until a limit is reached, and choose.

    Args:
        settings: how to search.
        short: how to train.
        these: all take part in each trial; the main one proposes and decides.
        candidates: optimizers by name.
        model: by whose weights a study is known again.

    Returns:
        What `History.choice` holds.

    Raises:
        MissingExtra: Optuna is not installed.
        TrainingError: there is no validation split, or no trial came to anything.
        OutputError: the storage can't be used.
    """
    samples = short.samples()
    if not samples:
        raise TrainingError(
            "a search for the learning rate needs validate=: batches that are neither trained nor tested on. Give "
            "some, or lr='auto', which looks at training batches only"
        )
    book = Book(settings, list(candidates), samples)
    with _quiet(_optuna()):
        these.of_main(lambda: book.open(identity(settings, short, candidates, model)))
        try:
            while (asked := these.of_main(book.ask)) is not None:
                name, lr = asked
                watch = _Watch(short, these, book)
                why = _trial(short, candidates[name], lr, settings.epochs, watch)
                these.of_main(lambda watch=watch, why=why: book.tell(watch, why))
            return these.of_main(book.conclusion)
        finally:
            book.close()


def _trial(short: Short, optimizer: Made, lr: float, epochs: int, watch: _Watch) -> str:
    """Make one; why it ended early, or nothing."""
    try:
        history = short.run(optimizer, lr, epochs, watch)
    except _Cut as cut:
        return str(cut)
    except Diverged:
        return "diverged"
    if history.interrupted:
        raise KeyboardInterrupt
    return ""


class Book:
    """The study, which the main process alone opens.

    Proposals hang on the seed and on the trials that are finished, not on how often the search was cut off.
    """

    def __init__(self, settings: Search, names: Sequence[str], samples: int) -> None:
        self.settings, self.names, self.samples, self.name = settings, names, samples, ""
        self.study: Any = None
        self.storage: Any = None
        self.trial: Any = None
        self.began = 0.0

    def open(self, name: str) -> None:
        """Begin a study, or go on with the one of that name; trials that were cut off are given up."""
        optuna = _optuna()
        with self._errors():
            self.storage = _storage(self.settings.storage)
            self.study = optuna.create_study(
                storage=self.storage,
                study_name=name,
                direction="maximize",
                load_if_exists=True,
                pruner=optuna.pruners.MedianPruner(n_startup_trials=UNPRUNED),
            )
            for trial in self.study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
                self.study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        self.name = name

    def ask(self) -> tuple[str, float] | None:
        """The next trial's optimizer and rate; None where there is to be none."""
        optuna, settings = _optuna(), self.settings
        with self._errors():
            done = self.finished()
            out = settings.trials is not None and len(done) >= settings.trials
            if out or (done and self._late(self.spent())):
                return None
            seed = int(np.random.SeedSequence([settings.seed, len(done)]).generate_state(1)[0])
            self.study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=AT_RANDOM)
            first = [name for name in self.names if name in RATES][len(done) : len(done) + 1]
            for name in first:
                rate = min(max(RATES[name], settings.rates[0]), settings.rates[1])
                self.study.enqueue_trial({"optimizer": name, f"lr of {name}": rate})
            self.trial = self.study.ask()
            name = self.trial.suggest_categorical("optimizer", self.names)
            lr = self.trial.suggest_float(f"lr of {name}", *settings.rates, log=True)
        self.began = time.perf_counter()
        return name, lr

    def report(self, epoch: int, score: float) -> str:
        """Note an epoch of the trial; why it should end, or nothing."""
        with self._errors():
            self.trial.report(score, epoch)
            if epoch >= self.settings.epochs:
                return ""
            if self.trial.should_prune():
                return "below the median"
            return "out of time" if self._late(self.spent() + time.perf_counter() - self.began) else ""

    def tell(self, watch: _Watch, why: str) -> None:
        """Note what became of the trial."""
        states, trial, scores = _optuna().trial.TrialState, self.trial, watch.scores
        with self._errors():
            trial.set_user_attr("seconds", time.perf_counter() - self.began)
            trial.set_user_attr("ended", why)
            trial.set_user_attr("objective", watch.objective)
            trial.set_user_attr("scores", scores)
            if scores:
                losses = [loss for loss in watch.losses if loss is not None and math.isfinite(loss)]
                trial.set_user_attr("loss", min(losses, default=None))
            if why:
                self.study.tell(trial, state=states.PRUNED)
            else:
                self.study.tell(trial, max(scores))

    def finished(self) -> list[Any]:
        """Trials that came to an end, their own or before."""
        states = _optuna().trial.TrialState
        return self.study.get_trials(deepcopy=False, states=[states.COMPLETE, states.PRUNED])

    def spent(self) -> float:
        """Seconds that finished trials took."""
        return sum(trial.user_attrs.get("seconds", 0.0) for trial in self.finished())

    def conclusion(self) -> dict[str, Any]:
        """What was found."""
        with self._errors():
            rows = [self._row(trial) for trial in self.finished()]
        good = [row for row in rows if row["scores"]]
        if not good:
            low, high = self.settings.rates
            raise TrainingError(
                f"no trial of {len(rows)} came to the end of an epoch without a loss that diverged, with rates from "
                f"{low:g} to {high:g}: look for NaN in the data, or lower rates="
            )
        best = pick(good, self.samples)
        return {
            "lr": best["lr"],
            "optimizer": best["optimizer"],
            "rule": "the trial of best validation; within a standard error of accuracy, that of lowest loss",
            "objective": best["objective"],
            "score": max(best["scores"]),
            "epochs": self.settings.epochs,
            "study": self.name,
            "trials": rows,
        }

    def close(self) -> None:
        """Let go of the file."""
        if (engine := getattr(self.storage, "engine", None)) is not None:
            self.storage.remove_session()
            engine.dispose()

    def _late(self, seconds: float) -> bool:
        return self.settings.seconds is not None and seconds >= self.settings.seconds

    def _row(self, trial: Any) -> dict[str, Any]:
        name = trial.params["optimizer"]
        told = {key: trial.user_attrs.get(key) for key in ("objective", "scores", "loss", "ended", "seconds")}
        return {"number": trial.number, "optimizer": name, "lr": trial.params[f"lr of {name}"], **told}

    @contextmanager
    def _errors(self) -> Generator[None]:
        """Say which file it is that can't be used."""
        try:
            yield
        except Exception as error:
            if self.settings.storage is None:
                raise
            raise OutputError(
                f"the search can't be kept in {str(self.settings.storage)!r}: {type(error).__name__}: {error}. Give "
                f"another file as storage=, or none"
            ) from error


def pick(rows: Sequence[Mapping[str, Any]], samples: int) -> Mapping[str, Any]:
    """The best trial: of those that were finished, if any was, and can't be told from the best the one of lowest loss.

    Args:
        rows: trials with "ended", "scores", "objective", "loss" and "number".
        samples: on which they were judged.
    """
    whole = [row for row in rows if not row["ended"]] or rows
    highest = max(max(row["scores"]) for row in whole)
    margin = 0.0
    if whole[0]["objective"] == ACCURACY:
        likely = (highest * samples + 2) / (samples + 4)  # as `Best` has it
        margin = math.sqrt(likely * (1 - likely) / samples)
    as_good = [row for row in whole if max(row["scores"]) >= highest - margin]
    return min(as_good, key=lambda row: (math.inf if row["loss"] is None else row["loss"], row["number"]))


def identity(settings: Search, short: Short, candidates: Mapping[str, Made], model: nn.Module) -> str:
    """A name for the study: equal for equal settings, optimizers and weights."""
    digest = hashlib.sha256()
    plain = {"search": settings.to_dict(), "run": dict(short.settings), "optimizers": list(candidates)}
    digest.update(json.dumps(plain, sort_keys=True).encode())
    digest.update(json.dumps([name for name, value in model.named_parameters() if value.requires_grad]).encode())
    for name, value in model.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)}".encode())
        flat = (torch.view_as_real(value) if value.is_complex() else value).detach().flatten()
        digest.update(flat[:: max(1, len(flat) // SAMPLED)].double().cpu().numpy().tobytes())
    return f"secateur-{digest.hexdigest()[:16]}"


def _storage(path: str | Path | None) -> Any:
    if path is None:
        return None
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix in DATABASES:
        return _optuna().storages.RDBStorage(f"sqlite:///{file}")
    from optuna.storages.journal import JournalFileBackend

    return _optuna().storages.JournalStorage(JournalFileBackend(str(file)))


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise MissingExtra("optuna", "tune", "a search for the learning rate") from error
    return optuna


@contextmanager
def _quiet(optuna: Any) -> Generator[None]:
    """Optuna says warnings only, and then what it said before."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
