"""Whether a model has the architecture that a plan was made for, and what differs where it has not."""

from collections.abc import Mapping, Sequence

from torch import nn

from secateur.changes import Change
from secateur.errors import SurgeryError
from secateur.modules import named_tensors
from secateur.planning import Plan
from secateur.surgery.apply import check_fit

SHOWN = 8  # differences that a message lists

Shape = tuple[int, ...]


def check_architecture(model: nn.Module, changes: Sequence[Change], stored: Mapping[str, Shape] | None = None) -> None:
    """Raise unless the model is of the architecture that the first of some changes was made for.

    Args:
        model: the new dense model.
        changes: what was done to the old one, first one first.
        stored: shapes of all tensors of the saved result, after the changes; None where only the plan is known, so that
            layers that it leaves whole can't be compared.

    Raises:
        SurgeryError: listing what differs.
    """
    found = differences(model, changes, stored)
    if found:
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        was = changes[0].model if changes else "what was saved"
        raise SurgeryError(
            f"this {type(model).__name__} is of another architecture than the one that was pruned ({was}): "
            f"{'; '.join(found[:SHOWN])}{more}. Build it with the sizes of that time, or prune afresh."
        )
    if changes and isinstance(changes[0], Plan):
        check_fit(changes[0], model)  # sizes that attributes hold


def differences(model: nn.Module, changes: Sequence[Change], stored: Mapping[str, Shape] | None = None) -> list[str]:
    """Tensors that are missing, new or of another shape, a few words each. See `check_architecture`."""
    wanted = dense_shapes(changes, stored)
    got = {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()}
    complete = stored is not None and _plans_alone(changes) and not any(change.rewrites for change in changes)
    return [
        *(f"{name} is missing" for name in wanted if name not in got),
        *(
            f"{name} is {list(got[name])} and was {list(shape)}"
            for name, shape in wanted.items()
            if name in got and got[name] != shape
        ),
        *(f"{name} {list(shape)} is new" for name, shape in got.items() if complete and name not in wanted),
    ]


def dense_shapes(changes: Sequence[Change], stored: Mapping[str, Shape] | None = None) -> dict[str, Shape]:
    """Shapes of the tensors of the dense model, as far as changes and a saved result tell them."""
    shapes: dict[str, Shape] = {}
    given: set[str] = set()  # biases that compensation gave to layers without one
    for change in changes:
        if not isinstance(change, Plan):
            break  # what follows speaks of another architecture
        given |= set(change.biases)
        for tensor in change.tensors.values():
            for name in tensor.names:
                if name not in given:
                    shapes.setdefault(name, tuple(dim.size for dim in tensor.dims))
    if stored is not None and _plans_alone(changes):
        shapes |= {name: shape for name, shape in stored.items() if name not in shapes and name not in given}
    return shapes


def _plans_alone(changes: Sequence[Change]) -> bool:
    return all(isinstance(change, Plan) for change in changes)
