"""``secateur measure --robust``: which networks are attacked, and on which data."""

from pathlib import Path
from typing import Any

from rich.text import Text
from torch import nn

from secateur import digests
from secateur.artifacts import read_record
from secateur.cli.ending import DONE, INTERRUPTED, complain, interrupted, output
from secateur.cli.flags import named, settings_of
from secateur.cli.terminal import Terminal
from secateur.config import DataSettings, ModelSettings, RobustSettings
from secateur.config.robust import robust_problems
from secateur.data import load_data
from secateur.errors import ConfigError
from secateur.models import build_model
from secateur.runs.robust import attacked


def checked(flags: RobustSettings) -> RobustSettings:
    """The settings of attacks that flags are.

    Raises:
        ConfigError: they lie out of range, or say how to attack where nothing is attacked.
    """
    settings = settings_of(RobustSettings, flags)
    if found := list(robust_problems(settings)):
        raise ConfigError("; ".join(found))
    return settings


def attack(
    network: nn.Module, path: Path | None, model: ModelSettings, source: DataSettings, how: RobustSettings, seed: int
) -> int:
    """Attack a network, beside the dense one where that is there, and print what that did; the exit code.

    Args:
        network: on the device where it is to run.
        path: of the saved result that it is; None where it is none.
        model: the network that ``--model`` names.
        source: the data, whose test split is attacked.
        how: the attacks.
        seed: of everything that is random.
    """
    device = next((p.device for p in network.parameters()), None)
    dense = _dense(path, model)
    networks = {"network": network.eval()}
    if dense is not None:
        networks = {"dense": dense.to(device).eval(), "pruned": network}
    given: dict[str, Any] = {
        "batch_size": source.batch_size,
        "image_size": source.image_size,
        "augment": source.augment,
    }
    terminal = Terminal(output())
    try:
        found = attacked(networks, load_data(source.data, **{**given, **source.data_args}), how, seed, terminal.watch)
    except KeyboardInterrupt:
        return interrupted(terminal, "No sample was attacked by all attacks yet")
    output().print(found)
    if path is not None and dense is None:
        said = "Not compared with the dense network: name it with --model, and its trained weights with --weights."
        output().print(Text(said), soft_wrap=True)
    if found.interrupted:
        complain("stopped", f"by Ctrl-C: {found.interrupted}")
        return INTERRUPTED
    return DONE


def _dense(path: Path | None, model: ModelSettings) -> nn.Module | None:
    """The dense network that a result came from, where it is named with its weights."""
    if path is None or named(model) is None:
        return None
    network = build_model(model)
    if model.weights is None and digests.of_model(network) != read_record(path)["parent"]:
        return None  # random weights: there is nothing to compare with
    return network
