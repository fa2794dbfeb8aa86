"""``print(model)`` never lies."""

import pytest
import torch
from torch import nn

from secateur.surgery.layers import update


@pytest.mark.parametrize(
    ("layer", "tensors", "wanted"),
    [
        (nn.Conv2d(4, 6, 3), {"weight": (5, 2, 3, 3)}, "Conv2d(2, 5, kernel_size=(3, 3), stride=(1, 1))"),
        (nn.Conv1d(4, 6, 1), {"weight": (5, 2, 1)}, "Conv1d(2, 5, kernel_size=(1,), stride=(1,))"),
        (
            nn.ConvTranspose2d(4, 6, 2),
            {"weight": (3, 5, 2, 2)},
            "ConvTranspose2d(3, 5, kernel_size=(2, 2), stride=(1, 1))",
        ),
        (nn.Linear(4, 6), {"weight": (5, 2)}, "Linear(in_features=2, out_features=5, bias=True)"),
        (
            nn.Bilinear(4, 3, 6),
            {"weight": (5, 2, 1)},
            "Bilinear(in1_features=2, in2_features=1, out_features=5, bias=True)",
        ),
        (nn.LayerNorm(4), {"weight": (3,)}, "LayerNorm((3,), "),
        (nn.RMSNorm(4), {"weight": (3,)}, "RMSNorm((3,), eps=None, elementwise_affine=True)"),
        (nn.GroupNorm(2, 4), {"weight": (2,)}, "GroupNorm(2, 2, "),
        (nn.Embedding(9, 4), {"weight": (9, 3)}, "Embedding(9, 3)"),
        (nn.EmbeddingBag(9, 4), {"weight": (9, 3)}, "EmbeddingBag(9, 3, mode='mean')"),
        (nn.PReLU(4), {"weight": (3,)}, "PReLU(num_parameters=3)"),
    ],
)
def test_layers_say_what_they_have_become(layer: nn.Module, tensors: dict[str, tuple[int, ...]], wanted: str) -> None:
    for name, shape in tensors.items():
        setattr(layer, name, nn.Parameter(torch.zeros(shape)))
    update(layer)
    assert str(layer).startswith(wanted)


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False), nn.InstanceNorm1d(4, affine=True)]
)
def test_norms_with_statistics(layer: nn.Module) -> None:
    for name in ("weight", "bias"):
        if getattr(layer, name) is not None:
            setattr(layer, name, nn.Parameter(torch.zeros(3)))
    for name, value in layer.named_buffers():
        setattr(layer, name, value[:3] if value.dim() else value)
    update(layer)
    assert layer.num_features == 3


@pytest.mark.parametrize(
    "layer",
    [nn.ReLU(), nn.LayerNorm(4, elementwise_affine=False), nn.BatchNorm1d(4, affine=False, track_running_stats=False)],
)
def test_layers_without_tensors_stay(layer: nn.Module) -> None:
    before = str(layer)
    update(layer)
    assert str(layer) == before
