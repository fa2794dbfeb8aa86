"""Many runs of models side by side, each waiting at every use of a weight until all have come there.

So what a weight should be can be worked out from all the data, and set, before any run goes on: one forward pass over
the data is enough to go through a whole model from its inputs to its outputs, each weight seeing what those before it
have become. Each run is a thread that only ever moves while its owner waits for it.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.calibration.contraction import Contraction
from secateur.calibration.sites import Follows
from secateur.calibration.watching import Key, Watch
from secateur.tracing.rules.registry import Signature, tensors_of


@dataclass(frozen=True, kw_only=True)
class Pause:
    """A run that waits at a use of a weight.

    Attributes:
        key: which use.
        use: the operation and its operands.
        out: its output; None where the run waits before the operation.
        other: what will be added to the output, where it is known already.
        protected: whether it runs on data whose behaviour must not change.
    """

    key: Key
    use: Contraction
    out: Tensor | None
    other: Tensor | None
    protected: bool = False


class _Stopped(BaseException):
    """Ends a thread whose run nobody needs any more."""


class Run:
    """One forward pass that can be moved from use to use.

    Args:
        model: in evaluation mode; it is not changed.
        forward: runs it: a function without arguments.
        follows: for every use, what happens to its output.
        before: wait before each operation, so that its weight can be set; otherwise after it.
        offsets: for every use, a vector that is to be added to its output, set while the run waits.
        protected: whether it runs on data whose behaviour must not change.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Callable[[], Any],
        follows: Mapping[Key, Follows],
        *,
        before: bool,
        offsets: Mapping[Key, Tensor] | None = None,
        protected: bool = False,
    ) -> None:
        self.protected = protected
        self.watch = _Waiting(self, model, follows, before, {} if offsets is None else offsets)
        self.forward = forward
        self.pause: Pause | None = None
        self.error: BaseException | None = None
        self.stopped = False
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._started = False
        device = torch.get_default_device()  # the caller's; a thread begins with none
        self._device = nullcontext() if device.type == "cpu" else device

    def advance(self) -> Pause | None:
        """Let the run go on to its next use of a weight; None when it is over.

        Raises:
            Exception: whatever the model raised.
        """
        if not self._started:
            self._started = True
            self._thread.start()
        self.pause = None
        self._go.release()
        self._back.acquire()
        if self.error is not None:
            raise self.error
        return self.pause

    def stop(self) -> None:
        """End the run where it stands."""
        self.stopped = True
        if self._started and self._thread.is_alive():
            self._go.release()
            self._thread.join()
        self.pause = None  # its activations are let go of
        self.watch.known.clear()

    def wait(self, pause: Pause) -> None:
        """Called by the run itself: wait to be advanced."""
        self.pause = pause
        self._back.release()
        self._go.acquire()
        if self.stopped:
            raise _Stopped

    def _run(self) -> None:
        self._go.acquire()
        try:
            if not self.stopped:
                with torch.no_grad(), self._device, self.watch:
                    self.forward()
        except _Stopped:
            return
        except BaseException as error:
            self.error = error
        self.pause = None
        self.watch.known.clear()
        self._back.release()


class _Waiting(Watch):
    """Waits at every use of a weight."""

    def __init__(
        self, run: Run, model: nn.Module, follows: Mapping[Key, Follows], before: bool, offsets: Mapping[Key, Tensor]
    ) -> None:
        super().__init__(model)
        self.run, self.follows, self.before, self.offsets = run, follows, before, offsets
        self.known: dict[int, list[Tensor]] = {}
        self.wanted: dict[int, set[Key]] = {}  # by operation, who will ask for its result
        for key, follow in follows.items():
            if follow.other is not None:
                self.wanted.setdefault(follow.other[0], set()).add(key)

    def used(self, key: Key, number: int, found: Contraction, compute: Callable[[], Tensor]) -> Tensor:
        other = self._other(key)
        if self.before:
            self.run.wait(Pause(key=key, use=found, out=None, other=other, protected=self.run.protected))
            out = compute()
            return out if key not in self.offsets else self._moved(out, found, self.offsets[key])
        out = compute()
        self.run.wait(Pause(key=key, use=found, out=out, other=other, protected=self.run.protected))
        return out

    @staticmethod
    def _moved(out: Tensor, found: Contraction, offset: Tensor) -> Tensor:
        return out + offset.reshape([-1 if k == found.out_dim else 1 for k in range(out.dim())])

    def ran(self, number: int, said: Signature, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
        if number in self.wanted:
            self.known[number] = tensors_of(out)

    def _other(self, key: Key) -> Tensor | None:
        """What will be added to the output of a use, if anything; let go of once nobody else asks for it."""
        place = self.follows[key].other if key in self.follows else None
        if place is None or place[0] not in self.known:
            return None
        found = self.known[place[0]][place[1]]
        self.wanted[place[0]].discard(key)
        if not self.wanted[place[0]]:
            del self.known[place[0]]
        return found
