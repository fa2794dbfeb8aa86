"""``secateur show``, ``diff`` and ``undo``."""

from pathlib import Path
from typing import Annotated, Literal

from rich.text import Text

from secateur.cli import views
from secateur.cli.ending import DONE, output
from secateur.cli.flags import MODEL, OF_RUN, Model, Switch, named


def show(path: Path, /, *, debug: Switch = False) -> int:
    """Describe a saved result: its figures, its proof, its files, how to load it and how to make it again.

    ```sh
    secateur show secateur-run
    secateur show small.safetensors
    ```

    Args:
        path: directory or single file of a saved result.
        debug: show the whole traceback of an error.
    """
    views.saved(output(), path)
    return DONE


def diff(first: Path, second: Path, /, *, debug: Switch = False) -> int:
    """Compare two saved results: which axes differ, by how much, and how the figures moved.

    ```sh
    secateur diff secateur-run secateur-tuned
    secateur diff last-month.safetensors this-month.safetensors
    ```

    Args:
        first: a saved result, a directory or a single file.
        second: the one that it is compared with.
        debug: show the whole traceback of an error.
    """
    import secateur as sc

    output().print(sc.diff(first, second))
    return DONE


def undo(
    path: Path,
    /,
    *,
    model: Model = MODEL,
    restore: Annotated[Literal["auto", "dense", "trained"], OF_RUN] = "auto",
    out: Annotated[Path, OF_RUN] = Path("secateur-undone"),
    trust: Switch = False,
    overwrite: Switch = False,
    debug: Switch = False,
) -> int:
    """Put the units that were removed back, from a result that was saved with --keep-removed, and save the network.

    ```sh
    secateur prune --budget params=0.1 --keep-removed --out tenth
    secateur undo tenth --out whole
    ```

    Args:
        path: a saved result, a directory or a single file.
        restore: "dense" is the network that was pruned, bit for bit; "trained" the weights as they are now, with the
            removed ones between them; "auto" is "dense" where that is possible.
        out: where the network is saved: a directory, or a file that ends in .safetensors.
        trust: let the saved result import the code that its network was built with.
        overwrite: replace a result in the same place.
        debug: show the whole traceback of an error.
    """
    from secateur.runs.undo import undo_run

    done = undo_run(path, out, model=named(model), restore=restore, trust=trust, overwrite=overwrite)
    output().print(Text(done.describe()), soft_wrap=True)
    views.kept(output(), out)
    return DONE
