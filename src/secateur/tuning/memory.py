"""Batches that do not fit in memory, done in smaller pieces."""

import gc
import traceback
import warnings
from dataclasses import dataclass, field

import torch

from secateur.errors import TrainingError


@dataclass
class Pieces:
    """In how many pieces a batch is done.

    Attributes:
        allowed: whether there may be more than one.
        several: whether there are several processes, which would have to agree.
        notes: where what happened is said.
    """

    allowed: bool
    several: bool
    device: torch.device
    notes: list[str] = field(default_factory=list[str])

    def more(self, error: BaseException, now: int, largest: int, where: str, exact: str) -> int:
        """Twice as many from here on, if memory is what lacked.

        Args:
            error: what a batch raised.
            now: pieces so far.
            largest: samples of the largest batch.
            where: such as "at step 3".
            exact: what the pieces give, for the note.

        Raises:
            TrainingError: more pieces are not allowed, or not possible.
            BaseException: it was something else.
        """
        if not out_of_memory(error):
            raise error
        what = f"out of memory {where} with {largest} samples in a batch of this process"
        if self.several or not self.allowed:
            raise TrainingError(
                f"{what}: give smaller batches"
                + ("" if self.several else ", or allow batches to be done in halves with halve=True (--halve-batch)")
            ) from error
        if now >= largest:
            raise TrainingError(f"{what}, done one by one already: nothing smaller is possible") from error
        traceback.clear_frames(error.__traceback__)  # which hold the batch's activations
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        note = f"{what}: batches are done in {now * 2} pieces from here on, {exact}"
        self.notes.append(note)
        warnings.warn(note, stacklevel=2)
        return now * 2


def out_of_memory(error: BaseException) -> bool:
    """Whether that is what an error says."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
