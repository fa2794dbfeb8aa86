"""Carrying out a plan: every member is re-indexed, every size that the code knows is updated."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from secateur import nests, objects
from secateur.errors import SurgeryError
from secateur.modules import Walk, named_tensors, parts
from secateur.origins import Attribute, NodeArgument, Site
from secateur.provenance import inherit, recall, remember
from secateur.rebuilding import Rebuilds
from secateur.surgery.layers import update
from secateur.surgery.lengths import lengths
from secateur.surgery.reindex import take
from secateur.surgery.splits import along, disturbed, shares
from secateur.tracing.capture import capture, set_argument, to_module
from secateur.tracing.shadow import copy_with, of_kind
from secateur.tracing.surroundings import no_collection

if TYPE_CHECKING:
    from secateur.planning.plan import Plan, PlannedScale


def apply(plan: "Plan", model: nn.Module) -> nn.Module:
    """The smaller model, as a new module. See `Plan.apply`."""
    check_fit(plan, model)
    tensors = named_tensors(model)
    kept = {id(tensors[name]): at for name, at in plan.kept.items()}
    with torch.inference_mode(False), no_collection():  # the result shall train, wherever it is made
        new = _weighted(plan, tensors)
        new |= lengths(model, kept, new)
        if isinstance(model, Rebuilds):
            return _rebuilt(plan, model, tensors, kept, new)
        small = copy_with(model, lambda t: of_kind(t, new[id(t)] if id(t) in new else take(t, kept.get(id(t), {}))))
    if plan.rewrites:
        positional, keywords = nests.imitate(plan.example)
        small = to_module(capture(model, positional, keywords), small)
    _settle(plan, small, recall(model, "plans"))
    inherit(small, model)
    return small


def _rebuilt(
    plan: "Plan",
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    kept: Mapping[int, Mapping[int, Tensor]],
    new: Mapping[int, Tensor],
) -> nn.Module:
    """The smaller model, of a class that makes it by itself."""
    assert isinstance(model, Rebuilds)
    taken = {n: new[id(t)] if id(t) in new else take(t, kept.get(id(t), {})) for n, t in tensors.items()}
    small = model.rebuilt(taken, plan)
    remember(small, "plans", (*(recall(model, "plans") or ()), plan))
    inherit(small, model)
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
    own_configs(plan, model)
    with torch.inference_mode(False):
        new = {id(tensors[n]): of_kind(tensors[n], take(tensors[n], at)) for n, at in plan.kept.items()}
        changed = _weighted(plan, tensors)
        changed |= lengths(model, {id(tensors[n]): at for n, at in plan.kept.items()}, changed)
        new |= {id(t): of_kind(t, changed[id(t)]) for t in tensors.values() if id(t) in changed}
    for name, tensor in tensors.items():
        if id(tensor) in new:
            put(model, name, new[id(tensor)])
    _settle(plan, model, recall(model, "plans"))
    return model


def _weighted(plan: "Plan", tensors: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """What becomes of the weights that carry the change of a head size, or are divided among copies, by the id of the
    old ones.
    """
    found: dict[int, Tensor] = {}
    for scale in plan.scales:
        old, kept = tensors[scale.tensor], plan.kept.get(scale.tensor, {})
        new = found.get(id(old), take(old, kept))
        found[id(old)] = (new * factor(scale, old.shape, kept).to(new.device)).to(new.dtype)
    for split in plan.splits:
        old = tensors[split.tensor]
        new = found.get(id(old), take(old, plan.kept[split.tensor]))
        found[id(old)] = (new * along(shares(split, plan), split.dim, new.dim()).to(new.device)).to(new.dtype)
    for split in plan.splits if plan.noise else ():
        old = tensors[split.tensor]
        found[id(old)] = disturbed(found[id(old)], split, plan)
    return found


def factor(scale: "PlannedScale", shape: Sequence[int], kept: Mapping[int, Tensor]) -> Tensor:
    """What the positions of a tensor that stay are multiplied by, float64, to be broadcast.

    Args:
        scale: of the tensor.
        shape: of the tensor, before surgery.
        kept: positions of each dim that stay.
    """
    along = torch.ones(shape[scale.dim], dtype=torch.float64)
    for start, stop in scale.positions:
        along[start:stop] = (scale.after / scale.before) ** 0.5
    along = along[kept[scale.dim]] if scale.dim in kept else along
    return along.reshape([-1 if k == scale.dim else 1 for k in range(len(shape))])


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
        value: Any = objects.get(model.get_submodule(site.module), site.name)
        value = value if site.index is None else value[site.index]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        value = "missing"
    return 0 if site.value == 0 and value in (None, "missing") else value


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
    present = dict(Walk(model).places)  # a graph has those of a module's names that its calls use
    for owner in owners & present.keys():
        update(present[owner])
    for name in plan.biases:
        _give_bias(present, name)
    remember(model, "plans", (*(earlier or ()), plan))


def _give_bias(present: Mapping[str, nn.Module], name: str) -> None:
    """A bias of zeros for a layer that has none.

    Raises:
        SurgeryError: there is no such layer.
    """
    layer: Any = present.get(name.rpartition(".")[0])
    if not isinstance(layer, nn.Linear | _ConvNd) or layer.bias is not None:
        raise SurgeryError(f"the plan gives a bias to {name}, but there is no layer without one")
    weight = layer.weight
    layer.bias = nn.Parameter(weight.new_zeros(weight.shape[0]), requires_grad=weight.requires_grad)


def set_attributes(model: nn.Module, settings: Iterable[tuple[Site, int]]) -> None:
    """Give attributes of modules, and of the configs that hang on them, their new sizes."""
    for site, value in settings:
        if isinstance(site, Attribute):
            module = model.get_submodule(site.module)
            new: Any = value
            if site.index is not None:
                new = _with_item(objects.get(module, site.name), site.index, value)
            objects.put(module, site.name, new)


def own_configs(plan: "Plan", model: nn.Module) -> None:
    """Give the model copies of the configs that a plan changes: other models may share the ones that it has."""
    sites = [site for site, _ in plan.settings if isinstance(site, Attribute) and "." in site.name]
    shared = {id(o): o for s in sites for o in [vars(model.get_submodule(s.module))[s.name.partition(".")[0]]]}
    copies: dict[int, Any] = {}
    for held in shared.values():
        copy.deepcopy(held, copies)
    for module in parts(model) if shared else ():
        for name, value in list(vars(module).items()):
            if id(value) in copies and not name.startswith("_"):
                vars(module)[name] = copies[id(value)]


def _with_item(items: Any, at: int, value: int) -> Any:
    return type(items)([value if k == at else item for k, item in enumerate(items)])
