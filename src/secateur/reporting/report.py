"""What a run found, as a mapping in the form of ``report.json`` that prints as a table."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from rich.console import Console, RenderableType

from secateur.errors import ArtifactError
from secateur.files import write_json
from secateur.reporting import notebook, table
from secateur.reporting.environment import environment as current_environment
from secateur.reporting.figures import latency_cut_per_mac_cut

VERSION = 1
"""Of the form of report.json."""


class Report(Mapping[str, Any]):
    """Figures before and after, the proof, and each axis's width.

    It is plain data: ``{"version", "command", "seed", "model", "dense": F, "pruned": F, "tuned": F, "proof":
    {"status", "max_difference", "scale"}, "axes": [{"name", "kind", "before", "after"}], "plan", "environment"}`` with
    ``F = {"params", "macs", "size_bytes", "latency_ms", "throughput", "training_step_ms", "peak_memory_bytes",
    "metrics": {...}}``. Durations are in milliseconds, sizes in bytes, throughput in samples per second, accuracies in
    [0, 1]. What wasn't measured is None. Where operations were timed, ``F`` has "predicted_latency_ms" too; where
    latency and MACs were measured, "latency_cut_per_mac_cut" beside "axes" says how much of the cut in MACs shows in
    the latency: 1 is all of it. It prints as a table in a terminal and in a notebook.
    Where a metric on held-out data was bounded there is also ``"held_out": {"setting", "bound", "metric", "unit",
    "dense", "pruned", "worse", "rounds", "met", "interrupted"}``, with accuracies in percentage points; of several
    bounds the others are a list "others" in it, and with a budget "budget" is its amount and "ended_by" what kept more
    from going: "budget", a bound's setting or "nothing left". Where weights
    were refitted there is ``"compensation": {"how", "samples", "refitted", "left", "distance_before", "distance",
    "biases"}``, the distances being those of the outputs from the dense network's as a share of their size; and
    ``"dead_units"``, a number, where units gave zero on all of the data; and ``"trial": {"chosen", "distances",
    "measure", "fitted", "judged"}`` where several hints were tried. Where data were protected there is ``"protected":
    {"share", "samples", "kept", "axes", "figures", "costs", "seen"}``; see `secateur.protecting.outcome`. Where it was
    pruned bit by bit there is ``"gradual": {"mode", "schedule", "rewind", "steps", "masked", "interrupted"}``, each
    step with its budget, cost (as shares of the original), proof, compensation, results right after the cut, and
    training. Where whole blocks went or came in there is ``"depth": {"dropped", "inserted", "importance", "scores",
    "blocks", "unsaid"}``. Where it was adapted to a new task there is ``"adapted": {"layers", "before", "after",
    "samples", "choices", "teacher", "measured_on"}``: the layers of the head, the old and the new number of
    classes, samples of each class, and for "dense" and "tuned" what was trained, what stayed frozen and why. Where
    an earlier plan was replayed there is ``"replay": {"status", "advice", "importance", "scores", "left_out",
    "correlation", "overlap", "agreement", "axes", "dense", "replayed", "fresh"}``; see `secateur.replaying`. Where a
    sparse network was trained on there is ``"kept_zeros": {"before", "after"}``, shares of zeros in its sparse weights.

    Args:
        data: plain data in that form. It is copied; numbers that JSON can't hold (NaN, infinity) become None.

    Example:
        >>> report = Report({"dense": {"params": 81194}, "pruned": {"params": 6654}})
        >>> report["pruned"]["params"]
        6654
        >>> report["tuned"] is None
        True
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._data: dict[str, Any] = dict.fromkeys(_KEYS) | _plain(data)

    @classmethod
    def build(
        cls,
        *,
        model: str,
        dense: Mapping[str, Any] | None,
        pruned: Mapping[str, Any] | None = None,
        tuned: Mapping[str, Any] | None = None,
        proof: Mapping[str, Any] | None = None,
        axes: Sequence[Mapping[str, Any]] = (),
        plan: Any = None,
        command: str | None = None,
        seed: int | None = None,
        device: str = "cpu",
        interrupted: str = "",
        held_out: Mapping[str, Any] | None = None,
        compensation: Mapping[str, Any] | None = None,
        dead_units: int | None = None,
        trial: Mapping[str, Any] | None = None,
        protected: Mapping[str, Any] | None = None,
        gradual: Mapping[str, Any] | None = None,
        adapted: Mapping[str, Any] | None = None,
    ) -> Self:
        """A report from its parts; version and environment are filled in, and what Ctrl-C cut short is noted there."""
        ratio = latency_cut_per_mac_cut(dense, tuned or pruned)
        return cls(
            {
                "version": VERSION,
                "command": command,
                "seed": seed,
                "model": model,
                "dense": dense,
                "pruned": pruned,
                "tuned": tuned,
                "proof": proof,
                "axes": list(axes),
                "plan": plan,
                **({} if ratio is None else {"latency_cut_per_mac_cut": ratio}),
                "environment": {**current_environment(device), **({"interrupted": interrupted} if interrupted else {})},
                **({"held_out": held_out} if held_out else {}),
                **({"compensation": compensation} if compensation else {}),
                **({"dead_units": dead_units} if dead_units else {}),
                **({"trial": trial} if trial else {}),
                **({"protected": protected} if protected else {}),
                **({"gradual": gradual} if gradual else {}),
                **({"adapted": adapted} if adapted else {}),
            }
        )

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a ``report.json``, or the one in a run's directory.

        Raises:
            ArtifactError: it is missing, truncated, or something else.
        """
        file = Path(path) / "report.json" if Path(path).is_dir() else Path(path)
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ArtifactError(
                f"can't read the report {str(file)!r}: {error}. It is missing or damaged: run the pruning again"
            ) from error
        problem = _problem(data)
        if problem:
            raise ArtifactError(
                f"{str(file)!r} is not a report of secateur: {problem}. Give the directory that a run wrote"
            )
        return cls(data)

    def replace(self, **parts: Any) -> "Report":
        """A copy with some parts changed: ``report.replace(tuned=figures)``."""
        return Report({**self._data, **parts})

    def to_dict(self) -> dict[str, Any]:
        """A copy as plain data, ready for JSON."""
        return _plain(self._data)

    def save(self, path: str | Path) -> None:
        """Write it as JSON, in one step."""
        write_json(path, self._data)

    def __getitem__(self, key: str) -> Any:
        return self._data[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def __rich__(self) -> RenderableType:
        return table.render(self)

    def __str__(self) -> str:
        console = Console(width=100, color_system=None, force_terminal=False)
        with console.capture() as capture:
            console.print(table.render(self))
        return capture.get().rstrip()

    def __repr__(self) -> str:
        return (
            f"Report(model={self['model']!r}, columns={[name for name in ('dense', 'pruned', 'tuned') if self[name]]})"
        )

    def _repr_html_(self) -> str:
        return notebook.render(self)


_KEYS = ("version", "command", "seed", "model", "dense", "pruned", "tuned", "proof", "axes", "plan", "environment")


def _plain(value: Any) -> Any:
    """A deep copy of plain data in which every number is one that JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _problem(data: Any) -> str | None:
    """What keeps data from being a report; None where it is one."""
    if not isinstance(data, dict):
        return f"it holds a {type(data).__name__}, not an object"
    missing = [key for key in _KEYS if key not in data]
    if missing:
        return f"{', '.join(missing)} missing"
    columns = [name for name in ("dense", "pruned", "tuned", "proof") if not isinstance(data[name], dict | None)]
    if columns:
        return f"{', '.join(columns)} should be objects"
    rows = data["axes"]
    if rows is not None and not (isinstance(rows, list) and all(_is_axis(row) for row in rows)):
        return "axes should be a list of {name, kind, before, after}"
    return None


def _is_axis(row: Any) -> bool:
    return isinstance(row, dict) and "name" in row and all(isinstance(row.get(key), int) for key in ("before", "after"))
