"""What a model costs: parameters, MACs, bytes, time to answer, time to train, memory."""

import contextlib
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from secateur.errors import MeasureError
from secateur.inputs import Args, Kwargs, as_call, fresh
from secateur.memory import peak_memory
from secateur.modules import Walk, check_original
from secateur.packed import pack
from secateur.rebuilding import as_module

ROUNDS = 7  # of timing; models take turns, and the median round counts
FEWEST_ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one model costs on one set of example inputs.

    Args:
        params: parameters, tied ones counted once.
        macs: multiply-accumulate operations of one forward pass over the whole example batch.
        size_bytes: size of the weights and buffers as a safetensors file, those with zeros packed as `secateur.save`
            packs them.
        latency_ms: median time of one forward pass over the example batch.
        throughput: samples per second at that latency.
        training_step_ms: median time of forward, backward and a step of SGD; None where it was not asked for, or the
            model can't take one on these inputs (see ``notes``).
        peak_memory_bytes: largest resident set of a child process that runs one forward pass, Python and torch
            included; on CUDA the most memory allocated. None where it was not asked for or can't be had.
        zeros: share of the parameters that are zeros, in [0, 1], where a layer has enough of them for sparse kernels to
            be tried; else None.
        sparse_latency_ms: like ``latency_ms``, with sparse kernels (`secateur.accelerate`) where these are faster here;
            None where none is.
        metrics: results on data, such as ``{"accuracy": 0.97}``, for whoever computes them.
        notes: why a figure is missing, and what zeros bring.
    """

    params: int
    macs: int
    size_bytes: int
    latency_ms: float
    throughput: float
    training_step_ms: float | None = None
    peak_memory_bytes: int | None = None
    zeros: float | None = None
    sparse_latency_ms: float | None = None
    metrics: dict[str, float] = field(default_factory=dict[str, float])
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The figures in the form that report.json has."""
        extra = {name for name in ("zeros", "sparse_latency_ms") if getattr(self, name) is None}
        return {name: value for name, value in asdict(self).items() if name not in {"notes", *extra}}

    def __rich__(self) -> Table:
        table = Table(show_header=False, caption="\n".join(self.notes) or None, caption_justify="left")
        table.add_column()
        table.add_column(justify="right")
        for label, text in self._rows():
            table.add_row(label, text)
        return table

    def __str__(self) -> str:
        with StringIO() as text:
            Console(file=text, width=100).print(self)
            return text.getvalue().rstrip("\n")

    def _rows(self) -> Iterable[tuple[str, str]]:
        yield "parameters", f"{self.params:,}"
        yield "MACs", f"{self.macs:,}"
        yield "file", f"{self.size_bytes:,} bytes"
        yield "latency", f"{self.latency_ms:.3g} ms"
        if self.sparse_latency_ms is not None:
            yield "with sparse kernels", f"{self.sparse_latency_ms:.3g} ms"
        if self.zeros is not None:
            yield "zeros", f"{100 * self.zeros:.1f} % of the parameters"
        yield "throughput", f"{self.throughput:,.0f} samples/s"
        if self.training_step_ms is not None:
            yield "training step", f"{self.training_step_ms:.3g} ms"
        if self.peak_memory_bytes is not None:
            yield "peak memory", f"{self.peak_memory_bytes / 2**20:,.0f} MiB"
        for name, value in self.metrics.items():
            yield name, f"{value:.4g}"


def measure(
    model: nn.Module,
    args: Any,
    kwargs: Mapping[str, Any] | None = None,
    *,
    loss: Callable[[Any], Tensor] | None = None,
    threads: int | None = None,
    min_run_time: float = 0.2,
    training: bool = True,
    memory: bool = True,
    sparse: bool | None = None,
) -> Measurement:
    """Measure one model; it is left in the mode, and with the gradients, that it had.

    Args:
        model: measured in eval mode; a copy of it takes the training steps.
        args: example inputs: a tensor, a tuple of positional inputs, or a mapping of keyword inputs.
        kwargs: further keyword inputs.
        loss: from the model's output to a scalar, for the training step. By default the mean of the squares of all
            floating-point outputs.
        threads: of torch while timing; None keeps the number in force.
        min_run_time: seconds to spend on timing, for each of forward pass and training step. At least three
            rounds are run all the same.
        training: whether to time a training step.
        memory: whether to measure peak memory.
        sparse: whether to try sparse kernels for layers with zeros, and to time the model with those that are faster;
            None where a layer has 30 % of zeros or more. What came of it stands in ``notes``.

    Returns:
        The figures.

    Raises:
        MeasureError: the model does not run on these inputs, what it returns holds NaN, or it is what
            `secateur.accelerate` made.

    Example:
        >>> import torch
        >>> measure(torch.nn.Linear(20, 10), torch.zeros(4, 20), min_run_time=0.01).macs
        800
    """
    return measure_all(
        {"model": model},
        args,
        kwargs,
        loss=loss,
        threads=threads,
        min_run_time=min_run_time,
        training=training,
        memory=memory,
        sparse=sparse,
    )["model"]


