"""Modules as few people write them, which are to be pruned all the same, or refused with a reason."""

import copy
import functools
import math
import threading
from collections import namedtuple
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor, nn

import secateur as sc
from secateur.errors import ModelError

X = torch.randn(5, 4)


class Net(nn.Module):
    """4 -> 8 -> 12 -> 3; ``use`` says what happens to the 8."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 12), nn.Linear(12, 3)

    def use(self, h: Tensor) -> Tensor:
        return h

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.use(self.a(x).relu())).relu())


def pruned(model: nn.Module, **settings: Any) -> Any:
    result = sc.prune(model, X, keep=0.5, **settings)
    assert result.proof.status == "proved"
    with torch.no_grad():
        assert result.model(torch.randn(2, 4)).shape == (2, 3)
    assert result.model.b.out_features == 6
    return result


# ---------------------------------------------------------------------- where a size is kept


class Slots(Net):
    """Attributes outside ``__dict__``, which torch's own copies leave out."""

    __slots__ = ("note", "width")

    def __init__(self) -> None:
        super().__init__()
        self.width, self.note = 8, "kept"

    def use(self, h: Tensor) -> Tensor:
        return h.view(-1, self.width)


class ReadOnly(Net):
    """A property over a private attribute, and one over a layer."""

    def __init__(self) -> None:
        super().__init__()
        self._width = 8

    @property
    def width(self) -> int:
        return self._width

    @property
    def also(self) -> int:
        return self.a.out_features

    def use(self, h: Tensor) -> Tensor:
        return h.view(-1, self.width).view(-1, self.also)


@dataclass(frozen=True)
class Config:
    width: int = 8
    name: str = "small"


class Frozen(Net):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def use(self, h: Tensor) -> Tensor:
        return h.view(-1, self.config.width)


class Guarded(Net):
    """Attributes may be set once."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 8

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "width" and name in vars(self):
            raise FrozenInstanceError("width may be set once")
        super().__setattr__(name, value)

    def use(self, h: Tensor) -> Tensor:
        return h.view(-1, self.width)


class Delegating(Net):
    """Finds missing attributes on a layer of its own."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("a"), name)

    def use(self, h: Tensor) -> Tensor:
        return h.view(-1, self.out_features)


class Permissive(Net):
    """Finds None for every missing attribute."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return None


@pytest.mark.parametrize("build", [Slots, ReadOnly, lambda: Frozen(Config()), Guarded, Delegating, Permissive])
def test_sizes_follow_wherever_they_are_kept_and_the_class_stays(build: Callable[[], nn.Module]) -> None:
    model = build()
    result = pruned(model)
    assert result.rewritten is None
    assert type(result.model) is type(model)
    assert result.model.a.out_features == 4
    assert model(X).shape == (5, 3)  # and the original is what it was


def test_slots_and_configs_hold_the_new_size_and_the_originals_the_old() -> None:
    model, config = Slots(), Config()
    small = pruned(model).model
    assert (small.width, small.note, model.width) == (4, "kept", 8)
    one, other = Frozen(config), Frozen(config)
    assert pruned(one).model.config == Config(4)
    assert other.config is one.config is config
    assert config == Config(8)


class Constant(Net):
    """A property that is a literal in disguise."""

    @property
    def width(self) -> int:
        return 8

    def use(self, h: Tensor) -> Tensor:
        return h.view(-1, self.width)


class OnTheClass(Net):
    width = 8

    def use(self, h: Tensor) -> Tensor:
        return h.view(-1, self.width)


class Named(Net):
    def __init__(self) -> None:
        super().__init__()
        self.sizes = namedtuple("Sizes", "width depth")(8, 2)

    def use(self, h: Tensor) -> Tensor:
        return h.view(-1, self.sizes.width)


class MadeUp(Net):
    def __getattr__(self, name: str) -> Any:
        return int(name.removeprefix("width_")) if name.startswith("width_") else super().__getattr__(name)

    def use(self, h: Tensor) -> Tensor:
        return h.view(-1, self.width_8)


@pytest.mark.parametrize("build", [Constant, OnTheClass, Named, MadeUp])
def test_sizes_that_can_not_be_set_are_rewritten_or_keep_the_width(build: Callable[[], nn.Module]) -> None:
    result = pruned(build())
    assert result.rewritten is not None
    assert result.model.a.out_features == 4
    kept = pruned(build(), keep_class=True)
    assert kept.rewritten is None
    assert kept.model.a.out_features == 8


# ---------------------------------------------------------------------- where weights are kept


class InLists(Net):
    """Layers that no one registered."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.named = [nn.Linear(8, 8), nn.Linear(8, 8)], {"last": nn.Linear(8, 8)}

    def use(self, h: Tensor) -> Tensor:
        for layer in self.hidden:
            h = layer(h)
        return self.named["last"](h)


