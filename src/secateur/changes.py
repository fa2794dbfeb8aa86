"""What was done to a model, as plain data that can be saved and done again: each kind of change behind one protocol.

A model carries its changes (``recall(model, "plans")``), first one first; `secateur.save` stores them, and
`secateur.load` does them again on the original architecture.
"""

import importlib
from collections.abc import Mapping
from typing import Any, Protocol, cast

from torch import nn

from secateur.errors import ArtifactError
from secateur.rebuilding import as_module

KINDS = {  # "kind" of the JSON form: the class that reads it, imported when it is needed
    "widths": "secateur.planning.plan:Plan",
    "depth": "secateur.depth.change:DepthChange",
    "merge": "secateur.surgery.merging:Merge",
    "head": "secateur.adapting.head:Head",
}


class Change(Protocol):
    """A change of a model's architecture.

    Attributes:
        model: name of the class that it was made for.
        rewrites: why the class is replaced by its graph; empty where the class stays.
    """

    @property
    def model(self) -> str: ...

    @property
    def rewrites(self) -> tuple[str, ...]: ...

    def apply(self, model: nn.Module) -> nn.Module:
        """The changed model, as a new module that remembers this change after its earlier ones."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data, with its "kind" unless that is "widths"."""
        ...


class Changed(Protocol):
    """What changing a model gave: the `Result` of pruning, and its likes.

    Attributes:
        model: the changed model.
        report: a mapping in the form of report.json.
    """

    @property
    def model(self) -> nn.Module: ...

    @property
    def report(self) -> Mapping[str, Any]: ...


def model_of(model_or_result: nn.Module | Changed) -> nn.Module:
    """The model itself, where a result may stand for it; of a Keras model its `secateur.keras.KerasModule`."""
    return as_module(model_or_result if isinstance(model_or_result, nn.Module) else model_or_result.model)


def change_from_dict(data: Mapping[str, Any]) -> Change:
    """Read what `to_dict` of a change wrote.

    Raises:
        ArtifactError: it is none, or of a kind that this version does not know.
    """
    kind = data.get("kind", "widths")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ArtifactError(f"a change of kind {kind!r}; this secateur knows {', '.join(KINDS)}")
    module, _, name = KINDS[kind].partition(":")
    return cast("Change", getattr(importlib.import_module(module), name).from_dict(data))
