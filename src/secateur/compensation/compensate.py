"""``compensate_``: a smaller model is refitted to the original on calibration data, from its inputs to its outputs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from secateur.calibration.batches import Batch, Batches, Forward
from secateur.calibration.lockstep import Pause, Run
from secateur.calibration.sites import Followers, find_followers, find_sites
from secateur.calibration.watching import Key, running
from secateur.compensation.refitting import How, Refit, Refitting
from secateur.errors import DataError, PlanError
from secateur.graph import Graph
from secateur.planning.plan import Plan
from secateur.progress import progress_bar
from secateur.provenance import recall, remember
from secateur.tracing.surroundings import quiet_backends

SAMPLES = 4096  # of calibration data, at most
MEMORY = 2 * 2**30  # bytes of activations that runs over all batches may hold while they wait, about


@dataclass(frozen=True, kw_only=True)
class Compensation:
    """What compensation did.

    Attributes:
        how: "mean", "merge" or "lstsq".
        refits: the weights that were refitted, in the order of the run.
        left: weights that were left as cut though something may be missing, with the reason.
        samples: calibration samples that were used.
        distance: between the outputs of the final and of the original model on the first batch, as a share of the
            original's: the root of the mean square; before and after.
        biases: parameters that layers without a bias were given.
    """

    how: str
    refits: tuple[Refit, ...]
    left: Mapping[str, str]
    samples: int
    distance: tuple[float, float]
    biases: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in report.json."""
        return {
            "how": self.how,
            "samples": self.samples,
            "refitted": len(self.refits),
            "left": dict(self.left),
            "distance_before": self.distance[0],
            "distance": self.distance[1],
            "biases": list(self.biases),
        }


def method(compensate: str | None, data: object) -> How | None:
    """How to compensate; None for not at all.

    Raises:
        PlanError: nobody knows the name, or there is no data for it.
    """
    if compensate == "auto":
        return "lstsq" if data is not None else None
    if compensate is None:
        return None
    if compensate not in get_args(How):
        known = ", ".join(map(repr, get_args(How)))
        raise PlanError(f'compensate={compensate!r}: give None, "auto" or one of {known}')
    if data is None:
        raise PlanError(
            f"compensate={compensate!r} needs calibration data: give data=, batches of inputs without labels will do"
        )
    return cast(How, compensate)


