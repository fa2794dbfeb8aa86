"""The weights of a model as named tensors, each once, and back into a model of the same shape."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from secateur.errors import ArtifactError
from secateur.modules import named_tensors
from secateur.surgery.apply import put

SHOWN = 3  # tensors that an error names


def stored(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every parameter and buffer once, those that ``state_dict`` leaves out included; and the other names of tied
    ones.
    """
    first: dict[int, str] = {}
    found: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for name, tensor in named_tensors(model).items():
        if id(tensor) in first:
            aliases[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
            found[name] = tensor.detach().cpu().contiguous().clone()
    return found, aliases


def fill(model: nn.Module, weights: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Put the stored weights in place; every tensor of the model must be there with its shape and kind.

    Raises:
        ArtifactError: listing what differs.
    """
    aliases, frozen = record["aliases"], set(record["frozen"])
    tensors = named_tensors(model)
    missing = [n for n in tensors if n not in weights and n not in aliases]
    extra = [n for n in (*weights, *aliases, *frozen, *record["parameters"]) if n not in tensors]
    pairs = [(n, tensors[n], weights[n]) for n in weights if n in tensors]
    pairs += [(n, tensors[n], weights[a]) for n, a in aliases.items() if n in tensors and a in weights]
    wrong = [f"{n} is {list(t.shape)}, not {list(old.shape)}" for n, old, t in pairs if old.shape != t.shape]
    dangling = [f"{n} is another name of {a}" for n, a in aliases.items() if a not in weights]
    if missing or extra or wrong or dangling:
        details = [f"{n} is missing" for n in missing] + [f"{n} is unknown" for n in dict.fromkeys(extra)]
        details += wrong + dangling
        more = f" and {len(details) - SHOWN} more" if len(details) > SHOWN else ""
        raise ArtifactError(
            f"the weights don't fit {type(model).__name__}: {len(missing)} missing, {len(set(extra))} unknown, "
            f"{len(wrong)} of another shape: {'; '.join(details[:SHOWN])}{more}"
        )
    kinds = [f"{n} is {t.dtype}, not {old.dtype}" for n, old, t in pairs if _kind(old) != _kind(t)]
    if kinds:
        raise ArtifactError(f"the weights don't fit {type(model).__name__}: {'; '.join(kinds[:SHOWN])}")
    filled = {n: _like(tensors[n], t, n not in frozen) for n, t in weights.items()}
    for name in tensors:
        put(model, name, filled[aliases.get(name, name)])


def _kind(tensor: Tensor) -> str:
    """Precision may differ from the model that is built (float16 from float32), kinds of numbers may not."""
    return "floating" if tensor.is_floating_point() else "complex" if tensor.is_complex() else str(tensor.dtype)


def _like(old: Tensor, new: Tensor, trained: bool) -> Tensor:
    if not isinstance(old, nn.Parameter):
        return new
    return nn.Parameter(new, requires_grad=trained and (new.is_floating_point() or new.is_complex()))
