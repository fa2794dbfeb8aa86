"""A change: a new head, for other classes. Plain data that can be saved, checked and done again."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from secateur import objects, strict
from secateur.errors import ArtifactError, SurgeryError
from secateur.modules import Walk, named_tensors
from secateur.origins import Attribute
from secateur.planning.plan import MAX_SIZE
from secateur.provenance import recall, remember
from secateur.surgery.apply import set_attributes
from secateur.surgery.layers import update
from secateur.tracing.shadow import copy_with, of_kind

VERSION = 1
MAX_CLASSES = 2**20  # of a head that is read from a file
KIND = "head"


@dataclass(frozen=True, kw_only=True)
class Head:
    """The layers that give class scores, made anew for another number of classes.

    Attributes:
        model: name of the class that it was made for.
        layers: paths of the modules that the class axis runs through, each made anew.
        tensors: their parameters and buffers, each with the dim that has one position a class.
        before, after: classes.
        settings: attributes of modules that hold the number of classes.
        labels: names of the new classes, for configs that hold such (``id2label``); empty for LABEL_0, LABEL_1, ...
        seed: of the fresh weights.
    """

    model: str
    layers: tuple[str, ...]
    tensors: tuple[tuple[str, int], ...]
    before: int
    after: int
    settings: tuple[tuple[str, str], ...] = ()
    labels: tuple[str, ...] = ()
    seed: int = 0

    @property
    def rewrites(self) -> tuple[str, ...]:
        """Nothing: the class stays."""
        return ()

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors' names."""
        return tuple(name for name, _ in self.tensors)

    def apply(self, model: nn.Module) -> nn.Module:
        """The model with the new head, as a new module; the one given is untouched.

        The new layers are of the old ones' kinds, and start as a layer of that kind does, from the seed; everything
        else keeps its values.

        Raises:
            SurgeryError: the model is not of the architecture that this was made for.
        """
        self._check_fit(model)
        tensors = named_tensors(model)
        dims = {id(tensors[name]): dim for name, dim in self.tensors}
        with torch.inference_mode(False):
            made = copy_with(
                model, lambda t: of_kind(t, self._room(t, dims[id(t)]) if id(t) in dims else t.detach().clone())
            )
            set_attributes(made, [(Attribute(path, name), self.after) for path, name in self.settings])
            self._start([made.get_submodule(path) for path in self.layers])
            for name, tensor in named_tensors(made).items():
                if name in self.names and isinstance(tensor, nn.Parameter):
                    tensor.requires_grad_(True)  # whoever froze the old one did not mean the new one
        name_classes(made, self.labels or tuple(f"LABEL_{k}" for k in range(self.after)), self.before)
        remember(made, "plans", (*(recall(model, "plans") or ()), self))
        return made

    def _room(self, tensor: Tensor, dim: int) -> Tensor:
        """Zeros for the new classes, of the tensor's kind."""
        shape = [self.after if k == dim else size for k, size in enumerate(tensor.shape)]
        return tensor.new_zeros(shape)

    def _start(self, layers: list[nn.Module]) -> None:
        """Fresh values, from the seed; the global random state stays what it was."""
        cuda = {t.device for layer in layers for t in layer.parameters() if t.device.type == "cuda"}
        with torch.random.fork_rng(devices=list(cuda)), torch.no_grad():
            torch.manual_seed(self.seed)
            for layer in layers:
                update(layer)
                start: Any = getattr(layer, "reset_parameters", None)
                if callable(start):
                    start()
                else:  # transformers' Conv1D, which starts so
                    nn.init.normal_(cast("Tensor", layer.weight), std=0.02)
                if isinstance(out := getattr(layer, "nf", None), int) and out == self.before:
                    layer.nf = self.after  # type: ignore[assignment]

    def _check_fit(self, model: nn.Module) -> None:
        present, places = named_tensors(model), dict(Walk(model).places)
        wrong: list[str] = []
        for name, dim in self.tensors:
            shape = list(present[name].shape) if name in present else None
            if shape is None or dim >= len(shape) or shape[dim] != self.before:
                found = "missing" if shape is None else f"{shape}"
                wrong.append(f"{name} is {found}, and should have {self.before} classes along dim {dim}")
        owned = set(map(_owner, self.names))
        for path in self.layers:
            layer = places.get(path)
            if layer is None or path not in owned:
                wrong.append(f"there is no layer {path!r} with classes")
            elif not callable(getattr(layer, "reset_parameters", None)) and type(layer).__name__ != "Conv1D":
                wrong.append(f"{path!r} is a {type(layer).__name__}, which no new one can be made of")
        wrong += [
            f"{name} is in none of the layers" for name in self.names if name.rpartition(".")[0] not in self.layers
        ]
        for path, name in self.settings:
            if path not in places or _read(places[path], name) != self.before:
                wrong.append(f"{path}.{name} is not {self.before}".lstrip("."))
        if wrong:
            raise SurgeryError(
                f"the new head was made for another architecture ({self.model}) than this {type(model).__name__}: "
                f"{'; '.join(wrong[:3])}{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''}. Apply it to a model "
                "of the original sizes."
            )

    # ------------------------------------------------------------------ JSON

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "kind": KIND,
            "version": VERSION,
            "model": self.model,
            "layers": list(self.layers),
            "tensors": [{"name": name, "dim": dim} for name, dim in self.tensors],
            "before": self.before,
            "after": self.after,
            "settings": [{"module": path, "attribute": name} for path, name in self.settings],
            "labels": list(self.labels),
            "seed": self.seed,
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "Head":
        """Read what `to_dict` wrote.

        Raises:
            ArtifactError: it is no head, or one of another version.
        """
        if data.get("version") != VERSION:
            raise ArtifactError(f"a head of version {data.get('version')!r}; this secateur reads version {VERSION}")
        try:
            head = Head(
                model=strict.text(data["model"]),
                layers=tuple(strict.text(path) for path in strict.items(data["layers"])),
                tensors=tuple(
                    (strict.text(t["name"]), strict.whole(t["dim"], 0, 8)) for t in strict.items(data["tensors"])
                ),
                before=strict.whole(data["before"], 2, MAX_SIZE),
                after=strict.whole(data["after"], 2, MAX_CLASSES),
                settings=tuple(
                    (strict.text(s["module"]), _attribute(s["attribute"])) for s in strict.items(data["settings"])
                ),
                labels=tuple(strict.text(label) for label in strict.items(data["labels"])),
                seed=strict.whole(data["seed"], -(2**63), 2**64),
            )
            if not head.tensors or not head.layers:
                raise ValueError("a head has at least one layer and one tensor")
            if head.labels and len(set(head.labels)) != head.after:
                raise ValueError(f"{len(set(head.labels))} names for {head.after} classes")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"not a head that secateur wrote: {type(error).__name__}: {error}") from error
        return head


def name_classes(model: nn.Module, labels: tuple[str, ...], before: int) -> None:
    """Tell a config that hangs on the model, as those of Hugging Face do, how many classes there are, and their names.

    Args:
        model: changed in place; its config is its own.
        labels: a name for each class.
        before: how many classes the config speaks of so far; one that speaks of others is left alone.
    """
    config: Any = vars(model).get("config")
    if not isinstance(getattr(config, "id2label", None), dict) or len(config.id2label) != before:
        return
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: k for k, label in enumerate(labels)}
    if getattr(config, "problem_type", None) is not None:
        config.problem_type = "single_label_classification"


def _owner(name: str) -> str:
    """The path of the module that a tensor is of."""
    return name.rpartition(".")[0]


def _read(module: nn.Module, name: str) -> Any:
    try:
        return objects.get(module, name)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return None


def _attribute(value: Any) -> str:
    if not is_plain_name(strict.text(value)):
        raise ValueError(f"{value!r} is no attribute that holds a size")
    return value


def is_plain_name(name: str) -> bool:
    """Whether a name is that of an attribute like any other, neither private nor one of Python's own."""
    return name.isidentifier() and not name.startswith("_")