def measure_all(
    models: Mapping[str, nn.Module],
    args: Any,
    kwargs: Mapping[str, Any] | None = None,
    *,
    loss: Callable[[Any], Tensor] | None = None,
    threads: int | None = None,
    min_run_time: float = 0.2,
    training: bool = True,
    memory: bool = True,
    sparse: bool | None = None,
) -> dict[str, Measurement]:
    """Measure several models on the same inputs, in turns, so that a drift of the machine's speed hits all alike.

    Args:
        models: by name.
        args: example inputs, as for `measure`, which also explains the other arguments and what is raised.

    Returns:
        The figures of each model, by name.
    """
    if min_run_time <= 0 or (threads is not None and threads < 1):
        raise MeasureError(f"min_run_time={min_run_time} must be above 0, and threads={threads} at least 1")
    models = {name: as_module(model) for name, model in models.items()}
    for model in models.values():
        check_original(Walk(model), MeasureError)
    call = fresh(as_call(args, kwargs))
    threads = threads or torch.get_num_threads()
    with left_as_found(models.values()):
        for model in models.values():
            model.eval()
        for name, model in models.items():
            _check_runs(name, model, call)
        memories = {
            name: peak_memory(_forward(model, call), device_of(model), unused=_unused(model, models))
            if memory
            else None
            for name, model in models.items()
        }
        latency = median_seconds({name: _forward(model, call) for name, model in models.items()}, threads, min_run_time)
        step_time, notes = _training_times(models, call, loss, threads, min_run_time) if training else ({}, {})
        by_zeros = {name: _sparse(model, call, sparse) for name, model in models.items()}
        return {
            name: Measurement(
                params=sum(p.numel() for p in model.parameters()),
                macs=count_macs(model, args, kwargs),
                size_bytes=file_size(model),
                latency_ms=latency[name] * 1e3,
                throughput=_batch_size(call) / latency[name],
                training_step_ms=step_time[name] * 1e3 if name in step_time else None,
                peak_memory_bytes=memories[name],
                zeros=by_zeros[name][0],
                sparse_latency_ms=by_zeros[name][1],
                notes=(*notes.get(name, ()), *by_zeros[name][2]),
            )
            for name, model in models.items()
        }


def count_macs(model: nn.Module, args: Any, kwargs: Mapping[str, Any] | None = None) -> int:
    """Multiply-accumulate operations of one forward pass in the model's present mode, attention included.

    Counted by `torch.utils.flop_counter` (2 FLOPs are 1 MAC) with attention computed step by step; what it does not
    count, such as pointwise operations, costs nothing here.
    """
    positional, named = fresh(as_call(args, kwargs))
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a fused encoder layer would not be counted
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(*positional, **named)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops() // 2


