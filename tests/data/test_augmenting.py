"""Training images changed at random."""

import math
from collections import Counter
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.data.augmenting import crop_box, cropped, mirrored


@given(st.integers(1, 300), st.integers(1, 300), st.integers())
def test_crops_lie_in_the_image(width, height, seed):
    left, top, right, bottom = crop_box(width, height, Random(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_crops_have_the_areas_and_aspects_of_torchvision():
    boxes = [crop_box(1000, 1000, Random(seed)) for seed in range(4000)]
    areas = [(right - left) * (bottom - top) / 1e6 for left, top, right, bottom in boxes]
    aspects = [(right - left) / (bottom - top) for left, top, right, bottom in boxes]
    assert 0.079 < min(areas) < 0.09
    assert 0.74 < min(aspects) < 0.77
    assert 1.3 < max(aspects) < 1.34
    assert abs(sum(math.log(aspect) for aspect in aspects)) / len(aspects) < 0.01
    # Uniform in [0.08, 1], but the crops that don't fit are drawn again, so that large ones are rarer.
    assert 0.47 < sum(areas) / len(areas) < 0.54


@pytest.mark.parametrize(
    ("shape", "box"), [((1000, 10), (493, 0, 506, 10)), ((10, 1000), (0, 493, 10, 506)), ((1, 1), (0, 0, 1, 1))]
)
def test_where_no_crop_fits_it_is_the_middle(shape, box):
    assert Counter(crop_box(*shape, Random(seed)) for seed in range(20)).most_common(1)[0][0] == box


def test_half_of_the_images_are_mirrored():
    images = torch.arange(3.0).expand(40, 1, 1, 3)
    assert mirrored(images, torch.arange(40))[:, 0, 0, 0].tolist() == [0.0, 2.0] * 20


def test_a_crop_of_a_ramp_is_a_stretch_of_it():
    ramp = torch.arange(64.0).expand(8, 1, 64, 64)
    draws = torch.arange(0, 16, 2)  # even: not mirrored
    for crop, draw in zip(cropped(ramp, draws), draws.tolist(), strict=True):
        left, _, right, _ = crop_box(64, 64, Random(draw))
        scale = (right - left) / 64
        expected = (left + (torch.arange(64) + 0.5) * scale - 0.5).clamp(0, 63)
        assert torch.allclose(crop[0, 10], expected, atol=1e-3)
        assert torch.allclose(crop[0, 50], expected, atol=1e-3)
