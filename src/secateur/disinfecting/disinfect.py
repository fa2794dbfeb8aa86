"""``sc.disinfect``: remove the units that a backdoor lives in, prove what is left, and tune it."""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secateur.disinfecting.clean import (
    Clean,
    accuracy,
    attack_success,
    check_labels,
    check_target,
    classes_of,
    device_of,
    gather,
)
from secateur.disinfecting.inversion import Inversion
from secateur.disinfecting.mending import Mending, mend
from secateur.disinfecting.perturbation import Perturbation
from secateur.disinfecting.ranking import METHODS, TITLES, Cutoffs, Method, Ranking, rank
from secateur.disinfecting.selecting import THRESHOLD, Marked, accuracy_on, marked, most, removing, suspects
from secateur.disinfecting.triggers import Trigger
from secateur.disinfecting.verdict import Verdict, find_backdoor
from secateur.errors import PlanError
from secateur.graph import Graph
from secateur.pruning import Result, prune
from secateur.tracing import trace
from secateur.tracing.shadow import separate
from secateur.tuning import History

COMMAND = "sc.disinfect(...)"
NOTHING = "no backdoor found: nothing was removed"


@dataclass(frozen=True, kw_only=True)
class Disinfected(Result):
    """What disinfecting gave: what pruning gives, and more.

    Attributes:
        method: whose units were removed; None where nothing was.
        verdict: what `find_backdoor` said of the model given; None where it was not asked.
        pruned: the smaller model before it was tuned.
        history: the tuning; None where there was none.
    """

    method: str | None
    verdict: Verdict | None = None
    pruned: nn.Module = field(repr=False)
    history: History | None = field(default=None, repr=False)


