"""What a training run has pruned so far: kept beside its checkpoints, so that resuming starts from the right widths."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.axes import size_of
from secateur.carrying.copies import own_names
from secateur.errors import ArtifactError, RemapError, SurgeryError
from secateur.files import write_json
from secateur.modules import named_parameters, named_tensors
from secateur.planning import Plan
from secateur.strict import read_json
from secateur.surgery.apply import check_fit

FILE = "secateur_plans.json"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Record:
    """The plans that a run has carried out, in order.

    Attributes:
        plans: each made for the model that the one before it left.
        steps: after how many steps of the optimizer each was carried out.
        dense: costs of the original, which budgets are fractions of.
    """

    plans: tuple[Plan, ...] = ()
    steps: tuple[int, ...] = ()
    dense: Mapping[str, int] | None = None

    def with_plan(self, plan: Plan, step: int, dense: Mapping[str, int]) -> "Record":
        """The record with one plan more."""
        return replace(self, plans=(*self.plans, plan), steps=(*self.steps, step), dense=self.dense or dict(dense))

    def until(self, step: int) -> "Record":
        """What had been done after so many steps."""
        count = sum(at <= step for at in self.steps)
        return replace(self, plans=self.plans[:count], steps=self.steps[:count])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "version": VERSION,
            "plans": [plan.to_dict() for plan in self.plans],
            "steps": list(self.steps),
            "dense": None if self.dense is None else dict(self.dense),
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "Record":
        """Read what `to_dict` wrote.

        Raises:
            ArtifactError: it is no record, or one of another version.
        """
        if data.get("version") != VERSION:
            raise ArtifactError(f"plans of version {data.get('version')!r}; this secateur reads version {VERSION}")
        try:
            plans = tuple(Plan.from_dict(plan) for plan in data["plans"])
            steps = tuple(int(step) for step in data["steps"])
            if len(plans) != len(steps):
                raise ValueError(f"{len(plans)} plans, {len(steps)} steps")
            dense = data["dense"] and {str(kind): int(cost) for kind, cost in data["dense"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"not plans that secateur wrote: {type(error).__name__}: {error}") from error
        return Record(plans=plans, steps=steps, dense=dense)

    def save(self, path: str | Path) -> None:
        """Write it as JSON, whole or not at all."""
        write_json(path, self.to_dict())

    @staticmethod
    def load(path: str | Path) -> "Record":
        """Read what `save` wrote.

        Raises:
            ArtifactError: the file can't be read, or holds something else.
        """
        return Record.from_dict(read_json(Path(path)))

    def prepare_(self, model: nn.Module, things: Iterable[Any] = ()) -> nn.Module:
        """Make a model of the original sizes, or one that some of the plans were carried out on, as small as they say.

        Args:
            model: what the user's code builds; changed in place. One that is small already stays as it is.
            things: optimizers and copies, which are carried over; copies that are small already stay as they are.

        Raises:
            RemapError: the model is of other sizes.
        """
        for plan in self.plans[self._done(model) :]:
            old = named_parameters(model)
            plan.apply_(model)
            for thing in things:
                if isinstance(thing, torch.optim.Optimizer):
                    if trains(thing, old.values()):
                        plan.remap_(thing, old, model)
                elif _fits(plan, thing):
                    plan.remap_(thing, old, model)
        return model

    def _done(self, model: nn.Module) -> int:
        """How many of the plans were carried out on a model, which is told from its sizes."""
        failure: SurgeryError | None = None
        for done, plan in enumerate(self.plans):
            try:
                check_fit(plan, model)
            except SurgeryError as error:
                failure = failure or error
            else:
                return done
        if failure is not None and not self.is_carried_out(model):
            raise RemapError(f"the plans of this checkpoint don't fit the model: {failure}") from failure
        return len(self.plans)

    def is_carried_out(self, model: nn.Module) -> bool:
        """Whether a model has the sizes that the plans leave."""
        return leads_to(self, named_tensors(model))


def trains(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> bool:
    """Whether an optimizer holds one of the parameters."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return any(id(p) in held for p in parameters)


def _fits(plan: Plan, copy: Any) -> bool:
    """Whether a module, or a dict of tensors by name, has the sizes that a plan was made for."""
    tensors: Mapping[str, Any] = named_tensors(copy) if isinstance(copy, nn.Module) else copy
    names = own_names(tensors, plan)
    return all(
        tuple(tensors[key].shape) == tuple(d.size for d in plan.dims[name])
        for key, name in names.items()
        if name in plan.dims
    )


def _sizes(plans: Iterable[Plan]) -> dict[str, tuple[int, ...]]:
    """The sizes of all tensors that lost something, after the last of some plans."""
    return {name: tuple(size_of(d, plan.sizes) for d in dims) for plan in plans for name, dims in plan.dims.items()}


def leads_to(record: Record, state: Mapping[str, Any]) -> bool:
    """Whether the plans of a record leave the widths of a state dict, as far as it holds what they cut."""
    return all(name not in state or tuple(state[name].shape) == size for name, size in _sizes(record.plans).items())


def first_that_fits(records: Iterable[Record], state: Mapping[str, Any]) -> Record | None:
    """The longest beginning of one of the records whose plans leave the widths of a state dict."""
    for record in records:
        for count in range(len(record.plans), 0, -1):
            some = replace(record, plans=record.plans[:count], steps=record.steps[:count])
            if leads_to(some, state):
                return some
    return None
