"""The methods of accuracy.py: secateur's hints with and without compensation, and torch-pruning."""

import copy
import fnmatch
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import peers
import torch
from accuracy_tasks import Task, unlabelled
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

import secateur as sc
from secateur.calibration.statistics import LABELLED
from secateur.compensation import compensate_, method
from secateur.importance.protocols import needs
from secateur.importance.scoring import Scores

LABELS = tuple(  # hints of ours that want labels
    name for name in sc.importance.names() if needs(sc.importance.criterion(name)) & LABELLED
)
COMPENSATIONS = (None, "lstsq")
LESSER = ("mean", "merge")  # what else is tried, with a few hints
STEPS, CLOSE = 16, 0.002  # of the search for torch-pruning's ratio: most steps, and how near ends it
AT_ONCE = 32  # images of a backward pass, for the sake of memory


@dataclass(frozen=True, kw_only=True)
class Case:
    """One network to prune.

    Attributes:
        task, seed, fraction: what to prune, and to what.
        dense: the trained network, left as it is.
        batches: labelled calibration batches.
    """

    task: Task
    seed: int
    fraction: float
    dense: nn.Module
    batches: list[Any]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to prune.

    Attributes:
        name: "tool hint" and what comes after it: ``secateur l2+lstsq``, ``torch-pruning taylor global+bn``.
        run: gives the pruned network, in eval mode, and the seconds that it took.
        labels: whether it is given labels.
        compensated: whether anything makes up for what was removed.
    """

    name: str
    run: Callable[[Case], tuple[nn.Module, float]]
    labels: bool = False
    compensated: bool = False

    def fits(self, task: Task) -> bool:
        """Whether the task has what the method changes."""
        return task.norms or not self.name.endswith("+bn")

    @property
    def ours(self) -> bool:
        """Whether it is secateur's."""
        return self.name.startswith("secateur")


def methods() -> dict[str, Method]:
    """All methods, by name."""
    found = [Method(name="secateur defaults", run=defaults, compensated=True)]
    for hint in sc.importance.names():
        found += [
            Method(
                name=f"secateur {hint}" + (f"+{how}" if how else ""),
                run=lambda case, hint=hint, how=how: ours(case, hint, how),
                labels=hint in LABELS,
                compensated=bool(how),
            )
            for how in (*COMPENSATIONS, *(LESSER if hint in ("l2", "reconstruction") else ()))
        ]
    found += [
        Method(name=f"secateur {h}+bn", run=with_norms(lambda case, h=h: ours(case, h, None)), compensated=True)
        for h in ("l2", "random")
    ]
    for hint in ("l2", "taylor"):
        for scope in ("local", "global"):
            name, labels = f"torch-pruning {hint} {scope}", hint == "taylor"
            bare = remembered(lambda case, hint=hint, scope=scope: theirs(case, hint, scope))
            found.append(Method(name=name, run=bare, labels=labels))
            found.append(Method(name=f"{name}+bn", run=with_norms(bare), labels=labels, compensated=True))
    return {method.name: method for method in found}


# ---------------------------------------------------------------------- secateur


def defaults(case: Case) -> tuple[nn.Module, float]:
    """What `sc.prune` does when it is given a budget and unlabelled data."""
    return timed(
        lambda: (
            sc.prune(
                case.dense,
                case.task.example,
                budget=case.task.budget(case.dense, case.fraction),
                data=[unlabelled(batch) for batch in case.batches],
                seed=case.seed,
                **case.task.planning,
            ).model
        )
    )


def ours(case: Case, hint: str, compensate: str | None) -> tuple[nn.Module, float]:
    """A hint, with or without compensation, and the seconds of planning, surgery and compensation. Scores of all hints
    come from one pass over the data, which is not counted.
    """
    graph, scores = scored(case)
    data = [unlabelled(batch) for batch in case.batches]
    budget = case.task.budget(case.dense, case.fraction)

    def make() -> nn.Module:
        plan = sc.plan(graph, scores[hint], budget=budget, **case.task.planning)
        small = plan.apply(case.dense)
        if (how := method(compensate, data)) is not None:
            compensate_(case.dense, small, graph, plan, data, how=how)
        return small

    return timed(make)


_SCORED: dict[tuple[str, int], tuple[sc.Graph, dict[str, Scores]]] = {}  # the last case's


def scored(case: Case) -> tuple[sc.Graph, dict[str, Scores]]:
    """The graph, and the scores by each hint: those that want labels from one pass over labelled data, in small batches
    as gradients take memory, and all others from one pass over unlabelled data.
    """
    key = case.task.name, case.seed
    if key not in _SCORED:
        _SCORED.clear()
        graph = sc.trace(case.dense, case.task.example)
        own_loss = isinstance(case.batches[0], dict)  # where the labels are among the inputs
        rest = {name: name for name in sc.importance.names() if name not in LABELS}
        data = [unlabelled(batch) for batch in case.batches]
        scores = sc.importance.score_all(case.dense, graph, rest, data, seed=case.seed)
        scores |= sc.importance.score_all(
            case.dense,
            graph,
            {name: name for name in LABELS},
            case.batches if own_loss else [small for batch in case.batches for small in in_parts(batch)],
            None if own_loss else F.cross_entropy,
            seed=case.seed,
        )
        _SCORED[key] = graph, scores
    return _SCORED[key]


