"""The report of a model that was made sparse."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from secateur.modules import named_tensors
from secateur.reporting import Report
from secateur.sparsity.layers import Layers
from secateur.sparsity.sequential import Step


def report_of(
    model: nn.Module,
    layers: Layers,
    steps: Mapping[str, Step],
    told: Mapping[str, Any],
    seed: int,
) -> Report:
    """The report.

    Args:
        model: the dense one.
        layers: its weights.
        steps: what became of each.
        told: what was asked for.
    """
    rows = [row_of(name, steps[name]) for name in layers.chosen]
    figures = _figures(model)
    weights, zeros = (sum(row[key] for row in rows) for key in ("weights", "zeros"))
    params = figures["params"]
    return Report(
        {
            "version": 1,
            "command": "sc.sparsify(...)",
            "seed": seed,
            "model": type(model).__name__,
            "dense": figures,
            "pruned": dict(figures),
            "environment": {},
            "sparsity": {
                **told,
                "weights": weights,
                "zeros": zeros,
                "sparsity": zeros / max(weights, 1),
                "of_all_parameters": zeros / max(params, 1),
                "layers": rows,
                "left": dict(layers.left),
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
    """What the model costs: the same before and after, as zeros are stored and multiplied like other numbers."""
    tensors = {id(t): t for t in named_tensors(model).values()}.values()
    size = sum(t.numel() * t.element_size() for t in tensors)
    return {"params": sum(p.numel() for p in model.parameters()), "macs": None, "size_bytes": size, "metrics": {}}
