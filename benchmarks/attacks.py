"""Must show: our attacks are no weaker than those of the Adversarial Robustness Toolbox.

    pip install --no-deps adversarial-robustness-toolbox scipy scikit-learn
    python benchmarks/attacks.py

Three networks: ResNet-20 and ResNet-56 as trained by others on CIFAR-10, and a small CNN that is trained here on
Fashion-MNIST against PGD. Both libraries attack the same test images with the same radius, steps, step size, restarts
and queries; a line says how many images are still right, as a mean over seeds of the random starts. Auto-PGD of the
toolbox gets as many random starts as ours, one; its difference of logits loss is the untargeted one, ours the targeted.
The last column but two is McNemar's test of whether both leave the same number of images right.
"""

import argparse
import importlib.util
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.safety.battery import ATTACKS, Effort
from secateur.safety.exact import mcnemar
from secateur.safety.pgd import pgd
from secateur.safety.threat import Norm, Threat

SHARED = Path(__file__).parents[2] / "shared/data"
EFFORT = Effort(steps=20, restarts=2, apgd_steps=20, queries=200)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network and how it is attacked.

    Attributes:
        title: for people.
        model: from pixels in [0, 1] to class scores.
        pixels, labels: test images.
        threat: the ball.
    """

    title: str
    model: nn.Module
    pixels: Tensor
    labels: Tensor
    threat: Threat

    def right(self, pixels: Tensor) -> Tensor:
        """Which images are still right, (N,)."""
        with torch.no_grad():
            answers = torch.cat([self.model(part).argmax(1) for part in pixels.split(100)])
        return answers == self.labels


class Scaled(nn.Module):
    """A network that wants scaled inputs, from pixels."""

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.model = model
        self.mean, self.std = (nn.Buffer(torch.tensor(values).reshape(-1, 1, 1)) for values in (mean, std))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model((pixels - self.mean) / self.std)


def ours(case: Case, attack: str, seed: int = 0) -> Tensor:
    """Which images our attack leaves right, (N,)."""
    changed: list[Tensor] = []
    for pixels, labels in zip(case.pixels.split(100), case.labels.split(100), strict=True):
        generator = torch.Generator().manual_seed(seed)
        changed.append(ATTACKS[attack](case.model, pixels, labels, case.threat, EFFORT, generator))
    return case.right(torch.cat(changed))


def theirs(case: Case, attack: str, seed: int = 0) -> Tensor:
    """Which images the toolbox leaves right, (N,)."""
    np.random.seed(seed)  # noqa: NPY002  (the toolbox draws from it)
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from art.attacks import evasion  # pyright: ignore[reportMissingImports]
        from art.estimators.classification import PyTorchClassifier  # pyright: ignore[reportMissingImports]

        estimator: Any = PyTorchClassifier(
            model=case.model,
            loss=nn.CrossEntropyLoss(),
            input_shape=tuple(case.pixels.shape[1:]),
            nb_classes=10,
            clip_values=case.threat.bounds,
            device_type="cpu",
        )
        made = _reference(evasion, estimator, case.threat, attack)
        one_hot = F.one_hot(case.labels, 10).numpy()
        changed = torch.from_numpy(made.generate(case.pixels.numpy(), one_hot))
    excess = (changed - case.pixels).flatten(1).norm(p=2 if case.threat.norm == "l2" else torch.inf, dim=1).max()
    assert excess <= case.threat.eps + 1e-5
    return case.right(changed)


def _reference(evasion: Any, estimator: Any, threat: Threat, attack: str) -> Any:
    """An attack of the toolbox, with our settings."""
    norm, eps, step = (np.inf if threat.norm == "linf" else 2), threat.eps, 2.5 * threat.eps / EFFORT.steps
    shared: dict[str, Any] = {"norm": norm, "eps": eps, "batch_size": 100}
    if attack == "fgsm":
        return evasion.FastGradientMethod(estimator, **shared)
    shared["verbose"] = False
    if attack == "pgd":
        times = {"max_iter": EFFORT.steps, "num_random_init": EFFORT.restarts}
        return evasion.ProjectedGradientDescentPyTorch(estimator, eps_step=step, **times, **shared)
    if attack == "square":
        return evasion.SquareAttack(estimator, max_iter=EFFORT.queries, **shared)
    kind = "cross_entropy" if attack == "apgd_ce" else "difference_logits_ratio"
    times = {"max_iter": EFFORT.apgd_steps, "nb_random_init": 1}
    return evasion.AutoProjectedGradientDescent(estimator, eps_step=2 * eps, loss_type=kind, **times, **shared)


def cifar(depth: int, eps: float, norm: Norm = "linf", samples: int = 100) -> Case:
    """A ResNet on CIFAR-10."""
    load = load_shared()
    images, labels = load.cifar10("test", samples)
    model = Scaled(load.cifar_resnet(depth), load.IMAGENET_MEAN, load.IMAGENET_STD).eval()
    title = f"ResNet-{depth}, CIFAR-10"
    return Case(title=title, model=model, pixels=images.float() / 255, labels=labels, threat=Threat(eps=eps, norm=norm))


def fashion(eps: float, norm: Norm = "linf", samples: int = 500) -> Case:
    """The CNN trained against PGD, on the first test images of Fashion-MNIST."""
    images, labels = load_shared().fashion_mnist("test")
    pixels = images[:samples, None].float() / 255
    title = "CNN trained against PGD, Fashion-MNIST"
    return Case(
        title=title, model=robust_cnn(), pixels=pixels, labels=labels[:samples], threat=Threat(eps=eps, norm=norm)
    )


@cache
def robust_cnn(seed: int = 0, samples: int = 12_800, epochs: int = 6, eps: float = 0.1) -> nn.Module:
    """A small CNN trained on images that PGD with 5 steps of 0.03 changed within 0.1 (L-inf)."""
    images, labels = load_shared().fashion_mnist("train")
    pixels, labels = images[:samples, None].float() / 255, labels[:samples]
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(samples).split(128):
            changed = pgd(model, pixels[rows], labels[rows], Threat(eps=eps), steps=5, step_size=0.03)
            optimizer.zero_grad()
            F.cross_entropy(model(changed), labels[rows]).backward()
            optimizer.step()
    return model.eval().requires_grad_(False)


def cases(samples: int | None = None) -> list[Callable[[], Case]]:
    """All of them, made when they are asked for."""
    few: dict[str, Any] = {} if samples is None else {"samples": samples}
    return [
        lambda: cifar(20, 1 / 255, **few),
        lambda: cifar(20, 0.1, "l2", **few),
        lambda: cifar(56, 1 / 255, **few),
        lambda: fashion(0.1, **few),
        lambda: fashion(1.0, "l2", **few),
    ]


def load_shared() -> Any:
    """The module that reads the shared data and weights."""
    spec = importlib.util.spec_from_file_location("shared_load", SHARED / "load.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description="Our attacks beside those of the Adversarial Robustness Toolbox.")
    parser.add_argument(
        "--samples", type=int, help="images of each network; by default 100 of CIFAR-10, 500 of Fashion-MNIST"
    )
    parser.add_argument("--attacks", nargs="+", default=list(ATTACKS))
    parser.add_argument("--cases", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--seeds", type=int, default=3, help="of random starts; the table has the mean")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | within | attack | clean | ours | toolbox | p | ours, s | toolbox, s |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    made = cases(options.samples)
    for number in options.cases:
        case = made[number]()
        for attack in options.attacks:
            started = time.perf_counter()
            mine = torch.stack([ours(case, attack, seed) for seed in range(options.seeds)])
            middle = time.perf_counter()
            other = torch.stack([theirs(case, attack, seed) for seed in range(options.seeds)])
            times = f"{middle - started:.0f} | {time.perf_counter() - middle:.0f}"
            within = f"{case.threat.norm} {case.threat.eps:.3g}"
            shares = " | ".join(f"{share(part):.1%}" for part in (case.right(case.pixels), mine, other))
            p = mcnemar(int((mine & ~other).sum()), int((~mine & other).sum()))
            print(f"| {case.title} | {within} | {attack} | {shares} | {p:.2g} | {times} |", flush=True)


def share(right: Tensor) -> float:
    """How many of all."""
    return float(right.double().mean())


if __name__ == "__main__":
    main()
