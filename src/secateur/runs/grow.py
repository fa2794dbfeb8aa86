"""``secateur grow``: a network, or a saved result, with wider axes, saved as a result of its own."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from secateur import artifacts
from secateur.errors import ConfigError, OutputError
from secateur.files import write_json
from secateur.growing import grow
from secateur.pruning import Result


def widths_of(axes: Sequence[str]) -> dict[str, int]:
    """The new sizes that words such as ``fc1.weight:0=240`` give.

    Raises:
        ConfigError: a word of another form, or an axis that is given twice.

    Example:
        >>> widths_of(["fc1.weight:0=240"])
        {'fc1.weight:0': 240}
    """
    found: dict[str, int] = {}
    for word in axes:
        name, equals, size = word.rpartition("=")
        if not (name and equals and size.isdecimal()):
            raise ConfigError(
                f"--axis {word!r}: write AXIS=WIDTH, such as fc1.weight:0=240; secateur inspect lists axes"
            )
        if name in found:
            raise ConfigError(f"--axis {name} is given twice")
        found[name] = int(size)
    if not found:
        raise ConfigError(
            "no axis to grow: give --axis AXIS=WIDTH, such as fc1.weight:0=240; secateur inspect lists axes"
        )
    return found


def grow_run(
    network: nn.Module,
    args: Any,
    kwargs: Mapping[str, Any],
    widths: Mapping[str, int],
    out: Path,
    *,
    build: Mapping[str, Any] | None,
    noise: float,
    seed: int,
    overwrite: bool,
    words: Sequence[str],
) -> Result:
    """Grow a network, prove it, save it with its report.

    Args:
        network: what to grow; args, kwargs: its example inputs.
        widths: of the axes that grow.
        out: directory for the result.
        build: how the original network is built; None where nobody knows.
        noise, seed: as in `grow`.
        overwrite: replace an earlier result there.
        words: of the command line, for the report.

    Raises:
        OutputError: the place is taken.
        PlanError, NotGrowable: as in `grow`.
    """
    if (out / "artifact.json").exists() and not overwrite:
        raise OutputError(f"{out} holds a saved result already; choose another --out, or pass --overwrite")
    result = grow(network, args, widths, kwargs, noise=noise, seed=seed)
    report = result.report.replace(command=shlex.join(["secateur", *words]))
    artifacts.save(result, out, build=build, overwrite=overwrite)
    write_json(out / "report.json", dict(report))
    return result
