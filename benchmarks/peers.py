"""torch-pruning, used as its documentation and examples say, on any model."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

import secateur as sc
from secateur.axes import leaves
from secateur.tracing.running import tensors_in

HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
PROJECTIONS = {"qkv", "q", "k", "v", "q_proj", "k_proj", "v_proj", "query", "key", "value", "q_lin", "k_lin", "v_lin"}
ROOTS: tuple[type[nn.Module], ...] = (nn.modules.conv._ConvNd, nn.Linear)


def pruner(model: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> Callable[[], nn.Module]:
    """What prunes half of every group of channels by L2, with its settings looked up beforehand (none of this is
    timed): layers that make an output are ignored, and fused or separate projections of attention know their heads.
    """
    import torch_pruning as tp  # type: ignore[import-untyped]

    ignored, heads = producers(model, args, kwargs), attention(model)
    example: Any = dict(kwargs) or (args if len(args) > 1 else args[0])

    def run() -> nn.Module:
        tp.pruner.BasePruner(
            model, example, importance=tp.importance.MagnitudeImportance(p=2), pruning_ratio=0.5,
            ignored_layers=ignored, num_heads=dict(heads), output_transform=total,
        ).step()  # fmt: skip
        for module in model.modules():
            correct(module)
        return model

    return run


def total(out: Any) -> Tensor:
    """One number from whatever a model gives, of every output that has a gradient."""
    found = [t for t in tensors_in(out) if t.is_floating_point()]
    return torch.stack([t.sum() for t in found]).sum()


def producers(model: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> list[nn.Module]:
    """Layers whose width is that of an output of the model, as far as we can see; none where our trace fails."""
    with suppress(sc.SecateurError):
        graph = sc.trace(model, args, dict(kwargs))
        ends = {n for n, a in graph.frozen.items() if any(r.startswith("an output") for r in a.frozen)}
        tensors = {name: info for info in graph.tensors.values() for name in info.names}
        return [
            module
            for name, module in model.named_modules()
            if isinstance(module, ROOTS) and (info := tensors.get(f"{name}.weight"))
            for dim in [info.dims[int(getattr(module, "transposed", False))]]
            if any(leaf.name in ends for leaf in leaves(dim))
        ]
    return []


def attention(model: nn.Module) -> dict[nn.Module, int]:
    """The number of heads of every projection of an attention: an attribute of the module that holds it."""
    found: dict[nn.Module, int] = {}
    for module in model.modules():
        for name, child in module.named_children():
            heads = head_count(module, name)
            if heads and name in PROJECTIONS and isinstance(child, nn.Linear) and child.out_features % heads == 0:
                found[child] = heads
    return found


def head_count(module: nn.Module, name: str) -> int:
    holders = (module, getattr(module, "config", None))
    if name in {"k_proj", "v_proj"}:
        for holder in holders:
            if isinstance(fewer := getattr(holder, "num_key_value_heads", None), int):
                return fewer
    counts = [getattr(holder, attribute, None) for holder in holders for attribute in HEADS]
    return next((count for count in counts if isinstance(count, int)), 0)


def correct(module: nn.Module) -> None:
    """Set the sizes that its examples set by hand after pruning: of heads, and of torchvision's transformers."""
    children = dict(module.named_children())
    projection = next((children[n] for n in ("q_proj", "query", "q_lin", "q", "qkv") if n in children), None)
    heads = head_count(module, "")
    if isinstance(projection, nn.Linear) and heads:
        width = projection.out_features // (3 if "qkv" in children else 1)
        for attribute, value in (
            ("head_dim", width // heads), ("attention_head_size", width // heads), ("all_head_size", width),
            ("inner_dim", width), ("attn_dim", width),
        ):  # fmt: skip
            if isinstance(getattr(module, attribute, None), int):
                setattr(module, attribute, value)
    if isinstance(getattr(module, "hidden_dim", None), int) and isinstance(children.get("conv_proj"), nn.Conv2d):
        module.hidden_dim = children["conv_proj"].out_channels
