"""``sc.find_backdoor``: whether a network answers to a trigger that nobody told us of.

Shape letters: K classes.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateur.disinfecting.clean import Clean, check_labels, classes_of, device_of, gather
from secateur.disinfecting.inversion import Inversion, invert
from secateur.disinfecting.triggers import FORMS, Trigger
from secateur.errors import DataError, PlanError
from secateur.rebuilding import as_module
from secateur.tracing.shadow import separate

INDEX = 2.0  # anomaly index from which a class is suspected, as in the paper
RATIO = 1.5  # the next class needs a trigger that is larger by at least this factor
AGREED_INDEX, AGREED_RATIO = 1.5, 1.3  # the same for a class that is the least in all forms
SUCCESS = 0.75  # share of held-out samples that a suspected trigger has to work on
SPREAD = 0.1  # least deviation of logarithms that counts: 10 %, the noise of a short search
MAD = 1.4826  # a normal distribution's standard deviation, by its median absolute deviation


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a network has a backdoor, as far as the triggers say that were found.

    Attributes:
        found: whether one class is led to by a trigger that is far smaller than those of all others.
        target: that class; None where there is none.
        trigger: the trigger; None where there is none. Call it on inputs.
        index: the anomaly index of the least trigger, by form.
        ratio: the second least norm by the least, by form.
        norms: the norm of each class's trigger, (K,), by form: places for "patch", opacity for "blend".
        triggers: all of them, by form.
    """

    found: bool
    target: int | None
    trigger: Trigger | None
    index: Mapping[str, float]
    ratio: Mapping[str, float]
    norms: Mapping[str, Tensor] = field(repr=False)
    triggers: Mapping[str, Sequence[Trigger]] = field(repr=False)

    @property
    def suspected(self) -> list[Trigger]:
        """The triggers of the suspected class, of each form in which it stands out, the most anomalous first."""
        if self.target is None or self.trigger is None:
            return []
        others = [
            found[self.target]
            for form, found in self.triggers.items()
            if form != self.trigger.form
            and int(self.norms[form].argmin()) == self.target
            and self.ratio[form] >= AGREED_RATIO
        ]
        return [self.trigger, *(t for t in others if t.success >= SUCCESS)]

    @property
    def least(self) -> list[Trigger]:
        """The least trigger of each form, whether a class stands out or not; those that work."""
        found = [triggers[int(self.norms[form].argmin())] for form, triggers in self.triggers.items()]
        return [trigger for trigger in found if trigger.success >= SUCCESS]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without the tensors of triggers."""
        return {
            "found": self.found,
            "target": self.target,
            "form": None if self.trigger is None else self.trigger.form,
            "success": None if self.trigger is None else self.trigger.success,
            "index": dict(self.index),
            "ratio": dict(self.ratio),
            "norms": {form: norms.tolist() for form, norms in self.norms.items()},
        }

    def __str__(self) -> str:
        said = ", ".join(f"{form} {self.index[form]:.1f} (next class x{self.ratio[form]:.2f})" for form in self.index)
        if self.trigger is None:
            return f"no backdoor found: anomaly index {said}; suspected from {INDEX:g} and x{RATIO:g}"
        unit = "places" if self.trigger.form == "patch" else "opacity"
        return (
            f"backdoor suspected: a {self.trigger.form} of {self.trigger.norm:.3g} {unit} leads "
            f"{self.trigger.success:.0%} of held-out samples to class {self.target}; anomaly index {said}"
        )


def anomaly(norms: Tensor) -> tuple[float, float]:
    """How far the least of positive norms lies below the others: anomaly index, and the ratio of the next to it.

    The index is (median - least) / (1.4826 * median absolute deviation), of logarithms.
    Wang et al. 2019, Neural Cleanse, section IV. Differs: logarithms, because norms differ by factors from class to
    class; a deviation of at least 0.1.

    Example:
        >>> index, ratio = anomaly(torch.tensor([1.0, 8.0, 4.0, 16.0, 8.0]))
        >>> round(index, 3), ratio
        (2.023, 4.0)
    """
    logs = norms.double().clamp_min(1e-6).log()
    middle = logs.quantile(0.5)
    spread = max(MAD * float((logs - middle).abs().quantile(0.5)), SPREAD)
    least = logs.sort().values
    return float(middle - least[0]) / spread, math.exp(float(least[1] - least[0]))


def judge(triggers: Mapping[str, Sequence[Trigger]]) -> Verdict:
    """The verdict on triggers that were found, by form."""
    norms = {form: torch.tensor([t.norm for t in found]) for form, found in triggers.items()}
    figures = {form: anomaly(values) for form, values in norms.items()}
    least = {form: found[int(norms[form].argmin())] for form, found in triggers.items()}

    def apart(form: str, lowest: float, nearest: float) -> bool:
        index, ratio = figures[form]
        return index >= lowest and ratio >= nearest and least[form].success >= SUCCESS

    agreed = len(figures) > 1 and len({trigger.target for trigger in least.values()}) == 1
    agreed = agreed and all(apart(form, -math.inf, AGREED_RATIO) for form in figures)
    bar = (AGREED_INDEX, AGREED_RATIO) if agreed else (INDEX, RATIO)
    suspected = [form for form in figures if apart(form, *bar)]
    worst = max(suspected, key=lambda form: figures[form][0], default=None)
    return Verdict(
        found=worst is not None,
        target=None if worst is None else least[worst].target,
        trigger=None if worst is None else least[worst],
        index={form: index for form, (index, _) in figures.items()},
        ratio={form: ratio for form, (_, ratio) in figures.items()},
        norms=norms,
        triggers=triggers,
    )


@torch.inference_mode(False)  # a search by gradients
def find_backdoor(
    model: nn.Module,
    data: Iterable[Any] | Clean,
    *,
    forms: Sequence[str] = FORMS,
    bounds: tuple[float | Tensor, float | Tensor] | None = None,
    heldout: float = 0.3,
    how: Inversion | None = None,
    seed: int = 0,
) -> Verdict:
    """Look for a backdoor without knowing its trigger, by inverting one for every class.

    A class is suspected where its trigger's anomaly index is at least 2, the next class needs one that is larger by
    half at least, and the trigger works on three quarters of the samples that the search did not see; where both forms
    name the same class, an index of 1.5 and a factor of 1.3 are enough. What is found is the class and a trigger that
    works, not the attacker's own.

    Args:
        model: a classifier of one tensor of inputs; it stays as it is.
        data: clean batches (inputs, labels), some dozens of samples of each class.
        forms: which triggers to look for: "patch" (few places), "blend" (thin, everywhere).
        bounds: least and greatest values that inputs can have, numbers or tensors that broadcast to an input; by
            default those of ``data``, for each channel.
        heldout: share of the samples that the search does not see, in (0, 1).
        how: steps, samples and goal of the search.
        seed: of all that is random.

    Raises:
        DataError: no samples, or not of the form that this needs; fewer than 3 classes.
        PlanError: a form that nobody knows, or a share out of range.

    Example:
        >>> import secateur as sc
        >>> from secateur.disinfecting import Inversion
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Linear(4, 4)
        >>> data = [(torch.rand(40, 4), torch.arange(4).repeat(10))]
        >>> sc.find_backdoor(net, data, how=Inversion(steps=5)).norms["patch"].shape
        torch.Size([4])
    """
    if unknown := [form for form in forms if form not in FORMS] or ([] if forms else ["none"]):
        raise PlanError(f"forms={unknown}: give some of {', '.join(FORMS)}")
    if not 0 < heldout < 1:
        raise PlanError(f"heldout={heldout}: give the share of samples that is held out, in (0, 1)")
    double = separate(as_module(model)).eval().requires_grad_(False)
    clean = gather(data, device_of(double))
    used, held = clean.split(heldout, seed)
    classes = classes_of(double, used.x)
    if classes < 3:
        raise DataError(f"{classes} classes: an outlier among triggers shows from 3 classes on")
    check_labels(clean, classes, "data=")
    low, high = _bounds(clean.x, bounds)
    with torch.enable_grad():
        found = {
            form: invert(double, used, classes, form, bounds=(low, high), held=held, how=how or Inversion(), seed=seed)
            for form in forms
        }
    return judge(found)


def _bounds(x: Tensor, given: tuple[float | Tensor, float | Tensor] | None) -> tuple[Tensor, Tensor]:
    """Least and greatest values, in a form that broadcasts to an input."""
    if given is not None:
        low, high = (torch.as_tensor(bound, device=x.device, dtype=x.dtype) for bound in given)
        return low, high
    dims = (0, *range(2, x.dim()))
    shape = (-1, *[1] * (x.dim() - 2))
    return x.amin(dims).reshape(shape), x.amax(dims).reshape(shape)
