"""What two passes over different data found, as one pass would find it over both, samples weighing as they should.

Shape letters: see `secateur.calibration.found`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor

from secateur.calibration.found import Inputs, Moments, Statistics

Key = TypeVar("Key")
Sums = TypeVar("Sums", Inputs, Moments)


def mixed(general: Statistics, special: Statistics, share: float) -> Statistics:
    """What is known of data of which the special ones make up a share by weight, however few they are.

    Means over samples are ``(1 - share) general + share special``; a weight or an axis that one of them did not come
    to counts there as nothing. Means over rows, and sums, are so where both came to a weight; else they are those of
    the one that did.

    Args:
        general, special: of the same model and graph, and of the same needs.
        share: weight of the special data, in [0, 1).
    """

    def samples(name: str) -> dict[Any, Tensor]:
        return _mean(getattr(general, name), getattr(special, name), share, absent=True)

    def rows(name: str) -> dict[Any, Tensor]:
        return _mean(getattr(general, name), getattr(special, name), share, absent=False)

    return replace(
        general,
        batches=general.batches + special.batches,
        samples=general.samples + special.samples,
        inputs=_sums(general.inputs, special.inputs, share),
        streams=_sums(general.streams, special.streams, share),
        matrices={**special.matrices, **general.matrices},
        windows={**special.windows, **general.windows},
        slopes={**special.slopes, **general.slopes},
        **{name: samples(name) for name in ("gate", "gate_magnitude", "gate_square", "gradients", "sensitivity")},
        **{name: rows(name) for name in ("softmax", "grams", "means")},
    )


def _mean(
    general: Mapping[Key, Tensor], special: Mapping[Key, Tensor], share: float, *, absent: bool
) -> dict[Key, Tensor]:
    """Weighted means by key. ``absent``: what is missing counts as zero; else only what is there counts."""
    found: dict[Key, Tensor] = {}
    for key in {**general, **special}:
        a, b = general.get(key), special.get(key)
        if a is not None and b is not None:
            found[key] = (1 - share) * a + share * b.to(a.device)
        elif a is not None:
            found[key] = (1 - share) * a if absent else a
        elif b is not None:
            found[key] = share * b if absent else b
    return found


def _sums(general: Mapping[Key, Sums], special: Mapping[Key, Sums], share: float) -> dict[Key, Sums]:
    """Sums over rows by key, the special rows together weighing ``share`` of all."""
    found = {**special, **general}
    for key in general.keys() & special.keys():
        weight = share / (1 - share) * general[key].rows / max(special[key].rows, 1)
        found[key] = general[key] + special[key].times(weight)
    return found
