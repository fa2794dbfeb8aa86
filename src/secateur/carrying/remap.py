"""One call for everything that trains along with a model."""

from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from secateur.carrying.copies import cut_module_, cut_tensors_, own_names
from secateur.carrying.moves import moves
from secateur.carrying.optimizers import carry_
from secateur.errors import RemapError
from secateur.modules import named_parameters

if TYPE_CHECKING:
    from secateur.planning.plan import Plan

Parameters = nn.Module | Mapping[str, Tensor]


def remap_(plan: "Plan", thing: Any, old: Parameters, new: Parameters) -> Any:
    """Carry what trains along with a model over to the smaller one, in place. Returns it.

    - **An optimizer** stays the same object, with the same groups and settings, so that learning-rate schedulers and
      gradient scalers go on as they are. New parameters stand where the old ones stood. What it keeps for each of them
      is re-indexed as the parameter was; step counts stay. Where the plan multiplies weights by f, their first moments
      are divided by f, the second ones by f², since a gradient of f w is 1/f of one of w.
      Where it repeats units, moments become those of the gradients that the copies have: an m-th (a square of that,
      for second ones) for weights that give one of m copies, the whole for the weights that sum over them, which were
      divided. A state that nobody knows how
      to re-index starts anew, with a warning that names the parameter.
    - **A module or an AveragedModel** is a copy of the dense model, and is cut as it was. Compensation is not repeated
      on it: its weights are those of its own that stayed.
    - **A dict of tensors by name**, shadow weights, likewise.

    Args:
        plan: what was carried out.
        thing: what to carry over.
        old, new: the model before and after, or its parameters by name.

    Raises:
        RemapError: the thing belongs to another model, or is of no kind that can be carried.
        SurgeryError: a copy that the plan does not fit, or that can't be changed in place.
    """
    if isinstance(thing, torch.optim.Optimizer):
        _carry(plan, thing, _parameters(plan, old), _parameters(plan, new))
    elif isinstance(thing, nn.Module):
        cut_module_(plan, thing)
    elif isinstance(thing, MutableMapping):
        if not isinstance(new, nn.Module):
            raise RemapError("to carry a dict of tensors over, give the smaller model itself as new=")
        cut_tensors_(plan, thing, _parameters(plan, old), new)
    else:
        raise RemapError(
            f"a {type(thing).__name__} can't be carried over: pass an optimizer, a copy of the model (a module, an "
            "AveragedModel) or a dict of tensors by name. Learning-rate schedulers and gradient scalers need nothing."
        )
    return thing


def _carry(
    plan: "Plan", optimizer: torch.optim.Optimizer, old: Mapping[str, Tensor], new: Mapping[str, Tensor]
) -> None:
    found = moves(plan, old, new)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    if not any(id(p) in found for p in held):
        raise RemapError(_foreign(plan, len(held), bool(old), {id(p) for p in held} & {id(p) for p in new.values()}))
    carry_(optimizer, found, {name: new[name] for name in plan.biases if name in new and name not in old})


def _foreign(plan: "Plan", held: int, alive: bool, already: set[int]) -> str:
    if already:
        return (
            "this optimizer holds the smaller model's parameters already: it was carried over before, or is a new one"
        )
    why = (
        "it was made for another model, or for a copy"
        if alive
        else "the parameters of that model are gone, so nothing holds them any more, this optimizer included"
    )
    return (
        f"none of the {held} parameters of this optimizer is one of the {plan.model} that was pruned: {why}. Prune the "
        "model that the optimizer was made for, in this process, and carry it over before you make it anew."
    )


def _parameters(plan: "Plan", given: Parameters) -> dict[str, Tensor]:
    """Parameters by the names that the plan knows them by."""
    tensors: Mapping[str, Tensor] = named_parameters(given) if isinstance(given, nn.Module) else given
    names = own_names(tensors, plan)
    return {names[key]: tensor for key, tensor in tensors.items()}
