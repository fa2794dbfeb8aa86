"""Auto-PGD: gradient ascent with momentum whose steps shorten by themselves where the loss stops rising.

Croce & Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
arXiv:2003.01690.

Shape letters: N samples, R of them still worked on, C classes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from secateur.safety.hunt import Hunt, SampleLoss, Scores, Seen, look
from secateur.safety.losses import cross_entropy, targeted_dlr
from secateur.safety.threat import Threat, spread

MOMENTUM = 0.75
RISING = 0.75  # share of steps between two checkpoints on which the loss must rise (rho)
TARGETS = 9
FEWEST_CLASSES = 4  # that the targeted loss can tell apart


def checkpoints(steps: int) -> tuple[int, ...]:
    """The steps after which the step size is judged: shares 0, 0.22, then each gap 0.03 shorter, at least 0.06.

    Example:
        >>> checkpoints(100)
        (22, 41, 57, 70, 80, 87, 93, 99)
    """
    shares = [0.0, 0.22]
    while shares[-1] <= 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    found = (math.ceil(round(share * steps, 9)) for share in shares[1:])
    return tuple(dict.fromkeys(step for step in found if step <= steps))


def apgd(
    scores: Scores,
    inputs: Tensor,
    labels: Tensor,
    threat: Threat,
    *,
    steps: int = 100,
    loss: SampleLoss = cross_entropy,
    targets: Tensor | None = None,
    generator: torch.Generator | None = None,
    stop: bool = False,
) -> Tensor:
    """Auto-PGD from one random start.

    The first step is 2 eps. A step goes 0.75 of the way to the projected gradient step, and 0.25 of the step before.
    At each checkpoint the step size of a sample is halved, and it goes on from its best point, where the loss rose on
    less than 0.75 of the steps since the last checkpoint, or where neither step size nor best loss changed there.

    Args:
        steps: at least 1.
        targets: (N,), classes to go to: the loss is then the targeted difference of logits ratio in place of ``loss``.
        scores, inputs, labels, threat, loss, generator, stop: as for `secateur.safety.pgd.pgd`.

    Returns:
        Changed inputs, scaled as the inputs are.

    Example:
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> model.weight.data = torch.eye(2)
        >>> apgd(model, torch.tensor([[0.6, 0.4]]), torch.tensor([0]), Threat(eps=0.15), steps=10)
        tensor([[0.4500, 0.5500]])
    """
    hunt = Hunt(threat.pixels(inputs).detach(), labels, stop=stop)

    def see(points: Tensor) -> Seen:
        fitting = loss if targets is None else _towards(targets[hunt.rows])
        return look(scores, points, hunt.wanted, threat, fitting)

    _ascend(hunt, threat, see, steps, threat.start(hunt.pixels, generator))
    return threat.inputs(hunt.worst).detach()


def apgd_dlr(
    scores: Scores,
    inputs: Tensor,
    labels: Tensor,
    threat: Threat,
    *,
    steps: int = 100,
    targets: int = TARGETS,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Auto-PGD on the targeted difference of logits ratio, towards each of the classes that score highest beside the
    label in turn, until a sample is got wrong.

    Args:
        targets: how many classes are tried; of fewer, all.
        scores, inputs, labels, threat, steps, generator: as for `apgd`; there must be at least 4 classes.

    Returns:
        Changed inputs, scaled as the inputs are; those of samples that withstood every target are as they were.
    """
    changed = inputs.clone()
    with torch.no_grad():
        said = scores(inputs)
    order = said.scatter(1, labels[:, None], -torch.inf).argsort(1, descending=True)
    rows = (said.argmax(1) == labels).nonzero()[:, 0]
    for place in range(min(targets, said.shape[1] - 1)):
        if not len(rows):
            break
        found = apgd(scores, inputs[rows], labels[rows], threat, steps=steps, targets=order[rows, place],
                     generator=generator, stop=True)  # fmt: skip
        with torch.no_grad():
            wrong = scores(found).argmax(1) != labels[rows]
        changed[rows[wrong]] = found[wrong]
        rows = rows[~wrong]
    return changed


def _towards(targets: Tensor) -> SampleLoss:
    return lambda scores, labels: targeted_dlr(scores, labels, targets)


@dataclass
class _State:
    """Where each sample that is still worked on has got to, (R, ...) or (R,).

    Attributes:
        points, gradient, values: where it is, and what the loss is there.
        previous: where it was before.
        best, slope, highest: the point with the greatest loss, its gradient and loss.
        size: step size.
        rises: steps since the last checkpoint on which the loss rose.
        settled: whether the step size was left alone at the last checkpoint.
        then: greatest loss at the last checkpoint.
    """

    points: Tensor
    gradient: Tensor
    values: Tensor
    previous: Tensor
    best: Tensor
    slope: Tensor
    highest: Tensor
    size: Tensor
    rises: Tensor
    settled: Tensor
    then: Tensor

    def keep(self, stay: Tensor) -> None:
        """Forget the samples that are not worked on any more."""
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name)[stay])


def _begin(points: Tensor, seen: Seen, eps: float) -> _State:
    nothing = torch.zeros_like(seen.values)
    return _State(
        points=points,
        gradient=seen.slope,
        values=seen.values,
        previous=points,
        best=points,
        slope=seen.slope,
        highest=seen.values,
        size=torch.full_like(seen.values, 2 * eps),
        rises=nothing,
        settled=torch.zeros_like(seen.wrong),  # the first checkpoint is the first that can be compared with
        then=seen.values,
    )


def _ascend(hunt: Hunt, threat: Threat, see: Callable[[Tensor], Seen], steps: int, points: Tensor) -> None:
    """All steps, from the start on."""
    seen = see(points)
    state = _begin(points, seen, threat.eps)
    state.keep(hunt.see(points, seen))
    judged, last = checkpoints(steps), 0
    for step in range(1, steps + 1):
        if not len(hunt.rows):
            return
        _move(state, hunt, threat, see, 1.0 if step == 1 else MOMENTUM)
        if step in judged:
            _judge(state, step - last)
            last = step


def _move(state: _State, hunt: Hunt, threat: Threat, see: Callable[[Tensor], Seen], share: float) -> None:
    """One step, and what is there."""
    ahead = threat.project(threat.ascend(state.points, state.gradient, state.size), hunt.around)
    drift = share * (ahead - state.points) + (1 - share) * (state.points - state.previous)
    moved = threat.project(state.points + drift, hunt.around)
    state.previous, state.points = state.points, moved
    seen = see(moved)
    state.rises = state.rises + (seen.values > state.values)
    better = seen.values > state.highest
    state.best = torch.where(spread(better, moved), moved, state.best)
    state.slope = torch.where(spread(better, moved), seen.slope, state.slope)
    state.highest = torch.where(better, seen.values, state.highest)
    state.values, state.gradient = seen.values, seen.slope
    state.keep(hunt.see(moved, seen))


def _judge(state: _State, steps: int) -> None:
    """Halve the step size where it is too long, and go on from the best point there."""
    halved = (state.rises < RISING * steps) | (state.settled & (state.highest <= state.then))
    state.size = torch.where(halved, state.size / 2, state.size)
    state.points = torch.where(spread(halved, state.points), state.best, state.points)
    state.gradient = torch.where(spread(halved, state.points), state.slope, state.gradient)
    state.values = torch.where(halved, state.highest, state.values)
    state.rises, state.settled, state.then = torch.zeros_like(state.rises), ~halved, state.highest
