"""Attacks by gradient: numbers by hand, and what must hold of every result."""

import math

import pytest
import torch
from torch import nn

from secateur.safety.pgd import fgsm, pgd
from secateur.safety.threat import Threat, lengths


def linear() -> nn.Linear:
    model = nn.Linear(2, 2, bias=False)
    model.weight.data = torch.eye(2)
    return model


def test_fgsm_by_hand() -> None:
    changed = fgsm(linear(), torch.tensor([[0.6, 0.4]]), torch.tensor([0]), Threat(eps=0.05))
    torch.testing.assert_close(changed, torch.tensor([[0.55, 0.45]]))


def test_fgsm_by_hand_in_l2() -> None:
    changed = fgsm(linear(), torch.tensor([[0.6, 0.4]]), torch.tensor([0]), Threat(eps=0.1, norm="l2"))
    torch.testing.assert_close(changed, torch.tensor([[0.6 - 0.1 / math.sqrt(2), 0.4 + 0.1 / math.sqrt(2)]]))


def test_eps_is_in_pixels_where_inputs_are_scaled() -> None:
    threat = Threat(eps=0.1, normalise=([0.5, 0.25], [0.5, 0.125]))
    pixels = torch.tensor([[0.6, 0.4]])
    changed = fgsm(linear(), threat.inputs(pixels), torch.tensor([0]), threat)
    torch.testing.assert_close(threat.pixels(changed), torch.tensor([[0.5, 0.5]]))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_stays_in_the_ball_and_the_bounds_and_is_no_weaker_than_fgsm(norm: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))
    pixels, labels = torch.rand(32, 3, 2, 2), torch.randint(0, 3, (32,))
    threat = Threat(eps=0.2, norm=norm, normalise=([0.4, 0.5, 0.6], [0.2, 0.3, 0.4]))  # pyright: ignore
    inputs = threat.inputs(pixels)
    changed = pgd(model, inputs, labels, threat, steps=10, restarts=2, generator=torch.Generator().manual_seed(1))
    moved = threat.pixels(changed) - pixels
    size = moved.abs().amax() if norm == "linf" else lengths(moved).amax()
    assert size <= 0.2 + 1e-5
    assert threat.pixels(changed).min() >= -1e-5
    assert threat.pixels(changed).max() <= 1 + 1e-5
    loss = nn.CrossEntropyLoss()
    assert loss(model(changed), labels) >= loss(model(fgsm(model, inputs, labels, threat)), labels)
    assert all(p.grad is None for p in model.parameters())


def test_random_starts_fill_the_ball() -> None:
    threat = Threat(eps=0.1, norm="l2", bounds=(-1, 1))
    points = threat.start(torch.zeros(4000, 2), torch.Generator().manual_seed(0))
    radii = lengths(points).flatten()
    assert radii.max() <= 0.1 + 1e-6
    assert (radii < 0.1 / math.sqrt(2)).float().mean().item() == pytest.approx(0.5, abs=0.03)  # half of the area


@pytest.mark.parametrize(
    ("settings", "match"), [({"eps": 0}, "eps=0"), ({"norm": "l1"}, "'linf' or 'l2'"), ({"bounds": (1, 0)}, "bounds")]
)
def test_bad_settings(settings: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Threat(**settings)
