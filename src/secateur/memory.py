"""Peak memory of one forward pass: what a child process came to occupy, or what CUDA handed out."""

import contextlib
import ctypes
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

KIBIBYTE = 1024  # bytes; Linux gives ru_maxrss in these


def peak_memory(
    forward: Callable[[], Any],
    device: torch.device,
    *,
    unused: Iterable[torch.Tensor] = (),
    timeout: float = 60.0,
) -> int | None:
    """The most memory that one call of ``forward`` occupies.

    Args:
        forward: runs the model once.
        device: where the model is.
        unused: tensors that ``forward`` has no need of, such as the weights of other models; a child process drops
            its own copies of them first.
        timeout: seconds after which a child process is given up.

    Returns:
        Bytes. On CUDA the most that was allocated at a time. On a CPU the largest resident set of a child process,
        Python, torch and the weights included; None where processes can't be forked, or the child failed.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        forward()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu" or sys.platform != "linux":
        return None

    def alone() -> None:
        for tensor in unused:
            tensor.data = torch.empty(0, dtype=tensor.dtype)
        _forget_the_past()
        forward()

    return _of_child(alone, timeout)


def _of_child(forward: Callable[[], Any], timeout: float) -> int | None:
    """Run ``forward`` in a forked child, nothing pickled, and read how large it became."""
    with warnings.catch_warnings():
        # Python 3.12 warns of forks beside threads. The child computes on one thread, takes no lock that another
        # thread may hold, and is killed when its time is up.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        _run_and_exit(forward, timeout)
    try:
        return _wait(child, timeout)
    except BaseException:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        raise


def _run_and_exit(forward: Callable[[], Any], timeout: float) -> None:
    """The child's whole life. It never returns, so that nothing of the parent's runs twice."""
    status = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(timeout) + 1)  # ends a child whose parent is gone
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        torch.set_num_threads(1)  # the parent's pool of threads does not exist here
        forward()
        status = 0
    finally:
        os._exit(status)


def release() -> None:
    """Give freed memory back to the system, where the C library can: what it keeps counts as the process's."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _forget_the_past() -> None:
    """Give freed memory back, then start the record of the largest resident set anew; best effort."""
    release()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # see proc(5)


def _wait(child: int, timeout: float) -> int | None:
    """The child's largest resident set in bytes; None where it failed or took too long."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            return usage.ru_maxrss * KIBIBYTE if status == 0 else None
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None
