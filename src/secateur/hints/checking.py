"""``sc.check_hints``: is a criterion's ranking the true one?

One pass over the data: on each batch the dense model runs, then the model without each of the sampled units, and
without what each hint would remove. So every removal is measured on the same samples, in whatever order they come, and
what Ctrl-C leaves is all units on fewer samples.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from secateur.calibration.batches import Forward
from secateur.calibration.statistics import LABELLED
from secateur.errors import MeasureError, PlanError, SecateurError, UnknownImportance
from secateur.graph import Graph
from secateur.hints.ablation import Ablation, OnBatch, Removal, Truth, count_batches
from secateur.hints.ranks import FEWEST, agreement, reliability
from secateur.hints.result import CheckedAxis, HintCheck
from secateur.importance.protocols import Criterion, needs
from secateur.importance.scoring import criterion, names, score_all
from secateur.objectives import Loss
from secateur.planning.choosing import removal_order
from secateur.planning.planning import choose_axes
from secateur.progress import progress_bar
from secateur.tracing.surroundings import _draws_as_found

Hint = str | Criterion | Mapping[str, Tensor]
Scores = dict[str, Mapping[str, Tensor]]
DRAWS = 4  # choices at random that the hints' choices are compared with
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
    _check(truth=truth, units_per_axis=units_per_axis, max_units=max_units, shares=shares)
    batches = count_batches(data, "data")
    if calibration is not None:
        count_batches(calibration, "calibration")
    chosen = _named(hints)
    with _draws_as_found():
        seen = data if calibration is None else calibration
        rate = partial(_rate, model, graph, data=seen, loss=loss, seed=seed, forward=forward)
        scores, skipped = _scores(chosen, graph, rate, forgiving=hints is None)
        work = _Work(graph, _sample(graph, only, ignore, units_per_axis, max_units, seed), scores, shares, seed)
        ablation = Ablation(model, graph, truth=truth, loss=loss, forward=forward)
        with _progress(progress, batches * len(work.at)) as tell:
            interrupted = work.run(ablation, data, batches, tell)
    return replace(work.result(graph.model, truth, skipped, seed), interrupted=interrupted, note=note)


@dataclass
class _Batch:
    """What one batch gave: (removals,)."""

    dense: float
    samples: int
    rises: Tensor


class _Work:
    """All removals, and what each batch says of them."""

    def __init__(
        self, graph: Graph, sample: Mapping[str, Sequence[int]], scores: Scores, shares: Sequence[float], seed: int
    ) -> None:
        self.graph, self.sample, self.scores = graph, sample, scores
        self.shares = tuple(sorted(shares))
        self.chosen = {axis: _choices(graph.axes[axis].size, axis, scores, self.shares, seed) for axis in sample}
        removals = [Removal(axis, (unit,)) for axis, units in sample.items() for unit in units]
        removals += [r for axis in sample for found in self.chosen[axis].values() for rs in found.values() for r in rs]
        self.at = {removal: k for k, removal in enumerate(dict.fromkeys(removals))}
        self.batches: list[_Batch] = []

    def run(self, ablation: Ablation, data: Any, count: int, tell: Callable[[int], None]) -> str:
        """Measure everything, batch by batch; what Ctrl-C cut short, in words."""
        try:
            for number, batch in enumerate(ablation.batches(data)):
                on, rises = OnBatch(ablation, batch), torch.empty(len(self.at), dtype=torch.float64)
                if not abs(on.dense) < torch.inf:
                    raise MeasureError(
                        f"the dense model's {ablation.truth} is {on.dense} on batch {number}: nothing can be compared "
                        "with that. Look for NaN in the weights and in the data."
                    )
                for removal, k in self.at.items():
                    rises[k] = on.rise(removal)
                    tell(number * len(self.at) + k + 1)
                self.batches.append(_Batch(on.dense, on.samples, rises))
        except KeyboardInterrupt:
            if not self.batches:
                raise
            return f"{len(self.batches)} of {count} batches were measured"
        return ""

    def result(self, model: str, truth: str, skipped: Mapping[str, str], seed: int) -> HintCheck:
        """The figures."""
        rises, samples = self._mean(self.batches), sum(batch.samples for batch in self.batches)
        dense = sum(batch.dense * batch.samples for batch in self.batches) / samples
        real = {axis: self._units(axis, rises) for axis in self.sample}
        found = {
            name: agreement(
                list(real.values()),
                [values[axis][list(units)] for axis, units in self.sample.items()],
                [float(values[axis].double().sum()) for axis in self.sample],
                seed,
            )
            for name, values in self.scores.items()
        }
        halves = [self._mean(half) for half in (self.batches[::2], self.batches[1::2]) if half]
        steady = (
            reliability(*([self._units(axis, half) for axis in self.sample] for half in halves))
            if len(halves) == 2
            else None
        )
        return HintCheck(
            model=model,
            truth=truth,
            dense=dense,
            samples=samples,
            batches=len(self.batches),
            axes=tuple(self._axis(axis, rises) for axis in self.sample),
            agreement=found,
            reliability=steady,
            skipped=skipped,
            seed=seed,
        )

    def _axis(self, axis: str, rises: Tensor) -> CheckedAxis:
        info, units = self.graph.axes[axis], list(self.sample[axis])
        means = {
            share: {name: float(rises[[self.at[r] for r in rs]].mean()) for name, rs in found.items()}
            for share, found in self.chosen[axis].items()
        }
        return CheckedAxis(
            name=axis,
            kind=info.kind,
            size=info.size,
            units=tuple(units),
            truth=tuple(self._units(axis, rises).tolist()),
            scores={name: tuple(values[axis][units].tolist()) for name, values in self.scores.items()},
            removed={share: {n: v for n, v in found.items() if n} for share, found in means.items()},
            random={share: found[""] for share, found in means.items()},
        )

    def _units(self, axis: str, rises: Tensor) -> Tensor:
        return rises[[self.at[Removal(axis, (unit,))] for unit in self.sample[axis]]]

    def _mean(self, batches: Sequence[_Batch]) -> Tensor:
        """Mean over samples, (removals,)."""
        weights = torch.tensor([batch.samples for batch in batches], dtype=torch.float64)
        return (torch.stack([batch.rises for batch in batches]) * weights[:, None]).sum(0) / weights.sum()


def _choices(
    size: int, axis: str, scores: Scores, shares: Sequence[float], seed: int
) -> dict[float, dict[str, list[Removal]]]:
    """For each share and hint what the hint removes; under the empty name, several choices at random."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randperm(size, generator=generator) for _ in range(DRAWS)]
    orders = {name: [removal_order(values[axis].double())] for name, values in scores.items()} | {"": drawn}
    return {
        share: {
            name: [Removal(axis, tuple(sorted(order[:count].tolist()))) for order in found]
            for name, found in orders.items()
        }
        for share in shares
        if 0 < (count := round(share * size)) < size
    }


