"""``compensate_``: a smaller model is refitted to the original on calibration data, from its inputs to its outputs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from secateur.calibration.batches import Batch, Batches, Forward
from secateur.calibration.lockstep import Run
from secateur.calibration.sites import find_followers, find_sites
from secateur.calibration.watching import Key, running
from secateur.compensation.company import Company, Pair
from secateur.compensation.matching import Matching, by_plan, origin
from secateur.compensation.refitting import How, Refit, Refitting
from secateur.errors import DataError, PlanError
from secateur.graph import Graph
from secateur.planning.plan import Plan
from secateur.progress import progress_bar
from secateur.protecting.settings import NAME, Protect
from secateur.provenance import recall, remember
from secateur.tracing import trace
from secateur.tracing.surroundings import quiet_backends, seed_draws

SAMPLES = 4096  # of calibration data, at most


@dataclass(frozen=True, kw_only=True)
class Compensation:
    """What compensation did.

    Attributes:
        how: "mean", "merge" or "lstsq".
        refits: the weights that were refitted, in the order of the run.
        left: weights that were left as cut though something may be missing, with the reason; and blocks that went
            whose part nothing before them took over.
        samples: calibration samples that were used, where most were: early in a network there may be memory for fewer.
        distance: between the outputs of the final and of the original model on the first batch, as a share of the
            original's: the root of the mean square; before and after.
        biases: parameters that layers without a bias were given.
        added: how many numbers these hold, and bytes.
    """

    how: str
    refits: tuple[Refit, ...]
    left: Mapping[str, str]
    samples: int
    distance: tuple[float, float]
    biases: tuple[str, ...] = ()
    added: tuple[int, int] = (0, 0)

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
    graph: Graph | None,
    plan: Plan,
    data: Iterable[Any],
    *,
    how: How = "lstsq",
    biases: bool = True,
    forward: Forward | None = None,
    protect: Protect | None = None,
) -> Compensation:
    """Refit the smaller model to the original on calibration data, in place. No labels are needed.

    Both models run side by side, each batch a run of its own. At every use of a weight (linear layers, convolutions,
    projections of attention) all runs wait until the weight has been refitted, so that each is fitted to inputs as the
    pruned and refitted layers before it give them. Where the output is added to a residual stream, the sum is fitted.

    - "mean": a constant is added to what each weight gives that took removed units in, so that its mean is the
      original's: to the bias, or to a new one. Batch norms are given the means and variances with which their outputs
      have the original's, wherever they are.
    - "merge": first, each removed unit is folded into the kept one that moves most like it, times a factor.
    - "lstsq": the weights that stay are refitted by ridge regression. He et al. 2017, "Channel Pruning for Accelerating
      Very Deep Neural Networks", arXiv:1707.06168. Differs: any traced model, sums fitted at residual connections, the
      strength chosen by cross-validation, ridge towards the weights as they are.

    Weights that `secateur.sparsify` made sparse keep their zeros: they are refitted on the places that they have.

    Args:
        model: the original.
        small: what ``plan.apply(model)`` gave.
        graph: of the original; None traces it on the first batch.
        plan: what was removed.
        data: batches, up to 4,096 samples; at each use as many as fit into 2 GiB while all runs wait there. Small
            batches are as many as there may be threads for, 64 at least.
        how: see above.
        biases: whether layers without a bias may get one, for "mean" and "merge".
        forward: runs a model on a batch, where its inputs are not the batch's.
        protect: what `secateur.protecting.settled` gave: data that weigh ``share`` of all rows, 4,096 samples at most.

    Raises:
        DataError: no batch, NaN, or batches that the model does not take.
    """

    def matching(example: Batch) -> Matching:
        return by_plan(find_sites(model, graph or trace(model, *example.call), example.run), plan)

    return refit_(model, small, Batches(model, data, forward), matching, how=how, biases=biases, protect=protect)


def refit_(
    model: nn.Module,
    small: nn.Module,
    data: Batches,
    match: Callable[[Batch], Matching],
    *,
    how: How,
    biases: bool,
    protect: Protect | None = None,
) -> Compensation:
    """Refit a smaller model to the original, in place; `compensate_` has the method.

    Args:
        model, small: the original, and the smaller model.
        data: batches, of which up to 4,096 samples are looked at.
        match: says on an example which use of a weight in the original each one in the smaller model is fitted to.
        how, biases, protect: as for `compensate_`.

    Raises:
        DataError: as `compensate_`.
    """
    share = 0.0 if protect is None else protect.share
    batches = _taken(data)
    if protect is not None and share:
        special = Batches(model, protect.batches, data.forward, name=NAME, protected=True)
        batches = _mixed(batches, _taken(special))
    example = batches[0]
    with quiet_backends(model), torch.no_grad():
        wanted = _output(model, example)
        before = distance(wanted, _output(small, example))
        matching = match(example)
        there, here = find_followers(model, example.run), find_followers(small, example.run)
        new = _without_bias(small, example.run) if biases and how != "lstsq" else frozenset[str]()
        work = Refitting(model, small, matching, there, here, how, new, share)

        def start(batch: Batch) -> Pair:
            dense, pruned = running(model, there.written), running(small, here.written)
            guarded = batch.batches.protected
            return Pair(
                batch,
                Run(dense, lambda: batch.run(dense), there.of, before=False, protected=guarded),
                Run(pruned, lambda: batch.run(pruned), here.of, before=True, offsets=work.offsets, protected=guarded),
                matching,
            )

        held = {key: size + there.bytes.get(origin(matching, key), 0) for key, size in here.bytes.items()}
        company = Company(batches, start, held)
        try:
            with progress_bar("Compensating", len(held)) as step:
                refits, left = _all(company, work, here.shared, step)
        finally:
            company.stop()
        created = _create_biases(small, work.offsets)
        after = distance(wanted, _output(small, example))
    return Compensation(
        how=how,
        refits=tuple(refits),
        left=left,
        samples=company.samples,
        distance=(before, after),
        biases=created,
        added=(sum(t.numel() for t in work.offsets.values()), sum(t.nbytes for t in work.offsets.values())),
    )


def _output(model: nn.Module, batch: Batch) -> Any:
    seed_draws()
    return batch.run(running(model))


def _without_bias(model: nn.Module, call: Callable[[nn.Module], Any]) -> frozenset[str]:
    """The weights of layers without a bias that add one where they have it: code may read the weight alone."""
    copy = running(model)
    given: dict[str, str] = {}  # names of new biases, with those of the weights
    for name, layer in copy.named_modules():
        if isinstance(layer, nn.Linear | _ConvNd) and layer.bias is None:
            width = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
            layer.bias = nn.Parameter(layer.weight.new_zeros(width), requires_grad=False)
            given[f"{name}.bias".removeprefix(".")] = f"{name}.weight".removeprefix(".")
    return frozenset(given[name] for name in find_followers(copy, call).alone if name in given)


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


def _mixed(general: Sequence[Batch], special: Sequence[Batch]) -> list[Batch]:
    """Two lists of batches as one, evenly: early in a network there may be memory for the first ones only. A general
    one is the first.
    """
    places = [
        (k / len(part), kind, batch) for kind, part in enumerate((general, special)) for k, batch in enumerate(part)
    ]
    return [batch for _, _, batch in sorted(places, key=lambda place: place[:2])]


def _all(
    company: Company, work: Refitting, shared: Mapping[str, str], step: Callable[[], None]
) -> tuple[list[Refit], dict[str, str]]:
    """Go through all uses of weights, in the order of the example's run."""
    refits: list[Refit] = []
    left: dict[str, str] = {}
    for key, pairs in company:
        if reason := shared.get(key[0]) or work.why_not(key, pairs):
            left[key[0]] = reason
        elif refit := work.refit(key, pairs):
            refits.append(refit)
        step()
    return refits, left


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
