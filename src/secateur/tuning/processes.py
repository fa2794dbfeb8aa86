"""One process or many, a CPU or GPUs: everything that differs between them, on Hugging Face's Accelerate."""

import copy
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from secateur.errors import MissingExtra, SecateurError, TrainingError
from secateur.tuning import states

Value = TypeVar("Value")
PRECISIONS = (None, "no", "fp16", "bf16")


@contextmanager
def processes(device: str | torch.device | None, precision: str | None) -> Generator["Processes"]:
    """What this process is of: alone, or one of those that ``accelerate launch`` or ``torchrun`` started.

    Args:
        device: where to train; None is Accelerate's choice, a GPU where there is one.
        precision: "no", "fp16" or "bf16" for mixed precision; None is what ``accelerate launch`` says, else "no".

    Raises:
        MissingExtra: Accelerate is not installed.
        TrainingError: an unknown precision, or one that this device or process can't do.
    """
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState, PartialState
    except ImportError as error:
        raise MissingExtra("accelerate", "tune", "training") from error
    if precision not in PRECISIONS:
        raise TrainingError(f"precision={precision!r} must be 'no', 'fp16' or 'bf16'")
    place = None if device is None else torch.device(device)
    shared: list[Any] = [AcceleratorState, PartialState]
    settings_before, process_before = (bool(state._shared_state) for state in shared)
    if place is not None and place.type == "cuda" and place != torch.device("cuda"):
        torch.cuda.set_device(place)  # "cuda" alone is the current one already
    try:
        accelerator = Accelerator(cpu=place is not None and place.type == "cpu", mixed_precision=precision)
    except ValueError as error:  # the state of the process is another one already, or the device can't do it
        raise TrainingError(f"no training with device={device} and precision={precision}: {error}") from error
    try:
        if place is not None and accelerator.num_processes == 1 and accelerator.device.type != place.type:
            raise TrainingError(
                f"device={device}: Accelerate was set up for {accelerator.device} in this process already. Train "
                f"there, or in a process of its own"
            )
        if accelerator.mixed_precision != "no" and not accelerator.native_amp:  # which Accelerate passes over
            raise TrainingError(
                f"no training with precision={accelerator.mixed_precision!r} on {accelerator.device}: give 'bf16' or "
                f"'no', or a GPU"
            )
        yield Processes(accelerator)
    finally:
        if not settings_before:  # the next run may ask for others
            alone = accelerator.num_processes == 1
            AcceleratorState._reset_state(reset_partial_state=alone and not process_before)


