"""What a change of depth gave."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from secateur.compensation import Compensation
from secateur.configs.blueprint import Blueprint, Unbuildable, quietly
from secateur.configs.wording import alike, difference, give, outputs
from secateur.depth.change import DepthChange
from secateur.depth.trial import Inputs
from secateur.errors import ProofFailed
from secateur.measuring import count_macs
from secateur.modules import named_tensors
from secateur.proof import Proof
from secateur.reporting import Report


@dataclass(frozen=True, kw_only=True)
class DepthResult:
    """What `shorten` or `deepen` gave.

    Attributes:
        model: the model of another depth, a new module in the training mode of the original.
        change: what was dropped and inserted; ``result.change.apply(other)`` does it to other weights.
        proof: the comparison with the original, whose dropped blocks hand on what they are given.
        compensation: what refitting the weights did; None where there was none.
        scores: the importance of each block that could go; empty where none was asked for.
        refused: why other children of sequences had to stay, by path.
        unsaid: why the model's config can't say the new depth; empty where it does, or where there is none.
        report: a mapping in the form of report.json, which prints as a table.
    """

    model: nn.Module
    change: DepthChange
    proof: Proof
    scores: dict[str, float]
    refused: dict[str, str]
    unsaid: str
    report: Report
    compensation: Compensation | None = None

    @property
    def dropped(self) -> tuple[str, ...]:
        """Paths of the blocks that went, in the original."""
        return self.change.dropped

    def __rich__(self) -> Any:
        return self.report.__rich__()

    def __str__(self) -> str:
        return str(self.report)


def costs(model: nn.Module, inputs: Inputs) -> dict[str, int]:
    """Parameters, MACs on the example inputs, and bytes of all tensors; tied ones count once."""
    tensors = {id(t): t for t in named_tensors(model).values()}.values()
    return {
        "params": sum(p.numel() for p in model.parameters()),
        "macs": count_macs(model, *inputs),
        "bytes": sum(t.numel() * t.element_size() for t in tensors),
    }


def report(
    model: nn.Module,
    changed: nn.Module,
    change: DepthChange,
    proof: Proof,
    inputs: Inputs,
    *,
    command: str,
    seed: int | None = None,
    compensation: Compensation | None = None,
    **depth: Any,
) -> Report:
    """The report of a change of depth; ``depth`` is what it says besides."""

    def figures(one: nn.Module) -> dict[str, Any]:
        cost = costs(one, inputs)
        return {"params": cost["params"], "macs": cost["macs"], "size_bytes": cost["bytes"], "metrics": {}}

    return Report(
        {
            "version": 1,
            "command": command,
            "seed": seed,
            "model": type(model).__name__,
            "dense": figures(model),
            "pruned": figures(changed),
            "proof": proof.to_dict(),
            "plan": change.to_dict(),
            "environment": {},
            **({"compensation": compensation.to_dict()} if compensation is not None else {}),
            "depth": {
                "dropped": list(change.dropped),
                "inserted": [spec.after for spec in change.inserted],
                **depth,
            },
        }
    )


def unsaid(model: nn.Module, changed: nn.Module, inputs: Inputs) -> str:
    """Why the config of a model does not say its new depth; empty where it does, or no config builds the model."""
    with quietly():
        if Blueprint.of(model) is None:
            return ""
        blueprint = Blueprint.of(changed)
        if blueprint is None:
            return "no value of the config gives blocks like these"
        try:
            rebuilt = blueprint.build({})
            give(changed, rebuilt)
            if not alike(outputs(changed, *inputs), outputs(rebuilt, *inputs)):
                return f"a model built from the config computes something else{difference(changed, rebuilt)}"
        except (Unbuildable, ProofFailed) as error:
            return str(error)
    return ""