def in_parts(batch: Any) -> list[tuple[Tensor, Tensor]]:
    """Images and labels, a few at a time."""
    return list(zip(*(part.split(AT_ONCE) for part in batch), strict=True))


def timed(make: Callable[[], nn.Module]) -> tuple[nn.Module, float]:
    """What it makes, in eval mode, and the seconds."""
    started = time.perf_counter()
    model = make()
    return model.eval(), time.perf_counter() - started


# ---------------------------------------------------------------------- torch-pruning


def theirs(case: Case, hint: str, scope: str) -> tuple[nn.Module, float]:
    """torch-pruning's result whose measured cost is the nearest to the budget, over ratios found by bisection; and the
    seconds of that one pruning, gradients included.
    """
    target = case.fraction * case.task.costs(case.dense)["counted"]
    started = time.perf_counter()
    gradients = loss_gradients(case.dense, case.batches) if hint == "taylor" else {}
    preparing = time.perf_counter() - started
    low, high = 0.0, 1.0
    best: tuple[float, nn.Module, float] | None = None
    failure: Exception | None = None
    for _ in range(STEPS):
        ratio = (low + high) / 2
        try:
            small, seconds = timed(lambda ratio=ratio: pruned(case, hint, scope, ratio, gradients))
            cost = case.task.costs(small)["counted"]
        except Exception as error:  # whatever it raises; a smaller ratio may pass
            failure, high = error, ratio
            continue
        if best is None or abs(cost - target) < best[0]:
            best = abs(cost - target), small, seconds
        if abs(cost - target) <= CLOSE * target:
            break
        low, high = (ratio, high) if cost > target else (low, ratio)
    if best is None:
        assert failure is not None
        raise failure
    return best[1], preparing + best[2]


def pruned(case: Case, hint: str, scope: str, ratio: float, gradients: dict[str, Tensor]) -> nn.Module:
    """One pruning of a copy, as the documentation of 1.6 says, at one ratio."""
    import torch_pruning as tp  # type: ignore[import-untyped]

    model = copy.deepcopy(case.dense)
    for name, parameter in model.named_parameters():
        parameter.grad = gradients[name].clone() if name in gradients else None
    kinds: Any = tp.importance
    ignored = [m for n, m in model.named_modules() if any(fnmatch.fnmatch(n, p) for p in case.task.peer_ignores)]
    with warnings.catch_warnings(action="ignore"):  # of parameters that it handles by a guess of its own
        tp.pruner.BasePruner(
            model,
            case.task.example,
            importance=kinds.GroupMagnitudeImportance(p=2) if hint == "l2" else kinds.GroupTaylorImportance(),
            global_pruning=scope == "global",
            pruning_ratio=ratio,
            ignored_layers=ignored,
            num_heads=peers.attention(model),
            output_transform=peers.total,
        ).step()
    for module in model.modules():
        peers.correct(module)
    for parameter in model.parameters():
        parameter.grad = None
    return model


def loss_gradients(model: nn.Module, batches: Sequence[Any]) -> dict[str, Tensor]:
    """Gradients of the loss on labelled batches, summed, the model in eval mode."""
    model = copy.deepcopy(model).eval()
    for batch in batches:
        if isinstance(batch, dict):
            model(**batch).loss.backward()
            continue
        for images, labels in in_parts(batch):
            F.cross_entropy(model(images), labels, reduction="sum").backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


# ---------------------------------------------------------------------- batch norms


def with_norms(make: Callable[[Case], tuple[nn.Module, float]]) -> Callable[[Case], tuple[nn.Module, float]]:
    """The same, and then the statistics of its batch norms estimated again on the calibration images."""

    def run(case: Case) -> tuple[nn.Module, float]:
        model, seconds = make(case)
        started = time.perf_counter()
        reestimate(model, case.batches, case.task.layout)
        return model, seconds + time.perf_counter() - started

    return run


def remembered(make: Callable[[Case], tuple[nn.Module, float]]) -> Callable[[Case], tuple[nn.Module, float]]:
    """The same, but the last case is not done a second time."""
    last: dict[tuple[str, int, float], tuple[nn.Module, float]] = {}

    def run(case: Case) -> tuple[nn.Module, float]:
        key = (case.task.name, case.seed, case.fraction)
        if key not in last:
            last.clear()
            last[key] = make(case)
        model, seconds = last[key]
        return copy.deepcopy(model), seconds

    return run


def reestimate(model: nn.Module, batches: Sequence[Any], layout: torch.memory_format) -> None:
    """Set the running statistics of all batch norms to their averages over the batches.

    Raises:
        ValueError: there is no batch norm.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    if not norms:
        raise ValueError("no batch norm whose statistics could be estimated again")
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over all batches
        norm.train()
    with torch.no_grad():
        for batch in batches:
            model(unlabelled(batch).contiguous(memory_format=layout))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
