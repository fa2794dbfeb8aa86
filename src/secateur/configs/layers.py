"""What a config could say of blocks that have widths of their own, as ``per_layer_config`` of transformers does."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from torch import nn

from secateur.configs.learning import learn
from secateur.configs.wording import Wording
from secateur.graph import Graph
from secateur.inputs import as_call
from secateur.planning import families
from secateur.planning.plan import Plan
from secateur.tracing import trace

Layers = dict[int | None, dict[str, int]]


def per_layer(model: nn.Module, plan: Plan, args: Any, kwargs: Mapping[str, Any] | None = None) -> Layers:
    """The config values of each block of a pruned model, as far as the config's values can say them.

    A value is said of a block where all axes that it sets there have shrunk alike. No model has to be built from it: a
    result whose blocks differ is loaded by `load`.

    Args:
        model: the dense model, which ``type(model)(config)`` builds.
        plan: what was pruned of it.
        args, kwargs: example inputs.

    Returns:
        For each block, by its index, the values that are not the config's own; under None those of all blocks. Empty
        where no config builds the model.
    """
    graph = families.uniform(trace(model, args, kwargs))
    wording = learn(model, graph, *as_call(args, kwargs))
    return {} if wording is None else _layers(wording, graph, plan.sizes)


def _layers(wording: Wording, graph: Graph, sizes: Mapping[str, int]) -> Layers:
    found: dict[int | None, dict[str, Fraction]] = {}
    for word in wording.words:
        shares: dict[int | None, set[Fraction]] = {}
        for name in word.axes:
            share = Fraction(sizes.get(name, graph.axes[name].size), graph.axes[name].size)
            shares.setdefault(families.block_index(name), set()).add(share)
        if None in shares and len(set().union(*shares.values())) > 1:
            continue  # one size of all blocks, and of each
        for index, (share, *others) in shares.items():
            for site, value in word.values.items() if share != 1 and not others else ():
                name = str(site).partition(".")[2]
                values = found.setdefault(index, {})
                values[name] = values.get(name, Fraction(value)) * share
    return {k: {n: int(v) for n, v in vs.items() if v.denominator == 1} for k, vs in found.items()}
