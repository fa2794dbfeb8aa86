"""Where a model's class scores come from: the axis that ends in its output, found by tracing, and the layers on it.

Shape letters: N samples, C classes, T tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from secateur.adapting.head import Head, is_plain_name
from secateur.axes import Expr, Leaf
from secateur.errors import ModelError
from secateur.inputs import as_call, run
from secateur.modules import Walk, kept_modes
from secateur.objectives import logits_of
from secateur.origins import Attribute
from secateur.tracing.build import Names, collect
from secateur.tracing.leavings import nothing_left
from secateur.tracing.running import Run, run_class
from secateur.tracing.surroundings import no_collection, quiet_backends

COUNTS = ("num_classes", "num_labels", "n_classes", "n_labels", "num_class", "nb_classes")
"""Attributes in which code keeps its number of classes."""
WEIGHTED = (nn.Linear, nn.Bilinear, _ConvNd)
ALONG = (_NormBase, nn.LayerNorm, nn.RMSNorm, nn.PReLU)


def find_head(
    model: nn.Module,
    args: Any,
    kwargs: Mapping[str, Any] | None = None,
    *,
    classes: int,
    labels: Sequence[str] = (),
    seed: int = 0,
) -> Head:
    """The change that gives a model a new head.

    The head is found through the graph: the class scores' dim is an axis, and the layers that it runs through are the
    head, whatever follows them (softmax, dropout, pooling, flattening), and whatever they are called.

    Args:
        model: left as it is.
        args, kwargs: example inputs.
        classes: of the new task, at least 2.
        labels: their names, one each; none for LABEL_0 and so on.
        seed: of the fresh weights.

    Raises:
        ModelError: the model's output has no class axis, or one that no new layer can be made for.
        TraceError: the model does not run on the example inputs.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), nn.Softmax(1))
        >>> head = find_head(net, torch.zeros(1, 4), classes=7)
        >>> head.layers, head.before, head.after
        (('2',), 3, 7)
    """
    positional, keywords = as_call(args, kwargs)
    walk = Walk(model)
    if not walk.parameters:
        raise ModelError(f"{type(model).__name__} has no parameters, so it has no head")
    with quiet_backends(), nothing_left(walk), no_collection():
        traced = run_class(walk, positional, keywords)
        names = collect(traced.tracer, traced.dims)
        axis = _class_axis(walk, traced, names)
        settings = _settings(walk, traced, names, axis)
        traced.tracer.forget()
    members = names.infos[str(axis.name)].members
    return Head(
        model=type(model).__name__,
        layers=tuple(dict.fromkeys(tensor.rpartition(".")[0] for tensor, _ in members)),
        tensors=members,
        before=axis.size,
        after=classes,
        settings=settings,
        labels=tuple(labels),
        seed=seed,
    )


def with_head(
    model: nn.Module,
    head: Head,
    args: Any,
    kwargs: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The model with the new head, which is run once.

    Raises:
        ModelError: its code holds the old number of classes.
    """
    made = head.apply(model)
    try:
        with kept_modes(made), torch.no_grad():
            scores = logits_of(run(made.eval(), args, kwargs))
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} does not run with {head.after} classes: {type(error).__name__}: "
            f"{' '.join(str(error).split())}. Its code holds the old number, {head.before}: keep it in an attribute "
            f"such as self.num_classes"
        ) from error
    if not isinstance(scores, Tensor) or head.after not in scores.shape[1:]:
        shape = list(scores.shape) if isinstance(scores, Tensor) else None
        raise ModelError(
            f"with {head.after} classes {type(model).__name__} gives scores of shape {shape}: its code holds the old "
            f"number of classes, {head.before}. Keep it in an attribute such as self.num_classes"
        )
    return made


# ---------------------------------------------------------------------- the axis


def _class_axis(walk: Walk, traced: Run, names: Names) -> Leaf:
    """The axis of the classes: dim 1 of scores (N, C) and (N, C, ...), of three dims the last one, else dim 1."""
    name, dims = type(walk.model).__name__, traced.scores
    if dims is None or len(dims) < 2:
        shape = None if dims is None else [d.size for d in dims]
        raise ModelError(
            f"the output of {name} {'holds no class scores' if shape is None else f'has shape {shape}'}, and such are "
            "(samples, classes): adapting needs a classifier"
        )
    problems: list[str] = []
    for k in (2, 1) if len(dims) == 3 else (1,):
        axis = names.finish(dims[k])
        problem = _problem(walk, traced, names, axis)
        if not problem:
            return axis
        problems.append(f"dim {k} {problem}")
    raise ModelError(
        f"the output of {name}, {[d.size for d in dims]}, has no class axis that a new head could be made for: "
        f"{'; '.join(problems)}"
    )


def _problem(walk: Walk, traced: Run, names: Names, axis: Expr) -> str:
    """What keeps an expression from being a class axis; empty if nothing."""
    if axis.size == 1:
        return "is a single number, which tells no classes apart: let the model give a score for each of two classes"
    if not isinstance(axis, Leaf) or axis.name is None:
        unknown = [f" (no rule knows {name}, at {place})" for name, place in traced.tracer.unknown]
        return f"({axis.size}) is not the output of one layer alone{''.join(unknown[:1])}"
    modules, odd, makers = dict(walk.places), list[str](), 0
    for tensor, dim in names.infos[axis.name].members:
        path, _, role = tensor.rpartition(".")
        if names.finish(traced.dims[tensor][dim]) != axis:
            return f"is only a part of a dim of {tensor}"
        if any(t is walk.tensors[tensor] for n, t in walk.tensors.items() if n != tensor):
            return f"runs through {tensor}, which another layer shares"
        if _gives(modules.get(path), role, dim):
            makers += isinstance(modules[path], WEIGHTED) or type(modules[path]).__name__ == "Conv1D"
        else:
            odd.append(f"{tensor}:{dim}")
    if odd:
        return f"runs on, through {', '.join(odd[:3])}: it is no head's output, or not a standard layer's"
    return "" if makers else "is made by no linear or convolutional layer"


def _gives(module: nn.Module | None, role: str, dim: int) -> bool:
    """Whether a dim of a layer's tensor is that of its outputs."""
    if role not in ("weight", "bias", "running_mean", "running_var"):
        return False
    if isinstance(module, _ConvTransposeNd):
        return module.groups == 1 and dim == (1 if role == "weight" else 0)
    if isinstance(module, _ConvNd):
        return module.groups == 1 and dim == 0
    if type(module).__name__ == "Conv1D":  # transformers'
        return dim == (1 if role == "weight" else 0)
    return isinstance(module, (nn.Linear, nn.Bilinear, *ALONG)) and dim == 0


def _settings(walk: Walk, traced: Run, names: Names, axis: Leaf) -> tuple[tuple[str, str], ...]:
    """The attributes that hold the number of classes: those that the code used as such, and those of usual names."""
    found: dict[tuple[str, str], None] = {}
    for use in traced.uses:
        origin = use.origin
        if isinstance(origin, Attribute) and origin.index is None and names.finish(use.target) == axis:
            found[origin.module, origin.name] = None
    for path, module in walk.named:
        for name in COUNTS:
            if type(value := vars(module).get(name)) is int and value == axis.size:
                found[path, name] = None
    own = {id(module) for _, module in walk.named if isinstance(module, (*WEIGHTED, *ALONG))}
    modules = dict(walk.places)
    return tuple(key for key in found if id(modules[key[0]]) not in own and is_plain_name(key[1]))
