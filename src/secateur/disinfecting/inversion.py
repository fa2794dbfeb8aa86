"""Trigger inversion: for every class at once, the least trigger that leads all other samples there.

Wang et al. 2019, "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks", IEEE S&P: mask and
pattern by gradient descent on cross-entropy plus lambda times the L1 norm of the mask, lambda rising while the attack
succeeds and falling while it does not.
Differs: all classes share a batch, so that a step costs one pass; few samples and steps. Opacities are the leaves
themselves, clamped to [0, 1], where the paper has a tanh of its leaves: places fall to exactly 0, so that a patch of
few places is found where many faint ones used to be. What was kept from a lucky draw of samples is strengthened until
it works on nearly all of them. And besides the paper's patches there is a blend, with one opacity for the whole input,
because triggers laid thinly over all of an image (Chen et al. 2017, "Targeted Backdoor Attacks on Deep Learning Systems
Using Data Poisoning", arXiv:1712.05526) have no small mask.

Shape letters: N samples a class, K classes.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.disinfecting.clean import Clean, answers, scores_of
from secateur.disinfecting.triggers import Trigger
from secateur.progress import progress_bar

START = {"patch": 0.05, "blend": 0.27}  # opacity of the mask
PACE = {"patch": 0.5, "blend": 0.1}  # learning rate of the mask, by that of the pattern
BETAS = (0.5, 0.9)  # of Adam, as in the paper
RISE = 1.15  # of lambda, a step
SETTLED = 0.9  # share of all samples of the search that a trigger is strengthened for
STRONGER, STRONGEST = 1.1, 2.0  # by which factor at a time, and at most


@dataclass(frozen=True, kw_only=True)
class Inversion:
    """How triggers are searched for.

    Args:
        steps: of gradient descent, from 1.
        samples: N, drawn anew for every step, from 1.
        goal: share of these that a trigger has to lead to its class before it counts, in (0, 1].
        lr: of Adam, above 0; of the pattern before the sigmoid. That of the mask is smaller.
        weight: lambda at first: cross-entropy that a hundredth of the largest mask costs, above 0.
    """

    steps: int = 200
    samples: int = 24
    goal: float = 0.95
    lr: float = 0.1
    weight: float = 0.01

    def __post_init__(self) -> None:
        ranges = {"steps": self.steps >= 1, "samples": self.samples >= 1, "goal": 0 < self.goal <= 1}
        ranges |= {"lr": self.lr > 0, "weight": self.weight > 0}
        if wrong := [f"{name}={getattr(self, name)}" for name, fine in ranges.items() if not fine]:
            raise ValueError(
                f"{', '.join(wrong)} out of range: steps and samples from 1, goal in (0, 1], the rest above 0"
            )


def invert(
    model: nn.Module,
    clean: Clean,
    classes: int,
    form: str,
    *,
    bounds: tuple[Tensor, Tensor],
    held: Clean,
    how: Inversion,
    seed: int = 0,
) -> list[Trigger]:
    """The least trigger of each class.

    Args:
        model: in evaluation mode, its parameters without gradients.
        clean: what the search sees.
        classes: K.
        form: "patch" or "blend".
        bounds: least and greatest values of inputs, broadcast to an input.
        held: samples that say how well each trigger does on others than the search saw.

    Returns:
        K triggers. One that never reached the goal has the largest norm there is; so has one of a class that the
        network calls all samples anyway, for which there is nothing to lead.
    """
    generator = torch.Generator().manual_seed(seed)
    seen, unseen = (_elsewhere(model, samples, classes) for samples in (clean, held))
    able = torch.tensor([len(x) > 0 for x in seen], device=clean.x.device)
    search = _Search(clean.x, classes, form, bounds, generator)
    rates = [{"params": [search.mask], "lr": how.lr * PACE[form]}, {"params": [search.raw], "lr": how.lr}]
    optimizer = torch.optim.Adam(rates, betas=BETAS)
    weight, target = search.full(how.weight), torch.arange(classes, device=clean.x.device)
    with progress_bar(f"Inverting triggers ({form})", how.steps) as advance:
        for _ in range(how.steps):
            x = torch.stack([_drawn(x if len(x) else clean.x, how.samples, generator) for x in seen])
            scores = scores_of(model, search.stamped(x).flatten(0, 1))
            scores = scores.reshape(classes, how.samples, -1)
            losses = F.cross_entropy(scores.flatten(0, 1), target.repeat_interleave(how.samples), reduction="none")
            reached = able & ((scores.argmax(2) == target[:, None]).float().mean(1) >= how.goal)
            search.note(reached)
            total = losses.reshape(classes, -1).mean(1) + weight * 100 * search.norms() / search.largest
            search.mask.grad, search.raw.grad = torch.autograd.grad(total.sum(), (search.mask, search.raw))
            optimizer.step()
            search.mask.data.clamp_(0, 1)
            weight = torch.where(reached, weight * RISE, weight / RISE)
            advance()
    worked = search.best.isfinite().tolist()
    found = [_settled(model, t, seen[t.target]) if worked[t.target] else t for t in map(search.trigger, range(classes))]
    return [replace(trigger, success=_led(model, trigger, unseen[trigger.target])) for trigger in found]


def _elsewhere(model: nn.Module, samples: Clean, classes: int) -> list[Tensor]:
    """For each class the inputs that neither are of it nor are called it: those that a trigger could lead there."""
    called = answers(model, samples.x).argmax(1)
    return [samples.x[(samples.y != k) & (called != k)] for k in range(classes)]


def _drawn(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return x[torch.randint(len(x), (count,), generator=generator).to(x.device)]


def _led(model: nn.Module, trigger: Trigger, x: Tensor) -> float:
    """The share of inputs that a trigger leads to its class; 0 where there are none."""
    if not len(x):
        return 0.0
    return float((answers(model, trigger(x)).argmax(1) == trigger.target).double().mean())


def _settled(model: nn.Module, trigger: Trigger, x: Tensor) -> Trigger:
    """The trigger, made stronger as far as it has to be to work on nearly all inputs of the search."""
    strength, stronger, whole = 1.0, trigger, float(trigger.mask.sum())
    while whole and _led(model, stronger, x) < SETTLED and strength < STRONGEST:
        strength *= STRONGER
        mask = (trigger.mask * strength).clamp_max(1)
        stronger = replace(trigger, mask=mask, norm=trigger.norm * float(mask.sum()) / whole)
    return stronger


class _Search:
    """Masks and patterns of all classes while they are searched for."""

    def __init__(
        self, x: Tensor, classes: int, form: str, bounds: tuple[Tensor, Tensor], generator: torch.Generator
    ) -> None:
        sample, places = x.shape[1:], x.shape[2:] or x.shape[1:]
        opacities = (1, *places) if x.dim() > 2 else tuple(places)  # one for all channels
        shape = opacities if form == "patch" else (1,) * len(opacities)
        self.form, (self.low, self.high) = form, bounds
        self.largest = float(torch.Size(shape).numel())
        noise = [torch.randn(classes, *size, generator=generator) for size in (shape, sample)]
        self.mask = (START[form] * (1 + 0.1 * noise[0])).clamp(0, 1).to(x).requires_grad_()
        self.raw = (0.1 * noise[1]).to(x).requires_grad_()
        self.best = self.full(float("inf"))
        self.kept = [leaf.detach().clone() for leaf in (self.mask, self.raw)]

    def full(self, value: float) -> Tensor:
        """The same number for every class, (K,)."""
        return torch.full((len(self.mask),), value, device=self.mask.device)

    def norms(self) -> Tensor:
        """How large the masks are, (K,)."""
        return self.mask.flatten(1).sum(1)

    def pattern(self, raw: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * raw.sigmoid()

    def stamped(self, x: Tensor) -> Tensor:
        """Samples of every class, (K, N, ...), with its trigger."""
        mask = self.mask[:, None]
        return (1 - mask) * x + mask * self.pattern(self.raw)[:, None]

    def note(self, reached: Tensor) -> None:
        """Keep the least triggers that did what they should."""
        norms = self.norms().detach()
        better = reached & (norms < self.best)
        self.best = torch.where(better, norms, self.best)
        for kept, leaf in zip(self.kept, (self.mask, self.raw), strict=True):
            kept[better] = leaf.detach()[better]

    def trigger(self, k: int) -> Trigger:
        """What was kept for one class."""
        pattern = self.pattern(self.kept[1][k])
        mask = self.kept[0][k].expand(pattern.shape).contiguous()
        norm = min(float(self.best[k]), self.largest)
        return Trigger(target=k, form=self.form, norm=norm, success=0.0, mask=mask, pattern=pattern)
