"""Our own kernels give what torch's give where it has some."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from secateur.tracing.kernels import Kernels


def grouped(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, a matrix for each of four groups, and where the rows of each group end: one group has none."""
    torch.manual_seed(0)
    return torch.randn(10, 8, dtype=dtype), torch.randn(4, 8, 12, dtype=dtype), torch.tensor([3, 3, 9, 10]).int()


def test_grouped_products_in_float64_are_those_of_float32() -> None:
    x, weight, ends = grouped(torch.float32)
    expected = F.grouped_mm(x, weight, offs=ends)
    with Kernels():
        got = F.grouped_mm(x.double(), weight.double(), offs=ends)
        same = F.grouped_mm(x, weight, offs=ends)
    assert got.dtype == torch.float64
    assert torch.allclose(got.float(), expected, atol=1e-5)
    assert torch.equal(same, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_grouped_products_have_a_shape_without_values(dtype: torch.dtype) -> None:
    with FakeTensorMode(), Kernels():
        x, weight, ends = grouped(dtype)
        out = F.grouped_mm(x, weight, offs=ends)
    assert (tuple(out.shape), out.dtype) == ((10, 12), dtype)
    x, weight, ends = (t.to("meta") for t in grouped(dtype))
    with Kernels():
        out = F.grouped_mm(x, weight, offs=ends)
    assert (tuple(out.shape), out.dtype, out.device.type) == ((10, 12), dtype, "meta")
