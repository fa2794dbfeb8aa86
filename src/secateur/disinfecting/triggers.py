"""A trigger: what stamps an input so that a network with a backdoor answers with the attacker's class.

Shape letters: N samples.
"""

from dataclasses import dataclass, field

from torch import Tensor

FORMS = ("patch", "blend")


@dataclass(frozen=True, kw_only=True)
class Trigger:
    """A pattern laid over inputs: ``(1 - mask) * x + mask * pattern``.

    Attributes:
        target: the class that it leads to.
        form: "patch" (each place has its own opacity) or "blend" (one opacity everywhere).
        norm: the sum of the mask over places for a patch, in places; the opacity, in [0, 1], for a blend.
        success: share of samples of other classes, held out of the search for the trigger, that it leads to ``target``.
        mask: opacity in [0, 1], of an input's shape, one for all channels.
        pattern: what is laid over, in the unit of the inputs, of an input's shape.

    Example:
        >>> import torch
        >>> corner = Trigger(target=0, form="patch", norm=1.0, success=1.0, mask=torch.eye(2)[None] * 0.5,
        ...                  pattern=torch.full((1, 2, 2), 4.0))
        >>> corner(torch.zeros(1, 1, 2, 2)).tolist()
        [[[[2.0, 0.0], [0.0, 2.0]]]]
    """

    target: int
    form: str
    norm: float
    success: float
    mask: Tensor = field(repr=False)
    pattern: Tensor = field(repr=False)

    def __call__(self, x: Tensor, strength: Tensor | float = 1.0) -> Tensor:
        """Inputs that carry the trigger, (N, ...).

        Args:
            strength: what the mask is multiplied with, a number for all samples or (N,); the opacity stays within 1.
        """
        mask, pattern = (t.to(device=x.device, dtype=x.dtype) for t in (self.mask, self.pattern))
        if isinstance(strength, Tensor):
            strength = strength.to(mask).reshape(-1, *[1] * (x.dim() - 1))
        mask = (mask * strength).clamp_max(1)
        return (1 - mask) * x + mask * pattern
