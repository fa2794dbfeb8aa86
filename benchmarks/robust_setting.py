"""The setting of robust_pruning.py: images on the device, the dense networks, the attacks of training and of tests.

Shape letters: N samples.
"""

import importlib.util
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.safety import Threat
from secateur.safety.apgd import apgd, apgd_dlr

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ADVERSARIAL = sc.Adversarial("pgd", eps=8 / 255, normalise=(MEAN, STD), steps=7, step_size=2 / 255)
THREAT = Threat(eps=8 / 255, normalise=(MEAN, STD))
PAD = 4
Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]


def training_attack(steps: int) -> sc.Adversarial:
    """What is trained against: with fewer steps than five, longer ones, which still reach the edge of the ball."""
    return replace(ADVERSARIAL, steps=steps, step_size=max(2 / 255, 10 / 255 / steps))


@dataclass(frozen=True, kw_only=True)
class Images:
    """Images (N, 3, 32, 32) uint8 and labels (N,) of a split, on the device."""

    x: Tensor
    y: Tensor

    def part(self, start: int, stop: int | None = None) -> "Images":
        """Some of them."""
        return Images(x=self.x[start:stop], y=self.y[start:stop])

    def batches(self, size: int) -> list[tuple[Tensor, Tensor]]:
        """All of them in order, as networks take them."""
        return [(ready(x), y) for x, y in zip(self.x.split(size), self.y.split(size), strict=True)]

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, kw_only=True)
class Data:
    """What is tuned on, what chooses the epoch (the last training images), and what is tested on."""

    tuning: Images
    validation: Images
    test: Images

    @property
    def counts(self) -> dict[str, int]:
        """How many there are."""
        return {name: len(part) for name, part in vars(self).items()}


class Loader:
    """Shuffled batches, shifted by up to four pixels and flipped at random, made on the device.

    Its random numbers come of the global state of the CPU, which `sc.tune` seeds for each epoch.
    """

    def __init__(self, images: Images, size: int) -> None:
        self.images, self.size = images, size

    def __len__(self) -> int:
        return len(self.images) // self.size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = self.images.x, self.images.y
        order = torch.randperm(len(y)).to(x.device)
        for number in range(len(self)):
            rows = order[number * self.size : (number + 1) * self.size]
            yield ready(augmented(x[rows])), y[rows]


def augmented(x: Tensor) -> Tensor:
    """Shifted by up to four pixels, black coming in, and flipped, each at random."""
    count, _, height, width = x.shape
    shift = torch.randint(0, 2 * PAD + 1, (2, count)).to(x.device)
    flip = (torch.rand(count) < 0.5).to(x.device)
    rows = shift[0][:, None] + torch.arange(height, device=x.device)
    columns = shift[1][:, None] + torch.arange(width, device=x.device)
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    padded = F.pad(x, (PAD,) * 4)
    samples = torch.arange(count, device=x.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[samples, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def ready(x: Tensor) -> Tensor:
    """Pixels (N, 3, H, W) uint8 as the networks take them."""
    mean, std = (torch.tensor(values, device=x.device).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (x.float() / 255 - mean) / std


def load_py(path: Path) -> Any:
    """The loaders of the data folder, a file called load.py."""
    spec = importlib.util.spec_from_file_location("load", path)
    if spec is None or spec.loader is None or not path.exists():
        raise SystemExit(f"no {path}: say where load.py is by --load; it defines CifarResNet")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_data(
    path: Path | None, load: Path, device: str, train: int | None, test: int | None, *, validate: int
) -> Data:
    """CIFAR-10 on the device.

    Args:
        path: an .npz of x_train, y_train, x_test and y_test; None takes what load.py loads.
        train, test: how many images of each at most.
        validate: the last training images, which choose the epoch; a quarter at most.
    """
    if path is None:
        made = {split: load_py(load).cifar10(split) for split in ("train", "test")}
    else:
        arrays = np.load(path)
        made = {s: [torch.from_numpy(arrays[f"{name}_{s}"]) for name in "xy"] for s in ("train", "test")}
    parts = {s: Images(x=x.to(device), y=y.long().to(device)) for s, (x, y) in made.items()}
    whole = parts["train"].part(0, train)
    cut = len(whole) - min(validate, len(whole) // 4)
    return Data(tuning=whole.part(0, cut), validation=whole.part(cut), test=parts["test"].part(0, test))


def dense(file: Path, load: Path, device: str) -> nn.Module:
    """An adversarially trained CifarResNet(20)."""
    model = load_py(load).CifarResNet(20)
    model.load_state_dict(load_file(file))
    return model.eval().to(device)


# ---------------------------------------------------------------------- tests


def accuracies(model: nn.Module, batches: list[tuple[Tensor, Tensor]], *, steps: int, targets: int) -> dict[str, Any]:
    """Per cent of images that are got right as they are, and whatever the attacks do to them.

    Args:
        steps, targets: of Auto-PGD.
    """
    right = held = count = 0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for x, y in batches:
            kept = _right(model, x, y)
            right, count = right + int(kept.sum()), count + len(y)
            for attack in strongest(steps, targets):
                if bool(kept.any()):
                    rows = kept.nonzero()[:, 0]
                    kept[rows] = _right(model, attack(model, x[rows], y[rows]), y[rows])
            held += int(kept.sum())
    return {"clean": 100 * right / count, "robust": 100 * held / count, "images": count}


@torch.no_grad()
def _right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return model(x).argmax(1) == y


def strongest(steps: int, targets: int) -> list[Attack]:
    """Attacks one after the other, each on what held out against those before: Auto-PGD by cross-entropy, then towards
    the classes that score highest, by the targeted difference of logits ratio."""

    def by_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return apgd(model, x, y, THREAT, steps=steps, stop=True)

    def by_targets(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return apgd_dlr(model, x, y, THREAT, steps=steps, targets=targets)

    return [by_loss, by_targets]


def hardware(device: str) -> str:
    """What the figures were made on."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or platform.machine()
    return f"{name}, torch {torch.__version__}"
