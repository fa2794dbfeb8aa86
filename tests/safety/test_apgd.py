"""Auto-PGD: its formulas by hand, and that it finds what PGD finds."""

import pytest
import torch
from torch import nn

from secateur.safety.apgd import apgd, apgd_dlr, checkpoints
from secateur.safety.losses import margin, targeted_dlr
from secateur.safety.pgd import pgd
from secateur.safety.threat import Threat, lengths


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 6))


def samples() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(64, 3, 2, 2), torch.randint(0, 6, (64,))


def test_checkpoints_by_hand() -> None:
    # shares 0.22, +0.19, +0.16, +0.13, +0.10, +0.07, +0.06, +0.06
    assert checkpoints(100) == (22, 41, 57, 70, 80, 87, 93, 99)
    assert checkpoints(10) == (3, 5, 6, 7, 8, 9, 10)


def test_targeted_dlr_by_hand() -> None:
    scores = torch.tensor([[5.0, 2.0, 4.0, 1.0, 3.0]])
    # highest are 5, 4, 3, 2: -(4 - 2) / (5 - (3 + 2) / 2)
    found = targeted_dlr(scores, torch.tensor([2]), torch.tensor([1]))
    assert found.item() == pytest.approx(-0.8)
    again = targeted_dlr(1000 * scores - 7, torch.tensor([2]), torch.tensor([1]))
    assert again.item() == pytest.approx(-0.8)


def test_margin_by_hand() -> None:
    scores = torch.tensor([[5.0, 2.0, 4.0], [1.0, 2.0, 4.0]])
    assert margin(scores, torch.tensor([0, 1])).tolist() == [-1.0, 2.0]


def test_first_step_by_hand() -> None:
    """2 eps along the sign, from a start that a generator fixes; then projected."""
    model = nn.Linear(2, 2, bias=False)
    model.weight.data = torch.eye(2)
    seen = []

    def scores(inputs: torch.Tensor) -> torch.Tensor:
        seen.append(inputs.detach())
        return model(inputs)

    threat = Threat(eps=0.1)
    apgd(scores, torch.tensor([[0.6, 0.4]]), torch.tensor([0]), threat, steps=1)
    assert len(seen) == 2
    torch.testing.assert_close(seen[1], torch.tensor([[0.5, 0.5]]))


def test_step_is_halved_where_the_loss_does_not_rise() -> None:
    """A loss that is highest at 0.5 is overshot by steps of 0.4 until they are halved."""

    def loss(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return -(scores[:, 0] - 0.5).square()

    def scores(inputs: torch.Tensor) -> torch.Tensor:
        return torch.cat([inputs, inputs], 1)

    threat = Threat(eps=0.2)
    start = torch.tensor([[0.45]])
    found = apgd(scores, start, torch.tensor([0]), threat, steps=60, loss=loss)
    assert found.item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_stays_in_the_ball_and_is_no_weaker_than_pgd(norm: str) -> None:
    model, (pixels, labels) = network(), samples()
    threat = Threat(eps=0.3, norm=norm, normalise=([0.4, 0.5, 0.6], [0.2, 0.3, 0.4]))  # pyright: ignore
    inputs = threat.inputs(pixels)
    labels = model(inputs).argmax(1)
    generator = torch.Generator().manual_seed(1)
    changed = apgd(model, inputs, labels, threat, steps=50, generator=generator)
    moved = threat.pixels(changed) - pixels
    assert (moved.abs().amax() if norm == "linf" else lengths(moved).amax()) <= 0.3 + 1e-5
    assert threat.pixels(changed).min() >= -1e-5
    assert threat.pixels(changed).max() <= 1 + 1e-5
    loss = nn.CrossEntropyLoss()
    weaker = pgd(model, inputs, labels, threat, steps=50, generator=generator)
    assert loss(model(changed), labels) >= loss(model(weaker), labels) - 1e-3
    assert all(p.grad is None for p in model.parameters())


def test_stopping_changes_no_verdict_and_asks_less() -> None:
    model, (pixels, _) = network(), samples()
    labels = model(pixels).argmax(1)
    asked = 0

    def scores(inputs: torch.Tensor) -> torch.Tensor:
        nonlocal asked
        asked += len(inputs)
        return model(inputs)

    counts = {}
    for stop in (False, True):
        asked = 0
        found = apgd(scores, pixels, labels, Threat(eps=0.3), steps=20, stop=stop)
        counts[stop] = asked, int((model(found).argmax(1) != labels).sum())
    assert counts[True][1] >= counts[False][1] > 0
    assert counts[True][0] < counts[False][0] / 2


def test_targeted_attack_goes_to_each_class() -> None:
    """Class 3 is never second, but the only one that can be reached."""
    model = nn.Linear(1, 5)
    model.weight.data = torch.tensor([[0.0], [0.0], [0.0], [40.0], [0.0]])
    model.bias.data = torch.tensor([4.0, 3.9, 3.8, -20.0, 3.7])
    inputs, labels = torch.tensor([[0.5]]), torch.tensor([0])
    assert model(inputs).argsort(1, descending=True)[0].tolist() == [0, 1, 2, 4, 3]
    found = apgd_dlr(model, inputs, labels, Threat(eps=0.2), steps=10)
    assert model(found).argmax(1).item() == 3
    assert torch.equal(apgd_dlr(model, inputs, labels, Threat(eps=0.2), steps=10, targets=2), inputs)