@torch.inference_mode(False)  # the result shall train, wherever it is made
def disinfect(
    model: nn.Module,
    args: Any = None,
    *,
    data: Iterable[Any],
    method: Method | Literal["auto"] = "auto",
    heldout: float = 0.3,
    max_drop: float = 1.0,
    find: bool | Verdict = True,
    trigger: Callable[[Tensor], Tensor] | None = None,
    target: int | None = None,
    test: Iterable[Any] | None = None,
    tune: Mending | bool = True,
    cutoffs: Cutoffs | None = None,
    perturbation: Perturbation | None = None,
    inversion: Inversion | None = None,
    bounds: tuple[float | Tensor, float | Tensor] | None = None,
    seed: int = 0,
    **planning: Any,
) -> Disinfected:
    """Remove what a backdoor lives in, with a few clean samples: a smaller network, proved, then tuned.

    A trigger is searched for (`find_backdoor`); units are ranked by how suspicious they are to a method, and go, the
    most suspicious first, as long as the accuracy on all clean samples stays within ``max_drop``. What is left is
    proved as by `prune`, and tuned on the clean samples; three in ten of them carry the trigger that was found, with
    their own labels. Where a method is named and no class stands out, that is the least trigger of each form.
    The model given is untouched.

    Args:
        model: a classifier of one tensor of inputs.
        args: example inputs; by default the first two clean samples.
        data: clean batches (inputs, labels), some dozens of samples of each class. No poisoned ones. Those with a
            label below 0 are left out.
        method: "clp" (channel Lipschitzness), "anp" (adversarial neuron perturbation), "fine-pruning" (dormant units),
            "random" and "none" (controls); "auto" searches for a trigger, removes nothing where there is none, and else
            takes the method whose removal leaves the trigger the least success on held-out samples.
        heldout: share of the samples that nothing is learnt from, by which methods and epochs are chosen, in (0, 1).
        max_drop: accuracy that removal may cost on all clean samples before tuning, in percentage points, from 0.
        find: whether to search for a trigger with a method that was named, for the report and for the tuning; or what
            `find_backdoor` gave, which is not searched for again then.
        trigger: the real one, where it is known: a function of inputs; for the report alone, nothing is chosen by it.
        target: the class that it leads to, from 0.
        test: clean batches for the report's figures; by default the held-out samples.
        tune: how to tune; True as `Mending` does by default, False not at all.
        cutoffs, perturbation, inversion: settings of the methods and of the search for a trigger.
        bounds: least and greatest values of inputs, as for `find_backdoor`.
        seed: of everything random.
        planning: limits of `plan`: only, ignore, min_units, multiple_of, max_share, keep_class.

    Returns:
        A `Result`, its model in evaluation mode, with ``verdict``, ``method``, ``pruned`` and ``history``. The report's
        "dense", "pruned" and "tuned" hold accuracy and attack success as metrics, its "disinfected" what was done.

    Raises:
        DataError: no clean samples, not of the form that this needs, or of classes that the model does not know.
        PlanError: arguments that contradict each other or are out of range.
        TraceError, NothingToPrune, ProofFailed, TrainingError: as `prune` and `tune`.

    Example:
        >>> import torch
        >>> import secateur as sc
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
        >>> data = [(torch.rand(60, 4), torch.arange(3).repeat(20))]
        >>> result = sc.disinfect(net, data=data, method="fine-pruning", find=False, tune=False, max_drop=10)
        >>> result.method, result.model(torch.rand(1, 4)).shape
        ('fine-pruning', torch.Size([1, 3]))
    """
    _check(method, max_drop, heldout, find=find, trigger=trigger, target=target)
    device = device_of(model)
    clean = gather(data, device)
    used, held = clean.split(heldout, seed)
    judged = held if test is None else gather(test, device)
    original = separate(model).eval()
    classes = classes_of(original, clean.x)
    check_labels(clean, classes, "data=")
    check_labels(judged, classes, "test=")
    if target is not None:
        check_target(target, classes)
    verdict = find if isinstance(find, Verdict) else None
    if find is True:
        verdict = find_backdoor(original, clean, bounds=bounds, heldout=heldout, how=inversion, seed=seed)
    triggers = [] if verdict is None else verdict.suspected or (verdict.least if method != "auto" else [])
    inputs = used.x[:2] if args is None else args
    graph = trace(original, inputs)
    ranking, gone = None, list[tuple[str, int]]()
    if method != "auto" or triggers:
        how: dict[str, Any] = {"cutoffs": cutoffs or Cutoffs(), "perturbation": perturbation or Perturbation()}
        least = accuracy(original, clean) - max_drop / 100
        names: tuple[Method, ...] = METHODS if method == "auto" else (method,)
        rankings = [rank(name, original, graph, used, seed=seed, **how) for name in names]
        choices = [(r, _going(original, graph, r, clean, least, planning)) for r in rankings]
        choices = [choice for choice in choices if choice[1]] or choices  # who suspects nothing has no say
        ranking, gone = min(choices, key=lambda c: _left(original, graph, c[1], held, triggers, planning))
    result = _removed(model, inputs, graph, ranking, gone, seed, planning)
    final, history = copy.deepcopy(result.model).eval(), None
    if ranking is not None and tune is not False:
        settings = tune if isinstance(tune, Mending) else Mending()
        history = mend(final, original, used, held, triggers, settings, seed)
    models = {"dense": original, "pruned": result.model.eval(), **({} if history is None else {"tuned": final})}
    figures = {name: _metrics(net, judged, triggers, trigger, target) for name, net in models.items()}
    return _finished(result, final, history, verdict, ranking, gone, figures, (len(used), len(held)))


def _check(method: str, max_drop: float, heldout: float, *, find: Any, trigger: Any, target: int | None) -> None:
    known = (*METHODS, "random", "none", "auto")
    problems = [f"method={method!r} is none of {', '.join(known)}"] * (method not in known)
    problems += [f"max_drop={max_drop} must be from 0, in percentage points"] * (not max_drop >= 0)
    problems += [f"heldout={heldout} must be in (0, 1)"] * (not 0 < heldout < 1)
    problems += [f"find={find!r}: give True, False, or what sc.find_backdoor gave"] * (
        not isinstance(find, bool | Verdict)
    )
    problems += ["find=False leaves method='auto' nothing to choose by: name a method"] * (
        method == "auto" and find is False
    )
    lacking = (trigger is None) != (target is None)
    problems += ["trigger and target go together: give both, or neither"] * lacking
    problems += [f"trigger is a {type(trigger).__name__}: give a function of inputs"] * (
        trigger is not None and not callable(trigger)
    )
    if problems:
        raise PlanError("; ".join(problems))


