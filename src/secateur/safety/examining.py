"""What is found of one network on one batch of samples: a number for each sample and question.

All networks are asked the same questions with the same random numbers, so that their answers can be compared sample by
sample.

Shape letters: N samples.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from secateur.safety.battery import ATTACKS, Effort
from secateur.safety.corruption import CORRUPTIONS, SEVERITIES, in_unit, out_of_unit
from secateur.safety.hunt import Scores, look
from secateur.safety.losses import cross_entropy
from secateur.safety.threat import Threat, lengths

Record = dict[str, Tensor]
"""Numbers (N,) by question: "clean", "answer", "confidence", "linf.pgd", "linf.radius.0", "jpeg.3", ..."""

RADII = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Shares of eps at which accuracy under PGD is measured, too."""
PROBED = 32  # samples of a batch on which it is seen whether gradient steps make the loss greater


@dataclass(frozen=True, kw_only=True)
class Exam:
    """What is asked of every network.

    Attributes:
        threats: the balls, each with a norm of its own.
        attacks: names of attacks that can be made.
        corruptions: names of corruptions that can be done.
        effort: how much attacks may try.
        seed: of everything that is random.
    """

    threats: tuple[Threat, ...]
    attacks: tuple[str, ...]
    corruptions: tuple[str, ...]
    effort: Effort
    seed: int = 0

    @property
    def questions(self) -> int:
        """How many there are, for a bar."""
        return 1 + len(self.threats) * (len(self.attacks) + len(RADII) + 2) + len(self.corruptions)


def examine(
    exam: Exam, scores: Scores, inputs: Tensor, labels: Tensor, number: int, tell: Callable[[], None]
) -> Record:
    """All answers of one network on one batch.

    Args:
        exam: what is asked.
        scores: the network, in the mode that it is attacked in.
        inputs: (N, ...), scaled as the network wants them.
        labels: (N,).
        number: of the batch, which random numbers depend on.
        tell: called after each question.
    """
    found = _clean(scores, inputs, labels)
    tell()
    for threat in exam.threats:
        for name, values in _attacked(exam, threat, scores, inputs, labels, found["clean"], number):
            found[f"{threat.norm}.{name}"] = values
            tell()
        found |= {f"{threat.norm}.{name}": v for name, v in _probe(threat, scores, inputs, labels, exam.effort).items()}
        tell()
    for name in exam.corruptions:
        found |= _corrupted(exam, name, scores, inputs, labels, number)
        tell()
    return {name: values.cpu() for name, values in found.items()}


def _clean(scores: Scores, inputs: Tensor, labels: Tensor) -> Record:
    with torch.no_grad():
        said = scores(inputs)
    answer = said.argmax(1)
    sure = said.float().softmax(1).amax(1)
    return {"clean": answer == labels, "answer": answer, "confidence": sure}


def _right(scores: Scores, inputs: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return scores(inputs).argmax(1) == labels


def _attacked(
    exam: Exam, threat: Threat, scores: Scores, inputs: Tensor, labels: Tensor, clean: Tensor, number: int
) -> Iterator[tuple[str, Tensor]]:
    """Which samples are still right after each attack, after PGD within smaller balls, and within one without limit.

    Samples that were wrong from the start are not attacked. A smaller ball is a part of a greater one: what is broken
    there is broken here.
    """

    def under(ball: Threat, attack: str, key: str, alive: Tensor) -> Tensor:
        rows, left = alive.nonzero()[:, 0], alive.clone()
        if len(rows):
            chance = chances(exam.seed, number, f"{threat.norm}.{key}", inputs.device)
            effort = exam.effort if attack == key else replace(exam.effort, restarts=1)
            changed = ATTACKS[attack](scores, inputs[rows], labels[rows], ball, effort, chance)
            left[rows] = _right(scores, changed, labels[rows])
        return left

    for name in exam.attacks:
        yield name, under(threat, name, name, clean)
    alive = clean
    for k, share in enumerate(RADII):
        alive = under(replace(threat, eps=threat.eps * share), "pgd", f"radius.{k}", alive)
        yield f"radius.{k}", alive
    yield "unbounded", under(replace(threat, eps=_everywhere(threat, inputs)), "pgd", "unbounded", clean)


def _everywhere(threat: Threat, inputs: Tensor) -> float:
    """A radius within which every image lies."""
    width = threat.bounds[1] - threat.bounds[0]
    return width if threat.norm == "linf" else width * inputs[0].numel() ** 0.5


def _probe(threat: Threat, scores: Scores, inputs: Tensor, labels: Tensor, effort: Effort) -> Record:
    """Whether there is a gradient, and whether steps along it make the loss of the first samples greater.

    "flat" is 1 where the gradient is 0; "rose" is 1 where the loss is greater after all steps than at the sample; NaN
    where nobody looked.
    """
    at = threat.pixels(inputs).detach()
    begun = look(scores, at, labels, threat, cross_entropy)
    flat = (lengths(begun.slope) <= 1e-12).flatten().float()
    flat[begun.wrong] = torch.nan
    rows = (~begun.wrong).nonzero()[:PROBED, 0]
    rose = torch.full_like(flat, torch.nan)
    if len(rows):
        rose[rows] = (
            _climbed(threat, scores, at[rows], labels[rows], effort.steps) > begun.values[rows] + 1e-6
        ).float()
    return {"flat": flat, "rose": rose}


def _climbed(threat: Threat, scores: Scores, pixels: Tensor, labels: Tensor, steps: int) -> Tensor:
    """The loss after gradient steps from the samples themselves, (N,): no random start helps, no best point is kept."""
    points = pixels
    for _ in range(steps):
        slope = look(scores, points, labels, threat, cross_entropy).slope
        points = threat.project(threat.ascend(points, slope, 2.5 * threat.eps / steps), pixels)
    return look(scores, points, labels, threat, cross_entropy, gradient=False).values


def _corrupted(exam: Exam, name: str, scores: Scores, inputs: Tensor, labels: Tensor, number: int) -> Record:
    """Which samples are right under a corruption, at each severity."""
    threat, found = exam.threats[0], Record()
    pixels = in_unit(threat.pixels(inputs).detach(), threat.bounds)
    for severity in range(1, SEVERITIES + 1):
        chance = chances(exam.seed, number, f"{name}.{severity}", inputs.device)
        spoilt = out_of_unit(CORRUPTIONS[name](pixels, severity, chance), threat.bounds)
        found[f"{name}.{severity}"] = _right(scores, threat.inputs(spoilt), labels)
    return found


def chances(seed: int, number: int, key: str, device: torch.device) -> torch.Generator:
    """Random numbers of one question on one batch, the same ones for every network."""
    mixed = sum(ord(letter) * 31**k for k, letter in enumerate(key)) + 1_000_003 * number + 7_919 * seed
    return torch.Generator(device=device).manual_seed(mixed % 2**63)
