"""``sc.sparsify``: single weights of a trained model become zero."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Any

from torch import nn

from secateur import digests
from secateur.calibration.batches import Batch, Batches, Forward
from secateur.errors import DataError, PatternError, SparsityError
from secateur.modules import Walk
from secateur.objectives import Loss
from secateur.progress import progress_bar
from secateur.provenance import history, note_step, recall, remember
from secateur.rebuilding import is_keras
from secateur.sparsity import allocation
from secateur.sparsity.blocks import block_of
from secateur.sparsity.criteria import Magnitude, Wanda, WeightCriterion, WeightView, criterion, scored
from secateur.sparsity.layers import Layer, Layers, check_weights, find_layers
from secateur.sparsity.passing import Uses, collect, derive, find_uses
from secateur.sparsity.patterns import Pattern, Unstructured
from secateur.sparsity.pruning import METHODS, How
from secateur.sparsity.result import Sparsified
from secateur.sparsity.sequential import Step, Work, carry_out, prune_along
from secateur.sparsity.statistics import Statistics
from secateur.sparsity.telling import report_of
from secateur.tracing.shadow import check_kind, copied, own_tensor

DEFAULT = 0.5
LABELLED = frozenset({"gradients", "fisher"})


def sparsify(
    model: nn.Module,
    *,
    pattern: Pattern = Unstructured(),  # noqa: B008
    sparsity: float | None = None,
    threshold: float | None = None,
    importance: str | WeightCriterion = "auto",
    allocation: str = "uniform",
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    forward: Forward | None = None,
    compensate: str | None = None,
    only: Iterable[str] = (),
    ignore: Iterable[str] = (),
    strict: bool = False,
    seed: int = 0,
) -> Sparsified:
    """A model of the same shapes in which weights that contribute least are zero. The model given is untouched.

    Weights are those of linear layers, convolutions and transformers' ``Conv1D``; embeddings, norms and biases stay as
    they are. With data, weights are pruned one after another in the order in which data come to them, each by the
    inputs that the pruned ones before it give; one forward pass is enough, all batches side by side. A weight that a
    run uses several times is pruned at its first use, by what all of its uses are given in the dense model.

    Args:
        model: any module, trained.
        pattern: which weights may go together: ``Unstructured()``, ``NM(2, 4)``, ``Block(16, 16)``.
        sparsity: share of the weights that goes, in (0, 1), over all layers that are pruned, to within one weight (or
            block); 0.5 where nothing else is said. An `NM` pattern fixes it.
        threshold: in place of it: a weight goes when its score is below this many times its layer's mean score.
        importance: "magnitude", "wanda", "ria", "taylor", "fisher", "random", or any callable on a
            `sparsity.WeightView`. "auto" is magnitude without data, Wanda with data; and with "sparsegpt" its own.
        allocation: how much each layer loses: "uniform", all alike; "global", one ranking of all weights; "erk", less
            in small ones; "owl", less where Wanda's scores have more outliers.
        data: batches for calibration, all of which are looked at; see `secateur.inputs.split_batch` for their form. Of
            one with an ``attention_mask`` padding is left out, if rows are tokens of one sample after another.
        loss: ``(output, target) -> scalar``, for "taylor" and "fisher"; by default the model's own, else cross-entropy.
        forward: ``(model, batch) -> output``, where the model's inputs are not the batch's.
        compensate: how weights that stay make up for those that went: "sparsegpt", "alps" (refits what stays on its
            places), "sparsegpt+alps" (both, one after the other), or None.
        only: names of parameters, modules, or globs; nothing else is pruned.
        ignore: the same; these are not pruned.
        strict: raise where a weight can't be pruned as asked (its shape, its use, no data come to it); otherwise it
            stays dense, and the report says why.
        seed: of "random".

    Raises:
        SparsityError: arguments that contradict each other or the model, all such weights named.
        PatternError: a pattern that no layer has room for, or that fixes another sparsity.
        ModelError: weights that are NaN or absent.
        UnknownImportance, ScoreError: no such criterion, or it gives no scores.
        DataError: no batch, NaN, or batches that the model does not take.

    Example:
        >>> import torch, secateur as sc
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
        >>> result = sc.sparsify(net, pattern=sc.NM(2, 4), data=[torch.randn(64, 8)], compensate="sparsegpt")
        >>> result.sparsity, {name: int(mask.sum()) for name, mask in result.masks.items()}
        (0.5, {'0.weight': 32, '2.weight': 16})
    """
    if is_keras(model):
        raise SparsityError("sparsify takes torch modules; of a Keras model on the torch backend prune units instead")
    asked = sparsity if sparsity is not None or threshold is not None else (pattern.fixed or DEFAULT)
    how = _how(pattern, asked, threshold, importance, allocation, compensate, data is not None, seed)
    check_kind(Walk(model))
    new = copied(Walk(model), own_tensor).model
    layers = find_layers(new, only, ignore)
    check_weights(layers.chosen)
    layers = _fitting(layers, pattern)
    batches = [] if data is None else _batches(new, data, forward)
    found = find_uses(new, layers.chosen, batches) if batches else Uses()
    layers = _reached(layers, found, how) if batches else layers
    if strict and (odd := {n: r for n, r in layers.left.items() if r.startswith(_MISFITS)}):
        said = "; ".join(f"{name}: {reason}" for name, reason in odd.items())
        raise SparsityError(
            f"{len(odd)} weights can't be pruned as asked: {said}. Name them in ignore=, or strict=False"
        )
    before = _beforehand(new, layers.chosen, batches, how, found, allocation, loss)
    remove = None if asked is None else _counts(new, layers.chosen, how, asked, allocation, before)
    used = {n: s for n, s in before.items() if n in found.several or how.needs & LABELLED}
    used = {n: s if n in found.several else replace(s, rows=0, square=None, gram=None) for n, s in used.items()}
    work = Work(layers=layers.chosen, how=how, remove=remove, before=used)
    with progress_bar("Sparsifying", len(layers.chosen)) as step:
        work.step = step
        if batches:
            prune_along(new, batches, work, found)
        _rest(work)
    masks = {name: work.done[name].mask for name in layers.chosen}
    told = {
        "pattern": repr(pattern),
        "importance": _named(importance, how),
        "allocation": allocation if threshold is None else "threshold",
        "compensation": compensate,
        "asked": asked,
        "threshold": threshold,
        "batches": len(batches),
        "samples": sum(batch.samples for batch in batches),
    }
    report = report_of(model, layers, work.done, batches[0] if batches and forward is None else None, told, seed)
    _remember(model, new, report, batches, forward, seed)
    return Sparsified(model=new, masks=masks, report=report)


_MISFITS = ("shape ", "no data", "it is used in parts")
"""How reasons begin for which a weight that was asked for stays dense."""


def _how(
    pattern: Pattern,
    sparsity: float | None,
    threshold: float | None,
    importance: str | WeightCriterion,
    allocation: str,
    compensate: str | None,
    with_data: bool,
    seed: int,
) -> How:
    """The settings, checked against each other."""
    if not isinstance(pattern, Pattern):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise SparsityError(
            f"pattern={pattern!r} is no pattern: write sc.Unstructured(), sc.NM(2, 4) or sc.Block(8, 8)"
        )
    _check_amount(pattern, sparsity, threshold, allocation)
    if compensate is not None and compensate not in METHODS:
        raise SparsityError(f"compensate={compensate!r}: give None or one of {', '.join(map(repr, METHODS))}")
    rate: WeightCriterion | None
    if importance == "auto":
        own = compensate is not None and "sparsegpt" in compensate and threshold is None
        rate = None if own else Wanda() if with_data else Magnitude()
    else:
        rate = criterion(importance, seed)
    how = How(pattern=pattern, rate=rate, compensate=compensate, threshold=threshold)
    if (asking := how.needs or (allocation == "owl")) and not with_data:
        what = f"compensate={compensate!r}" if compensate else "allocation='owl'" if asking is True else f"{rate!r}"
        raise SparsityError(f"{what} needs calibration data: give data=, batches of inputs")
    return how


def _check_amount(pattern: Pattern, sparsity: float | None, threshold: float | None, allocated: str) -> None:
    if sparsity is not None and threshold is not None:
        raise SparsityError(f"sparsity={sparsity} and threshold={threshold}: give one of the two")
    if threshold is not None and not 0 < threshold < inf:
        raise SparsityError(
            f"threshold={threshold}: give a number above 0, such as 0.5 (times each layer's mean score)"
        )
    if sparsity is not None and not 0 < sparsity < 1:
        raise SparsityError(f"sparsity={sparsity}: give the share of the weights that goes, in (0, 1), such as 0.5")
    if allocated not in allocation.NAMES:
        raise SparsityError(f"allocation={allocated!r}: give one of {', '.join(map(repr, allocation.NAMES))}")
    if allocated != "uniform" and (threshold is not None or pattern.fixed is not None):
        why = "a threshold" if threshold is not None else repr(pattern)
        raise SparsityError(f"allocation={allocated!r}: {why} says already what each layer loses; leave it out")
    if pattern.fixed is not None and threshold is not None:
        raise PatternError(f"{pattern!r} fixes how many weights go: leave threshold={threshold} out")
    if pattern.fixed is not None and sparsity not in (None, pattern.fixed):
        raise PatternError(f"{pattern!r} has a sparsity of {pattern.fixed:g}: leave sparsity={sparsity} out")


def _fitting(layers: Layers, pattern: Pattern) -> Layers:
    """Without the weights that the pattern can't divide."""
    odd = {n: why for n, layer in layers.chosen.items() if (why := pattern.misfit(layer.pattern_shape))}
    if odd and len(odd) == len(layers.chosen):
        said = "; ".join(f"{name}: {why}" for name, why in list(odd.items())[:5])
        raise PatternError(f"{pattern!r} fits no weight: {said}")
    return _left(layers, {n: f"shape {layers.chosen[n].pattern_shape}: {why}" for n, why in odd.items()})


