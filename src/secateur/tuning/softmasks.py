"""Gradual pruning: units fade out while the network trains, and go when nothing is left of them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import TrainingError
from secateur.graph import Graph
from secateur.modules import named_tensors
from secateur.planning import Plan
from secateur.proof import HOOKED, normed_by_hook
from secateur.surgery.apply import check_fit
from secateur.tuning.callbacks import Callback, Run
from secateur.tuning.units import Planner, pack, unpack


class SoftMasks(Callback):
    """Fades units out in place, after each step of the optimizer, so that the forward pass is the model's own.

    A factor f falls in equal steps from 1 to 0. Meanwhile a planner says, every so often, which units would go if the
    model as it is were pruned; after each step the weights of these are multiplied by the ratio of f to what it was, so
    that without training they would be f times what they were. They go on training, and a unit that the planner wants
    back grows again. When f is 0 the last plan stands, and the model is silenced as in the proof: everything that the
    plan removes is zero, buffers too, and is kept so. Then surgery changes nothing of what the model computes.

    He et al. 2018, "Soft Filter Pruning", arXiv:1808.06866, set the smallest filters to zero after each epoch and let
    them train on. Differs: fading instead of zeroing at once; all slices of a unit; any criterion and any budget. The
    weights that join two units which both go fade with f squared.

    Where the model normalises over an axis (LayerNorm), zeros still count in its mean, so there surgery does change
    something: see `normalised`. Where a loop puts the best state back at the end, states from before the masks were
    hard are no candidates: see `hard_from`. Use it as ``small = masks.plan.apply(model)``.

    Args:
        going: a plan, or what chooses one for the model as it is (see `secateur.tuning.planner`).
        begin: steps before the first fading one, at least 0.
        fall: steps in which f falls from 1 to 0, at least 1.
        every: steps between two choices while f falls; None chooses once.

    Raises:
        TrainingError: a setting out of its range; when training begins, if it has fewer than ``begin + fall`` steps;
            when the plan is made, if a parametrization computes a weight that would go.
    """

    def __init__(self, going: Plan | Planner, *, begin: int = 0, fall: int, every: int | None = None) -> None:
        wrong = [f"begin={begin} must be at least 0"] * (begin < 0) + [f"fall={fall} must be at least 1"] * (fall < 1)
        wrong += [f"every={every} must be at least 1"] * (every is not None and every < 1)
        wrong += ["every= chooses anew, which a plan can't: pass a planner"] * (
            every is not None and isinstance(going, Plan)
        )
        if wrong:
            raise TrainingError("; ".join(wrong))
        self.going, self.begin, self.fall, self.every = going, begin, fall, every
        self._plan: Plan | None = None
        self._factor = 1.0  # that the units which go have now

    @property
    def plan(self) -> Plan:
        """The plan as it stands; final once the masks are hard.

        Raises:
            TrainingError: training has not come to its first choice.
        """
        if self._plan is None:
            raise TrainingError(f"no unit was chosen yet: masks begin after {self.begin} steps of training")
        return self._plan

    @property
    def hard_from(self) -> int:
        """The number of steps after which all that goes is zero."""
        return self.begin + self.fall

    def factor_at(self, step: int) -> float:
        """f after so many steps."""
        return 1 - min(max(step - self.begin, 0) / self.fall, 1)

    def normalised(self, graph: Graph) -> tuple[str, ...]:
        """The plan's axes over which the model normalises, so that surgery is no more than close to the masks."""
        return tuple(axis for axis in self.plan.axes if graph.axes[axis].normalising)

    def on_start(self, run: Run) -> None:
        if run.steps < self.hard_from:
            raise TrainingError(
                f"masks are hard after begin + fall = {self.hard_from} steps, but training has {run.steps}: make them "
                "less, or train longer"
            )

    def after_step(self, run: Run) -> None:
        if run.step <= self.begin:
            return
        if self._plan is None or (self.every and run.step < self.hard_from and self._due(run.step)):
            self._plan = self._choose(run.model)
        factor = self.factor_at(run.step)
        fade_(run.model, self._plan, factor / self._factor if self._factor else 0.0)
        self._factor = factor

    def on_end(self, run: Run) -> None:
        if self._plan is not None:
            self.harden_(run.model)

    def harden_(self, model: nn.Module) -> Plan:
        """Silence all that goes, in place, however far the masks have come; the plan."""
        fade_(model, self.plan, 0.0)
        self._factor = 0.0
        return self.plan

    def state_dict(self) -> dict[str, Any]:
        return {"plan": pack(self._plan), "factor": self._factor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._plan, self._factor = unpack(state["plan"]), float(state["factor"])

    def _due(self, step: int) -> bool:
        return self.every is not None and (step - self.begin - 1) % self.every == 0

    def _choose(self, model: nn.Module) -> Plan:
        chosen = self.going if isinstance(self.going, Plan) else self.going(model)
        check_fit(chosen, model)
        made = {f"{name}_{part}" for name in normed_by_hook(model) for part in HOOKED}
        computed = [n for n in chosen.kept if ".parametrizations." in f".{n}" or n in made]
        if computed:
            raise TrainingError(
                f"{', '.join(computed[:3])}: a parametrization computes a weight from these, which zeros would not "
                "silence. Leave their axes out by ignore="
            )
        return chosen


@torch.no_grad()
def fade_(model: nn.Module, plan: Plan, factor: float) -> None:
    """Multiply the slices of parameters that a plan removes by a factor, in place. With 0, buffers' slices too."""
    done: set[int] = set()
    tensors = named_tensors(model)
    for name, kept in plan.kept.items():
        tensor = tensors[name]
        if id(tensor) in done or not (isinstance(tensor, nn.Parameter) or factor == 0):
            continue  # tied tensors have several names
        done.add(id(tensor))
        for dim, at in kept.items():
            _fade(tensor.detach(), dim, at.to(tensor.device), factor)


def _fade(tensor: Tensor, dim: int, kept: Tensor, factor: float) -> None:
    gone = torch.ones(tensor.shape[dim], dtype=torch.bool, device=tensor.device).index_fill_(0, kept, False)
    at = gone.nonzero().flatten()
    if factor == 0:
        tensor.index_fill_(dim, at, 0)  # NaN and infinity too
    else:
        along = torch.where(gone, factor, 1.0).to(tensor.dtype)
        tensor.mul_(along.reshape([-1 if k == dim else 1 for k in range(tensor.dim())]))
