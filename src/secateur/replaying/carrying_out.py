"""Earlier changes on new weights: each is carried out, proved against what was there before, and refitted to it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur.calibration.batches import Forward
from secateur.changes import Change
from secateur.compensation import Compensation, How, compensate_
from secateur.depth import DepthChange, compensate_blocks_
from secateur.errors import SurgeryError
from secateur.graph import Graph
from secateur.inputs import Args, Kwargs
from secateur.planning import Plan
from secateur.proof import Proof, prove
from secateur.provenance import remember
from secateur.tracing import trace


@dataclass(frozen=True, kw_only=True)
class CarriedOut:
    """What earlier changes made of a model.

    Attributes:
        model: the smaller model, a new module; the model itself where nothing was to be done.
        proof: of several plans that whose difference is the largest share of the scale; None without a plan.
        compensation: of the last change that was made up for; None where there was none.
    """

    model: nn.Module
    proof: Proof | None = None
    compensation: Compensation | None = None


def carry_out(
    model: nn.Module,
    changes: Iterable[Change],
    graph: Graph,
    call: tuple[Args, Kwargs],
    *,
    how: How | None = None,
    data: Iterable[Any] | None = None,
    forward: Forward | None = None,
) -> CarriedOut:
    """Do changes again, first one first. The model given is untouched.

    Args:
        model: the dense model.
        graph: what tracing found of it.
        call: example inputs, positional and keyword.
        how, data, forward: as for `secateur.compensation.compensate_`, which follows each plan. Blocks that went are
            made up for likewise, but by "merge", which is for units.

    Raises:
        SurgeryError: a change does not fit.
        ProofFailed: a smaller model does not compute what it should.
    """
    done = CarriedOut(model=model)
    for number, change in enumerate(changes):
        if not isinstance(change, Plan):
            made, refits = change.apply(done.model), done.compensation
            if isinstance(change, DepthChange) and change.dropped and how in ("lstsq", "mean") and data is not None:
                refits = compensate_blocks_(done.model, made, change, data, how=how, forward=forward)
            done = replace(done, model=made, compensation=refits)
            continue
        graph = graph if number == 0 else trace(done.model, *call)
        check_axes(graph, change)
        bare = replace(change, biases=())  # those that compensation gave to the old weights
        small = bare.apply(done.model)
        proof = prove(done.model, small, graph, bare, *call)
        refits = done.compensation
        if how is not None and data is not None:
            refits = compensate_(done.model, small, graph, bare, data, how=how, forward=forward)
        worst = proof if done.proof is None else max(done.proof, proof, key=lambda one: one.ratio)
        done = CarriedOut(model=small, proof=worst, compensation=refits)
    remember(done.model, "inputs", call) if done.model is not model else None
    return done


def check_axes(graph: Graph, plan: Plan) -> None:
    """Raise unless the model's code still has the axes of a plan.

    Raises:
        SurgeryError: listing what differs.
    """
    wrong: list[str] = []
    for name, axis in plan.axes.items():
        if name in graph.axes and graph.axes[name].size != axis.before:
            wrong.append(f"{name} has {graph.axes[name].size} units and had {axis.before}")
        elif name in graph.frozen:
            wrong.append(f"{name} is frozen now: {'; '.join(graph.frozen[name].frozen)}")
        elif name not in graph.axes:
            wrong.append(f"{name} is no axis any more")
    if wrong:
        raise SurgeryError(
            f"the code of {graph.model} is not the code that the plan was made for: {'; '.join(wrong)}. Prune afresh."
        )


def composed(changes: Sequence[Change], graph: Graph) -> dict[str, Tensor]:
    """What stays of the dense model's axes after several plans: (units kept,) of those that are narrower.

    What is no plan ends it: the axes are others from there on. An axis that only a later plan knows, because an earlier
    one cut it out of a larger one, is left out.

    Args:
        changes: first one first.
        graph: of the dense model.
    """
    kept: dict[str, Tensor] = {}
    for change in changes:
        if not isinstance(change, Plan):
            break
        for name, axis in change.axes.items():
            if name in graph.axes:
                earlier = kept.get(name, torch.arange(graph.axes[name].size))
                if len(earlier) == axis.before:
                    kept[name] = earlier[torch.tensor(axis.kept)]
    return kept


def widths(kept: Mapping[str, Tensor]) -> dict[str, int]:
    """New size of each axis."""
    return {name: len(units) for name, units in kept.items()}
