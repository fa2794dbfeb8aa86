"""Fourier transforms, complex numbers, and sampling at computed places."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from support.operations import CHANNELS, IMAGES, Case, Net, chain, halved, images, rows, weight

SPECTRA: dict[str, Case] = {
    "Fourier transform in space": images(lambda x: torch.fft.irfft2(torch.fft.rfft2(x), s=x.shape[-2:])),
    "global filter": (
        Net(lambda net, x: net.last(torch.fft.irfft2(
                torch.fft.rfft2(net.first(x)) * torch.view_as_complex(net.w), s=x.shape[-2:])),
            first=nn.Conv2d(2, 12, 1), w=weight(12, 6, 4, 2), last=nn.Conv2d(12, 3, 1)),
        IMAGES, ("w:0 channels 12>6",),
    ),
    "complex and polar": rows(
        lambda x: (torch.complex(x, 2 * x) * torch.polar(torch.ones_like(x), x)).real
    ),
    "grid sample": images(lambda x: F.grid_sample(x, torch.zeros(x.shape[0], 4, 4, 2), align_corners=False)),
    "spatial transformer": (
        Net(lambda net, x: net.last(F.grid_sample(net.first(x), F.affine_grid(
                net.turn(x.flatten(1)).view(-1, 2, 3), [x.shape[0], 2, 6, 6], False), align_corners=False)),
            first=nn.Conv2d(2, 12, 1), turn=nn.Linear(72, 6), last=nn.Conv2d(12, 3, 1)),
        IMAGES, (CHANNELS,),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SPECTRA)
def test_half_of_every_axis_goes(name: str) -> None:
    net, inputs, axes = SPECTRA[name]
    halved(net, inputs, *axes)


class SpectralConvolution(nn.Module):
    """Low frequencies multiplied by complex weights, written into a spectrum of zeros (a Fourier neural operator)."""

    def __init__(self, inputs: int, outputs: int, modes: int) -> None:
        super().__init__()
        self.out_channels, self.modes = outputs, modes
        self.low = nn.Parameter(torch.randn(inputs, outputs, modes, modes, dtype=torch.cfloat))
        self.high = nn.Parameter(torch.randn(inputs, outputs, modes, modes, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        spectrum, m = torch.fft.rfft2(x), self.modes
        out = torch.zeros(x.shape[0], self.out_channels, x.shape[-2], x.shape[-1] // 2 + 1, dtype=spectrum.dtype)
        out[:, :, :m, :m] = torch.einsum("bixy,ioxy->boxy", spectrum[:, :, :m, :m], self.low)
        out[:, :, -m:, :m] = torch.einsum("bixy,ioxy->boxy", spectrum[:, :, -m:, :m], self.high)
        return torch.fft.irfft2(out, s=x.shape[-2:])


def test_complex_weights() -> None:
    net, inputs, axes = chain(
        IMAGES, nn.Conv2d(2, 12, 1), SpectralConvolution(12, 8, 2), nn.Conv2d(8, 3, 1),
        axes=("a.weight:0 channels 12>6", "b.low:1 channels 8>4"),
    )  # fmt: skip
    result = halved(net, inputs, *axes)
    assert result.proof.dtype == "float64"
    assert (result.model.b.out_channels, result.model.b.low.dtype) == (4, torch.complex64)


def test_short_time_fourier_transforms() -> None:
    def masked(net: Net, x: Tensor) -> Tensor:
        spectrum = torch.stft(x, 16, 8, window=net.window, return_complex=True)
        mask = net.out(net.conv(spectrum.abs()[:, None]).relu()).sigmoid()[:, 0]
        return torch.istft(spectrum * mask, 16, 8, window=net.window, length=x.shape[-1])

    parts = {"conv": nn.Conv2d(1, 8, 3, padding=1), "out": nn.Conv2d(8, 1, 3, padding=1)}
    result = halved(
        Net(masked, **parts, window=torch.hann_window(16)), torch.randn(2, 64), "conv.weight:0 channels 8>4"
    )
    assert "aten::as_strided at " in result.graph.frozen["window:0"].frozen[0]
