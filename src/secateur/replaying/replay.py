"""``sc.replay``: an earlier plan on new weights of the same architecture, and whether it is still a good one."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from secateur import digests
from secateur.calibration.batches import Forward
from secateur.changes import Change
from secateur.compensation import Compensation, method
from secateur.errors import PlanError
from secateur.graph import Graph
from secateur.importance import Criterion
from secateur.importance.keeping import KeptScores
from secateur.inputs import Args, Kwargs, as_call
from secateur.measuring import device_of
from secateur.objectives import Loss
from secateur.planning import Plan
from secateur.proof import Proof
from secateur.provenance import note_step, recall, remember
from secateur.pruning import Result
from secateur.replaying.afresh import Scoring, afresh, chosen_importance, compare
from secateur.replaying.agreement import Stability
from secateur.replaying.carrying_out import CarriedOut, carry_out, composed, widths
from secateur.replaying.fitting import check_architecture
from secateur.replaying.sources import Source, source
from secateur.replaying.verdict import Verdict, verdict
from secateur.reporting import Report
from secateur.tracing import trace
from secateur.tuning import evaluate


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What replaying gave.

    Attributes:
        model: the smaller model, a new module.
        changes: what was done to the dense one, first one first.
        proof: the comparison with the silenced original; of several plans that of the largest difference. None where
            nothing was removed.
        compensation: what refitting the weights did, after the last plan; None where there was none.
        graph: what tracing found of the dense model.
        inputs: the example inputs, positional and keyword.
        stability: how far the plan agrees with a fresh one.
        verdict: whether the plan is still good, with advice in words.
        fresh: the model pruned afresh to the same cost, compensated only where results were compared; None where that
            is not possible, and ``stability.left_out`` says why.
        report: a mapping in the form of report.json, which prints as a table.
    """

    model: nn.Module
    changes: tuple[Change, ...]
    proof: Proof | None
    compensation: Compensation | None
    graph: Graph
    inputs: tuple[Args, Kwargs]
    stability: Stability
    verdict: Verdict
    fresh: Result | None
    report: Report

    def __rich__(self) -> Any:
        return self.report.__rich__()

    def __str__(self) -> str:
        return str(self.report)


