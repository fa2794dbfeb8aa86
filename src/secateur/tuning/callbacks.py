"""What may be called along a training run."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secateur.tuning.history import Epoch
    from secateur.tuning.loop import Run


class Callback:
    """Told of every step of a run; nothing happens unless a method is overridden.

    A run offers ``model`` (not wrapped), ``optimizer``, ``step`` (steps done, of the whole run), ``steps`` (in all),
    ``epoch`` (from 1), ``lr`` and ``device``.
    """

    def on_start(self, run: "Run") -> None:
        """Before the first step, or the first after resuming: the state, if there is one, has been loaded."""

    def before_step(self, run: "Run") -> None:
        """Gradients are there, clipped; the optimizer's step comes next."""

    def after_step(self, run: "Run") -> None:
        """The step is done and counted."""

    def on_epoch(self, run: "Run", row: "Epoch") -> None:
        """An epoch is over, its row complete."""

    def on_end(self, run: "Run") -> None:
        """After the last step, before the best state is put back."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to hold to go on: tensors, numbers, text, and lists and dicts of these."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
