"""``sc.sparsify``: single weights of a trained model become zero."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import nn

from secateur import digests
from secateur.calibration.batches import Batch, Batches, Forward
from secateur.changes import Changed, model_of
from secateur.errors import DataError, SparsityError
from secateur.modules import Walk
from secateur.objectives import Loss
from secateur.progress import progress_bar
from secateur.provenance import history, note_step, recall, remember
from secateur.rebuilding import is_keras
from secateur.sparsity.counting import beforehand, counts, passed_on
from secateur.sparsity.criteria import WeightCriterion
from secateur.sparsity.layers import check_weights, find_layers
from secateur.sparsity.passing import Uses, find_uses
from secateur.sparsity.patterns import Pattern, Unstructured, check_pattern
from secateur.sparsity.result import Sparsified
from secateur.sparsity.sequential import Step, Work, carry_out, prune_along
from secateur.sparsity.settings import DEFAULT, check_all_fit, fitting, how_to, named, reached
from secateur.sparsity.statistics import Statistics
from secateur.sparsity.telling import report_of
from secateur.tracing.shadow import check_kind, copied, own_tensor
from secateur.zeros import sparse_after

if TYPE_CHECKING:
    from secateur.sparsity.streaming import Streamed


@overload
def sparsify(
    model: nn.Module | Changed,
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
) -> Sparsified: ...
@overload
def sparsify(
    model: str | Path,
    *,
    output: str | Path,
    pattern: Pattern = Unstructured(),  # noqa: B008
    sparsity: float | None = None,
    threshold: float | None = None,
    importance: str | WeightCriterion = "auto",
    allocation: str = "uniform",
    data: Iterable[Any] | None = None,
    forward: Forward | None = None,
    compensate: str | None = None,
    only: Iterable[str] = (),
    ignore: Iterable[str] = (),
    strict: bool = False,
    seed: int = 0,
    activations: str = "memory",
    overwrite: bool = False,
) -> "Streamed": ...
def sparsify(
    model: nn.Module | Changed | str | Path,
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
    output: str | Path | None = None,
    activations: str = "memory",
    overwrite: bool = False,
) -> "Sparsified | Streamed":
    """A model of the same shapes in which weights that contribute least are zero. The model given is untouched.

    Weights are those of linear layers, convolutions and transformers' ``Conv1D``; embeddings, norms and biases stay as
    they are. With data, weights are pruned one after another in the order in which data come to them, each by the
    inputs that the pruned ones before it give; one forward pass is enough, all batches side by side. A weight that a
    run uses several times is pruned at its first use, by what all of its uses are given in the dense model.

    A path in the place of the model is that of a checkpoint, which is pruned from disk to disk with about one block of
    it in memory at a time; see `secateur.sparsity.streaming.sparsify_checkpoint`.

    Args:
        model: any module, trained, or what `prune` or this gave; or the folder of a checkpoint.
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
        output: of a checkpoint: the folder of the pruned one.
        activations: of a checkpoint: those between two blocks are kept in "memory", or on "disk".
        overwrite: of a checkpoint: replace an earlier result, and start anew where a run was not finished.

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
    if isinstance(model, str | Path):
        from secateur.sparsity.streaming import sparsify_checkpoint

        if output is None or loss is not None:
            raise SparsityError("a checkpoint is pruned to output=, another folder, and without loss=")
        return sparsify_checkpoint(
            model,
            output=output,
            pattern=pattern,
            sparsity=sparsity,
            threshold=threshold,
            importance=importance,
            allocation=allocation,
            data=data,
            forward=forward,
            compensate=compensate,
            only=only,
            ignore=ignore,
            strict=strict,
            seed=seed,
            activations=activations,
            overwrite=overwrite,
        )
    if output is not None:
        raise SparsityError(
            "output= is for a checkpoint, named by its path; a model in memory is returned, to be saved"
        )
    if is_keras(model):
        raise SparsityError("sparsify takes torch modules; of a Keras model on the torch backend prune units instead")
    dense = model_of(model)
    check_pattern(pattern)
    asked = sparsity if sparsity is not None or threshold is not None else (pattern.fixed or DEFAULT)
    how = how_to(pattern, asked, threshold, importance, allocation, compensate, data is not None, seed)
    with torch.inference_mode(False):  # the result shall train, wherever it is made
        check_kind(Walk(dense))
        new = copied(Walk(dense), own_tensor).model
        layers = find_layers(new, only, ignore)
        check_weights(layers.chosen)
        layers = fitting(layers, pattern)
        batches = [] if data is None else _batches(new, data, forward)
        found = find_uses(new, layers.chosen, batches) if batches else Uses()
        layers = reached(layers, found, how) if batches else layers
        if strict:
            check_all_fit(layers)
        before = beforehand(new, layers.chosen, batches, how, found, allocation, loss)
        remove = None if asked is None else counts(new, layers.chosen, how, asked, allocation, before)
        work = Work(layers=layers.chosen, how=how, remove=remove, before=passed_on(before, found))
        _carry_out(new, batches, work, found)
        masks = {name: work.done[name].mask for name in layers.chosen}
        told = {
            "pattern": repr(pattern),
            "importance": named(importance, how),
            "allocation": allocation if threshold is None else "threshold",
            "compensation": compensate,
            "asked": asked,
            "threshold": threshold,
            "batches": len(batches),
            "samples": sum(batch.samples for batch in batches),
        }
        report = report_of(dense, new, layers, work.done, told, seed)
        _remember(dense, new, report, masks, pattern, batches, forward, seed)
        return Sparsified(model=new, masks=masks, report=report)


def _batches(model: nn.Module, data: Iterable[Any], forward: Forward | None) -> list[Batch]:
    data = list(data) if isinstance(data, Iterator) else data
    batches = [batch for batch in Batches(model, data, forward) if batch.samples]
    if not batches:
        raise DataError("data holds no sample: pass at least one batch (a generator that was used up is empty)")
    return batches


def _carry_out(model: nn.Module, batches: Sequence[Batch], work: Work, found: Uses) -> None:
    """Prune all weights in place."""
    with progress_bar("Sparsifying", len(work.layers)) as step:
        work.step = step
        if batches:
            prune_along(model, batches, work, found)
        _rest(work)


def _rest(work: Work) -> None:
    """Prune weights that no data came to: only a criterion without needs is left for them."""
    missed = [name for name in work.layers if name not in work.done]
    if missed and work.how.needs:
        raise DataError(f"the model does not use {', '.join(missed[:5])} in every run alike: name them in ignore=")
    for name, layer in work.layers.items():
        if name not in work.done:
            found = work.before.get(name, Statistics())
            pruned = carry_out(layer, found, work.how, None if work.remove is None else work.remove[name])
            work.done[name] = Step(mask=layer.unfold(pruned.mask), notes=pruned.notes)
            work.step()


def _remember(
    model: nn.Module,
    new: nn.Module,
    report: Mapping[str, Any],
    masks: Iterable[str],
    pattern: Pattern,
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
        masked=sparse_after(new, masks, pattern),
        sparsity={key: told[key] for key in ("pattern", "allocation", "compensation", "zeros", "weights")},
    )