class Bare(Net):
    """Parameters and tensors that no one registered."""

    def __init__(self) -> None:
        super().__init__()
        self.scales, self.shift = [nn.Parameter(torch.randn(8))], torch.randn(8)
        self.__dict__["hidden"] = nn.Parameter(torch.randn(8))

    def use(self, h: Tensor) -> Tensor:
        return h * self.scales[0] + self.shift + self.hidden


@pytest.mark.parametrize("build", [InLists, Bare])
def test_weights_that_no_one_registered_hold_their_neighbours_in_place(build: Callable[[], nn.Module]) -> None:
    result = pruned(build())
    assert result.model.a.out_features == 8
    reason = result.graph.frozen["a.weight:0"].frozen[0]
    assert reason.startswith(f"a tensor that is neither a parameter, a buffer nor computed from one, at {__file__}:")


def test_a_function_that_closes_over_the_model_holds_its_layers_in_place() -> None:
    class Closing(Net):
        def __init__(self) -> None:
            super().__init__()
            self.d = nn.Linear(8, 8)
            self.shortcut = lambda h: self.d(h).relu()  # a copy of the model still calls this very layer

        def use(self, h: Tensor) -> Tensor:
            return self.shortcut(h)

    result = pruned(Closing())
    assert (result.model.a.out_features, result.model.d.out_features) == (8, 8)
    assert result.graph.frozen["d.weight:0"].frozen == ("the forward pass on the example inputs never reads it",)
    reason = result.graph.frozen["a.weight:0"].frozen[0]
    assert reason.startswith(
        f"a function that holds the model itself, whose d.weight it uses, and would go on using uncut, at {__file__}:"
    )


class Functions(Net):
    """A lambda, a bound method and a partial one, all as attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.act = 8, lambda h: h.relu()
        self.bound, self.partial = self.viewed, functools.partial(self.viewed, scale=2.0)

    def viewed(self, h: Tensor, scale: float = 1.0) -> Tensor:
        return scale * self.act(h).view(-1, self.width)

    def use(self, h: Tensor) -> Tensor:
        return self.partial(self.bound(h))


def test_functions_as_attributes_are_no_obstacle() -> None:
    assert pruned(Functions()).model.a.out_features == 4


# ---------------------------------------------------------------------- hooks


def test_hooks_run_and_stay() -> None:
    model = Net()
    model.b.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    model.a.register_forward_hook(lambda module, args, out: out.tanh())
    result = pruned(model)
    assert result.model.a.out_features == 4
    assert len(result.model.b._forward_pre_hooks) == len(result.model.a._forward_hooks) == 1


def test_a_literal_in_a_hook_is_named_with_its_line() -> None:
    model = Net()
    model.b.register_forward_pre_hook(lambda module, args: (args[0].view(-1, 8),))
    result = pruned(model)
    assert result.model.a.out_features == 8
    assert f"view(8) at {__file__}:" in result.graph.frozen["a.weight:0"].frozen[0]


# ---------------------------------------------------------------------- copies


class WithMemo(Net):
    def __deepcopy__(self, memo: dict[int, Any]) -> "WithMemo":
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__dict__.update({name: copy.deepcopy(value, memo) for name, value in vars(self).items()})
        return new


class WithoutMemo(Net):
    def __deepcopy__(self, memo: dict[int, Any]) -> "WithoutMemo":
        new = WithoutMemo()
        new.load_state_dict(self.state_dict())
        return new


class Itself(Net):
    def __deepcopy__(self, memo: dict[int, Any]) -> "Itself":
        return self


def test_a_deepcopy_of_the_users_own_works_if_it_hands_on_its_memo() -> None:
    assert pruned(WithMemo()).model.a.out_features == 4


@pytest.mark.parametrize("build", [WithoutMemo, Itself])
def test_one_that_does_not_is_refused(build: Callable[[], nn.Module]) -> None:
    """Else nothing would be removed, and nothing silenced, and the proof would hold."""
    with pytest.raises(ModelError, match=r"has a a\.weight of its own: a __deepcopy__ in it does not hand on its memo"):
        sc.prune(build(), X, keep=0.5)


class Equipped(Net):
    """Holds a lock, a file and a Python module, which no deep copy takes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.lock, self.log, self.library = threading.Lock(), open(path, "w"), math  # noqa: SIM115

    def use(self, h: Tensor) -> Tensor:
        with self.lock:
            print(h.shape[1], file=self.log)
        return h * self.library.pi


