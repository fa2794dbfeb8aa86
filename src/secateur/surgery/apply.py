"""Carrying out a plan: every member is re-indexed, every size that the code knows is updated."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from secateur import nests
from secateur.errors import SurgeryError
from secateur.origins import Attribute, NodeArgument, Site
from secateur.provenance import recall, remember
from secateur.surgery.layers import update
from secateur.surgery.reindex import take
from secateur.tracing.capture import capture, set_argument, to_module
from secateur.tracing.shadow import copy_with, named_tensors, of_kind

if TYPE_CHECKING:
    from secateur.planning.plan import Plan


def apply(plan: "Plan", model: nn.Module) -> nn.Module:
    """The smaller model, as a new module. See `Plan.apply`."""
    check_fit(plan, model)
    tensors = named_tensors(model)
    kept = {id(tensors[name]): at for name, at in plan.kept.items()}
    with torch.inference_mode(False):  # the result shall train, wherever it is made
        small = copy_with(model, lambda tensor: of_kind(tensor, take(tensor, kept.get(id(tensor), {}))))
    if plan.rewrites:
        positional, keywords = nests.imitate(plan.example)
        small = to_module(capture(model, positional, keywords), small)
    _settle(plan, small, recall(model, "plans"))
    return small


def apply_(plan: "Plan", model: nn.Module) -> nn.Module:
    """Make the given model smaller, in place. See `Plan.apply_`."""
    check_fit(plan, model)
    if plan.rewrites:
        raise SurgeryError(
            f"this plan replaces the class {type(model).__name__} by its graph ({plan.rewrites[0]} is "
            f"fixed in the code), "
            "which can't happen in place. Use plan.apply(model), or plan with keep_class=True."
        )
    tensors = named_tensors(model)
    with torch.inference_mode(False):
        new = {id(tensors[n]): of_kind(tensors[n], take(tensors[n], at)) for n, at in plan.kept.items()}
    for name, tensor in tensors.items():
        if id(tensor) in new:
            put(model, name, new[id(tensor)])
    _settle(plan, model, recall(model, "plans"))
    return model


def check_fit(plan: "Plan", model: nn.Module) -> None:
    """Raise unless every tensor and size that the plan speaks of is there, as it was when the plan was made.

    Raises:
        SurgeryError: listing what differs.
    """
    tensors = named_tensors(model)
    wrong: list[str] = []
    for planned in plan.tensors.values():
        wanted = tuple(d.size for d in planned.dims)
        for alias in planned.names:
            got = tuple(tensors[alias].shape) if alias in tensors else None
            if got != wanted:
                wrong.append(f"{alias} is {'missing' if got is None else list(got)}, planned for {list(wanted)}")
    for site, _ in plan.settings:
        if isinstance(site, Attribute) and (found := _current(model, site)) != site.value:
            wrong.append(f"{site} is {found}, planned for {site.value}")
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise SurgeryError(
            f"the plan was made for another architecture ({plan.model}) than this {type(model).__name__}: "
            f"{'; '.join(wrong[:3])}{more}. "
            "Apply it to a model of the original sizes."
        )


def _current(model: nn.Module, site: Attribute) -> Any:
    try:
        value: Any = getattr(model.get_submodule(site.module), site.name)
        return value if site.index is None else value[site.index]
    except (AttributeError, IndexError, TypeError):
        return "missing"


def put(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Set a parameter or buffer by its qualified name."""
    owner, _, role = name.rpartition(".")
    module = model.get_submodule(owner)
    table: dict[str, Any] = module._parameters if role in module._parameters else module._buffers
    table[role] = tensor


def _settle(plan: "Plan", model: nn.Module, earlier: "tuple[Plan, ...] | None") -> None:
    """Set every size, then let standard layers say what they have become."""
    nodes = {n.name: n for n in model.graph.nodes} if isinstance(model, fx.GraphModule) else {}
    for site, value in plan.settings:
        if isinstance(site, NodeArgument):
            if site.node not in nodes:
                raise SurgeryError(
                    f"the captured graph has no call {site.node}; this model's code is not the code that "
                    f"was planned for"
                )
            set_argument(nodes[site.node], site.path, value)
    if isinstance(model, fx.GraphModule):
        model.recompile()
    set_attributes(model, plan.settings)
    owners = {alias.rpartition(".")[0].partition(".parametrizations.")[0] for alias in plan.kept}
    for owner in owners:
        update(model.get_submodule(owner))
    remember(model, "plans", (*(earlier or ()), plan))


def set_attributes(model: nn.Module, settings: Iterable[tuple[Site, int]]) -> None:
    """Give module attributes their new sizes."""
    for site, value in settings:
        if isinstance(site, Attribute):
            module = model.get_submodule(site.module)
            current: Any = getattr(module, site.name)
            setattr(module, site.name, value if site.index is None else _with_item(current, site.index, value))


def _with_item(items: Any, at: int, value: int) -> Any:
    return type(items)([value if k == at else item for k, item in enumerate(items)])
