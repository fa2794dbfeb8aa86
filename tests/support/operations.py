"""Networks made of given layers around a function, and all that must hold of them when half of every axis goes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import secateur as sc
from secateur.pruning import Result
from secateur.tracing.running import tensors_in

torch.manual_seed(0)
ROWS, IMAGES, SEQUENCES = torch.randn(2, 4), torch.randn(2, 2, 6, 6), torch.randn(2, 5, 6)
LINES, VOLUMES = torch.randn(2, 2, 12), torch.randn(2, 2, 4, 4, 4)
IDS = torch.randint(0, 20, (2, 5))
HIDDEN, CHANNELS = "first.weight:0 hidden 12>6", "first.weight:0 channels 12>6"


class Net(nn.Module):
    """Layers, parameters and buffers by name; ``function(net, *inputs)`` is the forward pass."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.__dict__["function"] = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


Case = tuple[Net, Any, tuple[str, ...]]  # a network, its inputs, and the axes that halving prunes


def rows(function: Callable[[Tensor], Tensor], *axes: str, out: int = 12) -> Case:
    """(N, 4) -> linear -> (N, 12) -> function -> (N, out) -> linear -> (N, 3)."""
    net = Net(lambda net, x: net.last(function(net.first(x))), first=nn.Linear(4, 12), last=nn.Linear(out, 3))
    return net, ROWS, axes or (HIDDEN,)


def images(function: Callable[[Tensor], Tensor], *axes: str, out: int = 12) -> Case:
    """(N, 2, 6, 6) -> conv -> (N, 12, 6, 6) -> function -> (N, out, ...) -> conv -> (N, 3, ...)."""
    first, last = nn.Conv2d(2, 12, 3, padding=1), nn.Conv2d(out, 3, 1)
    return Net(lambda net, x: net.last(function(net.first(x))), first=first, last=last), IMAGES, axes or (CHANNELS,)


def chain(x: Tensor, *layers: nn.Module, axes: tuple[str, ...]) -> Case:
    """Layers ``a``, ``b``, ... one after the other, a ReLU before the last."""
    parts = dict(zip("abcd", layers, strict=False))

    def forward(net: Net, x: Tensor) -> Tensor:
        *inner, last = (getattr(net, name) for name in parts)
        for layer in inner:
            x = layer(x)
        return last(x.relu())

    return Net(forward, **parts), x, axes


def halved(model: nn.Module, args: Any, *axes: str, other: Any = None) -> Result:
    """Prune half of every axis, and demand that these and no others go, each a text ``name kind before>after``; that
    the result runs on other inputs (one sample more, where none are given), trains, and says what it is.
    """
    model.eval()
    result = sc.prune(model, args, keep=0.5)
    got = {f"{a['name']} {a['kind']} {a['before']}>{a['after']}" for a in result.axes}
    assert got == set(axes), {n: a.frozen for n, a in result.graph.frozen.items()}
    assert result.proof.status == "proved"
    assert not result.graph.unknown
    assert result.rewritten is None
    inputs = args if isinstance(args, tuple) else (args,)
    more = tree_map(lambda t: torch.cat([t, t[:1]]) if isinstance(t, Tensor) else t, inputs) if other is None else other
    small = [tuple(t.shape) for t in tensors_in(result.model(*more))]
    assert small == [tuple(t.shape) for t in tensors_in(model(*more))]
    trains(result.model, inputs)
    for layer in result.model.modules():
        says_what_it_is(layer)
    return result


def trains(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """One backward step reaches something, and every gradient is finite."""
    model.zero_grad()
    outputs = [t for t in tensors_in(model(*inputs)) if t.is_floating_point() or t.is_complex()]
    torch.stack([t.abs().pow(2).sum() for t in outputs]).sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(bool(g.isfinite().all()) for g in gradients)


def says_what_it_is(layer: nn.Module) -> None:
    """A standard layer made from what ``print`` shows has tensors of the same shapes."""
    if type(layer) not in vars(nn).values() or list(layer.children()) or not list(layer.parameters()):
        return
    if layer._forward_pre_hooks:  # its weight is computed, and called otherwise
        return
    again = eval(repr(layer), {**vars(nn)})
    assert {n: t.shape for n, t in again.state_dict().items()} == {n: t.shape for n, t in layer.state_dict().items()}