def _left(layers: Layers, reasons: Mapping[str, str]) -> Layers:
    chosen = {name: layer for name, layer in layers.chosen.items() if name not in reasons}
    return Layers(chosen=chosen, left={**layers.left, **reasons})


def _batches(model: nn.Module, data: Iterable[Any], forward: Forward | None) -> list[Batch]:
    data = list(data) if isinstance(data, Iterator) else data
    batches = [batch for batch in Batches(model, data, forward) if batch.samples]
    if not batches:
        raise DataError("data holds no sample: pass at least one batch (a generator that was used up is empty)")
    return batches


def _reached(layers: Layers, found: Uses, how: How) -> Layers:
    """Without the weights of which the data say nothing, where the data have to."""
    if not how.needs:
        return layers
    reasons = {name: f"{found.odd[name]}, so its inputs are not known" for name in layers.chosen if name in found.odd}
    reasons |= {name: "no data come to it" for name in layers.chosen if name not in found.times}
    if len(reasons) == len(layers.chosen):
        raise DataError(f"the data reach none of the weights that are to be pruned: {', '.join(reasons)[:300]}")
    return _left(layers, reasons)


def _beforehand(
    model: nn.Module,
    layers: Mapping[str, Layer],
    batches: Sequence[Batch],
    how: How,
    found: Uses,
    allocated: str,
    loss: Loss | None,
) -> dict[str, Statistics]:
    """What has to be known of the dense model: gradients, inputs for allocation, inputs of weights of several uses."""
    told: dict[str, Statistics] = {name: Statistics() for name in layers}
    several = {name: layer for name, layer in layers.items() if name in found.several}
    with progress_bar("Calibrating", len(batches)) as step:
        if how.needs & LABELLED:
            some = how.needs & LABELLED
            _merge(told, derive(model, layers, batches, some, loss=loss, asking=repr(how.rate), step=step))
        whole = allocated == "owl" or (allocated == "global" and (how.rate is None or "inputs" in how.needs))
        if whole:
            _merge(told, collect(model, layers, batches, frozenset({"inputs"}), step))
        if several and how.needs & {"inputs", "gram"}:
            for name in several:
                told[name] = replace(told[name], rows=0, square=None, gram=None)
            _merge(told, collect(model, several, batches, how.needs, step))
    return told