def test_locks_files_and_modules_are_shared_with_the_copy(tmp_path: Path) -> None:
    model = Equipped(tmp_path / "log")
    with model.log:
        small = pruned(model).model
        assert (small.lock, small.log, small.library) == (model.lock, model.log, math)
        assert small.a.out_features == 4


def test_a_model_in_a_parallel_wrapper_is_refused_with_what_to_pass(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(Net())
        with pytest.raises(ModelError, match=r"wrapped in DistributedDataParallel .* Pass the module inside"):
            sc.prune(wrapped, X, keep=0.5)
        assert pruned(wrapped.module).model.a.out_features == 4
    finally:
        torch.distributed.destroy_process_group()


def test_lazy_layers_are_refused_until_they_have_shapes() -> None:
    model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(ModelError, match=r"^0\.weight has no shape yet: call the model once"):
        sc.trace(model, X)
    with pytest.raises(ModelError, match=r"^0\.weight has no shape yet"):
        sc.prune(model, X, keep=0.5)
    model(X)
    assert sc.prune(model, X, keep=0.5).model[0].out_features == 4  # type: ignore[index,operator]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_compiled_code_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(ModelError, match=r"the model is compiled by torch\.jit"):
        sc.prune(torch.jit.script(model), X, keep=0.5)
    with pytest.raises(ModelError, match=r"^1 is compiled by torch\.jit"):
        sc.trace(nn.Sequential(nn.Linear(4, 4), torch.jit.script(nn.Linear(4, 8)), nn.Linear(8, 3)), X)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_parts_that_torch_compiled_run_as_they_are_written() -> None:
    class Compiled(Net):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.compile(nn.Sequential(nn.Linear(4, 8), nn.Tanh()), backend="eager", fullgraph=True)  # type: ignore[assignment]
            self.gate = torch.compile(lambda h: h * h.sigmoid(), backend="eager", fullgraph=True)

        def use(self, h: Tensor) -> Tensor:
            return self.gate(h)

    assert pruned(Compiled()).model.a._orig_mod[0].out_features == 4
    whole = torch.compile(Net(), backend="eager")
    assert pruned(whole).model.b.out_features == 6  # type: ignore[arg-type]


# ---------------------------------------------------------------------- state


class Counting(Net):
    """Counts its calls and keeps notes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.notes = 5, ["made"]

    def use(self, h: Tensor) -> Tensor:
        self.calls += 1
        self.notes.append(f"{h.shape[1]} wide")
        return h


class Averaging(Net):
    """Puts a new buffer in the place of the old one."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(8))

    def use(self, h: Tensor) -> Tensor:
        self.average = 0.9 * self.average + 0.1 * h.detach().mean(0)
        return h - self.average


class Filling(Net):
    """Fills a buffer at the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", None)

    def use(self, h: Tensor) -> Tensor:
        if self.mask is None:
            self.mask = torch.ones(h.shape[1])
        return h * self.mask


class Writing(Net):
    """Writes into its buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.ones(8))

    def use(self, h: Tensor) -> Tensor:
        self.last.copy_(h.detach().mean(0))
        return h * self.last


@pytest.mark.parametrize("build", [Counting, Averaging, Filling, Writing])
def test_what_forward_changes_is_left_as_it_was(build: Callable[[], nn.Module]) -> None:
    model = build()
    before = copy.deepcopy({name: value for name, value in vars(model).items() if not name.startswith("_")})
    buffers = {name: t.clone() for name, t in model.named_buffers()}
    assert pruned(model).model.a.out_features == 4
    assert {name: value for name, value in vars(model).items() if not name.startswith("_")} == before
    after = dict(model.named_buffers())
    assert after.keys() == buffers.keys()
    assert all(torch.equal(after[name], t) for name, t in buffers.items())


def test_a_cache_that_was_filled_before_shrinks_with_the_rest() -> None:
    model = Filling()
    model(X)
    assert pruned(model).model.mask.shape == (4,)
    assert model.mask.shape == (8,)  # type: ignore[union-attr]


def test_a_model_that_counts_is_not_captured_at_its_first_call() -> None:
    class Alternating(Net):
        """Another branch at every other call: a graph would take the first one for ever."""

        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def use(self, h: Tensor) -> Tensor:
            self.calls += 1
            return h.view(-1, 8) if self.calls % 2 else 2 * h.view(-1, 8)

    result = pruned(Alternating())
    assert result.rewritten is None
    assert "forward changes the attribute calls" in result.graph.frozen["a.weight:0"].frozen[0]
    first, second = result.model(X), result.model(X)
    assert not torch.equal(first, second)
