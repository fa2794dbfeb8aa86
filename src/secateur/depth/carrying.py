"""Carrying out a change of depth: children of sequences go and come, and what counts them follows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx, nn

from secateur import objects
from secateur.depth.change import DepthChange, Insertion
from secateur.depth.containers import Place, is_sequence, layout, parent_of, set_children
from secateur.depth.identity import identity_layer, imitable, silence_
from secateur.errors import SurgeryError
from secateur.modules import Walk, named_parameters
from secateur.origins import Attribute
from secateur.provenance import recall, remember
from secateur.surgery.apply import set_attributes
from secateur.tracing.shadow import copy_with, own_tensor
from secateur.zeros import rename_sparse

GROWTH = 64  # times the elements that a model had before its first change of depth


@dataclass(frozen=True)
class Edited:
    """A sequence before and after: the names of its children, and what stands in their places."""

    names: tuple[str, ...]
    places: tuple[Place, ...]


def apply(change: DepthChange, model: nn.Module) -> nn.Module:
    """The model of another depth, as a new module. See `DepthChange.apply`."""
    check_fit(change, model)
    first = recall(model, "elements") or elements(model)
    added = sum(elements(model.get_submodule(spec.like)) for spec in change.inserted)
    if elements(model) + added > GROWTH * first:
        raise SurgeryError(
            f"{len(change.inserted)} more blocks would make the model more than {GROWTH} times as large as it was; "
            "insert fewer"
        )
    with torch.inference_mode(False):  # the result shall train, wherever it is made
        new = copy_with(model, own_tensor)
        before = named_parameters(new)
        carry_out(change, new)
    after = {id(parameter): name for name, parameter in reversed(named_parameters(new).items())}
    rename_sparse(new, {name: after[id(parameter)] for name, parameter in before.items() if id(parameter) in after})
    remember(new, "elements", first)
    remember(new, "plans", (*(recall(model, "plans") or ()), change))
    return new


def elements(model: nn.Module) -> int:
    """Numbers in all parameters and buffers, and one for each module."""
    walk = Walk(model)
    return len(walk.modules) + sum({id(t): t.numel() for t in walk.tensors.values()}.values())


def carry_out(change: DepthChange, model: nn.Module) -> list[str]:
    """Change a copy in place, unchecked, without a note on it; the paths of what is new in it.

    Raises:
        SurgeryError: a number of layers, or an index of one, is not what it was when the change was made.
    """
    lists = [(spec, read(model, spec.module, spec.name)) for spec in change.lists]
    edited = edit(change, model)
    for spec, items in lists:
        found = edited[spec.container]
        at = {name: k for k, name in enumerate(found.names)}
        objects.put(
            model.get_submodule(spec.module), spec.name, type(items)([items[at[p.source]] for p in found.places])
        )
    wrong = [f"{site} is not {site.value}" for site, _ in change.settings if current(model, site) != site.value]
    if wrong:
        raise _unfit(change, model, wrong)
    set_attributes(model, change.settings)
    return [
        *(f"{path}.{place.name}".strip(".") for path, e in edited.items() for place in e.places if place.new),
        *(f"{spec.after}.{1 + k}" for spec in change.inserted if spec.wrap for k in range(_wraps(change, spec.after))),
    ]


def _wraps(change: DepthChange, path: str) -> int:
    return sum(spec.wrap and spec.after == path for spec in change.inserted)


def edit(change: DepthChange, model: nn.Module) -> dict[str, Edited]:
    """Change the modules alone, in place; the sequences that changed, by their paths."""
    chained: dict[str, dict[tuple[str, int], nn.Module]] = {}
    wrapped: dict[str, list[nn.Module]] = {}
    for spec in change.inserted:
        module, name = make(spec, model), name_of(spec.after)
        if spec.wrap:
            wrapped.setdefault(spec.after, []).append(module)
        else:
            new = chained.setdefault(parent_of(spec.after), {})
            new[name, 1 + sum(source == name for source, _ in new)] = module
    owners = {path: model.get_submodule(path) for path in (*map(parent_of, change.dropped), *chained)}
    holders = {path: model.get_submodule(parent_of(path)) for path in wrapped}
    found: dict[str, Edited] = {}
    for path, owner in owners.items():
        new, names = chained.get(path, {}), tuple(owner._modules)
        dropped = frozenset(name_of(p) for p in change.dropped if parent_of(p) == path)
        places = layout(names, dropped, {name: max(k for n, k in new if n == name) for name, _ in new})
        set_children(owner, places, new)
        found[path] = Edited(names, tuple(places))
    for path, modules in wrapped.items():
        first = cast(nn.Module, holders[path]._modules[name_of(path)])
        together = nn.Sequential(first, *modules)
        together.training = first.training
        holders[path]._modules[name_of(path)] = together
    return found


def make(spec: Insertion, model: nn.Module) -> nn.Module:
    """What is inserted, in the training mode of what it is like."""
    like = model.get_submodule(spec.like)
    if spec.kind == "block":
        block = copy_with(like, own_tensor)
        silence_(block, spec.silenced)
        return block
    layer = identity_layer(like)
    parts = {"": (layer,), "before": (nn.ReLU(), layer), "after": (layer, nn.ReLU())}[spec.relu]
    made = nn.Sequential(*parts) if len(parts) > 1 else layer
    return made.train(like.training)


def check_fit(change: DepthChange, model: nn.Module) -> None:
    """Raise unless everything that the change speaks of is there.

    Raises:
        SurgeryError: listing what differs.
    """
    check_class(model)
    modules = dict(Walk(model).places)
    wrong = [*_missing(change.dropped, modules), *_nested(change)]
    for spec in change.inserted:
        wrong += _misfits(spec, modules)
    for spec in change.lists:
        items = read(model, spec.module, spec.name)
        if not isinstance(items, list | tuple) or len(cast("list[Any]", items)) != spec.before:
            wrong.append(f"{spec.name} is no list of {spec.before}")
        if len(modules.get(spec.container, nn.Module())._modules) != spec.before:
            wrong.append(f"{spec.container} has not {spec.before} blocks")
    if wrong:
        raise _unfit(change, model, wrong)


def check_class(model: nn.Module) -> None:
    """Refuse graphs.

    Raises:
        SurgeryError: the model is one.
    """
    if isinstance(model, fx.GraphModule):
        raise SurgeryError(
            "this model is a graph, as pruning puts it in the place of a class whose forward it has to rewrite, and "
            "has no blocks that could go or come. Change the depth first, then prune: "
            "short = sc.shorten(original, example, blocks=1, data=batches) (or sc.deepen), then "
            "sc.prune(short.model, example). Or prune with keep_class=True, which leaves the class and its blocks, "
            "and change the depth of what comes of it"
        )


def _unfit(change: DepthChange, model: nn.Module, wrong: Sequence[str]) -> SurgeryError:
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return SurgeryError(
        f"the change of depth was made for another architecture ({change.model}) than this {type(model).__name__}: "
        f"{'; '.join(wrong[:3])}{more}. Apply it to a model of the original depth."
    )


def _missing(paths: Sequence[str], modules: Mapping[str, nn.Module]) -> list[str]:
    wrong: list[str] = []
    for path in paths:
        if path not in modules:
            wrong.append(f"there is no {path}")
        elif not is_sequence(modules[parent_of(path)]):
            wrong.append(f"{path} is in no nn.Sequential or nn.ModuleList")
    return wrong


def _nested(change: DepthChange) -> list[str]:
    """Paths that lie within a block that goes."""
    gone = set(change.dropped)
    paths = [*change.dropped, *(p for s in change.inserted for p in (s.after, s.like))]
    inner = [p for p in paths if any(p.startswith(f"{g}.") for g in gone)]
    return [f"{path} is in a block that goes" for path in inner] + [
        f"{s.after} goes" for s in change.inserted if s.after in gone
    ]


def _misfits(spec: Insertion, modules: Mapping[str, nn.Module]) -> list[str]:
    absent = [path for path in (spec.after, spec.like) if path not in modules]
    if absent:
        return [f"there is no {absent[0]}"]
    if not spec.wrap and not is_sequence(modules[parent_of(spec.after)]):
        return [f"{spec.after} is in no nn.Sequential or nn.ModuleList"]
    like = modules[spec.like]
    if spec.kind == "layer":
        return [] if imitable(like) else [f"{spec.like} is a {type(like).__name__}, of which there is no identity"]
    known = dict(like.named_parameters(remove_duplicate=False))
    return [f"{spec.like} has no {name}" for name in spec.silenced if name not in known]


def read(model: nn.Module, module: str, name: str) -> Any:
    """What an attribute, or a value of a config, is; None where there is none."""
    try:
        return objects.get(model.get_submodule(module), name)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return None


def current(model: nn.Module, site: Attribute) -> Any:
    """The value at a site now; None where there is none."""
    found = read(model, site.module, site.name)
    if site.index is None:
        return found
    return found[site.index] if isinstance(found, list | tuple) and site.index < len(cast("list[Any]", found)) else None


def name_of(path: str) -> str:
    """The last part of a path."""
    return path.rpartition(".")[2]
