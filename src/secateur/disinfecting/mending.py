"""Fine-tuning after removal: clean samples, those that carry the trigger that was found, and the original's answers.

Shape letters: N samples, K classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.disinfecting.clean import Clean, answers, device_of
from secateur.disinfecting.triggers import Trigger
from secateur.tuning import History, tune

BATCH = 50  # samples of a step


@dataclass(frozen=True, kw_only=True)
class Mending:
    """How a network is tuned after removal.

    Args:
        epochs: passes over the clean samples, 0 for none.
        lr: highest learning rate of SGD, above 0.
        weight_decay: of SGD.
        own: weight of the original's answers to clean samples against the labels, in [0, 1].
        stamped: share of each batch that carries a trigger that was found, with the samples' own labels, in [0, 1).
        strength: a sample carries it up to so many times as strongly as it was found, at random, from 1: what was found
            is the least that works, and the attacker's is stronger.
    """

    epochs: int = 10
    lr: float = 0.01
    weight_decay: float = 5e-4
    own: float = 0.8
    stamped: float = 0.3
    strength: float = 2.0

    def __post_init__(self) -> None:
        ranges = {"epochs": self.epochs >= 0, "lr": self.lr > 0, "weight_decay": self.weight_decay >= 0}
        ranges |= {"own": 0 <= self.own <= 1, "stamped": 0 <= self.stamped < 1, "strength": self.strength >= 1}
        if wrong := [f"{name}={getattr(self, name)}" for name, fine in ranges.items() if not fine]:
            raise ValueError(
                f"{', '.join(wrong)} out of range: own in [0, 1], stamped in [0, 1), lr above 0, strength from 1, "
                "the rest from 0"
            )


class Lessons:
    """Batches (inputs, shares of classes) in an order of its own for every pass.

    Args:
        x: inputs, (N, ...).
        y: shares of classes, (N, K).
        triggers: laid over some of the samples of a batch, one of them at random.
        share: of each batch.
        strength: of a trigger, at most.
    """

    def __init__(
        self, x: Tensor, y: Tensor, triggers: Sequence[Trigger], share: float, seed: int, strength: float = 1.0
    ) -> None:
        self.x, self.y, self.triggers, self.share, self.seed = x, y, triggers, share, seed
        self.strength = strength
        self.epoch = 0

    def __len__(self) -> int:
        return -(-len(self.x) // BATCH)

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass the one of this epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        self.epoch += 1
        for places in torch.randperm(len(self.x), generator=generator).split(BATCH):
            x, stamped = self.x[places.to(self.x.device)], round(self.share * len(places))
            if self.triggers and stamped:
                chosen = int(torch.randint(len(self.triggers), (1,), generator=generator))
                strength = 1 + (self.strength - 1) * torch.rand(stamped, generator=generator)
                x = torch.cat([self.triggers[chosen](x[:stamped], strength), x[stamped:]])
            yield x, self.y[places.to(self.y.device)]


def mend(
    model: nn.Module,
    original: nn.Module,
    used: Clean,
    held: Clean,
    triggers: Sequence[Trigger],
    how: Mending,
    seed: int,
) -> History | None:
    """Tune a network in place; it is left in the state that does best on held-out samples, carrying triggers too.

    Returns:
        The training; None without any.
    """
    if not how.epochs:
        return None
    theirs = answers(original, used.x).softmax(1)
    wanted = (1 - how.own) * F.one_hot(used.y, theirs.shape[1]).to(theirs) + how.own * theirs
    lessons = Lessons(used.x, wanted, triggers, how.stamped, seed, how.strength)
    judged = [(x, held.y) for x in (held.x, *(trigger(held.x) for trigger in triggers))]
    return tune(
        model,
        lessons,
        judged,
        epochs=how.epochs,
        lr=how.lr,
        optimizer="sgd",
        weight_decay=how.weight_decay,
        loss=_cross_entropy,
        device=device_of(model),
        seed=seed,
    )


def _cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Of class numbers, or of shares of classes."""
    return F.cross_entropy(output, target)
