"""Ridge regression from sums that are accumulated over the data, its strength chosen by cross-validation.

Shape letters: G groups, R rows, K features, N outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from secateur.calibration.found import wide

RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Strengths that are tried, as shares of the mean square of a feature."""
UNCHECKED = 1e-2  # strength where there are not enough rows to choose one
CHUNK = 8192  # rows whose products are added up in the precision of the data, before the sum goes on in float64


@dataclass
class Sums:
    """Sums over rows of features x and targets t: all that least squares needs to know of the data.

    Attributes:
        rows: how many, or how much they weigh.
        x, t: sums, (G, K) and (G, N).
        xx, xt: sums of products, (G, K, K) and (G, K, N).
        tt: sums of squares, (G, N).
    """

    rows: float = 0
    parts: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def add(self, x: Tensor, t: Tensor) -> None:
        """Count rows in: features (R, G, K) and targets (R, G, N)."""
        self.rows += x.shape[0]
        for start in range(0, x.shape[0], CHUNK):
            a, b = (v[start : start + CHUNK].transpose(0, 1) for v in (x, t))  # (G, R, K), (G, R, N)
            new = {
                "x": a.sum(1), "t": b.sum(1), "tt": b.square().sum(1),
                "xx": a.transpose(1, 2) @ a, "xt": a.transpose(1, 2) @ b,
            }  # fmt: skip
            for name, value in new.items():
                kept = self.parts.get(name)
                self.parts[name] = wide(value) if kept is None else kept.add_(value.to(kept.device))

    def __add__(self, other: "Sums") -> "Sums":
        if not (self.rows and other.rows):
            return self if self.rows else other
        return Sums(self.rows + other.rows, {k: self.parts[k] + other.parts[k] for k in self.parts})

    def weighing(self, rows: float) -> "Sums":
        """The same sums with as much weight as so many rows; as they are where there is none."""
        if not self.rows:
            return self
        return Sums(rows, {k: values * (rows / self.rows) for k, values in self.parts.items()})

    def moments(self, *, centred: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Mean products xx (G, K, K), xt (G, K, N) and tt (G, N), around the means or around 0."""
        xx, xt, tt = (self.parts[k] / self.rows for k in ("xx", "xt", "tt"))
        if centred:
            x, t = (self.parts[k] / self.rows for k in ("x", "t"))
            xx = xx - x[:, :, None] * x[:, None, :]
            xt = xt - x[:, :, None] * t[:, None, :]
            tt = tt - t.square()
        return xx, xt, tt.clamp_min(0)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What least squares found.

    Attributes:
        change: to be added to the matrix, (G, K, N); zero where nothing helps.
        offset: to be added to the outputs, (G, N).
        ridge: the strength chosen.
        before, after: mean square of the targets, and what is left of it on rows that the fit has not seen, summed over
            the outputs.
    """

    change: Tensor
    offset: Tensor
    ridge: float
    before: float
    after: float


def solve(folds: Sequence[Sums], *, intercept: bool, ridges: Sequence[float] = RIDGES) -> Fit:
    """The change of a matrix that brings its outputs nearest to the targets: ridge regression of what is missing.

    Hoerl and Kennard 1970, "Ridge Regression". The strength is the one that does best on each half of the data when
    fitted on the other; where none does better than no change at all, the change is zero.

    Args:
        folds: sums over two halves of the data, targets being what the present outputs lack.
        intercept: whether an offset may be added to the outputs.
    """
    whole = folds[0] + folds[1]
    xx, xt, tt = whole.moments(centred=intercept)
    before = float((whole.parts["tt"] / whole.rows).sum())
    errors: dict[float, float] = {0.0: float(tt.sum())}
    if all(fold.rows for fold in folds):
        a, b = (fold.moments(centred=intercept) for fold in folds)
        for ridge in ridges:
            errors[ridge] = (_left(b, _ridge(*a[:2], ridge)) + _left(a, _ridge(*b[:2], ridge))) / 2
    elif ridges:
        errors = {UNCHECKED: errors[0.0]}
    best = min(errors, key=lambda ridge: errors[ridge])
    change = _ridge(xx, xt, best) if best else torch.zeros_like(xt)
    offset = torch.zeros_like(tt)
    if intercept:
        x, t = (whole.parts[k] / whole.rows for k in ("x", "t"))
        offset = t - (x[:, None, :] @ change)[:, 0]
    return Fit(change=change, offset=offset, ridge=best, before=before, after=errors[best])


def on_support(fit: Fit, folds: Sequence[Sums], matrix: Tensor, *, intercept: bool) -> Fit:
    """A fit whose change leaves the zeros of a sparse matrix where they are.

    The error is a quadratic form around the free solution, so its minimum on the places that stay is found from there:
    by conjugate gradients for each output by itself (`secateur.sparsity.refining`), which has places of its own.

    Args:
        fit: the free solution.
        folds, intercept: as `solve` was given.
        matrix: as it is, (G, K, N).
    """
    whole = folds[0] + folds[1]
    xx, xt, tt = whole.moments(centred=intercept)
    after, none = fit.after, float(tt.sum())
    if all(fold.rows for fold in folds):
        a, b = (fold.moments(centred=intercept) for fold in folds)
        after = (_left(b, _held(*a[:2], fit.ridge, matrix)) + _left(a, _held(*b[:2], fit.ridge, matrix))) / 2
    change, ridge = _held(xx, xt, fit.ridge, matrix), fit.ridge
    if after >= none:
        change, ridge, after = torch.zeros_like(change), 0.0, none
    offset = fit.offset
    if intercept:
        x, t = (whole.parts[k] / whole.rows for k in ("x", "t"))
        offset = t - (x[:, None, :] @ change)[:, 0]
    return Fit(change=change, offset=offset, ridge=ridge, before=fit.before, after=after)


def _held(xx: Tensor, xt: Tensor, ridge: float, matrix: Tensor) -> Tensor:
    """The change (G, K, N) of a ridge regression, on the places where a matrix is not zero."""
    from secateur.sparsity.refining import refine  # which needs this package

    free = matrix + _ridge(xx, xt, ridge)
    damped = xx + torch.diag_embed((ridge * xx.diagonal(dim1=1, dim2=2).mean(1, keepdim=True)).expand(xx.shape[:2]))
    new = [refine(w.T, d.T, w.T != 0, h).T for w, d, h in zip(matrix, free, damped, strict=True)]
    return torch.stack(new) - matrix


def _ridge(xx: Tensor, xt: Tensor, ridge: float) -> Tensor:
    """(xx + ridge * mean diagonal) \\ xt, with more of it where the matrix is not positive in floating point."""
    diagonal = xx.diagonal(dim1=1, dim2=2)
    scale = diagonal.mean(1).clamp_min(torch.finfo(xx.dtype).tiny)[:, None]
    for _ in range(12):
        factor, failed = torch.linalg.cholesky_ex(xx + torch.diag_embed((ridge * scale).expand_as(diagonal)))
        if not failed.any():
            return torch.cholesky_solve(xt, factor)
        ridge *= 10
    return torch.zeros_like(xt)


def _left(moments: tuple[Tensor, Tensor, Tensor], change: Tensor) -> float:
    """Mean square of what is left of the targets after a change, summed over the outputs."""
    xx, xt, tt = moments
    return float(tt.sum() + (change * (xx @ change - 2 * xt)).sum())
