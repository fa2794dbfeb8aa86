"""``sc.grow``: wider axes, the same function, by the re-indexing that prunes."""

import difflib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur import digests
from secateur.carrying import Ancestry
from secateur.changes import Change
from secateur.errors import NotGrowable, PlanError, ProofFailed, SecateurError, SurgeryError
from secateur.graph import AxisInfo, Graph, named
from secateur.importance.scoring import check_weights
from secateur.inputs import as_call
from secateur.modules import Walk
from secateur.planning import Plan, make_plan
from secateur.proof import Proof, check_outputs, prove
from secateur.provenance import note_step, recall, remember
from secateur.pruning import Result, bare_report
from secateur.surgery.merging import Merge
from secateur.tracing import trace
from secateur.tracing.shadow import check_kind


def grow(
    model: nn.Module,
    args: Any,
    widths: Mapping[str, int],
    kwargs: Mapping[str, Any] | None = None,
    *,
    noise: float = 0.0,
    seed: int = 0,
    keep_class: bool = False,
) -> Result:
    """A wider model that computes the same, proved.

    Units are repeated, and the weights that sum over them are divided among the copies (Chen et al. 2016, "Net2Net",
    arXiv:1511.05641: Net2Wider). What is repeated goes together as in pruning: a head with its queries, keys and
    values, a channel with its batch norm, a hidden unit of a recurrent layer with all its gates. Every unit is repeated
    as often as every other, as far as the new size allows; which of them get one copy more is drawn at random. The
    model given is untouched.

    Along an axis that LayerNorm, RMSNorm, or a mean over channels runs over, mean and variance stay what they were only
    if every unit is repeated equally often: there the new size has to be a multiple of the old one.

    Copies of a unit are equal, and train alike: they get equal gradients. Noise breaks that without changing the
    function (but for rounding): the weights that sum over the copies of a unit are not divided evenly, each part by
    another amount, and their sum stays what it was. So the copies get different gradients from the first step on.

    Args:
        model: any module, trained or not.
        args, kwargs: example inputs: a tensor, a tuple of positional inputs, or a mapping of keyword inputs.
        widths: the new size of each axis that is to grow, by its name (`trace` lists them), or by that of any member,
            ``tensor:dim``, which is made of this axis alone. Axes whose sizes are tied to it grow in proportion.
        noise: how far the parts of a weight differ, as a share of the root mean square of the parts, in [0, 1]. 0: all
            equal.
        seed: of the units that get one copy more, and of the noise.
        keep_class: never rewrite ``forward``; an axis that would need it is refused.

    Returns:
        As of `prune`: model, plan, proof and report. Its ``scores`` are empty. ``result.remap_(optimizer)`` carries an
        optimizer over; `merge_copies` is the way back.

    Raises:
        TraceError, ModelError: see `trace`.
        PlanError: a width that is no axis's, or smaller than it is.
        NotGrowable: the function would change; says which axis, and why.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x = torch.randn(3, 4)
        >>> wide = sc.grow(net, x, {"0.weight:0": 12}).model
        >>> wide[0], torch.allclose(wide(x), net(x), atol=1e-5)
        (Linear(in_features=4, out_features=12, bias=True), True)
    """
    if not 0 <= noise <= 1:
        raise PlanError(f"noise={noise}: give a share of the weights' size, in [0, 1]")
    check_kind(Walk(model))
    check_weights(model)
    check_outputs(model, args, kwargs)
    graph = trace(model, args, kwargs)
    sizes = new_sizes(graph, widths, keep_class=keep_class)
    kept = {name: repeated(graph.axes[name].size, size, _seed(seed, name)) for name, size in sizes.items()}
    made = replace(make_plan(graph, kept), noise=float(noise), seed=seed)
    if keep_class and made.rewrites:
        raise NotGrowable(
            f"{made.rewrites[0]} holds a size that would change, and keep_class=True forbids rewriting it"
        )
    wide, proof = carried_out(model, graph, made, args, kwargs)
    return finished(model, wide, graph, made, proof, {}, args, kwargs, step="grow", seed=seed)


