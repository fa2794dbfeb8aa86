"""SparseGPT: weights go column by column, and those that are still to come make up for each that went.

Frantar and Alistarh 2023, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", arXiv:2301.00774.
Differs: a weight of an input that was always zero on the data keeps its value, where it stays.

Shape letters: O outputs, C columns, B columns of a block.
"""

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 128  # columns whose weights are ranked together, and whose updates of all later columns are put off
DAMPING = 0.01  # of the mean of the Gram matrix's diagonal, added to it; as published

Choose = Callable[[Tensor, int], Tensor]
"""From scores of some columns, (O, B), and the first column's number, to which weights stay, bool (O, B)."""


def solve(
    weight: Tensor,
    gram: Tensor,
    mask: Tensor | None,
    choose: Choose,
    *,
    columns: int = 1,
    at_once: bool = True,
    block: int = BLOCK,
) -> tuple[Tensor, Tensor, float]:
    """Prune a matrix, and update what stays to keep its outputs.

    From left to right: the weights of a column that go have errors w / d, d the diagonal of the upper Cholesky factor U
    of the damped Gram matrix's inverse; each later column loses the errors times its entry in U's row. That is optimal
    brain surgery with the columns so far fixed, and all rows share U. Which weights go is decided by w^2 / d^2, with
    the updates so far: for a block of columns at once, or for each group of n of m columns when it is reached.

    Args:
        weight: (O, C).
        gram: sums or means of products of inputs, (C, C), in the precision to calculate in.
        mask: bool (O, C) which weights stay, where that is decided already.
        choose: decides otherwise.
        columns: so many are decided upon together at least; a block is a multiple of them.
        at_once: decide for a whole block, not for each group of ``columns``.
        block: columns of a block.

    Returns:
        The new weight, the mask, and the share of the diagonal's mean that was added to it: more than `DAMPING` where
        that left the matrix without a Cholesky factor.
    """
    factor, dead, damping = inverse_factor(gram)  # first: it takes most memory
    dense, weight = weight, weight.to(gram.dtype, copy=True)
    keep = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask
    weight[:, dead] = 0  # no input ever came here, so nothing is lost: these go first
    width = max(columns, block // columns * columns)
    for start in range(0, weight.shape[1], width):
        stop = min(start + width, weight.shape[1])
        part, own = weight[:, start:stop], factor[start:stop, start:stop]
        errors = torch.zeros_like(part)
        scale = own.diagonal()
        step = stop - start if at_once else columns
        for k in range(stop - start):
            if mask is None and k % step == 0:
                scores = part[:, k : k + step].square() / scale[k : k + step].square()
                keep[:, start + k : start + k + step] = choose(scores, start + k)
            gone = part[:, k] * ~keep[:, start + k]
            errors[:, k] = gone / scale[k]
            part[:, k:] -= errors[:, k : k + 1] * own[k, k:]
        weight[:, stop:] -= errors @ factor[start:stop, stop:]
    weight[:, dead] = dense[:, dead].to(weight)
    return weight.mul_(keep), keep, damping


def inverse_factor(gram: Tensor) -> tuple[Tensor, Tensor, float]:
    """The upper Cholesky factor of the inverse of a damped Gram matrix, (C, C).

    Returns:
        The factor; which features were never other than zero, bool (C,); and the damping.
    """
    dead = gram.diagonal() == 0
    mean, damping = float(gram.diagonal().mean()) or 1.0, DAMPING
    while (factor := _factor(gram, dead, damping * mean)) is None:
        damping *= 10
    return factor, dead, damping


def _factor(gram: Tensor, dead: Tensor, added: float) -> Tensor | None:
    """At one damping; None where there is none. A Gram matrix may be large, so no more copies live than must."""
    matrix = gram.clone()
    matrix.diagonal()[dead] = 1
    matrix.diagonal().add_(added)
    matrix, failed = torch.linalg.cholesky_ex(matrix)
    if failed:
        return None
    matrix = torch.cholesky_inverse(matrix)
    matrix, failed = torch.linalg.cholesky_ex(matrix, upper=True)
    return None if failed else matrix