def compensate_(
    model: nn.Module,
    small: nn.Module,
    graph: Graph,
    plan: Plan,
    data: Iterable[Any],
    *,
    how: How = "lstsq",
    biases: bool = True,
    forward: Forward | None = None,
) -> Compensation:
    """Refit the smaller model to the original on calibration data, in place. No labels are needed.

    Both models run side by side, each batch a run of its own. At every use of a weight (linear layers, convolutions,
    projections of attention) all runs wait until the weight has been refitted, so that each is fitted to inputs as the
    pruned and refitted layers before it give them. Where the output is added to a residual stream, the sum is fitted.

    - "mean": a constant is added to what each weight gives, so that its mean is the original's: to the mean of a batch
      norm that follows, whose variance is matched as well, to the bias, or to a new bias.
    - "merge": first, each removed unit is folded into the kept one that moves most like it, times a factor.
    - "lstsq": the weights that stay are refitted by ridge regression. He et al. 2017, "Channel Pruning for Accelerating
      Very Deep Neural Networks", arXiv:1707.06168. Differs: any traced model, sums fitted at residual connections, the
      strength chosen by cross-validation, ridge towards the weights as they are.

    Args:
        model: the original.
        small: what ``plan.apply(model)`` gave.
        graph, plan: of the original.
        data: batches; as many samples as 4,096, or as fit into 2 GiB while all runs wait.
        how: see above.
        biases: whether layers without a bias may get one, for "mean" and "merge".
        forward: runs a model on a batch, where its inputs are not the batch's.

    Raises:
        DataError: no batch, NaN, or batches that the model does not take.
    """
    dense, pruned = running(model), running(small)
    with quiet_backends(), torch.no_grad(), progress_bar("Compensating", None) as step:
        batches = _taken(Batches(dense, data, forward))
        example = batches[0]
        wanted = example.run(dense)
        before = distance(wanted, example.run(pruned))
        sites = find_sites(model, graph, example.run)
        follows = find_followers(model, example.run), find_followers(small, example.run)
        batches = batches[: max(1, MEMORY // max(1, sum(f.bytes for f in follows)))]
        work = Refitting(small, plan, sites, follows[1].of, how, biases and how != "lstsq")
        runs = [
            (
                Run(dense, lambda b=batch: b.run(dense), follows[0].of, before=False),
                Run(pruned, lambda b=batch: b.run(pruned), follows[1].of, before=True, offsets=work.offsets),
            )
            for batch in batches
        ]
        try:
            refits, left = _all(runs, work, follows[1], step)
        finally:
            for run in (run for pair in runs for run in pair):
                run.stop()
        created = _create_biases(small, work.offsets)
        after = distance(wanted, example.run(running(small)))
    return Compensation(
        how=how,
        refits=tuple(refits),
        left=left,
        samples=sum(batch.samples for batch in batches),
        distance=(before, after),
        biases=created,
    )


def _taken(batches: Batches) -> list[Batch]:
    """As many batches as are looked at, in memory.

    Raises:
        DataError: there is none.
    """
    taken: list[Batch] = []
    for batch in batches:
        if sum(b.samples for b in taken) >= SAMPLES:
            break
        taken += [batch] if batch.samples else []
    if not taken:
        raise DataError("data holds no sample: pass at least one batch (a generator that was used up is empty)")
    return taken


def _all(
    runs: Sequence[tuple[Run, Run]], work: Refitting, follows: Followers, step: Callable[[], None]
) -> tuple[list[Refit], dict[str, str]]:
    """Go through all uses of weights, in the order of the example's run."""
    order = {key: k for k, key in enumerate(follows.of)}
    refits: list[Refit] = []
    left: dict[str, str] = {}
    waiting = [(dense, small, small.advance()) for dense, small in runs]
    while at := [pause.key for _, _, pause in waiting if pause is not None]:
        key = min(at, key=lambda k: order.get(k, -1))
        here = [k for k, (_, _, pause) in enumerate(waiting) if pause is not None and pause.key == key]
        pairs = [(dense, pause) for k in here if (pause := waiting[k][2]) and (dense := _until(waiting[k][0], key))]
        reason = follows.shared.get(key[0]) or work.why_not(key)
        if not pairs or reason:
            left[key[0]] = reason or "the original does not use it"
        elif refit := work.refit(key, pairs):
            refits.append(refit)
        for k in here:
            dense, small, _ = waiting[k]
            waiting[k] = dense, small, small.advance()
        step()
    return refits, left


def _until(run: Run, key: Key) -> Pause | None:
    """The original's run, led on to a use of a weight."""
    while (pause := run.advance()) is not None and pause.key != key:
        pass
    return pause


def _create_biases(small: nn.Module, offsets: Mapping[Key, Tensor]) -> tuple[str, ...]:
    """Give layers the biases that were found for them, and note in the model's plan that they have them."""
    for (name, _), offset in offsets.items():
        layer: Any = small.get_submodule(name.rpartition(".")[0])
        layer.bias = nn.Parameter(offset.clone(), requires_grad=layer.weight.requires_grad)
    names = tuple(f"{name.rpartition('.')[0]}.bias".removeprefix(".") for name, _ in offsets)
    plans = recall(small, "plans")
    if names and plans:
        remember(small, "plans", (*plans[:-1], replace(plans[-1], biases=names)))
    return names


def distance(wanted: Any, got: Any) -> float:
    """Root mean square of the difference of two outputs, as a share of the first's."""
    pairs = [
        (a.double(), b.double())
        for a, b in zip(tree_leaves(wanted), tree_leaves(got), strict=False)
        if isinstance(a, Tensor) and isinstance(b, Tensor) and a.is_floating_point() and a.shape == b.shape
    ]
    scale = sum(float(a.square().sum()) for a, _ in pairs)
    return (sum(float((a - b).square().sum()) for a, b in pairs) / scale) ** 0.5 if scale else 0.0
