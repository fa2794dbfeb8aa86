"""The batches of an epoch, in groups of one step, whatever was drawn before and however often the run was taken up."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from torch import Tensor

from secateur.errors import SecateurError, TrainingError
from secateur.tuning import randomness
from secateur.tuning.parts import groups, size_of
from secateur.tuning.processes import Processes


class DataFailed(TrainingError):
    """The loader raised between two steps: the run is whole up to there."""


class Reader:
    """Reads a loader, epoch after epoch.

    Args:
        loader: batches, iterable again and again.
        processes: all of them read the same batches.
        accumulate: batches of a step.
        seed: of what reading and augmenting the data draws.
    """

    def __init__(self, loader: Iterable[Any], processes: Processes, *, accumulate: int, seed: int) -> None:
        self.loader, self.processes, self.accumulate = loader, processes, accumulate
        self.draws = randomness.DataDraws(seed)
        self._groups: Iterator[Sequence[Any]] = iter(())

    def states(self) -> list[Tensor]:
        """The states of the loader's own generators."""
        return randomness.states_of(self.loader)

    def start(self, epoch: int, done: int, states: list[Tensor]) -> list[Tensor]:
        """Begin an epoch, counted from 1.

        Args:
            done: steps of it that are done: their batches are passed over.
            states: of the loader's own generators at the start of the epoch, where the run is taken up again; else
                empty.

        Returns:
            These states.
        """
        loader = self.loader
        randomness.put_states(loader, states)
        states = states or self.states()
        self.draws.start(epoch)
        with self.draws():
            if callable(set_epoch := getattr(loader, "set_epoch", None)):
                set_epoch(epoch - 1)
            passed = done * self.accumulate
            skip: Callable[[int], Iterable[Any]] | None = getattr(loader, "skip", None)
            rest = islice(loader, passed, None) if skip is None or not passed else skip(passed)
            self._groups = groups(rest, self.accumulate)
        return states

    def next(self, where: str) -> Sequence[Any] | None:
        """The batches of the next step; None at the end of the epoch.

        Args:
            where: such as "at step 3", for errors.

        Raises:
            DataFailed: the loader raised, here or in another process.
            TrainingError: the processes read different batches.
        """
        group, failure = None, None
        with self.draws():
            try:
                group = next(self._groups, None)
            except Exception as error:
                failure = error
        self._agree_on(group, failure, where)
        if failure is None:
            return group
        if isinstance(failure, SecateurError):
            raise DataFailed(str(failure)) from failure
        raise DataFailed(
            f"the data loader raised {where}: {type(failure).__name__}: {failure}. The model keeps the best state so "
            f"far; repair the data, and resume from the last checkpoint if there is one"
        ) from failure

    def _agree_on(self, group: Sequence[Any] | None, failure: Exception | None, where: str) -> None:
        """All processes must have read the same."""
        count = self.processes.count
        if count == 1:
            return
        size = sum(map(size_of, group or ()))
        failed, sizes, squares = self.processes.total(failure is not None, size, size**2)
        if failed and failure is None:
            raise DataFailed(f"the data loader of another process raised {where}, and says why there")
        if not failed and count * squares != sizes**2:
            raise TrainingError(
                f"the processes read different batches {where}: {size} samples here of {sizes:.0f} in all "
                f"{count}. Every batch is split among the processes: give each the same loader, without a "
                f"sampler of its own part"
            )
