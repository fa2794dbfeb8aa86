"""Widths that may not stand together, such as a config refuses: the nearest ones that may."""

from collections.abc import Callable, Iterator, Sequence

from secateur.costs import Costs
from secateur.errors import PlanError
from secateur.planning.budget import Budget
from secateur.planning.choosing import Lane

NEAR = 128  # widths of a lane to either side that are tried


def agreed(
    lanes: Sequence[Lane],
    removed: Sequence[int],
    agrees: Callable[[dict[str, int]], bool],
    fits: Callable[[dict[str, int]], bool],
) -> list[int]:
    """Units removed from each lane, one lane as little narrower, or wider, as makes the sizes agree.

    Raises:
        PlanError: nothing near does.
    """

    def sizes(gone: Sequence[int]) -> dict[str, int]:
        lost = [(ln, n) for ln, n in zip(lanes, gone, strict=True) if n]
        return {a: (ln.sizes[0] - n) * share for ln, n in lost for a, share in zip(ln.axes, ln.shares, strict=True)}

    def others() -> Iterator[tuple[float, int, list[int]]]:
        for k, ln in enumerate(lanes):
            now = ln.sizes[0] - removed[k]
            for size in sorted((s for s in ln.sizes if s != now), key=lambda s, now=now: abs(s - now))[: 2 * NEAR]:
                yield abs(size - now) / ln.sizes[0], size > now, [*removed[:k], ln.sizes[0] - size, *removed[k + 1 :]]

    if not any(removed) or agrees(sizes(removed)):
        return list(removed)
    for _, wider, gone in sorted(others()):
        if (not wider or fits(sizes(gone))) and agrees(sizes(gone)):
            return gone
    raise PlanError(
        f"the config can't say these widths together: {sizes(removed)}, nor any near them. Try another budget, or "
        "multiple_of, or leave some out with ignore="
    )


def affordable(costs: Costs, budget: Budget | None) -> Callable[[dict[str, int]], bool]:
    """Whether a model of given sizes meets the budget, if there is one."""
    targets = budget.targets(costs.at({})) if budget is not None else {}
    return lambda sizes: all(costs.at(sizes)[kind] <= target for kind, target in targets.items())