def file_size(model: nn.Module) -> int:
    """Bytes of the model's state, tied tensors once, as a safetensors file; those with zeros packed."""
    state: dict[str, Tensor] = {}
    seen: set[tuple[Any, ...]] = set()
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]  extra state may be anything
            continue
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and place in seen:
            continue
        seen.add(place)
        state[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file(pack(state), path)
        return path.stat().st_size


def _sparse(
    model: nn.Module, call: tuple[Args, Kwargs], wanted: bool | None
) -> tuple[float | None, float | None, tuple[str, ...]]:
    """The share of zeros, the latency with the sparse kernels that are faster, and what that means in words."""
    from secateur.accelerating.accelerate import accelerate, has_zeros  # which times by what is here

    if wanted is False or (wanted is None and not has_zeros(model)):
        return None, None, ()
    found = accelerate(model, *call)
    return found.zeros, found.sparse_ms, (found.summary,)


def _forward(model: nn.Module, call: tuple[Args, Kwargs]) -> Callable[[], Any]:
    positional, named = call

    def forward() -> Any:
        with torch.no_grad():
            return model(*positional, **named)

    return forward


def _check_runs(name: str, model: nn.Module, call: tuple[Args, Kwargs]) -> None:
    """Run the model once, which also warms it up; say clearly what is wrong if it fails."""
    if any(t.is_meta for t in _state(model)):
        raise MeasureError(f"{name} ({type(model).__name__}) has no weights, it is on the meta device: load them first")
    try:
        output = _forward(model, call)()
    except Exception as error:
        shapes = ", ".join(f"{tuple(t.shape)} {t.dtype}" for t in _tensors(call))
        raise MeasureError(
            f"{name} ({type(model).__name__}) does not run on these inputs ({shapes or 'no tensor'}): "
            f"{type(error).__name__}: {error}"
        ) from error
    if any(t.is_floating_point() and bool(t.isnan().any()) for t in _tensors(output)):
        bad = [label for label, t in model.state_dict().items() if t.is_floating_point() and bool(t.isnan().any())]
        bad += ["the inputs"] if any(t.is_floating_point() and bool(t.isnan().any()) for t in _tensors(call)) else []
        where = f"There is NaN in {', '.join(bad[:5])}" if bad else "Neither its weights nor the inputs hold any"
        raise MeasureError(f"what {name} ({type(model).__name__}) returns holds NaN. {where}.")


def _training_times(
    models: Mapping[str, nn.Module],
    call: tuple[Args, Kwargs],
    loss: Callable[[Any], Tensor] | None,
    threads: int,
    min_run_time: float,
) -> tuple[dict[str, float], dict[str, tuple[str, ...]]]:
    """Seconds of a training step for each model that can take one, and notes on those that can't."""
    steps: dict[str, Callable[[], Any]] = {}
    notes: dict[str, tuple[str, ...]] = {}
    for name, model in models.items():
        try:
            step = _training_step(copy.deepcopy(model), call, loss or _mean_square)
            step()
        except Exception as error:  # whatever a model raises in training mode is no reason to lose the other figures
            notes[name] = (f"no training step: {type(error).__name__}: {error}",)
        else:
            steps[name] = step
    return median_seconds(steps, threads, min_run_time), notes


def _training_step(model: nn.Module, call: tuple[Args, Kwargs], loss: Callable[[Any], Tensor]) -> Callable[[], None]:
    positional, named = call
    model.train()
    # A rate of 0 costs the same, and weights that stay put can't drift into slow numbers.
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(model(*positional, **named)).backward()
        optimizer.step()

    return step


def _mean_square(output: Any) -> Tensor:
    return torch.cat([t.float().flatten() for t in _tensors(output) if t.is_floating_point()]).square().mean()


def median_seconds(calls: Mapping[str, Callable[[], Any]], threads: int, min_run_time: float) -> dict[str, float]:
    """Median time of each call, over rounds in which the calls take turns."""
    timers = {name: Timer("call()", globals={"call": call}, num_threads=threads) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    started = time.perf_counter()
    for done in range(ROUNDS if calls else 0):
        if done >= FEWEST_ROUNDS and time.perf_counter() - started > 2 * min_run_time * len(calls):
            break  # calls that take longer than a round's share
        for name, timer in timers.items():
            times[name].append(timer.blocked_autorange(min_run_time=min_run_time / ROUNDS).median)
    return {name: statistics.median(values) for name, values in times.items()}


def _tensors(value: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists, mappings and the like."""
    found: list[Tensor] = []
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif isinstance(leaf, Mapping):
            found.extend(_tensors(list(cast("Mapping[Any, Any]", leaf).values())))
    return found


def _batch_size(call: tuple[Args, Kwargs]) -> int:
    """Length of the first dimension of the first tensor that has one."""
    return next((t.shape[0] for t in _tensors(call) if t.dim()), 1)


def _unused(model: nn.Module, models: Mapping[str, nn.Module]) -> list[Tensor]:
    """Weights and buffers of the other models that share no memory with this one."""
    used = {tensor.untyped_storage().data_ptr() for tensor in _state(model)}
    others = [tensor for other in models.values() if other is not model for tensor in _state(other)]
    return [tensor for tensor in others if tensor.untyped_storage().data_ptr() not in used]


def _state(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def device_of(model: nn.Module) -> torch.device:
    return next((t.device for t in _state(model)), torch.device("cpu"))


@contextlib.contextmanager
def left_as_found(models: Iterable[nn.Module]) -> Generator[None]:
    """Put back the mode of every module and the global random state."""
    modules = [module for model in models for module in model.modules()]
    modes = [module.training for module in modules]
    devices = {device_of(module).index or 0 for module in modules if device_of(module).type == "cuda"}
    try:
        with torch.random.fork_rng(devices=sorted(devices)), torch.enable_grad():
            yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
