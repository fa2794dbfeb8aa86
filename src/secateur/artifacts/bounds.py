"""Bounds on what a file from anyone may make this machine do: memory, work and calls, in proportion to its size.

Under a `Meter` every operation on tensors is looked at before it runs: its output is worked out on the meta device,
where it costs nothing, and what would go beyond the limits is refused. Calls of a stored graph that work on plain
Python values are looked at by `Rehearsal` in the same way.
"""

import math
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from secateur.errors import ArtifactError

MIB = 2**20
FLOPS_PER_BYTE = 8  # arithmetic operations that take about as long as moving a byte
CUBIC = ("linalg", "cholesky", "svd", "qr", "lu_", "inverse", "eig", "lstsq", "solve", "ldl", "matrix_exp",
         "householder", "logdet", "slogdet", "pinverse", "_det")  # fmt: skip
PAIRS = ("cdist", "pdist", "trilinear", "isin")  # each value of one tensor meets many of another
# What comes out hangs on values, but is never more than this many times what goes in.
BY_VALUE = {"nonzero": 16, "masked_select": 1, "_local_scalar_dense": 1, "equal": 1, "is_nonzero": 1, "_unique2": 8,
            "unique_consecutive": 8, "unique_dim": 8, "count_nonzero": 1, "index": 1}  # fmt: skip
