"""Corruptions and calibration: numbers by hand."""

import math

import pytest
import torch

from secateur.safety.confidence import calibration
from secateur.safety.corruption import (
    CORRUPTIONS,
    bell,
    contrast,
    gaussian_blur,
    gaussian_noise,
    in_unit,
    jpeg,
    out_of_unit,
    unfit,
)


def test_noise_has_the_deviation_of_its_severity() -> None:
    grey = torch.full((4, 3, 64, 64), 0.5)
    for severity, deviation in enumerate((0.04, 0.06, 0.08, 0.09, 0.10), 1):
        found = gaussian_noise(grey, severity, torch.Generator().manual_seed(0))
        assert (found - grey).std().item() == pytest.approx(deviation, rel=0.02)
    white = gaussian_noise(torch.ones(2, 3, 8, 8), 5)
    assert white.max() <= 1


def test_blur_by_hand() -> None:
    weights = bell(0.4)  # cut off at int(4 * 0.4 + 0.5) = 2 pixels
    raw = [math.exp(-0.5 * (k / 0.4) ** 2) for k in range(-2, 3)]
    torch.testing.assert_close(weights, torch.tensor(raw, dtype=torch.float64) / sum(raw))
    dot = torch.zeros(1, 2, 9, 9)
    dot[0, 0, 4, 4] = 1
    found = gaussian_blur(dot, 1)
    torch.testing.assert_close(found[0, 0, 2:7, 4], (weights * weights[2]).float())
    assert not found[0, 1].any()
    flat = torch.full((1, 1, 3, 3), 0.7)
    torch.testing.assert_close(gaussian_blur(flat, 5), flat)  # edge pixels go on outside


def test_blur_is_that_of_scipy() -> None:
    ndimage = pytest.importorskip("scipy.ndimage", reason="scipy is not installed")
    image = torch.rand(1, 1, 12, 10)
    for severity, deviation in enumerate((0.4, 0.6, 0.7, 0.8, 1.0), 1):
        theirs = ndimage.gaussian_filter(image[0, 0].double().numpy(), deviation, mode="nearest")
        torch.testing.assert_close(gaussian_blur(image, severity)[0, 0].double(), torch.from_numpy(theirs),
                                   atol=1e-6, rtol=0)  # fmt: skip


def test_contrast_by_hand() -> None:
    image = torch.tensor([0.2, 0.6]).reshape(1, 1, 1, 2)
    torch.testing.assert_close(contrast(image, 2).flatten(), torch.tensor([0.3, 0.5]))
    torch.testing.assert_close(contrast(image, 5).flatten(), torch.tensor([0.37, 0.43]))


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_loses_more_at_each_severity(channels: int) -> None:
    pytest.importorskip("PIL", reason="Pillow is not installed")
    image = torch.rand(2, channels, 16, 16)
    found = [float((jpeg(image, severity) - image).square().mean()) for severity in range(1, 6)]
    assert found == sorted(found)
    assert found[0] > 0
    assert jpeg(image, 1).stride() == image.stride()  # a convolution takes its layout from there, and view needs it
    assert jpeg(torch.full_like(image, 0.2), 1).sub(0.2).abs().max() < 0.01


def test_severities_are_of_the_range_of_pixels() -> None:
    pixels = torch.tensor([0.0, 127.5, 255.0])
    torch.testing.assert_close(in_unit(pixels, (0, 255)), torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(out_of_unit(in_unit(pixels, (0, 255)), (0, 255)), pixels)


def test_what_can_not_be_done_says_why() -> None:
    assert all(not unfit(name, (2, 3, 8, 8)) for name in CORRUPTIONS)
    assert "1 or 3 channels, and there are 2" in unfit("jpeg", (2, 2, 8, 8))
    assert "inputs are (N, 4)" in unfit("gaussian_blur", (2, 4))
    assert not unfit("gaussian_noise", (2, 4))


def test_calibration_error_by_hand() -> None:
    # two bins: {0.3, 0.5} with one right, {0.9, 0.7} with both right; 0.5 belongs to the lower bin
    found = calibration(torch.tensor([0.3, 0.9, 0.5, 0.7]), torch.tensor([True, True, False, True]), bins=2)
    assert found.error == pytest.approx(0.5 * abs(0.4 - 0.5) + 0.5 * abs(0.8 - 1.0))
    assert found.confidence == pytest.approx(0.6)
    assert found.accuracy == 0.75
    assert not found.overconfident
    sure = calibration(torch.ones(4), torch.tensor([True, False, False, False]))
    assert sure.error == pytest.approx(0.75)
    assert sure.overconfident
