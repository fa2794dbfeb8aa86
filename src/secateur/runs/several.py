"""Runs in several processes, as ``torchrun`` and ``accelerate launch`` start them: the first one writes and shows."""

import os

import torch

from secateur.errors import ConfigError


def rank() -> int:
    """The number of this process; 0 writes."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def meet(device: str) -> None:
    """Wait for all processes."""
    if count() > 1:
        from accelerate.state import PartialState

        PartialState(cpu=torch.device(device).type == "cpu").wait_for_everyone()


def check_alone(command: str) -> None:
    """Raise a ConfigError where several processes would do what one should."""
    if count() > 1:
        raise ConfigError(
            f"{command} is the work of one process. Start it by itself, with --epochs 0, and train the result in "
            f"several: torchrun --nproc_per_node {count()} -m secateur tune OUT"
        )