def _going(
    model: nn.Module, graph: Graph, ranking: Ranking, clean: Clean, least: float, planning: Mapping[str, Any]
) -> list[tuple[str, int]]:
    """The units that go by one method."""
    order = suspects(graph, ranking.scores, ranking.cutoff, **planning)
    return most(model, graph, order, accuracy_on(clean), least, **planning)


def _left(
    model: nn.Module,
    graph: Graph,
    gone: list[tuple[str, int]],
    held: Clean,
    triggers: list[Trigger],
    planning: Mapping[str, Any],
) -> tuple[float, float]:
    """How much the triggers that were found still do without some units, in tenths, and the errors on clean samples."""
    if not triggers:
        return 0.0, 0.0
    small = removing(graph, gone, **planning).apply(model)
    success = max(attack_success(small, held, t, t.target) for t in triggers)
    return round(success, 1), 1 - accuracy(small, held)


def _removed(
    model: nn.Module,
    inputs: Any,
    graph: Graph,
    ranking: Ranking | None,
    gone: list[tuple[str, int]],
    seed: int,
    planning: Mapping[str, Any],
) -> Result:
    """The smaller model and its proof; the result of ``sc.prune``."""
    name = "nothing suspicious" if ranking is None else TITLES[ranking.method]
    importance = Marked(name=name, marks=marked(graph, gone))
    return prune(model, inputs, importance=importance, threshold=THRESHOLD, compensate=None, seed=seed, **planning)


def _metrics(
    model: nn.Module,
    judged: Clean,
    triggers: list[Trigger],
    real: Callable[[Tensor], Tensor] | None,
    target: int | None,
) -> dict[str, float]:
    """Shares in [0, 1]: accuracy, success of the trigger that was found, and of the real one where it is known."""
    found = {"accuracy": accuracy(model, judged)}
    if triggers:
        found["found_trigger_success"] = attack_success(model, judged, triggers[0], triggers[0].target)
    if real is not None and target is not None:
        found["attack_success"] = attack_success(model, judged, real, target)
    return found


def _finished(
    result: Result,
    model: nn.Module,
    history: History | None,
    verdict: Verdict | None,
    ranking: Ranking | None,
    gone: list[tuple[str, int]],
    figures: Mapping[str, Mapping[str, float]],
    samples: tuple[int, int],
) -> Disinfected:
    method = None if ranking is None else ranking.method
    after = {row["name"]: row["before"] - row["after"] for row in result.axes if row["after"] < row["before"]}
    said = NOTHING if ranking is None else f"{sum(after.values())} units removed by {TITLES[ranking.method]}"
    costs = {"dense": result.report["dense"], "pruned": result.report["pruned"], "tuned": result.report["pruned"]}
    report = result.report.replace(
        command=COMMAND,
        disinfected={
            "said": said,
            "method": method,
            "removed": after,
            "suspected": len(gone),
            "verdict": None if verdict is None else verdict.to_dict(),
            "samples": {"used": samples[0], "held_out": samples[1]},
        },
        **{name: {**costs[name], "metrics": dict(metrics)} for name, metrics in figures.items()},
    )
    kept = {item.name: getattr(result, item.name) for item in fields(Result)}
    scores = result.scores if ranking is None else {axis: ranking.scores[axis] for axis in result.graph.axes}
    kept |= {"model": model.eval(), "report": report, "scores": scores}
    return Disinfected(**kept, method=method, verdict=verdict, pruned=result.model, history=history)
