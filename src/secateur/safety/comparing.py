"""Two networks beside each other on the same samples: what changed, and who pays for it.

Shape letters: N samples.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from secateur.safety.exact import holm, mcnemar, mean_interval, paired_interval, pays_more
from secateur.safety.examining import Exam, Record
from secateur.safety.figures import endurance, steadiness, withstood

ALARM = 0.05  # the p value from which on a group is named, or a difference is none
BROKEN = 0.01  # accuracy from which on nothing can be compared at a radius


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One figure of two networks on the same samples.

    Attributes:
        before, after: of the dense network and the other one.
        low, high: 95 % interval of the difference ``after - before``.
        p: of the exact McNemar test; None of means over several questions, which have only the interval.
        lost, won: samples that only the first, and only the second network gets right; None of means.
    """

    before: float
    after: float
    low: float
    high: float
    p: float | None = None
    lost: int | None = None
    won: int | None = None

    @property
    def change(self) -> float:
        """``after - before``."""
        return self.after - self.before

    @property
    def verdict(self) -> Literal["better", "worse", "within noise"]:
        """Which way it went, as far as the samples tell: the interval leaves out 0, and p is below 0.05."""
        if (self.p is not None and self.p >= ALARM) or self.low <= 0 <= self.high:
            return "within noise"
        return "better" if self.change > 0 else "worse"

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**vars(self), "change": self.change, "verdict": self.verdict}


@dataclass(frozen=True, kw_only=True)
class Group:
    """A class, or another group of samples.

    Attributes:
        name: of the group.
        samples: how many it has.
        agreement: share of them on which both networks give the same answer.
        before, after: accuracy of the dense network and the other one.
        lost, won: samples that only the first, and only the second network gets right.
        p: how likely it would lose so much if its samples were any samples, corrected for the number of groups.
    """

    name: str
    samples: int
    agreement: float
    before: float
    after: float
    lost: int
    won: int
    p: float

    @property
    def pays(self) -> bool:
        """Whether it loses more than the average, beyond chance."""
        return self.p < ALARM and self.after < self.before


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A network beside the dense one that it came from.

    Attributes:
        agreement: share of samples on which both give the same answer, right or wrong.
        clean: accuracy without an attack.
        strongest: accuracy under the strongest attack, by norm.
        endurance: mean accuracy under attack over all radii, by norm.
        corrupted: mean accuracy over all corruptions and severities; None where there are none.
        groups: classes or groups, those that pay most first.
    """

    agreement: float
    clean: Difference
    strongest: Mapping[str, Difference]
    endurance: Mapping[str, Difference]
    corrupted: Difference | None
    groups: tuple[Group, ...]

    @property
    def paying(self) -> tuple[Group, ...]:
        """The groups that pay more for the change than the average, beyond chance."""
        return tuple(group for group in self.groups if group.pays)

    def broken(self, norm: str) -> bool:
        """Whether attacks at the whole radius leave so little of both networks that nothing can be compared there."""
        return max(self.strongest[norm].before, self.strongest[norm].after) < BROKEN

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "agreement": self.agreement,
            "clean": self.clean.to_dict(),
            "strongest": {norm: found.to_dict() for norm, found in self.strongest.items()},
            "endurance": {norm: found.to_dict() for norm, found in self.endurance.items()},
            "corrupted": None if self.corrupted is None else self.corrupted.to_dict(),
            "groups": [{**vars(group), "pays": group.pays} for group in self.groups],
        }


def compare(exam: Exam, dense: Record, other: Record, groups: Mapping[str, Tensor]) -> Comparison:
    """Two networks on the same samples.

    Hooker et al. 2019, "What Do Compressed Deep Neural Networks Forget?", arXiv:1911.05248: what pruning costs, it
    costs some classes more than others. A group is named where it loses more, net, than samples drawn from all would
    (see `secateur.safety.exact.pays_more`), corrected for the number of groups after Holm.
    """
    norms = [threat.norm for threat in exam.threats]
    steady = steadiness(exam, dense), steadiness(exam, other)
    return Comparison(
        agreement=float((dense["answer"] == other["answer"]).double().mean()),
        clean=of_shares(dense["clean"], other["clean"]),
        strongest={norm: of_shares(withstood(exam, norm, dense), withstood(exam, norm, other)) for norm in norms},
        endurance={norm: of_means(endurance(exam, norm, dense), endurance(exam, norm, other)) for norm in norms},
        corrupted=None if steady[0] is None or steady[1] is None else of_means(steady[0], steady[1]),
        groups=_groups(dense, other, groups),
    )


def of_shares(before: Tensor, after: Tensor) -> Difference:
    """The difference of two shares, from (N,) truth values each."""
    lost, won, count = int((before & ~after).sum()), int((~before & after).sum()), len(before)
    low, high = paired_interval(lost, won, count)
    return Difference(
        before=int(before.sum()) / count,
        after=int(after.sum()) / count,
        low=low,
        high=high,
        p=mcnemar(lost, won),
        lost=lost,
        won=won,
    )


def of_means(before: Tensor, after: Tensor) -> Difference:
    """The difference of two means over samples, from (N,) numbers in [0, 1] each."""
    low, high = mean_interval(after.double() - before.double())
    return Difference(before=float(before.double().mean()), after=float(after.double().mean()), low=low, high=high)


def _groups(dense: Record, other: Record, groups: Mapping[str, Tensor]) -> tuple[Group, ...]:
    before, after, same = dense["clean"], other["clean"], dense["answer"] == other["answer"]
    changes = after.int() - before.int()
    held = {name: mask for name, mask in groups.items() if bool(mask.any())}
    chances = holm([pays_more(changes, mask) for mask in held.values()])
    found = [
        Group(
            name=name,
            samples=int(mask.sum()),
            agreement=float(same[mask].double().mean()),
            before=float(before[mask].double().mean()),
            after=float(after[mask].double().mean()),
            lost=int((changes[mask] < 0).sum()),
            won=int((changes[mask] > 0).sum()),
            p=p,
        )
        for (name, mask), p in zip(held.items(), chances, strict=True)
    ]
    return tuple(sorted(found, key=lambda group: (group.p, group.after - group.before)))
