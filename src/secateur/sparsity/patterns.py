"""Which weights may go together: one by one, n of every m, or in blocks.

A weight is looked at as a matrix (rows, cols): outputs by inputs; see `secateur.sparsity.matrices`.

Shape letters: R rows, C columns.
"""

from dataclasses import dataclass
from math import isclose
from numbers import Real
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from secateur.errors import PatternError, SparsityError

CELLS = 2**17  # scores that are ordered together where rows are apart: each takes thirty bytes meanwhile


@runtime_checkable
class Pattern(Protocol):
    """Turns scores of single weights into a mask of a certain shape. `Unstructured`, `NM` and `Block` are patterns.

    Attributes:
        size: rows and columns of what goes or stays as one.
        columns: so many consecutive columns can be decided upon without the others.
        fixed: the sparsity that the pattern itself fixes; None where it has to be given.
    """

    @property
    def size(self) -> tuple[int, int]: ...

    @property
    def columns(self) -> int: ...

    @property
    def fixed(self) -> float | None: ...

    def misfit(self, shape: tuple[int, int]) -> str:
        """Why a matrix can't have this pattern; empty where it can."""
        ...

    def fits(self, shape: tuple[int, int]) -> bool:
        """Whether a matrix can have this pattern."""
        ...

    def removed(self, shape: tuple[int, int], sparsity: float | None = None) -> int:
        """How many weights go."""
        ...

    def mask(
        self, scores: Tensor, sparsity: float | None = None, *, remove: int | None = None, within_rows: bool = False
    ) -> Tensor:
        """Which weights stay, a bool matrix of the same shape."""
        ...


@dataclass(frozen=True)
class Unstructured:
    """Any weight may go.

    Example:
        >>> Unstructured().mask(torch.tensor([[1.0, 4.0], [3.0, 2.0]]), 0.5)
        tensor([[False,  True],
                [ True, False]])
    """

    @property
    def size(self) -> tuple[int, int]:
        """One weight."""
        return 1, 1

    @property
    def columns(self) -> int:
        """Every column can be decided upon by itself."""
        return 1

    @property
    def fixed(self) -> float | None:
        """None: the sparsity is given."""
        return None

    def misfit(self, shape: tuple[int, int]) -> str:
        """Empty: every matrix can have it."""
        return ""

    def fits(self, shape: tuple[int, int]) -> bool:
        """Every matrix can have it."""
        return True

    def removed(self, shape: tuple[int, int], sparsity: float | None = None) -> int:
        """How many weights go: the sparsity times their number, rounded (a half to the even number)."""
        return round(_given(self, sparsity) * shape[0] * shape[1])

    def mask(
        self, scores: Tensor, sparsity: float | None = None, *, remove: int | None = None, within_rows: bool = False
    ) -> Tensor:
        """Which weights stay: exactly so many go, those with the least scores. Of equals the earlier goes first.

        Args:
            scores: (R, C), higher = kept longer.
            sparsity: share of the weights that goes, in [0, 1].
            remove: how many go, in place of a share.
            within_rows: every row loses equally many, to within one.

        Returns:
            A bool tensor (R, C), True = keep.

        Raises:
            PatternError: scores are NaN or no matrix, or neither or both of sparsity and remove are given.
        """
        _check(self, scores)
        return _without_least(scores, _number(self, scores, sparsity, remove), within_rows)


