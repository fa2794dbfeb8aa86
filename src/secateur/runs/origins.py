"""Where a run's network comes from: built by name, or a saved result, whose changes go on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur import artifacts
from secateur.config import EXAMPLE_MODEL, ModelSettings
from secateur.models import build_model, build_record


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where the changes of a run's networks begin.

    Attributes:
        model: an instance of the architecture; None where ``build``, or a stored graph, makes it.
        build: how it is built, as `secateur.save` takes it.
        trust: whether code that ``build`` names may be imported.
    """

    model: nn.Module | None = None
    build: Mapping[str, Any] | None = None
    trust: bool = False

    def load(self, folder: Path, device: str) -> nn.Module:
        """A network that was saved on the way: a file of our own, so that nothing has to be bounded."""
        return artifacts.load(folder, model=self.model, trust=self.trust or self.model is not None).to(device)


def origin(
    settings: ModelSettings, result: Path | None, *, trust: bool, seed: int, device: str
) -> tuple[nn.Module, Origin]:
    """The network that a run begins with, and where its changes begin.

    Args:
        settings: the network; of a saved result, the one that it came from, unless that is the example.
        result: a saved result in its place.
        trust: let the result import the code that its network was built with.
        seed: of weights that are drawn.

    Raises:
        ModelError: the network can't be built.
        ArtifactError: there is no saved result, or it needs ``--model`` or ``--trust``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        named = result is None or settings.model != EXAMPLE_MODEL
        model = build_model(settings).to(device) if named else None
    built = build_record(settings)
    if result is None:
        assert model is not None
        return model, Origin(model=model, build=built)
    build: Any = artifacts.read_record(result)["build"]
    start = Origin(model=model, build=built if model is not None and not build else build, trust=trust)
    return start.load(result, device), start
