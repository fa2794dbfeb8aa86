"""What a run has to do: which weights of which blocks lose how many numbers, checked before anything is written."""

from collections.abc import Mapping, Sequence

from torch import nn

from secateur.calibration.batches import Batch
from secateur.errors import ArtifactError, DataError, SparsityError
from secateur.sparsity.counting import counts
from secateur.sparsity.layers import Layer, Layers, find_layers
from secateur.sparsity.pruning import How
from secateur.sparsity.settings import check_all_fit, fitting, left_out
from secateur.sparsity.streaming.building import find_blocks, outside
from secateur.sparsity.streaming.running import Task
from secateur.sparsity.streaming.sharing import Group
from secateur.sparsity.streaming.skeleton import Skeleton


def task_of(
    skeleton: Skeleton,
    how: How,
    asked: float | None,
    allocated: str,
    only: list[str],
    ignore: list[str],
    strict: bool,
    batches: Sequence[Batch],
    processes: Group,
    where: str,
) -> tuple[Task, Layers]:
    """Which weights are pruned, and by how many numbers each."""
    model = skeleton.model
    found = find_layers(model, only, ignore)
    blocks = find_blocks(model, {name: layer.parameter.numel() for name, layer in found.chosen.items()})
    away = outside(found.chosen, blocks)
    if away and only:
        raise SparsityError(
            f"{', '.join(away)} lie outside of the repeated blocks, which alone are pruned from disk to disk: leave "
            "them out of only=, or load the model and prune it in memory"
        )
    layers = fitting(left_out(found, dict.fromkeys(away, "it lies outside of the repeated blocks")), how.pattern)
    if strict:
        check_all_fit(layers)
    _check_stored(skeleton, layers)
    check_apart(layers.chosen, blocks)
    if len(batches) < processes.count and batches:
        raise DataError(f"{len(batches)} batches for {processes.count} processes: give each one at least")
    remove = None if asked is None else counts(model, layers.chosen, how, asked, allocated, {})
    own = batches[processes.rank :: processes.count]
    task = Task(
        skeleton=skeleton,
        blocks=blocks,
        layers=layers.chosen,
        how=how,
        remove=remove,
        batches=own,
        total=len(batches),
        where=where,
    )
    return task, layers


def _check_stored(skeleton: Skeleton, layers: Layers) -> None:
    """Weights are stored in the dtype that is computed with."""
    wanted = str(skeleton.dtype).removeprefix("torch.")
    kinds = {n: skeleton.entries[n].dtype for n in layers.chosen}
    known = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    if odd := [f"{n} is {kind}" for n, kind in kinds.items() if known.get(kind) != wanted]:
        raise ArtifactError(
            f"weights to prune must be {wanted}, as most of the checkpoint is; {len(odd)} are not: "
            f"{', '.join(odd[:3])}. Save the checkpoint in one of float32, float16, bfloat16"
        )


def check_apart(layers: Mapping[str, Layer], blocks: Sequence[tuple[str, nn.Module]]) -> None:
    """Refuse weights that blocks share with one another, or with something else.

    Raises:
        SparsityError: naming them.
    """
    shared = [
        f"{layer.name} = {name}"
        for layer in layers.values()
        for name in layer.names[1:]
        if not any(layer.name.startswith(f"{p}.") and name.startswith(f"{p}.") for p, _ in blocks)
    ]
    if shared:
        raise SparsityError(
            f"weights that blocks share can't be pruned block by block: {', '.join(shared[:3])}. Name them in ignore=, "
            "or load the model and prune it in memory"
        )