def finished(
    model: nn.Module,
    new: nn.Module,
    graph: Graph,
    made: Plan,
    proof: Proof,
    scores: dict[str, Tensor],
    args: Any,
    kwargs: Mapping[str, Any] | None,
    *,
    step: str,
    seed: int,
    importance: str | None = None,
) -> Result:
    """The result, with a report that says which call it is of, and a step in the model's history.

    Args:
        step: the name of that call: "grow" or "reallocate".
        importance: the criterion, in words; None where nothing was scored.
    """
    remember(new, "inputs", as_call(args, kwargs))
    report = bare_report(model, graph, made, proof, seed=seed).replace(command=f"sc.{step}(...)")
    parent, before = digests.of_model(model), report["dense"]
    note_step(new, step, figures=report["pruned"], before=before, importance=importance, seed=seed, parent=parent)
    return Result(
        model=new, plan=made, proof=proof, graph=graph, scores=scores, report=report, ancestry=Ancestry.of(model)
    )


def merge_copies(model: nn.Module | Result) -> nn.Module:
    """The model as it was before its last growth, in place of the grown one: copies of a unit become one again.

    What gives a unit becomes the mean over its copies, and what sums over it the sum. Of a model that was not trained
    since, or whose copies still agree, that is exactly the way back, whatever the noise; of one whose copies went
    different ways it is an average, which has another function.

    Args:
        model: what `grow` gave, or its model. It is untouched.

    Raises:
        SurgeryError: its last change was no growth.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> wide = sc.grow(net, torch.randn(3, 4), {"0.weight:0": 12}, noise=0.1)
        >>> torch.allclose(sc.merge_copies(wide)[2].weight, net[2].weight, atol=1e-6)
        True
    """
    module = model.model if isinstance(model, Result) else model
    changes: Sequence[Change] = recall(module, "plans") or ()
    last = changes[-1] if changes else None
    if not isinstance(last, Plan) or not last.repeats:
        raise SurgeryError("the last change of this model was no growth, so there are no copies to merge")
    merged = Merge(last).apply(module)
    inputs = recall(module, "inputs")
    if inputs is not None:
        remember(merged, "inputs", inputs)
    return merged


# ---------------------------------------------------------------------- widths


