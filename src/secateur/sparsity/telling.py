"""The report of a model that was made sparse."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from secateur.modules import named_tensors
from secateur.packed import pack, size_bytes
from secateur.reporting import Report
from secateur.sparsity.layers import Layers
from secateur.sparsity.sequential import Step


def report_of(
    model: nn.Module,
    new: nn.Module,
    layers: Layers,
    steps: Mapping[str, Step],
    told: Mapping[str, Any],
    seed: int,
) -> Report:
    """The report.

    Args:
        model: the dense one.
        new: the sparse one.
        layers: its weights.
        steps: what became of each.
        told: what was asked for.
    """
    rows = [row_of(name, steps[name]) for name in layers.chosen]
    return assembled(type(model).__name__, _figures(model), _figures(new), rows, layers.left, told, seed)


def assembled(
    model: str,
    dense: Mapping[str, Any],
    pruned: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    left: Mapping[str, str],
    told: Mapping[str, Any],
    seed: int,
) -> Report:
    """A report of what was made sparse, from disk or in memory.

    Args:
        model: the name of its class.
        dense, pruned: figures of both; zeros change the size of the file alone.
        rows: of `row_of`.
        left: weights that stay dense, and why.
        told: what was asked for.
        seed: of all that was random.
    """
    weights, zeros = (sum(row[key] for row in rows) for key in ("weights", "zeros"))
    return Report(
        {
            "version": 1,
            "command": "sc.sparsify(...)",
            "seed": seed,
            "model": model,
            "dense": dict(dense),
            "pruned": dict(pruned),
            "environment": {},
            "sparsity": {
                **told,
                "weights": weights,
                "zeros": zeros,
                "sparsity": zeros / max(weights, 1),
                "of_all_parameters": zeros / max(dense["params"], 1),
                "layers": list(rows),
                "left": dict(left),
            },
        }
    )


def row_of(name: str, step: Step) -> dict[str, Any]:
    """What became of one weight, as plain data."""
    weights, kept = step.mask.numel(), int(step.mask.sum())
    return {
        "name": name,
        "shape": list(step.mask.shape),
        "weights": weights,
        "zeros": weights - kept,
        "sparsity": (weights - kept) / weights,
        "error": step.error,
        "rows": step.rows,
        "notes": [*step.notes, *(["nothing is left of it"] if not kept else [])],
    }


def _figures(model: nn.Module) -> dict[str, Any]:
    """What a model costs; zeros are multiplied like other numbers, and packed in its file."""
    params = sum(p.numel() for p in model.parameters())
    tensors = {id(t): t for t in named_tensors(model).values()}.values()
    packed = pack({str(k): tensor for k, tensor in enumerate(tensors)})
    return {"params": params, "macs": None, "size_bytes": size_bytes(packed.values()), "metrics": {}}
