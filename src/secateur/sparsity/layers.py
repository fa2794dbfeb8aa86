"""Which weights of a model may lose single numbers, and why the others may not."""

import difflib
import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from secateur.errors import ModelError, SparsityError
from secateur.modules import Walk
from secateur.sparsity.matrices import from_matrix, matrix_name, pattern_shape, to_matrix, transposed


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A weight that is looked at as a matrix (rows, cols) of outputs by inputs.

    Attributes:
        name: the parameter's first name in the model.
        names: all of its names; tied weights have several.
        parameter: the weight itself.
        transposed: it is held as (inputs, outputs).
        groups: of a convolution; each has inputs of its own.
    """

    name: str
    names: tuple[str, ...]
    parameter: nn.Parameter
    transposed: bool = False
    groups: int = 1

    @property
    def matrix(self) -> Tensor:
        """The weight as a matrix (rows, cols)."""
        return to_matrix(self.parameter.detach(), transposed=self.transposed)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        rows = self.pattern_shape[0] * self.groups
        return rows, self.parameter.numel() // max(rows, 1)

    @property
    def pattern_shape(self) -> tuple[int, int]:
        """What a pattern has to divide: rows of a group, and columns at one place of a convolution's window."""
        return pattern_shape(self.parameter, transposed=self.transposed, groups=self.groups)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Outputs, inputs, and the window of a convolution."""
        rows, cols = self.pattern_shape
        return (rows * self.groups, cols, *self.parameter.shape[2:])

    def unfold(self, matrix: Tensor) -> Tensor:
        """A matrix, or a mask (rows, cols), in the shape of the parameter."""
        return from_matrix(matrix, self.parameter, transposed=self.transposed)


@dataclass(frozen=True, kw_only=True)
class Layers:
    """The weights of a model.

    Attributes:
        chosen: those that are to be pruned, by name, in the model's order.
        left: why other weights are left as they are, by name.
    """

    chosen: dict[str, Layer]
    left: dict[str, str]


def find_layers(model: nn.Module, only: Iterable[str] = (), ignore: Iterable[str] = ()) -> Layers:
    """The weights that may be pruned: of linear layers, convolutions, transformers' ``Conv1D``. Tied ones count once.

    Embeddings, and weights tied to one, are left out unless ``only`` names them: their rows are looked up, not summed.

    Args:
        only: names of parameters, modules, or globs; nothing else is pruned.
        ignore: the same; these are not pruned.

    Raises:
        SparsityError: a name that names nothing, or none is left.
    """
    only, ignore = listed(only), listed(ignore)
    homes = _homes(model)
    _check_names(homes, (*only, *ignore), type(model).__name__)
    chosen: dict[str, Layer] = {}
    left: dict[str, str] = {}
    for home in homes.values():
        names = [name for name, _ in home]
        reason = _why_not(home, asked=named(names, only))
        if not reason and only and not named(names, only):
            reason = "not among only="
        if not reason and named(names, ignore):
            reason = "among ignore="
        if reason:
            left[names[0]] = reason
        else:
            chosen[names[0]] = _layer(home)
    if not chosen:
        said = "; ".join(f"{name}: {reason}" for name, reason in list(left.items())[:5])
        raise SparsityError(
            f"no weight of this {type(model).__name__} is left to be pruned ({said or 'it has no matrix'}): ask for "
            "fewer exceptions"
        )
    return Layers(chosen=chosen, left=left)


Home = list[tuple[str, nn.Module]]
"""Every name of one parameter, with the module that holds it there."""


def _homes(model: nn.Module) -> dict[int, Home]:
    """All parameters that are matrices, or more, by id."""
    homes: dict[int, Home] = {}
    for path, module in Walk(model).places:
        for name, tensor in module._parameters.items():
            if tensor is not None and tensor.dim() > 1:
                homes.setdefault(id(tensor), []).append((f"{path}.{name}".lstrip("."), module))
    return homes


def _why_not(home: Home, *, asked: bool) -> str:
    """Why a weight is left as it is; empty where it can be pruned."""
    for name, module in home:
        own = name.rpartition(".")[2]
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            if not asked:
                return "it is an embedding, or tied to one: name it in only= to prune it"
        elif parametrize.is_parametrized(module) or "parametrizations" in name.split("."):
            return "it is parametrized: make it plain first, with torch.nn.utils.parametrize.remove_parametrizations"
        elif own != matrix_name(module):
            return f"{own} of {type(module).__name__} is no matrix of a linear layer or a convolution"
    tensor = _parameter(home)
    if not tensor.is_floating_point():
        return f"its numbers are {str(tensor.dtype).removeprefix('torch.')}"
    return "" if tensor.numel() else "it is empty"


def _parameter(home: Home) -> nn.Parameter:
    name, module = home[0]
    tensor = module._parameters[name.rpartition(".")[2]]
    assert tensor is not None
    return tensor


def _layer(home: Home) -> Layer:
    module = next((m for _, m in home if matrix_name(m)), home[0][1])
    return Layer(
        name=home[0][0],
        names=tuple(name for name, _ in home),
        parameter=_parameter(home),
        transposed=transposed(module),
        groups=int(getattr(module, "groups", 1)),
    )


def listed(patterns: Iterable[str] | None) -> list[str]:
    """What ``only`` and ``ignore`` are given, as a list; one name stands for itself, None for no name.

    Raises:
        SparsityError: something in it is no name.
    """
    given: Any = () if patterns is None else patterns
    names = [given] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
    if odd := [type(name).__name__ for name in names if not isinstance(name, str)]:
        raise SparsityError(
            f"only= and ignore= got {', '.join(odd[:5])}: give names of parameters or modules, or globs, such as "
            "['head', '*.attention']"
        )
    return names


def asked_for(model: nn.Module, only: Iterable[str], ignore: Iterable[str]) -> set[str]:
    """All names of the matrices that ``only`` and ``ignore`` leave.

    Raises:
        SparsityError: a name that names nothing.
    """
    only, ignore, homes = listed(only), listed(ignore), _homes(model)
    _check_names(homes, (*only, *ignore), type(model).__name__)
    places = [[name for name, _ in home] for home in homes.values()]
    left = [names for names in places if (not only or named(names, only)) and not named(names, ignore)]
    return {name for names in left for name in names}


def named(names: Iterable[str], patterns: Iterable[str]) -> bool:
    """Whether a pattern names a parameter: by one of its names, by a module that it lies in, or by a glob.

    >>> named(["model.head.weight"], ["head"]), named(["model.head.weight"], ["*.head"])
    (False, True)
    """
    places = {place for name in names for place in (name, name.rpartition(".")[0])}
    return any(
        place == pattern or place.startswith(pattern + ".") or fnmatch.fnmatchcase(place, pattern)
        for pattern in patterns
        for place in places
    )


def _check_names(homes: Mapping[int, Home], patterns: Iterable[str], model: str) -> None:
    """Refuse patterns that name nothing at all: they are typing errors."""
    known = {name for home in homes.values() for name, _ in home}
    if lost := [p for p in patterns if not any(named([name], [p]) for name in known)]:
        places = sorted({place for name in known for place in (name, name.rpartition(".")[0])})
        near = difflib.get_close_matches(lost[0], places, 3)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise SparsityError(f"{', '.join(map(repr, lost))} name no weight and no module with one in {model}.{hint}")


def check_weights(layers: Mapping[str, Layer]) -> None:
    """Refuse weights that are not there, or are NaN or infinite; all of them at once.

    Raises:
        ModelError: naming them.
    """
    absent = [name for name, layer in layers.items() if layer.parameter.is_meta]
    if absent:
        raise ModelError(f"{', '.join(absent[:5])} are on the meta device: load the weights first")
    ends = {name: layer.parameter.detach().aminmax() for name, layer in layers.items()}
    bad = [name for name, (low, high) in ends.items() if not (low.isfinite() and high.isfinite())]
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise ModelError(f"NaN or infinite weights in {', '.join(bad[:5])}{more}: load sound weights")