PARTS = {"unbind", "split", "split_with_sizes", "unsafe_split", "unbind_copy", "split_copy"}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What may be used at most.

    Attributes:
        memory: bytes held by results at once.
        work: bytes read and written, with arithmetic counted at `FLOPS_PER_BYTE`.
        calls: operations.
        consent: what the user can do to have no limits.
    """

    memory: int
    work: int
    calls: int
    consent: str = "If you trust this file, pass trust=True."

    @staticmethod
    def of_probe(size_bytes: int) -> "Limits":
        """For one run of a model that came in a file of this size: activations may be larger than weights."""
        return Limits(
            memory=64 * MIB + 64 * size_bytes, work=10**9 + 2**15 * size_bytes, calls=20_000 + size_bytes // 32
        )

    @staticmethod
    def of_build(size_bytes: int) -> "Limits":
        """For building the dense model of a pruned one in a file of this size, which is a thousandth at the least."""
        return Limits(
            memory=64 * MIB + 1024 * size_bytes, work=2 * 10**9 + 2**14 * size_bytes, calls=200_000 + size_bytes // 32
        )


class Meter(TorchDispatchMode):
    """Counts what runs under it, and refuses what goes beyond the limits before it is done.

    Args:
        limits: what may be used.
        strict: refuse operations whose output can't be foretold; else they run.

    Raises:
        ArtifactError: from the operation that would go beyond.
    """

    def __init__(self, limits: Limits, *, strict: bool) -> None:
        super().__init__()
        self.limits, self.strict = limits, strict
        self.held, self.worked, self.called = 0, 0, 0
        self._holders: dict[int, list[int]] = {}  # by address: tensors that share the memory, its bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        self._count(1 if name not in PARTS else 1 + _parts(name, args, kwargs), "calls", name)
        outputs = self._foretold(func, name, args, kwargs, inputs)
        fresh = _fresh(outputs, inputs, func)
        if self.held + fresh > self.limits.memory:
            self._refuse(f"{name} would hold {self.held + fresh} bytes, more than {self.limits.memory}")
        self._count(_work(func, name, args, kwargs, inputs, outputs), "work", name)
        out = func(*args, **kwargs)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._hold(tensor, inputs)
        return out

    def _refuse(self, what: str) -> Any:
        raise ArtifactError(
            f"this result asks for more than a file of its size may: {what}. It was damaged, or made to do harm. "
            f"{self.limits.consent}"
        )

    def _count(self, amount: int, what: str, name: str) -> None:
        if what == "calls":
            self.called += amount
            if self.called > self.limits.calls:
                self._refuse(f"{name} would be one of more than {self.limits.calls} calls")
        else:
            self.worked += amount
            if self.worked > self.limits.work:
                self._refuse(f"{name} would work on more than {self.limits.work} bytes")

    def _foretold(self, func: Any, name: str, args: Any, kwargs: Any, inputs: list[Tensor]) -> list[Any]:
        """The outputs on the meta device; where values decide, a tensor of the largest size."""
        if name in BY_VALUE and (name != "index" or any(t.dtype in (torch.bool, torch.uint8) for t in inputs[1:])):
            most = (
                BY_VALUE[name] * max((t.numel() for t in inputs), default=0) * max(1, inputs[0].dim() if inputs else 1)
            )
            return [torch.empty(most, dtype=inputs[0].dtype, device="meta")] if inputs else []
        if func.namespace not in ("aten", "prims", "prim"):
            return []  # an operation of the user's own, whose size nobody can tell
        to_meta = _ToMeta()
        try:
            given, named = tree_map(to_meta, (args, kwargs))
            if "device" in named or any(a.name == "device" for a in func._schema.arguments):
                named["device"] = torch.device("meta")
            named.pop("pin_memory", None)
            made = func(*given, **named)
        except (MemoryError, OverflowError) as error:
            return self._refuse(f"{name} has sizes that nothing has ({error})")
        except Exception as error:  # it has no form on the meta device, or values decide
            if _is_shape_error(error):
                return []  # it will fail for real in the same way
            if self.strict:
                self._refuse(f"what {name} gives can't be foretold ({type(error).__name__}: {error})")
            return []
        return [t for t in tree_leaves(made) if isinstance(t, Tensor)]

    def _hold(self, tensor: Tensor, inputs: Iterable[Tensor]) -> None:
        try:
            at, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
        except (RuntimeError, NotImplementedError):
            return
        if any(tensor is t for t in inputs) or (at not in self._holders and any(_shares(tensor, t) for t in inputs)):
            return
        if at not in self._holders:
            self._holders[at] = [0, size]
            self.held += size
        self._holders[at][0] += 1
        weakref.finalize(tensor, self._let_go, at)

    def _let_go(self, at: int) -> None:
        entry = self._holders.get(at)
        if entry is None:
            return
        entry[0] -= 1
        if not entry[0]:
            self.held -= entry[1]
            del self._holders[at]


class _ToMeta:
    """Tensors as ones on the meta device, each once."""

    def __init__(self) -> None:
        self.made: dict[int, Tensor] = {}

    def __call__(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self.made:
            self.made[id(value)] = (
                value
                if value.is_meta
                else torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
            )
        return self.made[id(value)]


def _is_shape_error(error: Exception) -> bool:
    """Whether an operation refuses its arguments, rather than having no form on the meta device."""
    if isinstance(error, NotImplementedError) or type(error).__name__ in (
        "DataDependentOutputException",
        "DynamicOutputShapeException",
        "UnsupportedOperatorException",
    ):
        return False
    words = str(error)
    return "meta" not in words and "Meta" not in words


def _parts(name: str, args: Any, kwargs: Any) -> int:
    """How many tensors a split gives."""
    tensor: Tensor = args[0]
    if name.startswith("unbind"):
        return tensor.shape[_dim(args, kwargs, 1)] if tensor.dim() else 0
    sizes = args[1] if len(args) > 1 else next(iter(kwargs.values()), 1)
    if isinstance(sizes, int):
        return math.ceil(tensor.shape[_dim(args, kwargs, 2)] / max(sizes, 1)) if tensor.dim() else 0
    return len(sizes)


def _dim(args: Any, kwargs: Any, place: int) -> int:
    dim = args[place] if len(args) > place else kwargs.get("dim", 0)
    return dim if -args[0].dim() <= dim < args[0].dim() else 0


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _fresh(outputs: list[Any], inputs: list[Tensor], func: Any) -> int:
    """Bytes of new memory that outputs take; views and outputs that are inputs take none."""
    if func.is_view or func._schema.is_mutable:
        return 0
    return sum(_bytes(t) for t in outputs)


def _shares(a: Tensor, b: Tensor) -> bool:
    try:
        return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return False


def _work(func: Any, name: str, args: Any, kwargs: Any, inputs: list[Tensor], outputs: list[Any]) -> int:
    """About how many bytes' worth of time an operation takes."""
    if func.is_view:
        return sum(_bytes(t) for t in outputs) // 1024  # nothing is moved, but nobody needs a view of any size
    moved = sum(map(_bytes, inputs)) + sum(map(_bytes, outputs))
    return moved + _arithmetic(func, name, args, kwargs, inputs, outputs) // FLOPS_PER_BYTE


def _arithmetic(func: Any, name: str, args: Any, kwargs: Any, inputs: list[Tensor], outputs: list[Any]) -> int:
    made = sum(t.numel() for t in outputs)
    if name == "_scaled_dot_product_flash_attention_for_cpu":
        return 4 * inputs[0].numel() * inputs[1].shape[-2]
    if func.overloadpacket in flop_registry and outputs:
        out = outputs[0] if len(outputs) == 1 else tuple(outputs)
        return int(flop_registry[func.overloadpacket](*args, **kwargs, out_val=out))
    if "pool" in name and len(args) > 1 and "adaptive" not in name:
        window = args[1] if isinstance(args[1], list | tuple) else [args[1]]
        return made * math.prod(int(w) for w in window) if all(isinstance(w, int) for w in window) else made
    if any(part in name for part in CUBIC):
        return sum(30 * t.numel() * max(t.shape[-2:], default=1) for t in inputs)
    if any(part in name for part in PAIRS):
        return math.prod(max(1, t.numel()) for t in inputs[:2]) if inputs else 0
    return 20 * made if "sort" in name or "fft" in name or "topk" in name else 0
