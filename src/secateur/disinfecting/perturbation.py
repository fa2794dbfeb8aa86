"""Adversarial neuron perturbation: units that an adversary could use against clean inputs are the backdoor's.

Shape letters: U units.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call  # pyright: ignore[reportPrivateImportUsage]
from torch.nn import functional as F

from secateur.disinfecting.clean import Clean, check_labels, classes_of, device_of, gather
from secateur.disinfecting.followers import followers
from secateur.disinfecting.gates import Gate, gated, gates, ones
from secateur.graph import Graph
from secateur.importance.views import AxisView
from secateur.objectives import logits_of
from secateur.progress import progress_bar
from secateur.tracing.shadow import separate

MOMENTUM = 0.9
TIE = 1e-3  # weight of a mask's mean over the steps: which of two masks at zero fell first


@dataclass(frozen=True, kw_only=True)
class Perturbation:
    """How masks are learnt.

    Args:
        eps: largest relative perturbation of what makes a unit, above 0.
        trade_off: weight of the unperturbed loss against the perturbed one, in [0, 1].
        steps: of gradient descent on the masks, from 1.
        lr: of SGD with momentum 0.9, above 0.
        batch: samples of a step, from 1.
    """

    eps: float = 0.4
    trade_off: float = 0.2
    steps: int = 100
    lr: float = 0.2
    batch: int = 64

    def __post_init__(self) -> None:
        ranges = {"eps": self.eps > 0, "trade_off": 0 <= self.trade_off <= 1, "lr": self.lr > 0}
        ranges |= {"steps": self.steps >= 1, "batch": self.batch >= 1}
        if wrong := [f"{name}={getattr(self, name)}" for name, fine in ranges.items() if not fine]:
            raise ValueError(
                f"{', '.join(wrong)} out of range: steps and batch from 1, trade_off in [0, 1], rest above 0"
            )


@dataclass(frozen=True, kw_only=True)
class NeuronPerturbation:
    """The mask of each unit, in [0, 1], that is learnt while an adversary perturbs all units; 0 for the backdoor's.

    Wu & Wang 2021, "Adversarial Neuron Pruning Purifies Backdoored Deep Models", NeurIPS, arXiv:2110.14430: masks m
    minimise a L(m) + (1 - a) max L(m + d, b (1 + x)), over perturbations d of weights and x of biases within eps.
    Differs: units of axes in place of batch norm channels, with one mask and a perturbation for every parameter that
    makes them; a mask silences biases too, as removal does; units of residual streams have none, because
    perturbing a stream perturbs every block at once; of equal masks the one that fell first counts as lower.

    Args:
        masks: of each axis, (units,); `learn` gives them. A unit of another axis has 1.
    """

    comparable: ClassVar[bool] = True
    masks: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor], repr=False)

    @staticmethod
    def learn(
        model: nn.Module,
        graph: Graph,
        data: Iterable[Any] | Clean,
        *,
        how: Perturbation | None = None,
        seed: int = 0,
    ) -> "NeuronPerturbation":
        """Learn the masks of a model on clean samples; it stays as it is.

        Args:
            graph: what `trace` found.
            data: clean batches (inputs, labels).

        Raises:
            DataError: no samples, not of the form that this needs, or of classes that the model does not know.
        """
        with torch.inference_mode(False), torch.enable_grad():
            return NeuronPerturbation(masks=_learn(model, graph, data, how or Perturbation(), seed))

    def of_axis(self, axis: AxisView) -> Tensor:
        """Score an axis, -> (units,)."""
        return self.masks.get(axis.name, torch.ones(axis.size))


def _learn(
    model: nn.Module, graph: Graph, data: Iterable[Any] | Clean, how: Perturbation, seed: int
) -> dict[str, Tensor]:
    double, generator = separate(model).eval(), torch.Generator().manual_seed(seed)
    device = device_of(double)
    clean = gather(data, device)
    check_labels(clean, classes_of(double, clean.x), "data=")
    axes = [name for name, info in graph.axes.items() if info.kind != "residual"]
    doors = gates(double, graph, set(followers(double, clean.x[:2])), axes)
    if not doors:  # nothing to perturb
        return {axis: mask for axis, mask in ones(graph).items() if axis in axes}
    weights = {name: parameter.detach() for name, parameter in double.named_parameters()}
    masks = {axis: mask.requires_grad_() for axis, mask in ones(graph, device).items() if axis in axes}
    optimizer = torch.optim.SGD(list(masks.values()), lr=how.lr, momentum=MOMENTUM)
    total = {axis: torch.zeros_like(mask) for axis, mask in masks.items()}

    def loss(masks: Mapping[str, Tensor], moves: Sequence[Tensor] | None, batch: Clean) -> Tensor:
        scores = logits_of(functional_call(double, gated(weights, doors, masks, moves), (batch.x,)))
        assert scores is not None
        return F.cross_entropy(scores, batch.y)

    with progress_bar("Perturbing units", how.steps) as advance:
        for _ in range(how.steps):
            batch = clean.at(torch.randint(len(clean), (how.batch,), generator=generator))
            still = {axis: mask.detach() for axis, mask in masks.items()}
            worst = adversary(doors, lambda moves, s=still, b=batch: loss(s, moves, b), how.eps, generator, device)
            value = how.trade_off * loss(masks, None, batch) + (1 - how.trade_off) * loss(masks, worst, batch)
            slopes = torch.autograd.grad(value, list(masks.values()), allow_unused=True)
            for mask, slope in zip(masks.values(), slopes, strict=True):
                mask.grad = slope
            optimizer.step()
            with torch.no_grad():
                for axis, mask in masks.items():
                    total[axis] += mask.clamp_(0, 1)
            advance()
    mean = {axis: (sums / how.steps).cpu() for axis, sums in total.items()}
    return {a: (1 - TIE) * mask.detach().cpu() + TIE * mean[a] for a, mask in masks.items()}


def adversary(
    doors: Sequence[Gate], loss: Any, eps: float, generator: torch.Generator, device: torch.device | str
) -> list[Tensor]:
    """The perturbation, within ``eps``, to which one step of the gradient's sign leads from a random one.

    Args:
        loss: of a list of perturbations, one (U,) for each gate.
    """
    start = [eps * (2 * torch.rand(len(door.at), generator=generator) - 1) for door in doors]
    moves = [move.to(device).requires_grad_() for move in start]
    slopes = torch.autograd.grad(loss(moves), moves)
    return [(m.detach() + eps * s.sign()).clamp(-eps, eps) for m, s in zip(moves, slopes, strict=True)]