def _merge(told: Mapping[str, Statistics], more: Mapping[str, Statistics]) -> None:
    for name, found in more.items():
        told[name].merge(found)


def _counts(
    model: nn.Module,
    layers: Mapping[str, Layer],
    how: How,
    sparsity: float,
    allocated: str,
    before: Mapping[str, Statistics],
) -> dict[str, int]:
    """How many numbers of each weight go."""
    if how.pattern.fixed is not None:
        return {name: how.pattern.removed(layer.shape) for name, layer in layers.items()}
    shapes = {name: layer.shape for name, layer in layers.items()}
    count = {name: rows * cols for name, (rows, cols) in shapes.items()}
    if allocated == "global":
        rate = how.rate or Wanda()
        return allocation.ranked(
            {n: scored(rate, _view(x, before[n])) for n, x in layers.items()}, how.pattern, sparsity
        )
    if allocated == "erk":
        shares = allocation.erk({name: layer.sizes for name, layer in layers.items()}, sparsity)
    elif allocated == "owl":
        outliers = {n: allocation.outliers(scored(Wanda(), _view(x, before[n]))) for n, x in layers.items()}
        shares = allocation.owl(outliers, count, {n: block_of(model, n) for n in layers}, sparsity)
    else:
        shares = dict.fromkeys(layers, sparsity)
    return allocation.counts(shares, shapes, how.pattern, sparsity)


