"""What a forward pass finds and may change outside its model: modes, flags, random states. They stay as they were."""

import gc
import logging
import random
import sys
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

LOG = logging.getLogger("torch._subclasses.fake_tensor")  # says much of what fails there, though another way is tried


def _log_disabled() -> bool:
    return LOG.disabled


def _disable_log(yes: bool) -> None:
    LOG.disabled = yes


Flag = tuple[Callable[[], Any], Callable[[Any], Any]]
FLAGS: tuple[Flag, ...] = (
    (torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled),
    (torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled),
    (torch._C._get_cudnn_enabled, torch._C._set_cudnn_enabled),
    (torch._C._get_cudnn_benchmark, torch._C._set_cudnn_benchmark),
    (torch._C._get_cudnn_deterministic, torch._C._set_cudnn_deterministic),
    (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    (torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp),
    (torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    (torch.get_num_threads, torch.set_num_threads),
    (_log_disabled, _disable_log),
)


@contextmanager
def quiet_backends(runs: nn.Module | None = None) -> Generator[None]:
    """Evaluation without gradients, autocast, or fused kernels that hide the structure; all as found afterwards.

    Args:
        runs: a model that is to run on much data. Its convolutions keep their fused kernels, which hide nothing and
            take half of the time; not beside recurrent layers, whose fused kernels hide their weights.
    """
    fused = runs is not None and not any(isinstance(module, nn.RNNBase) for module in runs.modules())
    with ExitStack() as stack:
        stack.enter_context(_flags_as_found())
        stack.enter_context(draws_as_found())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        for device in ("cpu", "cuda", "xpu", "mps"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if "torch._dynamo" in sys.modules:  # parts that were compiled run as they are written
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        torch.backends.mha.set_fastpath_enabled(False)
        torch._C._set_mkldnn_enabled(fused and torch._C._get_mkldnn_enabled())
        _disable_log(True)
        yield


@contextmanager
def _flags_as_found() -> Generator[None]:
    found = [get() for get, _ in FLAGS]
    try:
        yield
    finally:
        for (get, put), value in zip(FLAGS, found, strict=True):
            if get() != value:
                put(value)


@contextmanager
def draws_as_found(device: torch.device | None = None) -> Generator[None]:
    """The random states of torch, numpy and Python.

    Args:
        device: a GPU that is about to be used; those in use already are looked after in any case.
    """
    drawn, drawn_by_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (users' code draws from it)
    used = torch.cuda.is_initialized() or (device is not None and device.type == "cuda")
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if used else ()):
            yield
    finally:
        random.setstate(drawn)
        np.random.set_state(drawn_by_numpy)  # noqa: NPY002


def seed_draws() -> None:
    """Models that draw random numbers draw the same ones each time after this."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002


@contextmanager
def as_if_exported() -> Generator[None]:
    """Code that asks is told that it is being exported: it then leaves out no branch because of the example's values,
    and so shows the sizes that it uses in the others. The proof runs it as it is.
    """
    found = torch.compiler._is_exporting_flag
    torch.compiler._is_exporting_flag = True
    try:
        yield
    finally:
        torch.compiler._is_exporting_flag = found


@contextmanager
def no_collection() -> Generator[None]:
    """Garbage collection waits: for short work in a process with many objects it would take most of the time."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()