def _sample(
    graph: Graph,
    only: Iterable[str],
    ignore: Iterable[str],
    units_per_axis: int | None,
    max_units: int | None,
    seed: int,
) -> dict[str, list[int]]:
    """The units that are tried, by axis."""
    blank = {name: torch.zeros(info.size) for name, info in graph.axes.items()}
    axes = choose_axes(graph, blank, only, ignore, keep_class=False)
    generator = torch.Generator().manual_seed(seed)
    sizes = {axis: min(graph.axes[axis].size, units_per_axis or graph.axes[axis].size) for axis in axes}
    if max_units is not None:
        fitting = max(1, max_units // FEWEST)
        if len(axes) > fitting:
            lucky = set(torch.randperm(len(axes), generator=generator)[:fitting].tolist())
            axes = [axis for k, axis in enumerate(axes) if k in lucky]
        sizes = {axis: min(sizes[axis], max(FEWEST, max_units // len(axes))) for axis in axes}
    return {
        axis: sorted(torch.randperm(graph.axes[axis].size, generator=generator)[: sizes[axis]].tolist())
        for axis in axes
    }


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


def _rate(model: nn.Module, graph: Graph, hints: Mapping[str, str | Criterion], **options: Any) -> Scores:
    return dict(score_all(model, graph, hints, **options))


def _scores(
    hints: Mapping[str, Hint], graph: Graph, rate: Callable[[Mapping[str, str | Criterion]], Scores], forgiving: bool
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
