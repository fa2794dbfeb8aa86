"""Layers that compute what a dense one computes by a sparse kernel of torch, for inference.

Shapes: t tokens or positions, i inputs, o outputs; a convolution's inputs are those of one window.
"""

import warnings
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCKS = (64, 32, 16, 8, 4)  # rows and cols of the square blocks that are tried, the largest first
EMPTY_BLOCKS = 0.3  # share of blocks that must be empty for these blocks to be tried
Kernel = Callable[[nn.Module], nn.Module]


class SparseLinear(nn.Module):
    """A linear layer whose weight (o, i) is stored in rows (CSR) or blocks (BSR).

    Args:
        layer: the dense one.
        weight: its weight in a sparse layout.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear, weight: Tensor) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.register_buffer("weight", weight)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach())  # pyright: ignore[reportUnnecessaryComparison]

    def forward(self, input: Tensor) -> Tensor:
        """(..., i) -> (..., o); named as that of torch's layers, which code may call by keyword."""
        if input.is_nested:  # an encoder layer's, of samples with different lengths
            parts = input.unbind()
            outputs = self(torch.cat(parts)).split([len(part) for part in parts])
            return torch.nested.as_nested_tensor(list(outputs))
        return without_autocast(self._product, input, self.weight)

    def _product(self, x: Tensor) -> Tensor:
        return multiplied(self.weight, x.reshape(-1, x.shape[-1]), self.bias).reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, {_layout(self.weight)}"


class SparseConv2d(nn.Module):
    """A convolution with one group as a sparse weight (o, i) times the windows of its input.

    Args:
        layer: the dense one, padded with zeros.
        weight: its weight, flat from the second dim on, in a sparse layout.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Conv2d, weight: Tensor) -> None:
        super().__init__()
        self.kernel_size, self.stride = layer.kernel_size, layer.stride
        self.padding, self.dilation = layer.padding, layer.dilation
        self.register_buffer("weight", weight)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach())

    def forward(self, input: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, o, h', w'), or the same without n."""
        x = input if input.dim() == 4 else input[None]
        out = without_autocast(self._product, x, self.weight)
        return out if input.dim() == 4 else out[0]

    def _product(self, x: Tensor) -> Tensor:
        assert not isinstance(self.padding, str)
        sizes = [
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, k, s, p, d in zip(
                x.shape[2:], self.kernel_size, self.stride, self.padding, self.dilation, strict=True
            )
        ]
        if self.kernel_size == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0):
            windows = x.flatten(2)
        else:
            windows = F.unfold(x, self.kernel_size, self.dilation, self.padding, self.stride)
        n, i, t = windows.shape
        out = self.weight @ windows.transpose(0, 1).reshape(i, n * t)
        if self.bias is not None:
            out = out + self.bias[:, None]
        return out.view(len(self.weight), n, *sizes).transpose(0, 1)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, {_layout(self.weight)}"


class TwoFourLinear(nn.Linear):
    """A linear layer whose weight is one of torch's semi-structured tensors (Mishra et al. 2021, arXiv:2104.08378)."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., i) -> (..., o)."""
        return without_autocast(super().forward, input, self.weight)


def without_autocast(product: Callable[[Tensor], Tensor], x: Tensor, weight: Tensor) -> Tensor:
    """What a product gives in its weight's type; autocast would ask for types that sparse kernels don't have. The
    output is of the type that autocast asks for, as a dense layer's is (it leaves double precision alone).
    """
    device = x.device.type
    if weight.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return product(x)
    with torch.autocast(device, enabled=False):
        return product(x.to(weight.dtype)).to(torch.get_autocast_dtype(device))


def multiplied(weight: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    """(t, i) -> (t, o). torch's CPU kernels take a single row as a vector, and more rows as columns of a matrix."""
    if len(x) == 1 or x.is_cuda:
        return F.linear(x, weight, bias)
    out = (weight @ x.t()).t()
    return out if bias is None else out + bias


def kernels(layer: nn.Module) -> Iterator[tuple[str, Kernel]]:
    """The sparse kernels that may run a layer where it is, by name."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or not _fits(layer):
        return
    matrix = weight.detach().flatten(1)
    if matrix.is_cuda and isinstance(layer, nn.Linear) and is_two_four(matrix):
        yield "2:4", semi_structured
    yield "CSR", partial(_replaced, sparse=_csr)
    for size in BLOCKS:
        if share_of_empty_blocks(matrix, size) >= EMPTY_BLOCKS:
            yield f"BSR {size}x{size}", partial(_replaced, sparse=partial(_bsr, size=size))


def is_two_four(matrix: Tensor) -> bool:
    """Whether at most two of each four consecutive weights of a row are no zeros."""
    fits = matrix.dtype in (torch.float16, torch.bfloat16) and not matrix.shape[1] % 4
    return fits and bool(((matrix.view(-1, 4) != 0).sum(1) <= 2).all())


def share_of_empty_blocks(matrix: Tensor, size: int) -> float:
    """Of a matrix in square blocks; 0 where these don't divide it."""
    rows, cols = matrix.shape
    if rows % size or cols % size:
        return 0.0
    there = (matrix != 0).view(rows // size, size, cols // size, size).any(3).any(1)
    return 1 - there.float().mean().item()


def semi_structured(layer: nn.Module) -> nn.Module:
    """A linear layer as a `TwoFourLinear`."""
    assert isinstance(layer, nn.Linear)
    made = TwoFourLinear(layer.in_features, layer.out_features, bias=False, device="meta", dtype=layer.weight.dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that semi-structured tensors are a prototype
        sparse = torch.sparse.to_sparse_semi_structured(layer.weight.detach())
    made.weight = nn.Parameter(sparse, requires_grad=False)
    made.bias = layer.bias
    return made


def _fits(layer: nn.Module) -> bool:
    """Whether this is a plain layer of a kind that we have, and no subclass that may compute something else."""
    if type(layer) is nn.Conv2d:
        return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return type(layer) is nn.Linear


def _replaced(layer: nn.Module, sparse: Callable[[Tensor], Tensor]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch's sparse layouts are in beta
        if isinstance(layer, nn.Linear):
            return SparseLinear(layer, sparse(layer.weight.detach()))
        assert isinstance(layer, nn.Conv2d)
        return SparseConv2d(layer, sparse(layer.weight.detach().flatten(1)))


def _csr(matrix: Tensor) -> Tensor:
    made = matrix.to_sparse_csr()
    return torch.sparse_csr_tensor(*_indices(made), made.values(), made.shape)


def _bsr(matrix: Tensor, size: int) -> Tensor:
    made = matrix.to_sparse_bsr((size, size))
    return torch.sparse_bsr_tensor(*_indices(made), made.values(), made.shape)


def _indices(made: Tensor) -> tuple[Tensor, Tensor]:
    """In 32 bits: the CPU's library has no others, and torch would convert them in every call."""
    return made.crow_indices().int(), made.col_indices().int()


def _layout(weight: Tensor) -> str:
    return str(weight.layout).removeprefix("torch.")
