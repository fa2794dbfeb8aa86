"""What a check of hints found: plain data that prints as tables and can be drawn."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from secateur.errors import OutputError
from secateur.files import write_json, write_text
from secateur.hints import tables
from secateur.hints.ranks import Agreement
from secateur.hints.whole import Whole
from secateur.printing import as_text

VERSION = 1
"""Of the form of hints.json."""


@dataclass(frozen=True, kw_only=True)
class CheckedAxis:
    """One axis.

    Attributes:
        name, kind, size: as in the graph.
        units: those that were sampled, ascending.
        truth: how much the loss rises (or how far the outputs move) without each of them.
        scores: what each hint gives the same units.
        removed: for each share and hint, the same without the share of the axis that the hint ranks lowest. Empty
            where the axis is too narrow.
        random: for each share, the mean of several choices at random.
    """

    name: str
    kind: str
    size: int
    units: tuple[int, ...]
    truth: tuple[float, ...]
    scores: Mapping[str, tuple[float, ...]]
    removed: Mapping[float, Mapping[str, float]] = field(default_factory=dict[float, Mapping[str, float]])
    random: Mapping[float, float] = field(default_factory=dict[float, float])


@dataclass(frozen=True, kw_only=True)
class HintCheck:
    """How well each hint ranks units, against what removing them really costs.

    Attributes:
        model: name of the class.
        truth: "loss" or "output".
        dense: loss of the dense model; 0 for "output".
        samples, batches: that the truth was measured on.
        axes: what was measured, axis by axis.
        agreement: for each hint its rank correlations with the truth.
        reliability: mean rank correlation that the truth would have with itself on as much other data, within an axis;
            None from one batch. No hint can be expected to come above its root.
        skipped: hints that could not be computed, and why.
        seed: of the sample of units.
        interrupted: what Ctrl-C cut short, in words; empty if nothing.
        note: a line on where the data came from; may be empty.
        budget: what the whole model was pruned to as each hint chooses, in words; empty if it was not.
        whole: for each hint, and at random, what that costs.

    It prints as two tables. The columns of the first: the mean over axes of the rank correlation within each; the rank
    correlation of all units together, by their scores and by their shares of the axis's sum; and how much the loss
    rises, on average over axes, when the hint chooses what share of an axis goes.
    """

    model: str
    truth: str
    dense: float
    samples: int
    batches: int
    axes: tuple[CheckedAxis, ...]
    agreement: Mapping[str, Agreement]
    reliability: float | None
    skipped: Mapping[str, str]
    seed: int
    interrupted: str = ""
    note: str = ""
    budget: str = ""
    whole: Mapping[str, Whole] = field(default_factory=dict[str, Whole])

    @property
    def hints(self) -> tuple[str, ...]:
        """Names of the hints, the best first: by what the whole model costs, refitted; else by what their choice of the
        first share costs; else by correlation.
        """
        share = next(iter(self.shares), None)

        def order(name: str) -> tuple[float, float]:
            correlation = self.agreement[name].mean
            if self.whole:
                return self.whole[name].refitted, self.whole[name].cut
            cost = math.inf if share is None else self.cost(name, share)
            return math.inf if cost is None else cost, -(-1.0 if correlation is None else correlation)

        return tuple(sorted(self.agreement, key=order))

    @property
    def shares(self) -> tuple[float, ...]:
        """Shares of an axis that were removed together."""
        return tuple(dict.fromkeys(share for axis in self.axes for share in axis.removed))

    def cost(self, hint: str | None, share: float) -> float | None:
        """Mean over axes of what it costs to remove a share that a hint chooses, or chance where it is None."""
        if hint is None:
            values = [axis.random[share] for axis in self.axes if share in axis.random]
        else:
            values = [axis.removed[share][hint] for axis in self.axes if share in axis.removed]
        return sum(values) / len(values) if values else None

    @property
    def sentence(self) -> str:
        """What follows from the figures."""
        return tables.sentence(self)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What is missing from the figures, and why."""
        lines = [f"{name} could not be computed: {why}" for name, why in self.skipped.items()]
        return (*lines, *[f"Cut short by Ctrl-C: {self.interrupted}"] * bool(self.interrupted))

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data, for JSON; what is not finite is None."""
        return {
            "version": VERSION,
            "model": self.model,
            "truth": self.truth,
            "dense": self.dense,
            "samples": self.samples,
            "batches": self.batches,
            "seed": self.seed,
            "interrupted": self.interrupted,
            "note": self.note,
            "reliability": self.reliability,
            "skipped": dict(self.skipped),
            "budget": self.budget,
            "whole": {name: _finite(asdict(whole)) for name, whole in self.whole.items()},
            "hints": [
                {
                    "name": name,
                    **_finite(asdict(self.agreement[name])),
                    "removed": {str(share): _finite(self.cost(name, share)) for share in self.shares},
                }
                for name in self.hints
            ],
            "random": {str(share): _finite(self.cost(None, share)) for share in self.shares},
            "axes": [_finite(asdict(axis)) for axis in self.axes],
        }

    def save(self, path: str | Path) -> None:
        """Write it as JSON, in one step."""
        write_json(path, self.to_dict())

    def save_picture(self, path: str | Path) -> None:
        """Write the picture: an .svg image, or an .html page that also has the tables.

        Raises:
            OutputError: the name ends in something else, or can't be written to.
        """
        from secateur.hints.picture import page, picture

        draw = {".svg": picture, ".html": page}.get(Path(path).suffix.lower())
        if draw is None:
            raise OutputError(f"a picture is an .svg image or an .html page: {str(path)!r} ends in neither")
        write_text(path, draw(self))

    def page(self) -> str:
        """The picture and the tables as one self-contained HTML page."""
        from secateur.hints.picture import page

        return page(self)

    def markdown(self) -> str:
        """Both tables in Markdown."""
        return tables.markdown(self)

    def __rich__(self) -> RenderableType:
        return tables.render(self)

    def __str__(self) -> str:
        return as_text(self)

    def __repr__(self) -> str:
        return f"HintCheck(model={self.model!r}, hints={list(self.hints)}, axes={len(self.axes)})"


def _finite(value: Any) -> Any:
    """Plain data for JSON: what is not finite is None, shares are texts."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
