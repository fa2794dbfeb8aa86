"""Low-rank changes of weights, which become part of the weights at the end.

Shape letters: O rows of a weight (its first dim), I the product of its other dims, R the rank.
"""

import math
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from secateur.errors import TrainingError
from secateur.modules import Walk

CONV1D = "Conv1D"  # of transformers: a linear layer whose weight is (in, out)
Places = list[tuple[nn.Module, str]]
"""Where one weight is held: modules, and its name on each."""


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """Changes of weights as products of two thin matrices: weight + alpha / rank (B @ A), of which only these train.

    Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685. B, (O, R), starts at zero
    and A, (R, I), at random, so that training starts from the model as it is.
    Differs: convolutions' weights, (O, I/groups, kernel), are taken as matrices (O, I/groups * kernel); a tied weight
    gets one change for all of its places.

    Args:
        rank: R, at least 1; at most the smaller side of each weight.
        alpha: the scale of the change by its rank, above 0.
        only: names of modules or glob patterns of weights' names; empty for all linear and convolutional layers.
        ignore: the same for weights that stay as they are.
        seed: of A. The global random state is left as it was.

    Raises:
        TrainingError: a setting out of its range.
    """

    rank: int = 8
    alpha: float = 16
    only: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = [f"rank={self.rank} must be at least 1"] * (self.rank < 1)
        wrong += [f"alpha={self.alpha} must be above 0"] * (not 0 < self.alpha < math.inf)
        if wrong:
            raise TrainingError("; ".join(wrong))


class Product(nn.Module):
    """A weight plus its change, which leaves removed weights at zero.

    Attributes:
        a: (R, I).
        b: (O, R).
        mask: bool, in the weight's shape, True = stays; None for a weight that is not sparse.
    """

    def __init__(
        self, weight: Tensor, settings: LowRank, generator: torch.Generator, mask: Tensor | None = None
    ) -> None:
        super().__init__()
        self.mask = mask
        rows, columns = weight.shape[0], weight[0].numel()
        rank = min(settings.rank, rows, columns)
        wide = torch.promote_types(weight.dtype, torch.float32)
        bound = 1 / math.sqrt(columns)  # as torch draws the weights of linear layers, and LoRA draws A
        a = torch.empty(rank, columns, dtype=wide).uniform_(-bound, bound, generator=generator)
        self.a = nn.Parameter(a.to(weight.device))
        self.b = nn.Parameter(torch.zeros(rows, rank, dtype=wide, device=weight.device))
        self.scale = settings.alpha / settings.rank

    def forward(self, weight: Tensor) -> Tensor:
        change = (self.scale * (self.b @ self.a)).reshape(weight.shape).to(weight.dtype)
        return weight + (change if self.mask is None else change * self.mask.to(change.device))


def choose(model: nn.Module, settings: LowRank) -> tuple[dict[str, Places], dict[str, str]]:
    """The weights that get a change, by name, with all places of each; and those that can't, with the reason.

    Raises:
        TrainingError: a pattern fits nothing, or nothing is left.
    """
    walk = Walk(model)
    places: dict[int, Places] = {}
    names: dict[int, list[str]] = {}
    for path, module in walk.places:
        for role, tensor in module._parameters.items():
            if tensor is not None:
                names.setdefault(id(tensor), []).append(f"{path}.{role}".removeprefix("."))
                if not any(held is module and name == role for held, name in places.setdefault(id(tensor), [])):
                    places[id(tensor)].append((module, role))
    asked = _asked(walk, settings)
    chosen: dict[str, Places] = {}
    left_out: dict[str, str] = {}
    for at, name in {at: known[0] for at, known in names.items() if not asked.isdisjoint(known)}.items():
        reason = next((why for module, _ in places[at] if (why := _reason(module))), "")
        if reason:
            left_out[name] = reason
        else:
            chosen[name] = places[at]
    if not chosen:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items()) or "no weight is asked for"
        raise TrainingError(f"no weight gets a low-rank change ({reasons}). Choose others, or what='norms+biases'")
    return chosen, left_out


def _asked(walk: Walk, settings: LowRank) -> set[str]:
    """Names of the matrices of linear and convolutional layers that settings ask for, and of others named outright."""
    usual: set[str] = set()
    matrices: list[str] = []
    for path, module in walk.places:
        for role, tensor in module._parameters.items():
            if tensor is not None and tensor.dim() > 1 and tensor.is_floating_point():
                name = f"{path}.{role}".removeprefix(".")
                matrices.append(name)
                if role == "weight" and (isinstance(module, nn.Linear | _ConvNd) or type(module).__name__ == CONV1D):
                    usual.add(name)
    computed = {
        f"{path}.{role}".removeprefix(".")
        for path, module in walk.places
        if parametrize.is_parametrized(module)
        for role in module.parametrizations  # type: ignore[union-attr]
    }
    found = {p: {n for n in (*matrices, *computed) if _fits(n, p)} for p in (*settings.only, *settings.ignore)}
    lost = [pattern for pattern in settings.only if not found[pattern]]
    if lost:
        raise TrainingError(f"only={lost} fit no weight. Weights are {', '.join(matrices[:8])}, ...")
    asked = set[str]().union(*(found[p] for p in settings.only)) if settings.only else usual
    held = {name for name in matrices if ".parametrizations." in f".{name}" and (not settings.only or name in asked)}
    return (asked | held) - set[str]().union(*(found[p] for p in settings.ignore))


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")


def _reason(module: nn.Module) -> str:
    """Why the weights of a module can't be given a change; empty where they can."""
    if isinstance(module, parametrize.ParametrizationList) or parametrize.is_parametrized(module):
        return "a parametrization computes it"
    if isinstance(module, nn.RNNBase):
        return "recurrent layers hold their weights in a list of their own"
    return ""


@contextmanager
def adapted(
    targets: Mapping[str, Places], settings: LowRank, masks: Mapping[str, Tensor] = MappingProxyType({})
) -> Generator[dict[str, nn.Parameter]]:
    """Give weights their changes; at the end these are added to the weights, and the modules are what they were.

    Args:
        targets: the places of each weight, as `choose` gives them.
        masks: of weights that are sparse, by name, True = stays.

    Yields:
        The factors, which train, by name.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    orders = {id(module): list(module._parameters) for held in targets.values() for module, _ in held}
    weights = {name: held[0][0]._parameters[held[0][1]] for name, held in targets.items()}
    factors: dict[str, nn.Parameter] = {}
    given: dict[str, Product] = {}
    done: Places = []
    try:
        for name, held in targets.items():
            weight = weights[name]
            assert weight is not None
            given[name] = product = Product(weight.detach(), settings, generator, masks.get(name))
            for module, role in held:
                product.train(module.training)
                parametrize.register_parametrization(module, role, product, unsafe=True)
                done.append((module, role))
            factors |= {f"{name}/a": product.a, f"{name}/b": product.b}
        yield factors
    finally:
        for module, role in reversed(done):
            parametrize.remove_parametrizations(module, role, leave_parametrized=False)
            _reorder(module, orders[id(module)])
        for name, product in given.items():
            _merge(weights[name], product)


def _merge(weight: Tensor | None, product: Product) -> None:
    """Add a change to its weight, in place."""
    assert weight is not None
    with torch.no_grad():
        weight.copy_(product(weight))


def _reorder(module: nn.Module, names: Collection[str]) -> None:
    """Parameters in the order in which they were: optimizers know them by it."""
    held = module._parameters
    for name in [n for n in names if n in held]:
        held[name] = held.pop(name)
