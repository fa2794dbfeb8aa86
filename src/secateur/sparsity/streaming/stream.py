"""``sc.sparsify`` of a checkpoint on disk: the model need not fit in"""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import secateur
from secateur import digests
from secateur.calibration.batches import Batch, Batches, Forward
from secateur.errors import DataError, SparsityError
from secateur.reporting import Report
from secateur.sparsity.counting import LABELLED
from secateur.sparsity.criteria import WeightCriterion
from secateur.sparsity.layers import listed
from secateur.sparsity.patterns import Pattern, Unstructured, check_pattern
from secateur.sparsity.pruning import How
from secateur.sparsity.settings import DEFAULT, how_to, named
from secateur.sparsity.streaming.activations import PLACES
from secateur.sparsity.streaming.building import build
from secateur.sparsity.streaming.checkpoint import Checkpoint, open_checkpoint
from secateur.sparsity.streaming.publishing import Publication, peak_memory_bytes, report_of
from secateur.sparsity.streaming.running import Runner
from secateur.sparsity.streaming.sharing import group
from secateur.sparsity.streaming.skeleton import Skeleton
from secateur.sparsity.streaming.tasks import task_of

WHOLE = ("global", "owl")
"""Allocations that look at all weights of the dense model first."""


@dataclass(frozen=True, kw_only=True)
class Streamed:
    """What pruning a checkpoint gave.

    Attributes:
        path: the pruned checkpoint.
        report: a mapping in the form of report.json, which prints as a table; with seconds and peak memory, which the
            file in the checkpoint leaves out.
    """

    path: Path
    report: Report

    @property
    def sparsity(self) -> float:
        """Share of the weights that were pruned which is zero."""
        return float(self.report["sparsity"]["sparsity"])

    def __rich__(self) -> Any:
        return self.report.__rich__()

    def __str__(self) -> str:
        return str(self.report)


def sparsify_checkpoint(
    path: str | Path,
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
) -> Streamed:
    """A checkpoint on disk pruned to another one, with about one block of the model in memory at a time.

    The model is built by transformers from ``config.json``, without weights. Its repeated blocks are pruned one after
    the other, each by what the pruned ones before it give; embeddings, the head and all else outside of the blocks stay
    as they are. The result has the source's files, names, dtypes and layout. What `secateur.sparsify` gives for the
    model in memory is the same, bit by bit, if it leaves out what lies outside of the blocks.

    A run that was killed goes on where it stood when it is called again with the same settings, data and output, and
    ends with the same bytes. Until it is complete it lies in ``OUTPUT.unfinished``. Under ``torchrun`` each process
    takes every so manieth batch, sums over the data are added up over all processes, and the first one writes; all have
    to see the same disk.

    Args:
        path: folder of the checkpoint, in the layout of transformers, with safetensors.
        output: folder of the result; it must not be there yet.
        pattern, sparsity, threshold, importance, compensate, only, ignore, strict, seed: as for `secateur.sparsify`;
            criteria that need gradients are refused, as they run through the whole model.
        allocation: "uniform" or "erk"; the others look at the whole dense model first.
        data: batches of token ids, or whatever the model takes; see `secateur.sparsify`.
        forward: ``(model, batch) -> output``, where the model's inputs are not the batch's.
        activations: where those between two blocks are kept, in "memory" or on "disk"; of one number for each token
            and feature.
        overwrite: replace an earlier result of this there, and start anew where a run was not finished.

    Raises:
        ArtifactError: the checkpoint is damaged or does not fit its configuration.
        OutputError: the place is taken, the disk is full, or an unfinished run there is of another kind.
        ModelError: the model is not one list of blocks, each of which gives one tensor to the next.
        SparsityError, PatternError, UnknownImportance, ScoreError, DataError: as for `secateur.sparsify`.
        MissingExtra: transformers is not installed.
    """
    begun = time.monotonic()
    check_pattern(pattern)
    only, ignore = listed(only), listed(ignore)
    asked = sparsity if sparsity is not None or threshold is not None else (pattern.fixed or DEFAULT)
    how = how_to(pattern, asked, threshold, importance, allocation, compensate, data is not None, seed)
    _check(how, allocation, activations)
    source = open_checkpoint(path)
    told = {
        "pattern": repr(pattern),
        "importance": named(importance, how),
        "allocation": allocation if threshold is None else "threshold",
        "compensation": compensate,
        "asked": asked,
        "threshold": threshold,
    }
    with group() as processes:
        place = Publication(output, source, processes, overwrite=overwrite)
        skeleton = build(source)
        batches = [] if data is None else _batches(skeleton, data, forward)
        told |= {"batches": len(batches), "samples": sum(batch.samples for batch in batches)}
        of = _of(source, batches, {**told, "only": only, "ignore": ignore, "seed": seed}, forward, importance)
        if place.finished(of):
            return Streamed(path=place.path, report=Report.load(place.path))
        task, layers = task_of(skeleton, how, asked, allocation, only, ignore, strict, batches, processes, activations)
        done = place.begin(of)
        Runner(task, place.unfinished, done, processes).run()
        report = report_of(source, skeleton, layers, done, told, seed)
        place.publish(report)
        figures = {
            "seconds": time.monotonic() - begun,
            "peak_memory_bytes": max(processes.gathered(peak_memory_bytes())),
        }
    return Streamed(path=place.path, report=report.replace(pruned={**report["pruned"], **figures}))


def _check(how: How, allocated: str, activations: str) -> None:
    if bad := how.needs & LABELLED:
        raise SparsityError(
            f"{how.rate!r} needs {', '.join(sorted(bad))}, which run through the whole model: load it, and prune it in "
            "memory"
        )
    if allocated in WHOLE:
        raise SparsityError(
            f"allocation={allocated!r} looks at all weights of the dense model at once: give 'uniform' or 'erk', or "
            "load the model and prune it in memory"
        )
    if activations not in PLACES:
        raise SparsityError(f"activations={activations!r}: give one of {', '.join(map(repr, PLACES))}")


def _batches(skeleton: Skeleton, data: Iterable[Any], forward: Forward | None) -> list[Batch]:
    data = list(data) if isinstance(data, Iterator) else data
    given = Batches(skeleton.model, data, forward)
    given.device = None  # the model's parameters are nowhere yet
    batches = [batch for batch in given if batch.samples]
    if not batches:
        raise DataError("data holds no sample: pass at least one batch (a generator that was used up is empty)")
    return batches


def _of(
    source: Checkpoint,
    batches: list[Batch],
    settings: Mapping[str, Any],
    forward: Forward | None,
    importance: str | WeightCriterion,
) -> dict[str, Any]:
    """What an unfinished run must be of, to be gone on with."""
    tensors: dict[str, Tensor] = {}
    for batch in batches:
        leaves = tree_leaves(batch.given)
        tensors |= {f"{batch.number}.{k}": leaf for k, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
    import transformers

    return {
        "settings": {**settings, "criterion": _code(importance), "forward": _code(forward)},
        "checkpoint": source.digest,
        "data": digests.of_tensors(tensors),
        "versions": {
            "secateur": secateur.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def _code(given: Any) -> str | None:
    """A name for a callable that is the same in the next process."""
    if given is None or isinstance(given, str):
        return given
    named = getattr(given, "__qualname__", None)
    return (
        f"{given.__module__}.{named}"
        if named
        else (repr(given) if " at 0x" not in repr(given) else type(given).__qualname__)
    )
