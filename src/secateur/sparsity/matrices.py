"""Weights of layers as matrices (outputs, inputs), and back.

The columns of a convolution go place by place of its window, and at each place through the input channels: so weights
that lie side by side are of neighbouring channels, which is what n of m and blocks are about, on hardware too.

Shape letters: O outputs, I inputs of a group, W places of a window.
"""

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


def transposed(module: nn.Module) -> bool:
    """Whether a layer holds its weight as (inputs, outputs): transformers' ``Conv1D``, as in GPT-2, does."""
    return type(module).__name__ == "Conv1D" and not isinstance(module, _ConvNd) and hasattr(module, "nf")


def matrix_name(module: nn.Module) -> str:
    """The parameter of a layer that is a matrix of outputs by inputs; empty where none is.

    That of linear layers and convolutions, and the joint projection of an ``nn.MultiheadAttention``.
    """
    if isinstance(module, nn.MultiheadAttention):
        return "in_proj_weight"
    plain = isinstance(module, nn.Linear | _ConvNd) and not isinstance(module, _ConvTransposeNd)
    return "weight" if plain or transposed(module) else ""


def to_matrix(weight: Tensor, *, transposed: bool = False) -> Tensor:
    """A weight, or a mask of its shape, as a matrix: (O, I, W...) -> (O, W I); a view where that is possible.

    Args:
        weight: (O, I) of a linear layer, (O, I, W...) of a convolution.
        transposed: it is (I, O).

    >>> import torch
    >>> to_matrix(torch.tensor([[[1, 2], [3, 4]]]))  # two channels, a window of two
    tensor([[1, 3, 2, 4]])
    """
    if transposed:
        return weight.T
    return weight if weight.dim() == 2 else weight.movedim(1, -1).flatten(1)


def from_matrix(matrix: Tensor, like: Tensor, *, transposed: bool = False) -> Tensor:
    """What `to_matrix` was given, from what it gave.

    Args:
        matrix: (O, W I).
        like: a tensor of the shape that is wanted.
        transposed: as for `to_matrix`.
    """
    if transposed:
        return matrix.T.contiguous()
    if like.dim() == 2:
        return matrix
    return matrix.unflatten(1, (*like.shape[2:], like.shape[1])).movedim(-1, 1).contiguous()


def pattern_shape(weight: Tensor, *, transposed: bool = False, groups: int = 1) -> tuple[int, int]:
    """What a pattern has to divide: outputs of a group, and inputs at one place of the window, so that nothing that
    goes or stays as one reaches over the end of either.
    """
    rows, cols = (weight.shape[1], weight.shape[0]) if transposed else (weight.shape[0], weight.shape[1])
    return rows // groups, cols
