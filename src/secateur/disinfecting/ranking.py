"""The three methods: what each takes for suspicious, and below which score a unit may go."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from secateur.disinfecting.clean import Clean
from secateur.disinfecting.gates import ones
from secateur.disinfecting.lipschitz import ChannelLipschitz
from secateur.disinfecting.perturbation import NeuronPerturbation, Perturbation
from secateur.graph import Graph
from secateur.importance import Random, score
from secateur.importance.activations import ActivationMean

Method = Literal["anp", "clp", "fine-pruning", "random", "none"]
METHODS: tuple[Method, ...] = ("clp", "anp", "fine-pruning")
TITLES = {
    "anp": "adversarial neuron perturbation",
    "clp": "channel Lipschitzness",
    "fine-pruning": "dormant units",
    "random": "random units, a control",
    "none": "no method, a control",
}


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Scores of units, the most suspicious least, and the cutoff of a method.

    Attributes:
        method: whose.
        scores: one vector for each axis, (units,).
        cutoff: a unit is suspicious below it.
    """

    method: Method
    scores: Mapping[str, Tensor]
    cutoff: float


@dataclass(frozen=True, kw_only=True)
class Cutoffs:
    """From where on a unit is suspicious.

    Args:
        mask: of "anp": its mask is below this, in (0, 1].
        deviations: of "clp": its Lipschitz bound exceeds the mean of its layer by more than so many deviations (u).
        activity: of "fine-pruning": its mean activation is below so many times the mean of its axis; and of "random".
    """

    mask: float = 0.5
    deviations: float = 2.0
    activity: float = 1.0


def rank(
    method: Method,
    model: nn.Module,
    graph: Graph,
    clean: Clean,
    *,
    cutoffs: Cutoffs,
    perturbation: Perturbation,
    seed: int,
) -> Ranking:
    """How suspicious each unit is to a method.

    "fine-pruning" ranks by mean activation on clean samples (Liu et al. 2018, "Fine-Pruning: Defending Against
    Backdooring Attacks on Deep Neural Networks", arXiv:1805.12185). Differs: units of all axes, each axis relative to
    its mean, in place of the channels of the last convolution, whose outputs may be a residual stream.
    """
    if method == "anp":
        masks = NeuronPerturbation.learn(model, graph, clean, how=perturbation, seed=seed)
        return Ranking(method=method, scores=score(model, graph, masks), cutoff=cutoffs.mask)
    if method == "none":
        return Ranking(method=method, scores=ones(graph), cutoff=0.0)
    if method == "clp":
        bounds = score(model, graph, ChannelLipschitz.of(model, clean.x[:2]))
        return Ranking(method=method, scores=bounds, cutoff=-cutoffs.deviations)
    rate = Random(seed=seed) if method == "random" else ActivationMean()
    data = None if method == "random" else [clean.x[k : k + 100] for k in range(0, len(clean), 100)]
    found = score(model, graph, rate, data)
    relative = {axis: values / values.mean().clamp_min(1e-30) for axis, values in found.items()}
    return Ranking(method=method, scores=relative, cutoff=cutoffs.activity)
