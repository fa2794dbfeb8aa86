"""The scores that a plan was made by, as a model and a saved result remember them."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from secateur.importance.protocols import Criterion
from secateur.importance.scoring import ALIASES, AUTO


@dataclass(frozen=True, kw_only=True)
class KeptScores:
    """Importance of the units of a dense model.

    Attributes:
        importance: the criterion, as `named` calls it.
        axes: for each prunable axis a float32 vector (units,), higher = kept longer.
    """

    importance: str
    axes: Mapping[str, Tensor]


def named(importance: "str | Criterion", *, with_data: bool) -> str:
    """What a criterion is called: a name of `secateur.importance.names`, or what its object prints as.

    >>> named("auto", with_data=False), named("hessian", with_data=True)
    ('l2', 'fisher')
    """
    if not isinstance(importance, str):
        return repr(importance)
    name = AUTO["with data" if with_data else "without data"] if importance == "auto" else importance
    return ALIASES.get(name, name)