@dataclass(frozen=True)
class NM:
    """N of every m consecutive weights along the inputs stay: ``NM(2, 4)`` is what GPUs call 2:4.

    Args:
        n: how many stay, from 1 to m - 1.
        m: of how many.

    Example:
        >>> NM(2, 4).mask(torch.tensor([[1.0, 4.0, 3.0, 2.0, 9.0, 9.0, 9.0, 9.0]]))
        tensor([[False,  True,  True, False, False, False,  True,  True]])
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not (type(self.n) is type(self.m) is int and 0 < self.n < self.m):
            raise PatternError(f"NM({self.n}, {self.m}): give whole numbers with 0 < n < m, such as NM(2, 4)")

    @property
    def size(self) -> tuple[int, int]:
        """One weight."""
        return 1, 1

    @property
    def columns(self) -> int:
        """The columns of one group."""
        return self.m

    @property
    def fixed(self) -> float:
        """1 - n / m."""
        return 1 - self.n / self.m

    def misfit(self, shape: tuple[int, int]) -> str:
        """Why a matrix can't have this pattern; empty where it can."""
        return f"{shape[1]} inputs are no multiple of {self.m}" if shape[1] % self.m else ""

    def fits(self, shape: tuple[int, int]) -> bool:
        """Whether the columns divide into groups of m."""
        return not self.misfit(shape)

    def removed(self, shape: tuple[int, int], sparsity: float | None = None) -> int:
        """How many weights go."""
        _given(self, sparsity)
        return shape[0] * (shape[1] // self.m) * (self.m - self.n)

    def mask(
        self, scores: Tensor, sparsity: float | None = None, *, remove: int | None = None, within_rows: bool = False
    ) -> Tensor:
        """Which weights stay: the n of each group with the highest scores. Of equals the earlier goes first.

        Args:
            scores: (R, C), higher = kept longer.
            sparsity, remove: nothing, or what the pattern fixes anyway.
            within_rows: makes no difference.

        Returns:
            A bool tensor (R, C), True = keep.

        Raises:
            PatternError: scores are NaN or do not fit, or another sparsity is asked for.
        """
        _check(self, scores)
        _number(self, scores, self.fixed if sparsity is None and remove is None else sparsity, remove)
        groups = scores.unflatten(1, (-1, self.m))
        order = groups.argsort(dim=-1, stable=True)
        keep = torch.ones_like(groups, dtype=torch.bool)
        return keep.scatter_(-1, order[..., : self.m - self.n], value=False).flatten(1)


@dataclass(frozen=True)
class Block:
    """Rectangles of rows x cols weights go or stay as a whole; the score of one is the mean of its weights' scores.

    Args:
        rows: outputs of a block.
        cols: inputs of a block.

    Example:
        >>> Block(1, 2).mask(torch.tensor([[1.0, 4.0, 3.0, 3.0]]), 0.5)
        tensor([[False, False,  True,  True]])
    """

    rows: int
    cols: int

    def __post_init__(self) -> None:
        if not (type(self.rows) is type(self.cols) is int and self.rows > 0 and self.cols > 0):
            raise PatternError(f"Block({self.rows}, {self.cols}): give whole numbers from 1, such as Block(16, 16)")

    @property
    def size(self) -> tuple[int, int]:
        """Of one block."""
        return self.rows, self.cols

    @property
    def columns(self) -> int:
        """The columns of one block."""
        return self.cols

    @property
    def fixed(self) -> float | None:
        """None: the sparsity is given."""
        return None

    def misfit(self, shape: tuple[int, int]) -> str:
        """Why a matrix can't have this pattern; empty where it can."""
        odd = [
            f"{have} {what} are no multiple of {need}"
            for have, need, what in zip(shape, self.size, ("outputs", "inputs"), strict=True)
            if have % need
        ]
        return ", ".join(odd)

    def fits(self, shape: tuple[int, int]) -> bool:
        """Whether the matrix divides into blocks."""
        return not self.misfit(shape)

    def removed(self, shape: tuple[int, int], sparsity: float | None = None) -> int:
        """How many weights go: whole blocks, the sparsity times their number, rounded."""
        area = self.rows * self.cols
        return area * round(_given(self, sparsity) * (shape[0] * shape[1] // area))

    def mask(
        self, scores: Tensor, sparsity: float | None = None, *, remove: int | None = None, within_rows: bool = False
    ) -> Tensor:
        """Which weights stay: whole blocks go, those with the least mean scores. Of equals the earlier goes first.

        Args:
            scores: (R, C), higher = kept longer.
            sparsity: share of the blocks that goes, in [0, 1].
            remove: how many weights go, a multiple of the block's size, in place of a share.
            within_rows: every row of blocks loses equally many, to within one.

        Returns:
            A bool tensor (R, C), True = keep.

        Raises:
            PatternError: scores are NaN or do not fit, or neither or both of sparsity and remove are given.
        """
        _check(self, scores)
        number = _number(self, scores, sparsity, remove) // (self.rows * self.cols)
        blocks = scores.unflatten(1, (-1, self.cols)).unflatten(0, (-1, self.rows)).mean((1, 3))
        keep = _without_least(blocks, number, within_rows)
        return keep.repeat_interleave(self.rows, 0).repeat_interleave(self.cols, 1)


def check_pattern(pattern: Any) -> None:
    """Refuse what is no pattern.

    Raises:
        SparsityError: with what to write in its place.
    """
    if isinstance(pattern, type) or not isinstance(pattern, Pattern):
        raise SparsityError(
            f"pattern={pattern!r} is no pattern: write sc.Unstructured(), sc.NM(2, 4) or sc.Block(8, 8)"
        )


def is_number(value: Any) -> bool:
    """Whether something can be compared with numbers: a text can't."""
    return isinstance(value, Real)


def agrees(pattern: Pattern, sparsity: float | None) -> bool:
    """Whether a sparsity, where one is given, is the one that the pattern fixes, but for rounding."""
    return sparsity is None or (pattern.fixed is not None and is_number(sparsity) and isclose(sparsity, pattern.fixed))


def _given(pattern: Pattern, sparsity: float | None) -> float:
    """The sparsity that holds."""
    if pattern.fixed is not None and agrees(pattern, sparsity):
        return pattern.fixed
    if pattern.fixed is not None:
        raise PatternError(f"{pattern!r} has a sparsity of {pattern.fixed:g}, not of {sparsity!r}: leave it out")
    if sparsity is None or not is_number(sparsity) or not 0 <= sparsity <= 1:
        raise PatternError(f"sparsity={sparsity!r}: {pattern!r} needs the share of the weights that goes, in [0, 1]")
    return sparsity


def _check(pattern: Pattern, scores: Tensor) -> None:
    if scores.dim() != 2:
        raise PatternError(f"{pattern!r} masks a matrix, and got scores of shape {tuple(scores.shape)}")
    if misfit := pattern.misfit((scores.shape[0], scores.shape[1])):
        raise PatternError(f"{pattern!r} does not fit scores of shape {tuple(scores.shape)}: {misfit}")
    if bool(scores.isnan().any()):
        raise PatternError(f"scores for {pattern!r} hold NaN, which has no place in an order")


def _number(pattern: Pattern, scores: Tensor, sparsity: float | None, remove: int | None) -> int:
    """How many weights go."""
    shape = scores.shape[0], scores.shape[1]
    if remove is None:
        return pattern.removed(shape, sparsity)
    area = pattern.size[0] * pattern.size[1]
    if sparsity is not None or not 0 <= remove <= scores.numel() or remove % area:
        raise PatternError(
            f"sparsity={sparsity}, remove={remove}: give one of the two for {pattern!r}; remove is at most "
            f"{scores.numel()}, and a multiple of {area}"
        )
    if pattern.fixed is not None and remove != pattern.removed(shape):
        raise PatternError(f"{pattern!r} removes {pattern.removed(shape)} of {shape}, not {remove}: leave it out")
    return remove


def _without_least(scores: Tensor, remove: int, within_rows: bool) -> Tensor:
    """Keep all but the least, (R, C) -> bool (R, C)."""
    if not within_rows:
        return _each_row(scores.reshape(1, -1), remove).reshape(scores.shape)
    each, more = divmod(remove, max(len(scores), 1))
    keep = _each_row(scores, each)
    if more:  # the rows whose next weight is the least lose one more
        following = scores.kthvalue(each + 1, dim=1).values
        rows = following.argsort(stable=True)[:more]
        keep[rows] = _each_row(scores[rows], each + 1)
    return keep


def _each_row(scores: Tensor, remove: int) -> Tensor:
    """Keep all but so many of each row: by the value of the last that goes, as a sort would take much longer."""
    if not remove or not scores.numel():
        return torch.ones_like(scores, dtype=torch.bool)
    rows = max(CELLS // scores.shape[1], 1)
    keep = torch.empty_like(scores, dtype=torch.bool)
    for part, own in zip(scores.split(rows), keep.split(rows), strict=True):
        own.copy_(_without(part, remove))
    return keep


def _without(scores: Tensor, remove: int) -> Tensor:
    last = scores.kthvalue(remove, dim=1, keepdim=True).values
    equal = scores == last
    go = remove - (scores < last).sum(1, keepdim=True)
    return (scores > last) | (equal & (equal.cumsum(1) > go))
