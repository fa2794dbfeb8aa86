"""Criteria of what units hold while data run through the model, where weights take them in.

Each axis that no weight takes in (the head size of queries and keys) is scored by `Magnitude`.

Shape letters: U units, P places of a unit.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from secateur.importance.combining import Combinable
from secateur.importance.criteria import Magnitude
from secateur.importance.views import AxisView, Use


class _OfInputs(Combinable):
    needs: ClassVar[frozenset[str]] = frozenset({"inputs"})

    @property
    def fallback(self) -> Magnitude:
        """What scores an axis that no weight takes in."""
        return Magnitude()


@dataclass(frozen=True, kw_only=True)
class ActivationMean(_OfInputs):
    """Mean of |x| over data, places of the unit, and the uses of weights that take it in.

    Molchanov et al. 2017, "Pruning Convolutional Neural Networks for Resource Efficient Inference", arXiv:1611.06440,
    section 2.2 (mean of ReLU outputs).
    Differs: absolute values, so that activations of both signs do not cancel; taken where the unit is used.
    """

    def of_axis(self, axis: AxisView) -> Tensor | None:
        """Score an axis, -> (units,)."""
        return _mean(axis, [use.magnitude.mean(1) for use in axis.uses])


@dataclass(frozen=True, kw_only=True)
class ActivationVariance(_OfInputs):
    """Variance of x over data, times the sum of w^2 over the weights that it is multiplied with; summed over places.

    An et al. 2024, "Fluctuation-based Adaptive Structured Pruning for Large Language Models" (FLAP), arXiv:2312.11983:
    what removing the unit costs when its mean goes into the next bias.
    Differs: any axis, not only heads and hidden units; scores are not standardised (planning normalises each axis).
    """

    def of_axis(self, axis: AxisView) -> Tensor | None:
        """Score an axis, -> (units,)."""
        return axis.sum((use.variance * use.weight.square().sum(2)).sum(1) for use in axis.uses)


@dataclass(frozen=True, kw_only=True)
class Apoz(_OfInputs):
    """Share of activations above 0: one less the average percentage of zeros.

    Hu et al. 2016, "Network Trimming: A Data-Driven Neuron Pruning Approach", arXiv:1607.03250 (after ReLU).
    Differs: what is below 0 counts as zero, so that smooth activations have a score; taken where the unit is used.
    """

    def of_axis(self, axis: AxisView) -> Tensor | None:
        """Score an axis, -> (units,)."""
        return _mean(axis, [use.positive.mean(1) for use in axis.uses])


@dataclass(frozen=True, kw_only=True)
class Softmax(_OfInputs):
    """Mean over data of the softmax across the units of an axis.

    The hint function of the article that this library grew from: the probability that a unit would be chosen.
    Differs: a unit of several places (a head) counts with its mean; a convolution's places are averaged over, each
    with a softmax of its own.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"softmax"})

    def of_axis(self, axis: AxisView) -> Tensor | None:
        """Score an axis, -> (units,)."""
        return axis.softmax


@dataclass(frozen=True, kw_only=True)
class Wanda(_OfInputs):
    """Sum of |w| |x| over all weights that a unit is multiplied with, |x| being the root of the input's mean square.

    Sun et al. 2024, "A Simple and Effective Pruning Approach for Large Language Models", arXiv:2306.11695.
    Differs: a unit's weights are summed, where the paper ranks single ones; the mean takes the place of the sum over
    the data, so that the score does not grow with them.
    """

    def of_axis(self, axis: AxisView) -> Tensor | None:
        """Score an axis, -> (units,)."""
        return axis.sum(_products(use) for use in axis.uses)


def _products(use: Use) -> Tensor:
    return (use.weight.abs().sum(2) * use.square.sqrt()).sum(1)


def _mean(axis: AxisView, values: list[Tensor]) -> Tensor | None:
    total = axis.sum(values)
    return None if total is None else total / len(values)
