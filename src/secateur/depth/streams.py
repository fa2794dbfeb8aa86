"""Blocks at work: what goes into each and comes out of it, and how a block is skipped while the model runs.

A block's stream is the tensor that it hands on: its output, or the first tensor of it. What it was given as the stream
is the first tensor among its inputs of the same shape and type.
"""

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from secateur.inputs import fresh

Watcher = Callable[[str, Tensor, Tensor, tuple[Any, ...], dict[str, Any]], None]


@dataclass
class Call:
    """A call of a block.

    Attributes:
        args, kwargs: its inputs as they were, free to be used again through `secateur.inputs.fresh`.
        stream: the one of its inputs that it hands on.
        out: what it handed on.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    stream: Tensor
    out: Tensor

    def with_stream(self, stream: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The inputs with another stream."""
        leaves, spec = tree_flatten((self.args, self.kwargs))
        at = next(k for k, leaf in enumerate(leaves) if leaf is self.stream)
        mine = fresh([None if k == at else leaf for k, leaf in enumerate(leaves)])
        return tree_unflatten([stream if k == at else leaf for k, leaf in enumerate(mine)], spec)


@dataclass
class Calls:
    """What `watch_calls` saw.

    Attributes:
        count: how often each module was called.
        first: the first call of each that hands on something of the shape of an input.
        order: the modules, in the order in which they were called first.
    """

    count: dict[str, int] = field(default_factory=dict[str, int])
    first: dict[str, Call] = field(default_factory=dict[str, Call])

    @property
    def order(self) -> list[str]:
        return list(self.count)


def stream_out(output: Any) -> Tensor | None:
    """The tensor that a block hands on; None where there is none."""
    return next((t for t in _leaves(output) if isinstance(t, Tensor) and t.is_floating_point()), None)


def stream_in(args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Tensor) -> Tensor | None:
    """The input that the output continues; None where none is of its shape and type."""
    for leaf in tree_leaves((args, dict(kwargs))):
        if isinstance(leaf, Tensor) and leaf.shape == out.shape and leaf.dtype == out.dtype:
            return leaf
    return None


def _leaves(output: Any) -> list[Any]:
    if isinstance(output, Mapping):  # also the outputs of transformers
        return tree_leaves(list(cast("Mapping[str, Any]", output).values()))
    return tree_leaves(output)


@contextmanager
def _hooked(
    model: nn.Module, names: Iterable[str], before: Callable[[str], Any], after: Callable[[str], Any]
) -> Generator[None]:
    """Modules have the hooks that are made for their names, as long as the context lasts."""
    handles: list[Any] = []
    try:
        for name in names:
            module = model.get_submodule(name)
            handles.append(module.register_forward_pre_hook(before(name), with_kwargs=True, prepend=True))
            handles.append(module.register_forward_hook(after(name), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def watch_calls(model: nn.Module, names: Iterable[str]) -> Generator[Calls]:
    """Note how some modules are called, as long as the context lasts."""
    calls, given = Calls(), dict[str, Any]()

    def before(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            calls.count[name] = calls.count.get(name, 0) + 1
            if calls.count[name] == 1:
                given[name] = fresh((args, kwargs))

        return hook

    def after(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            out = stream_out(output)
            if name not in given or out is None:
                return
            own, named = given.pop(name)
            stream = stream_in(own, named, out)
            if stream is not None:
                calls.first[name] = Call(own, named, stream, out.detach().clone())

        return hook

    with _hooked(model, names, before, after):
        yield calls


@contextmanager
def count_calls(model: nn.Module, names: Iterable[str]) -> Generator[dict[str, int]]:
    """How often some modules are called, as long as the context lasts."""
    counts = dict.fromkeys(names, 0)

    def count(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            counts[name] += 1

        return hook

    handles = [model.get_submodule(name).register_forward_hook(count(name)) for name in counts]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def skipping(model: nn.Module, names: Iterable[str], watch: Watcher | None = None) -> Generator[None]:
    """Blocks hand on what they were given, as long as the context lasts. They run all the same, so that whatever they
    do besides (filling a cache) is done.

    Args:
        watch: called with each block's name, the stream that came in and the one that would go out, and its inputs;
            with it, nothing is skipped.
    """
    given: dict[str, Any] = {}

    def before(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:  # some blocks write to their inputs
            given[name] = tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, (args, kwargs))

        return hook

    def after(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            own, named = given.pop(name)
            out = stream_out(output)
            stream = None if out is None else stream_in(own, named, out)
            if out is None or stream is None:
                raise RuntimeError(f"{name} hands on nothing of the shape of an input")
            if watch is not None:
                watch(name, stream, out, own, named)
                return output
            return replaced(output, out, stream)

        return hook

    with _hooked(model, names, before, after):
        yield


def replaced(output: Any, old: Tensor, new: Tensor) -> Any:
    """An output with one tensor in the place of another."""
    if output is old:
        return new
    if isinstance(output, Mapping):
        made = type(output)()  # type: ignore[call-arg]
        for key, value in cast("Mapping[str, Any]", output).items():
            made[key] = replaced(value, old, new)  # type: ignore[index]
        return made
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*(replaced(v, old, new) for v in cast("tuple[Any, ...]", output)))
    if isinstance(output, tuple | list):
        return type(output)([replaced(v, old, new) for v in cast("list[Any]", output)])
    return output
