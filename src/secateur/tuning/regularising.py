"""Regularisation that empties whole units while a network trains."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from secateur.errors import PlanError, TrainingError
from secateur.graph import Graph
from secateur.planning import Plan
from secateur.tuning.callbacks import Callback, Run
from secateur.tuning.units import Planner, Slices, gone, pack, slices, step_sizes, unpack

PENALTIES = ("lasso", "l2")


class GroupProximal(Callback):
    """After each step of the optimizer, the proximal step of a penalty on units, each with all of its weights together.

    A unit's weights are its slices of every parameter that its axis runs through, n numbers. With "lasso", the group
    lasso (Yuan and Lin 2006), the penalty of a unit is strength * sqrt(n) * |w|, so its weights are multiplied by
    ``max(0, 1 - rate * strength / rms(w))``: a small unit becomes exactly zero. With "l2" it is strength / 2 * |w|^2,
    and the factor is ``1 / (1 + rate * strength)``. The strength grows while training goes on: after k steps it is
    ``min(ceiling, strength + growth * (k // every))``, as in Wang et al. 2021, "Neural Pruning via Growing
    Regularization", arXiv:2012.09243 (GReg-1: penalty="l2", strength=0, going=plan).
    Differs from GReg: a proximal step instead of a term of the gradient, so that Adam does not rescale it, and no
    strength makes it unstable; all slices of a unit, not only the producing filter. Weights between two axes belong to
    units of both, which take their steps one after the other.

    ``rate`` is the learning rate of the step; with momentum m it is 1 / (1 - m) times that, as far as a constant
    gradient moves a weight, so that a unit stays at zero where its gradient's root mean square is below the strength,
    with momentum or without. Adam and its kin divide gradients by their size: there a strength compares with numbers of
    about 1.

    Args:
        graph: of the model that is trained.
        strength: at first, at least 0.
        growth: what is added every so many steps, at least 0.
        every: steps between two additions, at least 1.
        ceiling: the greatest strength.
        penalty: "lasso" or "l2".
        going: which units are penalised: those that a plan removes, or that a planner chooses when training begins (see
            `secateur.tuning.planner`); None for all units of all axes.
        only, ignore: axes, kinds, modules or tensors, globs allowed, as for `secateur.plan`.

    Attributes:
        plan: by which units are penalised; None where all are.

    Raises:
        TrainingError: a setting out of its range, all listed; when training begins, a model that does not fit.
        PlanError: a pattern that names no axis.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        strength: float = 1e-3,
        growth: float = 0.0,
        every: int = 1,
        ceiling: float = math.inf,
        penalty: Literal["lasso", "l2"] = "lasso",
        going: Plan | Planner | None = None,
        only: Iterable[str] = (),
        ignore: Iterable[str] = (),
    ) -> None:
        ranges = [
            (0 <= strength < math.inf, f"strength={strength} must be at least 0"),
            (0 <= growth < math.inf, f"growth={growth} must be at least 0"),
            (every >= 1, f"every={every} must be at least 1"),
            (ceiling >= strength, f"ceiling={ceiling} must be at least strength={strength}"),
            (penalty in PENALTIES, f"penalty={penalty!r} must be one of {PENALTIES}"),
        ]
        if wrong := [text for fits, text in ranges if not fits]:
            raise TrainingError("; ".join(wrong))
        self.graph, self.strength, self.growth, self.every = graph, strength, growth, every
        self.ceiling, self.penalty = ceiling, penalty
        self.axes = _chosen(graph, tuple(only), tuple(ignore))
        self.plan = going if isinstance(going, Plan) else None
        self._planner = None if isinstance(going, Plan) else going
        self._groups: dict[str, list[Slices]] = {}
        self._gone: dict[str, Tensor] | None = None
        self._rates: Mapping[int, float] = {}

    def strength_at(self, step: int) -> float:
        """The strength after so many steps."""
        return min(self.ceiling, self.strength + self.growth * (step // self.every))

    def on_start(self, run: Run) -> None:
        if self.plan is None and self._planner is not None:
            self.plan = self._planner(run.model)
        self._gone = None if self.plan is None else gone(self.graph, self.plan)
        axes = [axis for axis in self.axes if self._gone is None or axis in self._gone]
        self._groups = slices(run.model, self.graph, axes)

    def before_step(self, run: Run) -> None:
        self._rates = step_sizes(run.optimizer)  # a schedule may change them before `after_step`

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        strength = self.strength_at(run.step - 1)
        for axis, members in self._groups.items():
            trained = [m for m in members if id(m.parameter) in self._rates]
            if strength and trained:
                self._shrink(axis, trained, strength)

    def rms(self) -> dict[str, Tensor]:
        """Root mean square of each unit's weights, (U,), by axis, once training began: scores for `secateur.plan`."""
        return {axis: _rms(members).cpu() for axis, members in self._groups.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"plan": pack(self.plan)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.plan = unpack(state["plan"])

    def _shrink(self, axis: str, members: list[Slices], strength: float) -> None:
        rate = max(self._rates[id(m.parameter)] for m in members)
        sizes = _rms(members)
        if self.penalty == "lasso":
            factors = (1 - rate * strength / sizes).clamp_min(0)  # a unit that is zero stays: 1 - inf
        else:
            factors = torch.full_like(sizes, 1 / (1 + rate * strength))
        if self._gone is not None:
            factors = torch.where(self._gone[axis].to(factors.device), factors, 1)
        for member in members:
            member.scale_(factors)


def _rms(members: list[Slices]) -> Tensor:
    """Root mean square of each unit's weights, (U,)."""
    device = members[0].parameter.device
    total = torch.stack([m.squares().to(device) for m in members]).sum(0)
    return (total / sum(m.numbers for m in members)).sqrt()


def _chosen(graph: Graph, only: tuple[str, ...], ignore: tuple[str, ...]) -> list[str]:
    lost = [pattern for pattern in (*only, *ignore) if not graph.select([pattern])]
    if lost:
        raise PlanError(f"{lost} name no axis that can be pruned. Axes are {', '.join(list(graph.axes)[:4])} ...")
    wanted = graph.select(only) if only else set(graph.axes)
    return [axis for axis in graph.axes if axis in wanted - graph.select(ignore)]
