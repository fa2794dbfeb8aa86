"""Random numbers in a run: one stream for the data, one for the model, so that either can be taken up again alone."""

import random
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.tracing.surroundings import draws_as_found as as_found

State = dict[str, Any]


def drawn(device: torch.device | None = None) -> State:
    """The random states of torch, numpy and Python, and of a GPU; tensors and numbers only."""
    version, words, gauss = random.getstate()
    kind, keys, at, has_gauss, cached = np.random.get_state()  # noqa: NPY002 (users' code draws from it)
    state: State = {
        "torch": torch.get_rng_state(),
        "numpy": {"kind": str(kind), "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)), "at": int(at)},
        "numpy_gauss": [int(has_gauss), float(cached)],
        "python": {"version": version, "words": torch.tensor(words), "gauss": gauss},
    }
    if device is not None and device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def put(state: State, device: torch.device | None = None) -> None:
    """Set the random states to what `drawn` gave."""
    torch.set_rng_state(state["torch"])
    keys = state["numpy"]["keys"].numpy().astype(np.uint32)
    np.random.set_state((state["numpy"]["kind"], keys, state["numpy"]["at"], *state["numpy_gauss"]))  # noqa: NPY002
    random.setstate((state["python"]["version"], tuple(state["python"]["words"].tolist()), state["python"]["gauss"]))
    if "cuda" in state and device is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def seed_all(*words: int, devices: bool = True) -> None:
    """Seed torch, numpy and Python by a few whole numbers; torch on the CPU only without ``devices``."""
    seed = int(np.random.SeedSequence([abs(word) for word in words]).generate_state(1, np.uint32)[0])
    (torch.manual_seed if devices else torch.default_generator.manual_seed)(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


@contextmanager
def seeded(*words: int, device: torch.device | None = None) -> Generator[None]:
    """Draw from a stream of its own inside, seeded by a few whole numbers."""
    with as_found(device):
        seed_all(*words)
        yield


class DataDraws:
    """The random numbers that reading and augmenting the data draws: a stream of their own in each epoch.

    So the batches of an epoch hang on the seed and the epoch alone, whatever the model draws, and skipping batches
    draws what reading them drew.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.state: State = {}

    def start(self, epoch: int) -> None:
        """Begin an epoch, counted from 1."""
        with as_found():
            seed_all(self.seed, epoch, devices=False)
            self.state = drawn()

    @contextmanager
    def __call__(self) -> Generator[None]:
        """Draw from this stream inside."""
        before = drawn()
        put(self.state)
        try:
            yield
        finally:
            self.state = drawn()
            put(before)


def generators(loader: Any) -> list[torch.Generator]:
    """Generators that a DataLoader and its samplers were given: they go on from epoch to epoch."""
    samplers = (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None))
    holders: Iterable[Any] = (*samplers, getattr(samplers[2], "sampler", None))
    found: dict[int, torch.Generator] = {}
    for holder in holders:
        generator = getattr(holder, "generator", None)
        if isinstance(generator, torch.Generator):
            found[id(generator)] = generator
    return list(found.values())


def states_of(loader: Any) -> list[Tensor]:
    """The states of a loader's own generators."""
    return [generator.get_state() for generator in generators(loader)]


def put_states(loader: Any, states: list[Tensor]) -> None:
    """Set a loader's own generators."""
    for generator, state in zip(generators(loader), states, strict=False):
        generator.set_state(state)
