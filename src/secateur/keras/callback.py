"""``secateur.keras.Prune``: gradual pruning while a Keras model trains, under whatever backend. No torch in here."""

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from secateur.errors import PlanError
from secateur.keras import jobs
from secateur.keras.anywhere import Pruned, finished, work
from secateur.keras.walking import named_variables

KERAS: Any = keras
Schedule = Callable[[float], float]
SCHEDULES: dict[str, Schedule] = {"linear": lambda t: t, "cubic": lambda t: 1 - (1 - t) ** 3}
"""How much of the cut is made after a share of the steps: Zhu and Gupta 2017, "To prune, or not to prune",
arXiv:1710.01878."""


class Prune(KERAS.callbacks.Callback):  # type: ignore[misc]  # Keras has no types
    """Silences more and more of a model's units while it trains, and cuts them at the end.

    After every so many epochs a plan for the next smaller budget is made, on the torch backend in a process of its own.
    Its units are silenced, and kept silent after every batch, so the model adapts to doing without them. When training
    ends, ``result`` holds the genuinely smaller model, proved against the trained one; train that one on, if you like.

    Args:
        x: example inputs, as for `secateur.keras.prune`.
        budget: what is reached in the end, one fraction such as ``"macs=0.5"``.
        steps: in how many steps, at least 1.
        every: epochs between two steps, at least 1.
        begin: epochs before the first step.
        schedule: how the steps lead there: "linear", "cubic", or a function of [0, 1] to [0, 1].
        data: batches for importance and compensation, as for `secateur.keras.prune`.
        importance, seed, imports, planning: as for `secateur.keras.prune`. "auto" is L2 without data, and
            reconstruction with it.

    Attributes:
        result: what `secateur.keras.prune` gives, when training is over; None before.
        budgets: the fraction that each step goes down to.

    Raises:
        PlanError: a budget that is no fraction of one cost, or settings out of range.

    Example:
        >>> pruning = Prune(x[:2], budget="macs=0.5", steps=4)  # doctest: +SKIP
        >>> model.fit(x, y, epochs=8, callbacks=[pruning])  # doctest: +SKIP
        >>> pruning.result.model.save("small.keras")  # doctest: +SKIP
    """

    def __init__(
        self,
        x: Any,
        *,
        budget: str = "macs=0.5",
        steps: int = 4,
        every: int = 1,
        begin: int = 0,
        schedule: "str | Schedule" = "cubic",
        data: Iterable[Any] | None = None,
        importance: str = "auto",
        seed: int = 0,
        imports: Sequence[str] = (),
        **planning: Any,
    ) -> None:
        super().__init__()
        kind, _, amount = budget.partition("=")
        try:
            self.target = float(amount)
        except ValueError:
            self.target = 0.0
        if kind not in ("macs", "params", "bytes") or not 0 < self.target < 1:
            raise PlanError(f'budget={budget!r}: give a fraction of one cost, such as "macs=0.5"')
        if min(steps, every) < 1 or begin < 0:
            raise PlanError(f"steps={steps} and every={every} must be at least 1, and begin={begin} at least 0")
        if isinstance(schedule, str) and schedule not in SCHEDULES:
            raise PlanError(f"schedule={schedule!r}: give {', '.join(map(repr, SCHEDULES))}, or a function")
        way = SCHEDULES[schedule] if isinstance(schedule, str) else schedule
        self.kind, self.every, self.begin = kind, every, begin
        self.budgets = [1 - (1 - self.target) * way((k + 1) / steps) for k in range(steps)]
        self.x, self.data = x, None if data is None else list(data)
        self.settings = {
            "importance": importance,
            "keep": None,
            "threshold": None,
            "compensate": None,
            "seed": seed,
            "imports": list(imports),
            "planning": planning,
        }
        self.result: Pruned | None = None
        self._plan: dict[str, Any] | None = None
        self._masks: dict[str, np.ndarray] = {}
        self._weights: dict[str, Any] = {}

    def on_train_begin(self, logs: Any = None) -> None:
        """Begin anew; also where ``fit`` is called again."""
        self.result, self._plan, self._masks = None, None, {}

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Make the next step where it is due."""
        past = epoch + 1 - self.begin
        step, rest = divmod(past, self.every)
        if past > 0 and not rest and step <= len(self.budgets):
            self._step(self.budgets[step - 1])

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Keep what is silent silent."""
        self._silence()

    def on_train_end(self, logs: Any = None) -> None:
        """Cut what is silent. A training that ended before the last step is cut as far as it came."""
        if self._plan is not None:
            self.result = self._job({"plan": self._plan, "compensate": "auto"}, finished)

    def _step(self, budget: float) -> None:
        found = self._job({"budget": {self.kind: budget}, "only_plan": True}, _planned)
        self._plan, kept = found
        trained = {id(v) for v in self.model.trainable_variables}
        self._weights = {n: v for n, v in named_variables(self.model).items() if id(v) in trained and n in kept}
        self._masks = {name: _mask(v.shape, kept[name]) for name, v in self._weights.items()}
        self._silence()

    def _job(self, more: Mapping[str, Any], read: Callable[[Path, Any], Any]) -> Any:
        with tempfile.TemporaryDirectory(prefix="secateur-") as place:
            work(Path(place), self.model, self.x, self.data, {**self.settings, "budget": None, **more})
            return read(Path(place), self.model)

    def _silence(self) -> None:
        for name, mask in self._masks.items():
            variable = self._weights[name]
            variable.assign(variable * KERAS.ops.cast(mask, variable.dtype))


def _planned(folder: Path, model: Any) -> tuple[dict[str, Any], dict[str, dict[str, list[int]]]]:
    return json.loads((folder / jobs.PLAN).read_text()), json.loads((folder / jobs.KEPT).read_text())


def _mask(shape: Sequence[int], dims: Mapping[str, Sequence[int]]) -> np.ndarray:
    """1 where a weight stays, 0 where it goes, of shapes that broadcast to the weight's.

    >>> _mask((2, 3), {"1": [0, 2]})
    array([[1., 0., 1.]], dtype=float32)
    """
    mask = np.ones([1] * len(shape), np.float32)
    for dim, kept in dims.items():
        along = np.zeros(shape[int(dim)], np.float32)
        along[list(kept)] = 1
        mask = mask * along.reshape([-1 if k == int(dim) else 1 for k in range(len(shape))])
    return mask
