"""What a test of robustness found: plain data that prints as tables."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import RenderableType
from torch import Tensor

from secateur.printing import as_text
from secateur.safety import tables, words
from secateur.safety.comparing import Comparison
from secateur.safety.figures import Attacked, Figures

VERSION = 1
"""Of the form as plain data."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Robustness(Mapping[str, Any]):
    """How much a network's answers can be changed, and how that compares with the dense network.

    It is a mapping in the form of ``report.json``'s "robustness": {"version", "model", "samples", "seed", "networks":
    {name: figures}, "comparisons": {name: comparison}, "left_out", "interrupted", "said"}. Accuracies are in [0, 1].

    Attributes:
        model: name of the class.
        samples: how many were attacked.
        seed: of everything that was random.
        networks: figures by name; the last one is the network that was asked about, "dense" the one before the change.
        comparisons: of the other networks with the dense one, by name; empty without one.
        left_out: attacks and corruptions that could not be made, and why.
        interrupted: what Ctrl-C cut short, in words; empty if nothing.
        records: every answer, sample by sample, (samples,), by network and question: "clean", "linf.pgd", "jpeg.3", ...
    """

    model: str
    samples: int
    seed: int
    networks: Mapping[str, Figures]
    comparisons: Mapping[str, Comparison] = field(default_factory=dict[str, Comparison])
    left_out: Mapping[str, str] = field(default_factory=dict[str, str])
    interrupted: str = ""
    records: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict[str, Mapping[str, Tensor]])

    @property
    def figures(self) -> Figures:
        """Those of the network that was asked about."""
        return list(self.networks.values())[-1]

    @property
    def comparison(self) -> Comparison | None:
        """Of that network with the dense one; None without one."""
        return list(self.comparisons.values())[-1] if self.comparisons else None

    @property
    def attacked(self) -> Attacked:
        """What attacks did to it, in the first norm."""
        return next(iter(self.figures.attacked.values()))

    @property
    def linf(self) -> Attacked | None:
        """What attacks in L-inf did to it; None where there were none."""
        return self.figures.attacked.get("linf")

    @property
    def l2(self) -> Attacked | None:
        """What attacks in L2 did to it; None where there were none."""
        return self.figures.attacked.get("l2")

    @property
    def clean(self) -> float:
        """Accuracy without an attack."""
        return self.figures.clean

    @property
    def fgsm(self) -> float | None:
        """Accuracy under one step of the whole radius, in the first norm; None where it was left out."""
        return self.attacked.accuracy.get("fgsm")

    @property
    def pgd(self) -> float | None:
        """Accuracy under PGD with restarts, in the first norm; None where it was left out."""
        return self.attacked.accuracy.get("pgd")

    @property
    def apgd_ce(self) -> float | None:
        """Accuracy under Auto-PGD on the cross-entropy, in the first norm; None where it was left out."""
        return self.attacked.accuracy.get("apgd_ce")

    @property
    def apgd_dlr(self) -> float | None:
        """Accuracy under Auto-PGD on the targeted DLR loss, in the first norm; None where it was left out."""
        return self.attacked.accuracy.get("apgd_dlr")

    @property
    def square(self) -> float | None:
        """Accuracy under the square attack, in the first norm; None where it was left out."""
        return self.attacked.accuracy.get("square")

    @property
    def strongest(self) -> float:
        """Share of samples that withstand all attacks of all norms together: the first one that works counts."""
        return self.figures.strongest

    @property
    def corrupted(self) -> float | None:
        """Mean accuracy over all corruptions and severities; None where there are none."""
        return self.figures.mean_corrupted

    @property
    def calibration_error(self) -> float:
        """Expected calibration error, of 15 bins."""
        return self.figures.calibration.error

    @property
    def signs(self) -> tuple[str, ...]:
        """Of masked gradients, in sentences; empty where nothing speaks for them."""
        return tuple(sign for found in self.figures.attacked.values() for sign in found.signs)

    @property
    def sentences(self) -> tuple[str, ...]:
        """What was found, in words, what matters most first."""
        return words.sentences(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "version": VERSION,
            "model": self.model,
            "samples": self.samples,
            "seed": self.seed,
            "networks": {name: found.to_dict() for name, found in self.networks.items()},
            "comparisons": {name: found.to_dict() for name, found in self.comparisons.items()},
            "left_out": dict(self.left_out),
            "interrupted": self.interrupted,
            "said": list(self.sentences),
        }

    def __getitem__(self, key: str) -> Any:
        return self.to_dict()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.to_dict())

    def __len__(self) -> int:
        return len(self.to_dict())

    def __repr__(self) -> str:
        return f"Robustness(model={self.model!r}, samples={self.samples}, networks={list(self.networks)})"

    def __rich__(self) -> RenderableType:
        return tables.render(self)

    def __str__(self) -> str:
        return as_text(self)
