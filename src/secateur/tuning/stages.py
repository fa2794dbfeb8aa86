"""Which modules of a network are worth comparing with another's: the ends of its stages."""

from collections.abc import Collection

from torch import nn

from secateur.modules import named_parts
from secateur.tuning.features import Outputs

FEW, MOST = 3, 4  # groups of blocks from which one block of each will do; blocks of one that are taken otherwise


def sensible(model: nn.Module, outputs: Outputs, fit: Collection[str]) -> list[str]:
    """Modules to compare, among those that fit.

    Of a network in blocks that repeat, ``layer1.0``, ``layer1.1``, the last of each group; where there are fewer than
    three groups, four of each, spread evenly to the last. Of another the last layer that gives each size of picture,
    but for the layer that gives the model's output.
    """
    groups = _blocks(model, fit)
    if len(groups) >= FEW:
        return [group[-1] for group in groups]
    if groups:
        return [path for group in groups for path in _spread(group)]
    return _last_of_each_size(model, outputs, fit)


def _blocks(model: nn.Module, fit: Collection[str]) -> list[list[str]]:
    """Groups of modules with parts of their own that are numbered in one parent; no groups within groups."""
    groups: dict[str, list[str]] = {}
    inside: list[str] = []
    for path, module in named_parts(model):
        if any(path.startswith(f"{outer}.") for outer in inside):
            continue
        children = [(name, child) for name, child in module.named_children() if name.isdigit() and len(child._modules)]
        if len(children) > 1:
            paths = [f"{path}.{name}".removeprefix(".") for name, _ in children]
            inside += paths
            groups[path] = [p for p in paths if p in fit]
    return [group for group in groups.values() if group]


def _spread(group: list[str]) -> list[str]:
    count = min(MOST, len(group))
    return [group[(k + 1) * len(group) // count - 1] for k in range(count)]


def _last_of_each_size(model: nn.Module, outputs: Outputs, fit: Collection[str]) -> list[str]:
    leaves = [p for p, module in named_parts(model) if p in outputs and not module._modules]
    order = [path for path in outputs if path in leaves and len(outputs[path]) == 1]  # as they ran
    stages: dict[tuple[int, ...], str] = {}
    for path in order[:-1]:
        if path in fit:
            stages[outputs[path][0].shape[2:]] = path
    return list(stages.values())
