"""``sc.check_hints``: is a criterion's ranking the true one?

Here are the question and its parts: which hints, which units, what they score. `work` does the measuring.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from secateur.calibration.batches import Forward
from secateur.calibration.statistics import LABELLED
from secateur.errors import PlanError, SecateurError, UnknownImportance
from secateur.graph import Graph
from secateur.hints.ablation import Ablation, Truth, count_batches
from secateur.hints.ranks import FEWEST
from secateur.hints.result import HintCheck
from secateur.hints.whole import CONTROL as AT_RANDOM
from secateur.hints.whole import check_budget, prune_by_each
from secateur.hints.work import Scores, Work, sample
from secateur.importance.protocols import Criterion, needs
from secateur.importance.scoring import criterion, names, score_all
from secateur.objectives import Loss
from secateur.planning import Budget
from secateur.planning.planning import choose_axes
from secateur.progress import progress_bar
from secateur.rebuilding import as_module
from secateur.tracing.surroundings import draws_as_found

Hint = str | Criterion | Mapping[str, Tensor]
CONTROL = "random"


def check_hints(
    model: nn.Module,
    graph: Graph,
    hints: str | Criterion | Iterable[str | Criterion] | Mapping[str, Hint] | None = None,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    *,
    calibration: Iterable[Any] | None = None,
    truth: Truth = "loss",
    units_per_axis: int | None = 8,
    max_units: int | None = None,
    shares: Sequence[float] = (0.25, 0.5),
    budget: Budget | None = None,
    only: Iterable[str] = (),
    ignore: Iterable[str] = (),
    seed: int = 0,
    forward: Forward | None = None,
    progress: Callable[[int, int], None] | None = None,
    note: str = "",
) -> HintCheck:
    """Remove a sample of units for real, one by one, and compare every hint's ranking with what that cost.

    Args:
        model: the model that was traced, trained; it is left untouched.
        graph: what `trace` found.
        hints: what to check: names, criteria, or a mapping of names to them or to scores; by default every name of
            `importance.names` that can be computed from what was given.
        data: batches to measure the truth on, best none that the model was trained on. Iterated once.
        loss: ``(output, target) -> scalar``; None takes the model's own, else cross-entropy.
        calibration: batches for the hints that look at data; by default those of ``data``.
        truth: "loss", what the loss rises by; or "output", the squared distance of the outputs from the dense ones as a
            share of their squared size, which needs no labels.
        units_per_axis: how many units of each axis are tried, at least 3; None tries all.
        max_units: how many are tried in all. Below 3 for each axis, some axes are left out.
        shares: fractions in (0, 1) of an axis that each hint chooses to go together, beside choices at random.
        budget: prune the whole model to it as each hint chooses, too, and measure it as cut and after refitting its
            weights on the calibration data: what the choice of a hint ends in.
        only, ignore: axes, as for `plan`.
        seed: of the sample, of the choices at random and of hints that draw random numbers.
        forward: ``(model, batch) -> output``; None calls the model on the batch.
        progress: called with the removals done and the removals in all; None shows a bar where stderr is a terminal.
        note: a line on where the data comes from, to be printed with the result.

    Returns:
        What was found; it prints. After Ctrl-C, from what was measured so far, with ``interrupted`` saying so.

    Raises:
        DataError: no batch, or no labels for a loss.
        MeasureError: the dense model's loss is no finite number.
        UnknownImportance: nobody knows a hint's name.
        PlanError: ``only`` or ``ignore`` name nothing, or a number is out of its range.
        KeyboardInterrupt: Ctrl-C before all removals were measured on at least one batch.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> batch = (torch.randn(64, 4), torch.randint(0, 2, (64,)))
        >>> check = sc.check_hints(net, sc.trace(net, batch[0]), ["l1", "l2"], [batch])
        >>> sorted(check.hints)
        ['l1', 'l2']
    """
    model = as_module(model)
    _check(truth=truth, units_per_axis=units_per_axis, max_units=max_units, shares=shares)
    batches = count_batches(data, "data")
    if calibration is not None:
        count_batches(calibration, "calibration")
    if budget is not None:
        check_budget(budget)
    chosen = _named(hints)
    with draws_as_found():
        seen = data if calibration is None else calibration
        rate = partial(score_all, model, graph, data=seen, loss=loss, seed=seed, forward=forward)
        scores, skipped = _scores(chosen, graph, rate, forgiving=hints is None)
        work = Work(graph, sample(graph, only, ignore, units_per_axis, max_units, seed), scores, shares, seed)
        ablation = Ablation(model, graph, truth=truth, loss=loss, forward=forward)
        with _progress(progress, batches * len(work.at)) as tell:
            interrupted = work.run(ablation, data, batches, tell)
        found = replace(work.result(graph.model, truth, skipped, seed), interrupted=interrupted, note=note)
        if budget is None or interrupted or data is None or seen is None:
            return found
        scores = {**scores, AT_RANDOM: score_all(model, graph, {AT_RANDOM: CONTROL}, seed=seed)[AT_RANDOM]}
        with progress_bar("Pruning by each hint", len(scores)) as tell_one:
            whole = prune_by_each(
                model, graph, scores, budget, ablation, data, seen,
                only=only, ignore=ignore, forward=forward, tell=tell_one,
            )  # fmt: skip
    return replace(found, whole=whole, budget=", ".join(f"{kind}={value}" for kind, value in budget.given.items()))


def _named(hints: Any) -> dict[str, Hint]:
    """The hints by name."""
    if hints is None:
        return {name: name for name in names() if name != CONTROL}
    if isinstance(hints, Mapping):
        found: dict[str, Hint] = dict(cast("Mapping[str, Hint]", hints))
    else:
        listed: list[Any] = [hints] if isinstance(hints, str) or not isinstance(hints, Iterable) else list(hints)
        called = [hint if isinstance(hint, str) else getattr(hint, "__name__", repr(hint)) for hint in listed]
        twice = sorted({name for name in called if called.count(name) > 1})
        if twice:
            raise UnknownImportance(
                f"several hints are called {', '.join(twice)}: give a mapping of names to hints, or each only once"
            )
        found = dict(zip(called, listed, strict=True))
    if not found:
        raise UnknownImportance(f"there is no hint to check: give some of {', '.join(names())}, or callables")
    for hint in found.values():
        if not isinstance(hint, Mapping):
            criterion(hint)  # all names are known before anything is computed
    return found


def _scores(
    hints: Mapping[str, Hint],
    graph: Graph,
    rate: Callable[[Mapping[str, str | Criterion]], Mapping[str, Mapping[str, Tensor]]],
    forgiving: bool,
) -> tuple[Scores, dict[str, str]]:
    """Scores by hint, and why the others have none: those that need labels, where nobody asked for them by name."""
    scores: Scores = {name: hint for name, hint in hints.items() if isinstance(hint, Mapping)}
    for given in scores.values():
        choose_axes(graph, given, (), (), keep_class=False)  # refuses what doesn't fit
    rates = {name: hint for name, hint in hints.items() if not isinstance(hint, Mapping)}
    skipped: dict[str, str] = {}
    try:
        scores |= rate(rates)
    except SecateurError as error:
        labelled = {name for name, hint in rates.items() if needs(criterion(hint)) & LABELLED}
        if not (forgiving and labelled):
            raise
        scores |= rate({name: hint for name, hint in rates.items() if name not in labelled})
        skipped = dict.fromkeys(sorted(labelled), str(error))
    return {name: scores[name] for name in hints if name in scores}, skipped


def _check(*, truth: str, units_per_axis: int | None, max_units: int | None, shares: Sequence[float]) -> None:
    """Report all settings that are out of their range."""
    wrong: list[str] = []
    if truth not in ("loss", "output"):
        wrong.append(f"truth={truth!r} must be 'loss' or 'output'")
    for name, value in (("units_per_axis", units_per_axis), ("max_units", max_units)):
        if value is not None and value < FEWEST:
            wrong.append(f"{name}={value} must be at least {FEWEST}, or nothing can be ranked")
    if not all(0 < share < 1 for share in shares):
        wrong.append(f"shares={tuple(shares)} must be in (0, 1)")
    if wrong:
        raise PlanError("; ".join(wrong))


@contextmanager
def _progress(given: Callable[[int, int], None] | None, total: int) -> Generator[Callable[[int], None]]:
    """What to tell how many removals are done: the caller, or a bar on stderr where that is a terminal."""
    if given is not None:
        yield lambda done: given(done, total)
        return
    with progress_bar("Silencing units", total) as step:
        yield lambda done: step()
