"""Copies of the dense model that live beside it, such as moving averages, are cut as it was."""

from collections.abc import Iterable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from secateur.carrying.moves import moves
from secateur.errors import RemapError
from secateur.modules import named_tensors
from secateur.surgery.lengths import recomputed
from secateur.tracing.shadow import of_kind

if TYPE_CHECKING:
    from secateur.planning.plan import Plan

COMPILED, WRAPPED = "_orig_mod.", "module."  # what torch.compile and data parallel modules put before names


def cut_module_(plan: "Plan", copy: nn.Module) -> None:
    """Make a copy of the dense model small: a plain one, a compiled one, or one in the ``module`` of a wrapper.

    Raises:
        SurgeryError: the plan does not fit, or the class would have to be replaced where only its owner could.
    """
    holder, inner = _inside(plan, copy)
    if holder is not None and plan.rewrites:
        holder.module = plan.apply(inner)
    else:
        plan.apply_(inner)


def _inside(plan: "Plan", copy: nn.Module) -> tuple[Any, nn.Module]:
    """The wrapper in whose ``module`` the copy is, None where it can't be replaced there; and the copy itself."""
    holder: Any = None
    first = next(iter(plan.kept), "")
    while True:
        inner = copy._modules.get("_orig_mod")
        if inner is not None:
            holder, copy = None, inner
        elif (inner := copy._modules.get("module")) is not None and first not in named_tensors(copy):
            if type(copy).__module__.startswith("torch.nn.parallel."):
                raise RemapError(
                    f"a copy in {type(copy).__name__} can't be changed where it is: pass the module inside "
                    "(copy.module), and wrap it anew"
                )
            holder, copy = copy, inner
        else:
            return holder, copy


def cut_tensors_(plan: "Plan", shadow: MutableMapping[str, Any], old: Mapping[str, Tensor], new: nn.Module) -> None:
    """Make a dict of tensors by name small: those that vanished leave, new ones are zeros.

    Args:
        plan: what was carried out.
        shadow: by the model's names, or by those that a compiled or wrapped model gives them.
        old: the dense model's parameters, as far as they are known.
        new: the smaller model.

    Raises:
        RemapError: it holds no tensor of the model, or one whose value follows from others.
    """
    present = named_tensors(new)
    known = {*plan.kept, *old, *present}
    keys = {name: key for key, name in own_names(shadow, plan).items() if name in known}
    ours: dict[str, Tensor] = {name: shadow[key] for name, key in keys.items()}
    if not ours:
        raise RemapError(
            f"none of the {len(shadow)} names in this dict ({', '.join(map(repr, list(shadow)[:3]))}) is one of the "
            f"{plan.model} that was pruned: its keys have to be the model's own, as in model.named_parameters()"
        )
    _check_computed(plan, ours, new)
    found = moves(plan, ours, {name: tensor for name, tensor in present.items() if name in ours})
    cut = {at: of_kind(m.old, m.take(m.old.detach(), -1)) if m.changed else m.old for at, m in found.items()}
    for name, tensor in ours.items():
        if name in old and name not in present:
            del shadow[keys[name]]
        else:
            shadow[keys[name]] = cut[id(tensor)]
    prefix = next(key.removesuffix(name) for name, key in keys.items())
    for name in plan.biases:
        shadow[f"{prefix}{name}"] = present[name].detach().new_zeros(present[name].shape)


def own_names(keys: Iterable[str], plan: "Plan") -> dict[str, str]:
    """The model's own names for those that a compiled or wrapped model gives its tensors."""
    names = {key: key.replace(COMPILED, "") for key in keys}
    while names and plan.kept.keys().isdisjoint(names.values()) and all(n.startswith(WRAPPED) for n in names.values()):
        names = {key: name.removeprefix(WRAPPED) for key, name in names.items()}
    return names


def _check_computed(plan: "Plan", ours: Mapping[str, Tensor], new: nn.Module) -> None:
    names = {id(tensor): name for name, tensor in named_tensors(new).items()}
    wrong = {names[id(t)] for t, w in recomputed(new) if names.get(id(w), "") in plan.kept} & ours.keys()
    if wrong:
        raise RemapError(
            f"{', '.join(sorted(wrong))} must be computed from other tensors, which a dict does not tell. Keep the "
            "copy as a module (copy.deepcopy(model)), and carry that over."
        )
