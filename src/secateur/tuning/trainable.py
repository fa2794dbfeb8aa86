"""Training only what pays: a few parameters, or low-rank changes of weights, the rest as it is."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from secateur.errors import TrainingError
from secateur.modules import named_parameters, named_parts
from secateur.tuning.low_rank import LowRank, adapted, choose
from secateur.zeros import zeros_kept

What = str | LowRank | Iterable[str] | Callable[[str, Tensor], bool]
NAMES = ("all", "norms", "biases", "norms+biases", "head", "low-rank")


@dataclass(frozen=True, kw_only=True)
class Trainable:
    """What trains while `trainable` lasts.

    Attributes:
        parameters: those that train, by name.
        count: numbers in them.
        total: numbers in all parameters of the model, as it was.
        left_out: weights that low-rank changes were asked for but can't be given, with the reason.
    """

    parameters: dict[str, nn.Parameter]
    count: int
    total: int
    left_out: Mapping[str, str]

    @property
    def share(self) -> float:
        """Numbers that train by those of the model; low-rank changes come on top of these."""
        return self.count / self.total

    def __str__(self) -> str:
        left = f"; {len(self.left_out)} weights left out: {', '.join(self.left_out)}" if self.left_out else ""
        return f"{self.count:,} parameters train, {self.share:.2%} of {self.total:,}{left}"


@contextmanager
def trainable(
    model: nn.Module, what: What = "all", *, freeze_statistics: bool = False, keep_zeros: bool = True
) -> Generator[Trainable]:
    """Let only some parameters train while the context lasts; make optimizers inside.

    Afterwards every ``requires_grad`` is what it was, low-rank changes are part of the weights, and the model has the
    modules, classes and keys of ``state_dict`` that it had: also after an exception, with what was trained till then.

    Batch norms go on as usual: they normalise by the batch, and their running statistics follow. A pruned network needs
    that, since its statistics are the dense network's. With ``freeze_statistics`` they normalise by what they have, and
    that stays: for batches of a few samples, or where nothing but the trained parameters may change.

    Args:
        model: its parameters may be tied, and its class replaced by a graph.
        what: "all": every parameter that has ``requires_grad`` already. Any other choice sets it for what it names.
            "norms": weights and biases of normalising layers (Frankle et al. 2020, arXiv:2003.00152, train these
            alone); layers of other packages count by the name of their class, if all of their parameters are vectors.
            "biases": of all layers (Ben Zaken et al. 2022, "BitFit", arXiv:2106.10199).
            "norms+biases": both.
            "head": the layer that gives the output: what ``get_output_embeddings()`` or ``get_classifier()`` names,
            else the last linear or convolutional layer in the model's own order.
            "low-rank", or a `LowRank` with settings.
            Anything else: names of parameters or modules, or glob patterns of parameters' names; or a callable
            ``(name, parameter) -> bool``.
        freeze_statistics: whether batch norms keep their running statistics.
        keep_zeros: whether low-rank changes leave weights at zero that `secateur.sparsify` removed.

    Yields:
        What trains, and how much that is. It prints.

    Raises:
        TrainingError: nothing would train; a pattern fits no parameter.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2))
        >>> with trainable(net, "norms") as chosen:
        ...     print(chosen)
        16 parameters train, 21.62% of 74
    """
    before = {id(p): (p, p.requires_grad) for p in named_parameters(model).values()}
    total = sum(p.numel() for p, _ in before.values())
    method = LowRank() if isinstance(what, str) and what == "low-rank" else what
    with _statistics(model, frozen=freeze_statistics):
        try:
            if isinstance(method, LowRank):
                targets, left_out = choose(model, method)
                for parameter, _ in before.values():
                    parameter.requires_grad_(False)
                masks = zeros_kept(model) if keep_zeros else {}
                with adapted(targets, method, masks) as factors:
                    yield _chosen(factors, total, left_out)
            else:
                yield _chosen(_select(model, method), total, {})
        finally:
            for parameter, trains in before.values():
                parameter.requires_grad_(trains)


def _chosen(parameters: dict[str, nn.Parameter], total: int, left_out: Mapping[str, str]) -> Trainable:
    own = {id(p): p.numel() for p in parameters.values()}
    return Trainable(parameters=parameters, count=sum(own.values()), total=total, left_out=left_out)


def _select(model: nn.Module, what: str | Iterable[str] | Callable[[str, Tensor], bool]) -> dict[str, nn.Parameter]:
    """Let the parameters that are named train, and no others; which these are."""
    named = named_parameters(model)
    if isinstance(what, str) and what == "all":
        chosen = {id(p) for p in named.values() if p.requires_grad}
    else:
        can = {name: p for name, p in named.items() if p.is_floating_point() or p.is_complex()}
        chosen = {id(can[name]) for name in _names(model, can, what)}
    if not chosen:
        raise TrainingError(
            f"nothing to train: no parameter of {type(model).__name__} is of what={what!r}. Choose among "
            f"{', '.join(NAMES)}, patterns of names such as 'layer4.*', or requires_grad=True for some"
        )
    for parameter in named.values():
        parameter.requires_grad_(id(parameter) in chosen)
    first = {id(p): name for name, p in reversed(named.items())}
    return {first[at]: named[first[at]] for at in first if at in chosen}


def _names(model: nn.Module, named: Mapping[str, Tensor], what: Any) -> Iterator[str]:
    """The names of the parameters that are asked for; some may be of tied ones."""
    if callable(what):
        yield from (name for name, parameter in named.items() if what(name, parameter))
    elif what == "head":
        yield from _within(named, _heads(model))
    elif what in ("norms", "biases", "norms+biases"):
        if "biases" in what:
            yield from (name for name in named if "bias" in name.rpartition(".")[2])
        if "norms" in what:
            yield from _within(named, [path for path, module in named_parts(model) if is_norm(module)])
    else:
        yield from _matching(named, (what,) if isinstance(what, str) else tuple(what))


def _matching(named: Mapping[str, Tensor], patterns: Iterable[str]) -> Iterator[str]:
    found = {p: [n for n in named if fnmatchcase(n, p) or n.startswith(f"{p}.")] for p in patterns}
    lost = [pattern for pattern, names in found.items() if not names]
    if lost:
        raise TrainingError(
            f"what={lost} fit no parameter. It is one of {', '.join(NAMES)}, or names and patterns such as "
            f"{', '.join(list(named)[:3])}"
        )
    for names in found.values():
        yield from names


def _within(named: Mapping[str, Tensor], paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        yield from (name for name in named if name.startswith(f"{path}." if path else ""))


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalising layer with parameters of its own, torch's or another's."""
    own = [p for p in module._parameters.values() if p is not None]
    named = "norm" in type(module).__name__.lower() and not module._modules and all(p.dim() == 1 for p in own)
    return bool(own) and (isinstance(module, _NormBase | nn.GroupNorm | nn.LayerNorm | nn.RMSNorm) or named)


def _heads(model: nn.Module) -> list[str]:
    """The paths of the layers that give the output."""
    paths = {id(module): path for path, module in named_parts(model)}
    for ask in ("get_output_embeddings", "get_classifier"):
        asked: Any = getattr(model, ask, None)
        layer: Any = asked() if callable(asked) else None
        if isinstance(layer, nn.Module) and id(layer) in paths and any(True for _ in layer.parameters()):
            return [paths[id(layer)]]
    layers = [path for path, m in named_parts(model) if isinstance(m, nn.Linear | _ConvNd)]
    return layers[-1:]


@contextmanager
def _statistics(model: nn.Module, *, frozen: bool) -> Generator[None]:
    """Let batch norms run as in evaluation, whatever mode a loop sets."""
    norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.track_running_stats] if frozen else []
    modes = [(norm, norm.training) for norm in norms]
    handles = [norm.register_forward_pre_hook(_as_in_evaluation) for norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for norm, training in modes:
            norm.training = training


def _as_in_evaluation(module: nn.Module, args: Any) -> None:
    module.training = False
