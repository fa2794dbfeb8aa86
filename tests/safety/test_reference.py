"""Our attacks beside those of the Adversarial Robustness Toolbox, where that is installed."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.safety.pgd import fgsm
from secateur.safety.threat import Threat

pytestmark = pytest.mark.filterwarnings("ignore")  # of the toolbox
BENCHMARK = Path(__file__).parents[2] / "benchmarks/attacks.py"


@pytest.fixture(scope="module")
def attacks() -> Any:
    """The benchmark, which runs both libraries."""
    if importlib.util.find_spec("art") is None:
        pytest.skip("the Adversarial Robustness Toolbox is not installed: pip install adversarial-robustness-toolbox")
    spec = importlib.util.spec_from_file_location("benchmark_of_attacks", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A small network on scikit-learn's digits, and test images that it knows nothing of."""
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    bunch = datasets.load_digits()
    pixels = torch.from_numpy(bunch.images).float()[:, None] / 16
    labels = torch.from_numpy(bunch.target).long()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(10):
        for rows in torch.randperm(1500).split(100):
            optimizer.zero_grad()
            F.cross_entropy(model(pixels[rows]), labels[rows]).backward()
            optimizer.step()
    return model.eval(), pixels[1500:1700], labels[1500:1700]


def case(attacks: Any, digits: tuple[nn.Module, torch.Tensor, torch.Tensor], eps: float, norm: str) -> Any:
    model, pixels, labels = digits
    threat = Threat(eps=eps, norm=norm)  # pyright: ignore
    return attacks.Case(title="digits", model=model, pixels=pixels, labels=labels, threat=threat)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.6)])
def test_fgsm_goes_where_theirs_goes(attacks: Any, digits: Any, norm: str, eps: float) -> None:
    one = case(attacks, digits, eps, norm)
    from art.attacks import evasion
    from art.estimators.classification import PyTorchClassifier

    estimator = PyTorchClassifier(
        one.model, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1), device_type="cpu"
    )
    theirs = attacks._reference(evasion, estimator, one.threat, "fgsm")
    changed = torch.from_numpy(theirs.generate(one.pixels.numpy(), F.one_hot(one.labels, 10).numpy()))
    mine = fgsm(one.model, one.pixels, one.labels, one.threat)
    close = (changed - mine).abs().flatten(1).amax(1) < 1e-5
    assert close.float().mean() > 0.97  # where a gradient is 0 within rounding, its sign is anyone's


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.6)])
@pytest.mark.parametrize("attack", ["pgd", "apgd_ce", "apgd_dlr", "square"])
def test_no_weaker_than_theirs(attacks: Any, digits: Any, attack: str, norm: str, eps: float) -> None:
    one = case(attacks, digits, eps, norm)
    found = attacks.theirs(one, attack), attacks.ours(one, attack), one.right(one.pixels)
    theirs, ours, clean = map(attacks.share, found)
    assert 0.05 < theirs < clean - 0.1  # the comparison can tell
    slack = 0.0 if attack == "pgd" else 0.02  # of one random start, or of a search at random
    assert ours <= theirs + slack


@pytest.mark.heavy
@pytest.mark.shared
@pytest.mark.timeout(3600)
def test_pgd_is_no_weaker_on_three_networks(attacks: Any, shared: Path) -> None:
    """Over three seeds of the random starts: no more images are left right than chance and starts explain."""
    for make in attacks.cases():
        one = make()
        ours, theirs = (torch.stack([attack(one, "pgd", seed) for seed in range(3)])
                        for attack in (attacks.ours, attacks.theirs))  # fmt: skip
        assert attacks.share(theirs) < attacks.share(one.right(one.pixels)) - 0.1
        assert attacks.share(ours) <= attacks.share(theirs) + 0.005
        assert (ours & ~theirs).sum() <= 0.02 * ours.numel()
