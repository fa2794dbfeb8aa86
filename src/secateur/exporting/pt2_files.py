"""Files of ``torch.export``. They carry a pickle stream, so they are for other runtimes and never our own format."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from secateur.errors import ExportError
from secateur.exporting.calls import Call, first_line
from secateur.exporting.capturing import Captured, quiet
from secateur.inputs import fresh
from secateur.tracing.surroundings import quiet_backends, seed_draws


def write(captured: Captured, path: Path) -> None:
    """Write a captured program.

    Raises:
        ExportError: torch can't write it.
    """
    try:
        with quiet():
            torch.export.save(captured.program, path)
    except Exception as error:
        raise ExportError(
            f"torch.export can't write this model: {type(error).__name__}: {first_line(error)}"
        ) from error


def runner(path: Path) -> Callable[[Call], list[Tensor]]:
    """What runs a file on the inputs of a call.

    Raises:
        ExportError: torch can't read it.
    """
    try:
        with quiet():
            module = torch.export.load(path).module()
    except Exception as error:
        raise ExportError(
            f"torch can't read what it wrote of this model: {type(error).__name__}: {first_line(error)}"
        ) from error

    def run(call: Call) -> list[Tensor]:
        args, kwargs = fresh((call.args, call.kwargs))
        try:
            with quiet(), quiet_backends():
                seed_draws()
                return tree_leaves(module(*args, **kwargs))
        except Exception as error:
            raise ExportError(
                f"torch can't run what it wrote of this model: {type(error).__name__}: {first_line(error)}"
            ) from error

    return run
