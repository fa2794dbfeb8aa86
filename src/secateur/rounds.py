"""The rounds of a search, and how they are shown while it runs."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from secateur.heldout import Bound
from secateur.progress import showing


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round: what was tried, and what came of it.

    Attributes:
        number: from 1.
        metric, unit: what was measured, and in what; the unit may be empty.
        cost: of the smaller model, as a share of the original's.
        value: the metric on the held-out data.
        worse: by how much that is worse than the original's, below 0 where it is better.
        met: whether that is within the bound.
        others: what else was bounded, as words on it; measured only while everything before it was within its bound.
    """

    number: int
    metric: str
    unit: str
    cost: float
    value: float
    worse: float
    met: bool
    others: tuple[str, ...] = ()

    def describe(self) -> str:
        """The round in a few words."""
        unit = f" {self.unit}" if self.unit else ""
        change = f"{self.worse:.3g}{unit} worse" if self.worse > 0 else f"{-self.worse:.3g}{unit} better"
        others = "".join(f", {words}" for words in self.others)
        return (
            f"round {self.number}: {100 * self.cost:.1f} % of the cost, {self.metric} "
            f"{change if self.worse else 'the same'}{others}{'' if self.met else ', taken back'}"
        )


@contextmanager
def telling(bounds: Sequence[Bound], on_round: Callable[[Round], None] | None) -> Generator[Callable[[Round], None]]:
    """What to call after each round: the user's own function, else a bar on the standard error stream of a terminal."""
    console = Console(stderr=True)
    if on_round is not None or not console.is_terminal:
        yield on_round or (lambda done: None)
        return
    said = TextColumn("{task.fields[said]}", style="dim", markup=False)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(bar_width=24))
    with showing(Progress(*columns, TimeElapsedColumn(), said, console=console, transient=True)) as progress:
        title = f"Removing within {' and '.join(f'{bound.setting}={bound.amount:g}' for bound in bounds)}"
        task = progress.add_task(title, total=1.0, said="measuring the original")

        def tell(done: Round) -> None:
            progress.update(task, said=done.describe(), completed=1 - done.cost if done.met else None)

        yield tell
