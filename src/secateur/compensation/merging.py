"""Merge instead of delete: what a unit that goes gave is taken over by the one that stays and moves most like it.

Shape letters: R rows, D features that go, K features that stay, N outputs, W places of the window.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from secateur.calibration.found import wide


@dataclass
class Likeness:
    """Sums over rows of features that go, (R, D), and features that stay, (R, K)."""

    rows: int = 0
    parts: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def add(self, gone: Tensor, kept: Tensor) -> None:
        """Count rows in."""
        self.rows += len(gone)
        new = {
            "d": gone.sum(0), "k": kept.sum(0), "dd": gone.square().sum(0), "kk": kept.square().sum(0),
            "dk": gone.T @ kept,
        }  # fmt: skip
        for name, value in new.items():
            old = self.parts.get(name)
            self.parts[name] = wide(value) if old is None else old + value.to(old.device)

    def partners(self, *, centred: bool) -> tuple[Tensor, Tensor, Tensor]:
        """For each feature that goes, the one that stays that explains most of it, by how much to scale that one, and
        the share of the variance that it explains: (D,), (D,), (D,).

        Args:
            centred: around the means, where a constant makes up for these; else around 0.
        """
        mean = {k: self.parts[k] / self.rows for k in self.parts}
        if not centred:
            mean |= {k: torch.zeros_like(mean[k]) for k in ("d", "k")}
        across = mean["dk"] - mean["d"][:, None] * mean["k"][None]
        var_d = (mean["dd"] - mean["d"].square()).clamp_min(0)
        var_k = (mean["kk"] - mean["k"].square()).clamp_min(0)
        explained = across.square() / (var_d[:, None] * var_k[None]).clamp_min(1e-30)
        share, partner = explained.max(1)
        at = torch.arange(len(partner), device=partner.device)
        factor = across[at, partner] / var_k[partner].clamp_min(1e-30)
        return partner, torch.where(share > 0, factor, 0.0), share


def fold(matrix: Tensor, gone: Tensor, partner: Tensor, factor: Tensor, window: int) -> Tensor:
    """The matrix (K*W, N) of what stays, with that of what goes (D*W, N) folded into the partners' rows."""
    out = wide(matrix).unflatten(0, (-1, window))
    moved = wide(gone).unflatten(0, (-1, window)) * factor[:, None, None]
    return out.index_add(0, partner, moved).flatten(0, 1)