class Processes:
    """All processes of a run, as one of them sees them.

    Attributes:
        count, rank: how many there are, and the number of this one.
        device: where this one computes.
        sharded: whether each holds a part of the parameters only (FSDP).
    """

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.count, self.rank = int(accelerator.num_processes), int(accelerator.process_index)
        self.device: torch.device = accelerator.device
        asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
        kind = str(accelerator.distributed_type.value)
        self.sharded = kind == "FSDP" or (asked and kind == "MULTI_CPU")
        self._ours = self.sharded and kind == "MULTI_CPU"  # Accelerate shards on GPUs only
        if kind in ("DEEPSPEED", "MEGATRON_LM", "XLA"):
            raise TrainingError(f"training through {kind} is not supported: launch with DDP or FSDP")

    @property
    def main(self) -> bool:
        """Whether this is the one that writes and shows."""
        return self.rank == 0

    def prepare(self, model: nn.Module, make: Any) -> tuple[nn.Module, Any]:
        """The model as it is trained, on its device, and its optimizer.

        Args:
            model: moved to the device; a model that is to be sharded is copied, and the copy sharded.
            make: ``model -> optimizer``.
        """
        if self._ours:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            wrapped = copy.deepcopy(model)
            fully_shard(wrapped, mesh=init_device_mesh("cpu", (self.count,)))
            return wrapped, self.accelerator.prepare(make(wrapped))
        if self.sharded:
            wrapped = copy.deepcopy(model)
            return self.accelerator.prepare(wrapped, make(wrapped))
        model.to(self.device)
        own = {"forward": vars(model)["forward"]} if "forward" in vars(model) else {}
        wrapped, optimizer = self.accelerator.prepare(model, make(model))
        self.unwrap(wrapped)  # autocast is the loop's own: Accelerate's stays out of the user's model
        vars(model).pop("forward", None)
        vars(model).update(own)
        return wrapped, optimizer

    def unwrap(self, wrapped: nn.Module) -> nn.Module:
        """The model without what `prepare` put around it."""
        if self._ours:
            return wrapped
        return self.accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)

    def alone(self, wrapped: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Gradients are not exchanged inside, but in the last piece of a step."""
        if last or self.count == 1 or self._ours:
            return nullcontext()
        return self.accelerator.no_sync(wrapped)

    def total(self, *numbers: float) -> list[float]:
        """Sums over all processes."""
        if self.count == 1:
            return list(numbers)
        values = torch.tensor(numbers, dtype=torch.float64)
        values = values.float() if self.device.type == "mps" else values
        return self.accelerator.reduce(values.to(self.device), reduction="sum").tolist()

    def agreed(self, flag: bool) -> bool:
        """What the main process says."""
        if self.count == 1:
            return flag
        return bool(self.total(float(flag and self.main))[0])

    def each(self, value: Any) -> list[Any]:
        """The values of all processes, in order."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(found, value)
        return found

    def mains(self, value: Any) -> Any:
        """The main process's value, which is plain data."""
        if self.count == 1:
            return value
        given = [value]
        torch.distributed.broadcast_object_list(given, src=0)
        return given[0]

    @torch.no_grad()
    def share_buffers(self, wrapped: nn.Module) -> None:
        """Give all processes the main one's buffers: each has batch statistics of its own samples."""
        if self.count == 1:
            return
        for buffer in wrapped.buffers():
            if buffer.numel():
                held = buffer.detach().contiguous().reshape(-1).view(torch.uint8)
                torch.distributed.broadcast(held, src=0)
                buffer.copy_(held.view(buffer.dtype).reshape(buffer.shape))

    def of_main(self, make: Callable[[], Value]) -> Value:
        """What the main process makes, on every process; an error there is one everywhere.

        Raises:
            SecateurError: on the main process what was raised there, elsewhere a `TrainingError` with its message.
        """
        if self.count == 1:
            return make()
        made: Value | None = None
        failed: SecateurError | None = None
        if self.main:
            try:
                made = make()
            except SecateurError as error:
                failed = error
        value, words = self.each((made, None if failed is None else str(failed)))[0]
        if words is not None:
            raise failed or TrainingError(words)
        return value

    # ------------------------------------------------------------------ states

    def model_state(self, wrapped: nn.Module) -> states.State:
        """The whole state, non-persistent buffers too, whoever holds its parts; on every process."""
        if not self.sharded:
            return states.whole(self.unwrap(wrapped))
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        state: dict[str, Any] = get_model_state_dict(wrapped, options=StateDictOptions(full_state_dict=True))
        return {n: v for n, v in state.items() if isinstance(v, Tensor)} | states.left_out(wrapped)

    def load_model(self, wrapped: nn.Module, state: states.State) -> None:
        """Put a whole state where it belongs."""
        if not self.sharded:
            states.load(self.unwrap(wrapped), state)
            return
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

        rest = states.left_out(wrapped)
        kept = {name: value for name, value in state.items() if name not in rest}
        set_model_state_dict(wrapped, kept, options=StateDictOptions(full_state_dict=True))
        states.load_left_out(wrapped, state)

    def optimizer_state(self, wrapped: nn.Module, optimizer: Any) -> dict[str, Any]:
        """The whole state of the optimizer, on every process."""
        inner = getattr(optimizer, "optimizer", optimizer)
        if not self.sharded:
            return inner.state_dict()
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

        return dict(get_optimizer_state_dict(wrapped, inner, options=StateDictOptions(full_state_dict=True)))

    def load_optimizer(self, wrapped: nn.Module, optimizer: Any, state: dict[str, Any]) -> None:
        """Put the whole state of an optimizer where it belongs, laid out in memory as the parameters are."""
        inner = getattr(optimizer, "optimizer", optimizer)
        if self.sharded:
            from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

            options = StateDictOptions(full_state_dict=True)
            set_optimizer_state_dict(wrapped, inner, state, options=options)
            return
        inner.load_state_dict(state)
        for parameter, held in inner.state.items():
            for name, value in held.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    held[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def parameters(wrapped: nn.Module) -> Iterator[nn.Parameter]:
    """Those that train."""
    return (p for p in wrapped.parameters() if p.requires_grad)
