"""Which use of a weight in the original one in the smaller model is fitted to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.axes import Expr, leaves
from secateur.calibration.sites import Site
from secateur.calibration.watching import Key
from secateur.planning.plan import Plan
from secateur.surgery.reindex import index


@dataclass(frozen=True, kw_only=True)
class Match:
    """The use that one in the smaller model is fitted to.

    Attributes:
        key: the use in the original.
        outputs: which of its outputs stay, (N kept,); None for all.
        stays, goes: which of the features that it takes in stay, and which don't; None where all stay.
        loses: whether it takes in units of which some went.
        crosses: it is a use of another weight: of the last one in blocks that went, whose sum is to be given now.
    """

    key: Key
    outputs: Tensor | None = None
    stays: Tensor | None = None
    goes: Tensor | None = None
    loses: bool = False
    crosses: bool = False


Matching = Mapping[Key, Match | str]
"""For every use in the smaller model, the one that it is fitted to, or why it is left as it is."""


def origin(matching: Matching, key: Key) -> Key:
    """The use in the original that one in the smaller model is fitted to; its own key, where there is none."""
    found = matching.get(key)
    return found.key if isinstance(found, Match) else key


def by_plan(sites: Mapping[Key, Site], plan: Plan) -> Matching:
    """Each use is fitted to itself in the original, on the units that stay.

    Args:
        sites: uses of weights in the original.
        plan: what was removed.
    """
    return {key: _match(key, site, plan) for key, site in sites.items()}


def _match(key: Key, site: Site, plan: Plan) -> Match | str:
    if _changes(site.rows, plan):
        return "what it is applied to is pruned along its rows"
    outputs, stays = (index(expr, plan.units) for expr in (site.outputs, site.features))
    gone = torch.ones(site.features.size, dtype=torch.bool)
    gone[stays] = False
    loses = _changes([site.features], plan)
    return Match(key=key, outputs=outputs, stays=stays, goes=gone.nonzero().flatten(), loses=loses)


def _changes(exprs: Sequence[Expr], plan: Plan) -> bool:
    return any(leaf.name in plan.axes for e in exprs for leaf in leaves(e))
