"""Axes that are alike: those of repeated blocks, which keep equal widths, and those that are ranked together."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from secateur.graph import AxisInfo, Graph

BLOCK = re.compile(r"(?:(?<=[._])|^)\d+(?=[.:]|$)")  # blocks.0.fc, encoder_layer_11.mlp; not the 1 of fc1


def block_name(name: str) -> str:
    """A name up to the index of a repeated block.

    >>> block_name("model.layers.0.mlp.up_proj.weight:0"), block_name("encoder_layer_11.fc1.weight:0/heads")
    ('model.layers.#.mlp.up_proj.weight:0', 'encoder_layer_#.fc1.weight:0/heads')
    """
    place, colon, dim = name.partition(":")
    return BLOCK.sub("#", place) + colon + dim


def block_index(name: str) -> int | None:
    """The index of the outermost repeated block in a name, None outside of blocks.

    >>> block_index("model.layers.11.mlp.0.weight:0"), block_index("lm_head.weight:0")
    (11, None)
    """
    found = BLOCK.search(name.partition(":")[0])
    return None if found is None else int(found[0])


def likeness(info: AxisInfo) -> tuple[object, ...]:
    """What axes of one family have in common: kind, size, and the roles of their members, up to digits in names.

    Fang et al. 2024, "Isomorphic Pruning for Vision Models", arXiv:2407.04616, which compares sub-structures whose
    computational graphs are isomorphic. Differs: by names and shapes, not by graphs.
    """
    roles = {(re.sub(r"\d+", "#", tensor), dim) for tensor, dim in info.members}
    return info.kind, info.size, tuple(sorted(roles))


def joined(ties: Iterable[Sequence[str]], order: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Ties that share an axis as one, each in the given order; those of one axis left out."""
    groups: list[set[str]] = []
    for tie in ties:
        group = set(tie).union(*(g for g in groups if g & set(tie)))
        groups = [g for g in groups if not g & group] + [group]
    rank = {name: k for k, name in enumerate(order)}
    kept = [tuple(sorted(g, key=rank.__getitem__)) for g in groups if len(g) > 1]
    return tuple(sorted(kept, key=lambda tie: rank[tie[0]]))


def repeated(graph: Graph) -> list[tuple[str, ...]]:
    """Groups of axes, prunable or frozen, that correspond across repeated blocks: one name up to the block, one kind
    and size.
    """
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, info in {**graph.axes, **graph.frozen}.items():
        groups.setdefault((block_name(name), info.kind, info.size), []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def uniform(graph: Graph) -> Graph:
    """The graph with the widths of repeated blocks tied; where one of them is frozen, all are."""
    stuck: dict[str, str] = {}
    ties: list[tuple[str, ...]] = list(graph.ties)
    for group in repeated(graph):
        first = next((name for name in group if name in graph.frozen), None)
        if first is not None:
            reason = f"uniform: must stay as wide as {first}, which is frozen"
            stuck |= {name: reason for name in group if name in graph.axes}
        else:
            ties.append(group)
    return tied(graph, ties, stuck)


def tied(graph: Graph, ties: Iterable[Sequence[str]], stuck: Mapping[str, str]) -> Graph:
    """The graph with other ties, and axes frozen for the given reasons, together with those that are tied to them."""
    groups = joined(ties, [*graph.axes, *graph.frozen])
    reasons = {name: reason for name, reason in stuck.items() if name in graph.axes}
    for group in groups:
        hit = next((name for name in group if name in reasons), None)
        for name in group if hit else ():
            reasons.setdefault(name, f"uniform: must keep the proportions of {hit}, which is frozen")
    return replace(
        graph,
        axes={n: a for n, a in graph.axes.items() if n not in reasons},
        frozen={**graph.frozen, **{n: replace(graph.axes[n], frozen=(r,)) for n, r in reasons.items()}},
        ties=tuple(group for group in groups if not any(name in reasons for name in group)),
    )
