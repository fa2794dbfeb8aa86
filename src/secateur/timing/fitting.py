"""Every distinct operation of a model is timed at a few sizes; the samples become a `LatencyTable`."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import torch
from torch import nn

from secateur.errors import MeasureError
from secateur.graph import Graph
from secateur.progress import Advance, progress_bar
from secateur.timing import stopwatch
from secateur.timing.curves import fit, points
from secateur.timing.operations import Call, Operation, Sizes
from secateur.timing.recording import record
from secateur.timing.stopwatch import Timer
from secateur.timing.store import Store, cache_folder, conditions
from secateur.timing.table import LatencyTable, Timed, operations
from secateur.timing.whole import whole_seconds

SWEEPS = 2  # through all sizes, some time apart, the fastest of which counts
MORE_SWEEPS = 3  # through those on which the sweeps disagree
AGREED = 1.05  # times between which nothing needs repeating
NOTICED = 0.003  # share of the whole time below which an operation is timed at few sizes

Point = tuple[Operation, Sizes]


def latency_table(
    model: nn.Module,
    graph: Graph,
    args: Any,
    kwargs: Mapping[str, Any] | None = None,
    *,
    timer: Timer | None = None,
    whole: float | None = None,
) -> LatencyTable:
    """Time every operation of the model over a few widths, on the device that the model is on.

    Timings are kept in the user's cache directory (see `secateur.timing.store`), so that a second call takes none.

    Args:
        model: the model that was traced.
        graph: what `trace` gave.
        args, kwargs: example inputs; the table is for inputs of these shapes.
        timer: takes the place of the clock; nothing is kept then.
        whole: seconds that the model itself takes; measured where not given.

    Returns:
        What ``sc.plan(..., latency=table)`` takes.

    Raises:
        MeasureError: the model can't be run, or none of its operations can be timed.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> graph = sc.trace(net, torch.zeros(1, 4))
        >>> table = latency_table(net, graph, torch.zeros(1, 4))
        >>> plan = sc.plan(graph, sc.score(net, graph), keep=0.5, multiple_of="auto", latency=table)
    """
    calls = record(model, graph, args, kwargs)
    device = next((t.device for t in model.parameters()), torch.device("cpu"))
    kept = Store({}, None) if timer is not None else Store(conditions(device), cache_folder())
    table = fit_table(calls, timer or stopwatch.seconds, kept)
    if not table.timed:
        raise MeasureError(f"no operation of {type(model).__name__} can be timed by itself on {device}")
    if whole is None:
        whole = whole_seconds({"model": model}, args, kwargs)["model"]
    costs = graph.costs
    return table.through((table.compiled(costs.order, costs.dense).total(costs.dense).item(), whole))


def fit_table(calls: Sequence[Call], timer: Timer, kept: Store) -> LatencyTable:
    """The curves of all calls, timed where they are not kept from before."""
    counts = operations(calls)
    try:
        with progress_bar("Timing operations") as advance:
            dense = _timed([(op, op.dense) for op in counts], timer, kept, advance)
            worth = {op: dense[op, op.dense] * times for op, times in counts.items() if isfinite(dense[op, op.dense])}
            total = sum(worth.values())
            coarse = {op: value < NOTICED * total for op, value in worth.items()}
            wanted = [(op, sizes) for op in worth for sizes in points(op, coarse=coarse[op])]
            samples = _timed(wanted, timer, kept, advance)
    finally:
        kept.save()
    curves = {
        op: fit(op, {s: samples[op, s] for s in points(op, coarse=coarse[op])}, coarse=coarse[op]) for op in worth
    }
    places: dict[Call, int] = {}
    for call in calls:
        if call.operation in curves:
            places[call] = places.get(call, 0) + 1
    return LatencyTable(tuple(Timed(call, curves[call.operation], times) for call, times in places.items()))


def _timed(wanted: Sequence[Point], timer: Timer, kept: Store, advance: Advance) -> dict[Point, float]:
    """Seconds at each point, from before or from the clock."""
    keys = {(op.key, sizes): (op, sizes) for op, sizes in wanted}  # alike operations are timed once
    new = [point for point in keys.values() if kept.get(*point) is None]
    tries: dict[Point, list[float]] = {point: [] for point in new}
    for sweep in range(SWEEPS + MORE_SWEEPS):
        again = new if sweep < SWEEPS else _doubtful(tries)
        for done, point in enumerate(again):
            tries[point].append(timer(*point))
            if sweep < SWEEPS:
                advance(sweep * len(new) + done + 1, SWEEPS * len(new))
    for (operation, sizes), found in tries.items():
        kept.put(operation, sizes, min(found))
    values = {point: kept.get(*point) for point in wanted}
    return {point: float("nan") if value is None else value for point, value in values.items()}


def _doubtful(tries: Mapping[Point, Sequence[float]]) -> list[Point]:
    """Points whose two fastest times differ, and those that took longer than larger ones: by chance, or in truth."""
    best = {point: min(found) for point, found in tries.items()}
    larger: dict[Operation, list[Sizes]] = {}
    for operation, sizes in tries:
        larger.setdefault(operation, []).append(sizes)

    def slower(operation: Operation, sizes: Sizes) -> bool:
        limit = best[operation, sizes] / AGREED
        return any(
            best[operation, other] < limit and all(a <= b for a, b in zip(sizes, other, strict=True))
            for other in larger[operation]
        )

    return [point for point, found in tries.items() if sorted(found)[1] > AGREED * best[point] or slower(*point)]
