"""The weights that stay are refitted on their places: the second half of ALPS.

Meng et al. 2024, "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large Language Models",
arXiv:2406.07831, section 3.3. Differs: only the refinement of a given support by preconditioned conjugate gradients;
the preconditioner is the diagonal, and steps are chosen for each row by itself, the rows being separate problems.

Shape letters: O outputs, C columns.
"""

import torch
from torch import Tensor

from secateur.sparsity.obs import DAMPING

STEPS = 100  # at most
SMALL = 1e-10  # of a residual's size at the beginning, at which a row is done


def refine(weight: Tensor, dense: Tensor, mask: Tensor, gram: Tensor, *, steps: int = STEPS) -> Tensor:
    """Weights on the mask with a smaller squared error of the outputs, tr (w - d) H (w - d)'; never a larger one.

    Conjugate gradients on the normal equations of each row, restricted to its weights that stay; H is damped as in
    `secateur.sparsity.obs`. A row that would have a larger error without damping keeps its weights.

    Args:
        weight: (O, C), zero off the mask, to begin with.
        dense: the weights whose outputs are wanted, (O, C).
        mask: bool (O, C), True = stays.
        gram: H, (C, C).
        steps: at most.

    Returns:
        (O, C), zero off the mask.
    """
    gram = gram.to(weight.dtype)
    damped = gram.clone()
    damped.diagonal().add_(DAMPING * float(gram.diagonal().mean()))
    new = _conjugate(weight, dense, mask, damped, steps)
    worse = error(new, dense, gram) > error(weight, dense, gram)
    return torch.where(worse[:, None], weight, new)


def _conjugate(weight: Tensor, dense: Tensor, mask: Tensor, gram: Tensor, steps: int) -> Tensor:
    new = weight.clone()
    inverse = gram.diagonal().clamp_min(torch.finfo(weight.dtype).tiny).reciprocal()
    residual = ((dense - new) @ gram) * mask
    ready = residual * inverse
    direction, size = ready, (residual * ready).sum(1)
    done = size * SMALL**2
    for _ in range(steps):
        going = size > done
        if not bool(going.any()):
            break
        product = direction @ gram
        curve = (direction * product).sum(1)
        step = torch.where(going & (curve > 0), size / curve.clamp_min(torch.finfo(weight.dtype).tiny), 0.0)
        new += step[:, None] * direction
        residual = residual - step[:, None] * product * mask
        ready = residual * inverse
        following = (residual * ready).sum(1)
        turn = torch.where(going, following / size.clamp_min(torch.finfo(weight.dtype).tiny), 0.0)
        direction, size = ready + turn[:, None] * direction, torch.where(going, following, size)
    return new * mask


def error(weight: Tensor, dense: Tensor, gram: Tensor) -> Tensor:
    """Squared error of each output over the data that the Gram matrix is of, (O,)."""
    change = weight - dense
    return ((change @ gram) * change).sum(1)
