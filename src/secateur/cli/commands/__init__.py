"""The commands, by their names: each is a function whose signature makes its flags and whose docstring its help."""

from collections.abc import Callable, Mapping

from secateur.cli.commands.adapt import adapt
from secateur.cli.commands.depth import deepen, shorten
from secateur.cli.commands.export import export
from secateur.cli.commands.hints import hints
from secateur.cli.commands.looking import inspect, measure
from secateur.cli.commands.prune import prune
from secateur.cli.commands.reallocate import reallocate
from secateur.cli.commands.replay import replay
from secateur.cli.commands.results import diff, show, undo
from secateur.cli.commands.sparsify import sparsify
from secateur.cli.commands.tune import resume, tune
from secateur.cli.commands.width import grow

_ALL: tuple[Callable[..., int], ...] = (
    prune,
    tune,
    adapt,
    resume,
    shorten,
    deepen,
    hints,
    inspect,
    measure,
    export,
    grow,
    reallocate,
    sparsify,
    replay,
    diff,
    undo,
    show,
)
COMMANDS: Mapping[str, Callable[..., int]] = {command.__name__: command for command in _ALL}