def _view(layer: Layer, found: Statistics) -> WeightView:
    return WeightView(name=layer.name, weight=layer.matrix.float(), groups=layer.groups, statistics=found)


def _rest(work: Work) -> None:
    """Prune weights that no data came to: only a criterion without needs is left for them."""
    for name, layer in work.layers.items():
        if name not in work.done:
            found = work.before.get(name, Statistics())
            pruned = carry_out(layer, found, work.how, None if work.remove is None else work.remove[name])
            work.done[name] = Step(mask=layer.unfold(pruned.mask), notes=pruned.notes)
            work.step()


def _named(importance: str | WeightCriterion, how: How) -> str:
    if importance == "auto":
        return "sparsegpt" if how.rate is None else type(how.rate).__name__.lower()
    if isinstance(importance, str):
        return importance
    named: Any = getattr(importance, "__name__", None)
    text = named if isinstance(named, str) else repr(importance)
    return type(importance).__name__ if " at 0x" in text else text


def _remember(
    model: nn.Module,
    new: nn.Module,
    report: Mapping[str, Any],
    batches: Sequence[Batch],
    forward: Forward | None,
    seed: int,
) -> None:
    """What saving needs, and the step in the model's history."""
    for key in ("plans", "inputs", "history", "about"):
        if (known := recall(model, key)) is not None:
            remember(new, key, known)
    if recall(new, "inputs") is None and batches and forward is None:
        remember(new, "inputs", batches[0].call)
    told = report["sparsity"]
    note_step(
        new,
        "sparsify",
        figures=report["pruned"],
        before=None if history(new) else report["dense"],
        importance=told["importance"],
        seed=seed,
        parent=digests.of_model(model),
        sparsity={key: told[key] for key in ("pattern", "allocation", "compensation", "zeros", "weights")},
    )