def repeated(size: int, new: int, seed: int) -> Tensor:
    """Which units an axis has when it grows, (new,), ascending, each as often as every other or once more.

    Args:
        size: before.
        new: not less.
        seed: of the choice of those that come once more.

    Example:
        >>> repeated(3, 6, 0)
        tensor([0, 0, 1, 1, 2, 2])
    """
    more = torch.randperm(size, generator=torch.Generator().manual_seed(seed))[: new % size]
    return torch.cat([torch.arange(size).repeat(new // size), more]).sort().values


def _seed(seed: int, name: str) -> int:
    return seed ^ zlib.crc32(name.encode())


def new_sizes(graph: Graph, widths: Mapping[str, int], *, keep_class: bool = False) -> dict[str, int]:
    """The sizes of all axes that grow, those that are tied to the ones asked for included.

    Raises:
        PlanError: names or sizes that make no sense.
        NotGrowable: an axis whose units can't be repeated, or not so often.
    """
    if not widths:
        raise PlanError("no axis to grow: give the new size of one, such as {'fc1.weight:0': 240}; sc.trace lists them")
    asked: dict[str, int] = {}
    for given, new in widths.items():
        name = axis_of(graph, given)
        size = graph.axes[name].size
        if type(new) is not int or new < size:
            raise PlanError(
                f"{given}: {new!r}, but it has {size} units: grow makes axes wider. To narrow it, use sc.prune"
            )
        if asked.get(name, new) != new:
            raise PlanError(f"{given} and another name of the same axis, {name}, are given different sizes")
        asked[name] = new
    for tie in graph.ties:
        ratios = {asked[n] / graph.axes[n].size: n for n in tie if n in asked}
        if len(ratios) > 1:
            raise PlanError(f"{', '.join(tie)} must keep the proportions of their sizes; grow them alike")
        for ratio in ratios:
            asked |= {n: round(ratio * graph.axes[n].size) for n in tie}
            if any(abs(asked[n] - ratio * graph.axes[n].size) > 1e-6 for n in tie):
                raise PlanError(
                    f"{', '.join(tie)} must keep the proportions of their sizes; choose one that all can take"
                )
    asked = {name: new for name, new in asked.items() if new > graph.axes[name].size}
    if alone := asked.keys() - {name for c in graph.consumers for name in c.axes}:
        raise NotGrowable(
            f"{', '.join(sorted(alone))}: no weights sum over the units, so nothing can make up for copies"
        )
    wrong = [f"{n}: {why}" for n, new in asked.items() if (why := hindrance(graph.axes[n], new, keep_class=keep_class))]
    if wrong:
        raise NotGrowable("; ".join(wrong))
    if not asked:
        raise PlanError("every axis has the size that was asked for already")
    return asked


def hindrance(info: AxisInfo, new: int, *, keep_class: bool = False) -> str:
    """Why an axis can't grow to a size; empty where nothing is known against it."""
    if info.once:
        return f"its units can't be repeated: {info.once[0]}"
    if info.kind == "experts":
        return "experts are chosen by a softmax over all of them, in which copies would count twice"
    if info.normalising and new % info.size:
        near = f"{new // info.size * info.size} or " * (new > 2 * info.size) + str((new // info.size + 1) * info.size)
        return (
            f"{new} is no multiple of {info.size}, but a mean, variance or maximum is taken along it at "
            f"{info.normalising[0]}, which stays the same only if all units are repeated equally often. Choose {near}"
        )
    if new % info.step:
        return f"{new} is no multiple of {info.step}, as a kernel needs"
    if keep_class and info.rewrite:
        return f"its size is fixed in the code, {info.rewrite[0]}, and keep_class=True forbids rewriting it"
    return ""


def axis_of(graph: Graph, given: str) -> str:
    """The axis of a name: its own, or that of a member that is made of it alone.

    Raises:
        NotGrowable: it is frozen.
        PlanError: it names none, or several.
    """
    if given in graph.axes:
        return given
    if given in graph.frozen:
        raise NotGrowable(f"{given} must keep its size: {graph.frozen[given].frozen[0]}")
    tensor, _, dim = given.rpartition(":")
    found = {alias: t for t in graph.tensors.values() for alias in t.names}.get(tensor)
    if found is None or not dim.isdigit() or int(dim) >= len(found.dims):
        near = difflib.get_close_matches(given, graph.axes, 3) or list(graph.axes)[:5]
        raise PlanError(f"{given!r} is no axis of {graph.model}. There are {', '.join(near)}; sc.trace lists all")
    inside = list(dict.fromkeys(named([found.dims[int(dim)]])))
    if len(inside) != 1:
        what = f"made of {', '.join(inside)}: name one of these" if inside else "of a fixed size"
        raise PlanError(f"{given} is {what}")
    return axis_of(graph, inside[0])


# ---------------------------------------------------------------------- carrying it out


def carried_out(
    model: nn.Module, graph: Graph, made: Plan, args: Any, kwargs: Mapping[str, Any] | None
) -> tuple[nn.Module, Proof]:
    """The wider model and its proof.

    Raises:
        NotGrowable: it does not compute the same; names the axes responsible.
    """
    try:
        wide = made.apply(model)
        return wide, prove(model, wide, graph, made, args, kwargs)
    except (ProofFailed, SurgeryError) as error:
        guilty = culprits(model, graph, made, args, kwargs)
        half = [t.dtype for t in model.parameters() if t.is_floating_point() and torch.finfo(t.dtype).bits < 32]
        hint = (
            f" In {half[0]} only 2, 4, 8, ... copies divide weights exactly: convert it to float32 first."
            if half
            else ""
        )
        raise NotGrowable(
            f"the model does not compute the same with more units of {', '.join(guilty)}: {error}. Leave "
            f"{'it' if len(guilty) == 1 else 'these'} as it is.{hint}"
        ) from error


def culprits(model: nn.Module, graph: Graph, made: Plan, args: Any, kwargs: Mapping[str, Any] | None) -> list[str]:
    """The axes that fail the proof alone; all of them where none does."""
    tie = {name: group for group in graph.ties for name in group}

    def fails(group: Iterable[str]) -> bool:
        kept = {name: made.units[name] for name in group if name in made.units}
        try:
            some = make_plan(graph, kept)
            prove(model, some.apply(model), graph, some, args, kwargs)
        except SecateurError:
            return True
        return False

    groups = list(dict.fromkeys(tie.get(name, (name,)) for name in made.axes))
    return [name for group in groups if len(groups) == 1 or fails(group) for name in group] or list(made.axes)
