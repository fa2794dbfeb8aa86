"""The figures of one network, from its answers sample by sample."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur.safety.confidence import Calibration, calibration
from secateur.safety.corruption import SEVERITIES
from secateur.safety.examining import RADII, Exam, Record
from secateur.safety.masking import signs
from secateur.safety.threat import Threat


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """What attacks within one ball left.

    Attributes:
        threat: the ball.
        accuracy: under each attack by itself, in [0, 1].
        strongest: share of samples that withstand all of them, those within smaller balls included.
        radii: accuracy under PGD within smaller balls, by radius in pixel units.
        endurance: mean accuracy over those radii and the whole one.
        signs: of masked gradients, in sentences; empty where nothing speaks for them.
    """

    threat: Threat
    accuracy: Mapping[str, float]
    strongest: float
    radii: Mapping[float, float]
    endurance: float
    signs: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "eps": self.threat.eps,
            "accuracy": dict(self.accuracy),
            "strongest": self.strongest,
            "endurance": self.endurance,
            "radii": [{"eps": eps, "accuracy": value} for eps, value in self.radii.items()],
            "signs_of_masking": list(self.signs),
        }


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was found of one network.

    Attributes:
        clean: accuracy without an attack, in [0, 1].
        strongest: share of samples that withstand all attacks of all norms.
        attacked: by norm.
        corrupted: accuracy at each of five severities, by corruption.
        calibration: whether it is as often right as it says.
    """

    clean: float
    strongest: float
    attacked: Mapping[str, Attacked]
    corrupted: Mapping[str, tuple[float, ...]]
    calibration: Calibration

    @property
    def mean_corrupted(self) -> float | None:
        """Mean accuracy over all corruptions and severities; None where there are none."""
        values = [value for row in self.corrupted.values() for value in row]
        return sum(values) / len(values) if values else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "clean": self.clean,
            "strongest": self.strongest,
            "attacked": {norm: found.to_dict() for norm, found in self.attacked.items()},
            "corrupted": {name: list(row) for name, row in self.corrupted.items()},
            "mean_corrupted": self.mean_corrupted,
            "calibration": vars(self.calibration),
        }


def figures(exam: Exam, record: Record) -> Figures:
    """The figures of one network."""
    return Figures(
        clean=_mean(record["clean"]),
        strongest=_mean(torch.stack([withstood(exam, threat.norm, record) for threat in exam.threats]).all(0)),
        attacked={threat.norm: _attacked(exam, threat, record) for threat in exam.threats},
        corrupted={
            name: tuple(_mean(record[f"{name}.{severity}"]) for severity in range(1, SEVERITIES + 1))
            for name in exam.corruptions
        },
        calibration=calibration(record["confidence"], record["clean"]),
    )


def _attacked(exam: Exam, threat: Threat, record: Record) -> Attacked:
    return Attacked(
        threat=threat,
        accuracy={name: _mean(record[f"{threat.norm}.{name}"]) for name in exam.attacks},
        strongest=_mean(withstood(exam, threat.norm, record)),
        radii={threat.eps * share: _mean(record[f"{threat.norm}.radius.{k}"]) for k, share in enumerate(RADII)},
        endurance=_mean(endurance(exam, threat.norm, record)),
        signs=signs(record, threat.norm),
    )


def withstood(exam: Exam, norm: str, record: Record) -> Tensor:
    """Which samples are right under every attack within a ball, (N,)."""
    keys = [f"{norm}.{name}" for name in (*exam.attacks, f"radius.{len(RADII) - 1}")]
    return torch.stack([record["clean"], *(record[key] for key in keys)]).all(0)


def endurance(exam: Exam, norm: str, record: Record) -> Tensor:
    """The share of radii, the whole eps included, at which each sample is right, (N,)."""
    rows = [record[f"{norm}.radius.{k}"] for k in range(len(RADII))]
    return torch.stack([*rows, withstood(exam, norm, record)]).float().mean(0)


def steadiness(exam: Exam, record: Record) -> Tensor | None:
    """The share of corruptions and severities under which each sample is right, (N,); None where there are none."""
    keys = [f"{name}.{severity}" for name in exam.corruptions for severity in range(1, SEVERITIES + 1)]
    return torch.stack([record[key] for key in keys]).float().mean(0) if keys else None


def _mean(values: Tensor) -> float:
    return float(values.double().mean())
