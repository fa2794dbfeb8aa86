"""The run behind ``secateur sparsify --checkpoint``: a model on disk pruned to another folder.

Shape letters: N samples, T tokens.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.config import SparsifySettings, parse_pattern
from secateur.errors import DataError
from secateur.reporting.numbers import percent
from secateur.runs.steps import Watch, silent
from secateur.sparsity.streaming import Streamed, sparsify_checkpoint


def checkpoint_run(settings: SparsifySettings, *, overwrite: bool = False, watch: Watch = silent) -> Streamed:
    """Prune the checkpoint that the settings name.

    Raises:
        SecateurError: anything that can't be done, as one of its kinds.
        KeyboardInterrupt: Ctrl-C; the same call goes on.
    """
    assert settings.checkpoint is not None
    data = None if settings.tokens is None else read_tokens(settings.tokens)[: settings.calibration].split(1)
    with watch("Pruning block by block") as step:
        result = sparsify_checkpoint(
            settings.checkpoint,
            output=settings.out,
            data=data,
            pattern=parse_pattern(settings.pattern),
            sparsity=settings.sparsity,
            threshold=settings.threshold,
            importance=settings.importance,
            allocation=settings.allocation,
            compensate=settings.compensation,
            only=settings.only,
            ignore=settings.ignore,
            strict=settings.strict,
            seed=settings.seed,
            activations=settings.activations,
            overwrite=overwrite,
        )
        step.note(f"{percent(result.sparsity)} of {result.report['sparsity']['weights']:,} weights are zero")
    return result


def read_tokens(path: Path) -> Tensor:
    """Calibration data of a language model.

    Args:
        path: a .npy file of whole numbers from 0, (N, T).

    Returns:
        int64 (N, T).

    Raises:
        DataError: it is missing, or something else.
    """
    try:
        found: Any = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"can't read the tokens {str(path)!r}: {error}. Give what numpy.save wrote") from error
    if not isinstance(found, np.ndarray) or found.ndim != 2 or found.dtype.kind not in "iu" or not found.size:
        what = f"{found.dtype} of shape {found.shape}" if isinstance(found, np.ndarray) else type(found).__name__
        raise DataError(f"{str(path)!r} holds {what}: tokens are whole numbers, samples by tokens")
    if found.min() < 0:
        raise DataError(f"{str(path)!r} holds numbers below 0: tokens are numbered from 0")
    return torch.from_numpy(found.astype(np.int64))