def replay(
    model: nn.Module,
    plan: "Source | Plan | Result | Sequence[Change] | str | Path",
    args: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    importance: str | Criterion = "auto",
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    compensate: str | None = "auto",
    validate: Iterable[Any] | None = None,
    old: nn.Module | None = None,
    forward: Forward | None = None,
    seed: int = 0,
    **planning: Any,
) -> Replay:
    """An earlier plan on new weights: apply it, prove it, refit the weights, and say whether it is still good.

    Two things tell whether it is: how far the importances of the units are what they were (Spearman's rank correlation
    of old and new scores), and how far pruning afresh to the same MACs would keep the same units. Where there is
    labelled data, the results of the replayed network and of the one pruned afresh decide; see
    `secateur.replaying.verdict` for the thresholds. The model given is untouched.

    Args:
        model: the dense model with its new weights.
        plan: a plan, a result of `prune`, a ``plan.json``, or a saved result, of which all changes are carried out.
        args, kwargs: example inputs, as for `prune`; those that the result was saved with where none are given.
        importance: the criterion that scores the units; "auto" is the one of the saved scores where they are known and
            it needs nothing that is not there.
        data: batches for the criterion and for compensation.
        loss: for criteria that need one.
        compensate: as for `prune`: "auto" is "lstsq" where there are data.
        validate: labelled batches, iterable again and again, to compare results on; they should be none of the test
            set.
        old: the dense model with the weights that the plan was made on. Its units are scored where no scores are saved.
        forward: ``(model, batch) -> output``, where the model's inputs are not the batch's.
        seed: for criteria that draw random numbers.
        planning: settings of `plan` for the fresh plan: scope, min_units, only, ... Without any, the fresh plan may
            narrow the axes that the old one narrows.

    Raises:
        SurgeryError: the model is of another architecture; the message lists what differs.
        ProofFailed: the smaller model does not compute what the silenced one computes.
        ArtifactError: a file that is no plan and no result, or damaged.
        PlanError: no example inputs are known.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> last_month = sc.prune(net, torch.randn(1, 4), keep=0.5)
        >>> with torch.no_grad():  # retrained since
        ...     for parameter in net.parameters():
        ...         _ = parameter.mul_(1.1)
        >>> again = sc.replay(net, last_month, torch.randn(1, 4))
        >>> again.verdict.status, again.stability.overlap, again.model[0]
        ('still good', 1.0, Linear(in_features=4, out_features=4, bias=True))
    """
    given = source(plan)
    check_architecture(model, given.changes, given.shapes)
    call = _inputs(given, args, kwargs)
    how = method(compensate, data)
    data = list(data) if isinstance(data, Iterator) else data
    graph = trace(model, *call)
    kept = composed(given.changes, graph)
    done = carry_out(model, given.changes, graph, call, how=how, data=data, forward=forward)
    scoring = Scoring(
        importance=chosen_importance(importance, given.scores, with_data=data is not None),
        data=data,
        further={"loss": loss, "seed": seed, "forward": forward},
    )
    fresh = afresh(model, call, graph, kept, scoring, None if validate is None else how, planning)
    found = compare(kept, fresh, scoring, graph, given.scores, old)
    networks = {"dense": model, "replayed": done.model, **({"fresh": fresh.model} if isinstance(fresh, Result) else {})}
    results = (
        {name: evaluate(network, validate, device_of(network), loss=loss) for name, network in networks.items()}
        if validate is not None
        else {}
    )
    judged = verdict(found, **results)
    report = _report(model, done, call, graph, kept, found, judged, seed)
    if done.model is not model:
        note_step(
            done.model,
            "replay",
            figures=report["pruned"],
            before=report["dense"],
            importance=scoring.name,
            seed=seed,
            verdict=judged.status,
            parent=digests.of_model(model),
        )
        if isinstance(fresh, Result):
            remember(done.model, "scores", KeptScores(importance=scoring.name, axes=fresh.scores))
    return Replay(
        model=done.model,
        changes=recall(done.model, "plans") or (),
        proof=done.proof,
        compensation=done.compensation,
        graph=graph,
        inputs=call,
        stability=found,
        verdict=judged,
        fresh=fresh if isinstance(fresh, Result) else None,
        report=report,
    )


def _inputs(given: Source, args: Any, kwargs: Mapping[str, Any] | None) -> tuple[Args, Kwargs]:
    """The example inputs.

    Raises:
        PlanError: none are known.
    """
    if args is not None or kwargs:
        return as_call(args, kwargs)
    if given.inputs is None:
        raise PlanError(
            f"no example inputs are known, since {given.name} holds none: pass args= (and kwargs=), or replay a saved "
            "result instead of a plan alone"
        )
    return given.inputs


def _report(
    model: nn.Module,
    done: CarriedOut,
    call: tuple[Args, Kwargs],
    graph: Graph,
    kept: Mapping[str, Tensor],
    found: Stability,
    judged: Verdict,
    seed: int,
) -> Report:
    """The report of a replay: costs in closed form, and what was found of the plan."""
    costs = {"dense": graph.cost(), "pruned": trace(done.model, *call).cost()}
    columns = {
        name: {
            "params": cost["params"],
            "macs": cost["macs"],
            "size_bytes": cost["bytes"],
            "metrics": dict({"dense": judged.dense, "pruned": judged.replayed}[name]),
        }
        for name, cost in costs.items()
    }
    sizes = widths(kept)
    changes: tuple[Change, ...] = recall(done.model, "plans") or ()
    plans = [change for change in changes if isinstance(change, Plan)]
    return Report(
        {
            "version": 1,
            "command": "sc.replay(...)",
            "seed": seed,
            "model": type(model).__name__,
            **columns,
            "proof": None if done.proof is None else done.proof.to_dict(),
            "axes": [
                {"name": name, "kind": axis.kind, "before": axis.size, "after": sizes.get(name, axis.size)}
                for name, axis in graph.axes.items()
            ],
            "plan": plans[-1].to_dict() if plans else None,
            "environment": {},
            "replay": {**found.to_dict(), **judged.to_dict()},
            **({"compensation": done.compensation.to_dict()} if done.compensation is not None else {}),
        }
    )
