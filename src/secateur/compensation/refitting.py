"""What one use of a weight lacks, and the change of the weight that makes up for it.

Shape letters: G groups, R rows, K features, N outputs of a group.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from secateur.calibration.contraction import Contraction, Product, owners, sample
from secateur.calibration.found import Moments, wide
from secateur.calibration.lockstep import Pause
from secateur.calibration.sites import Followers
from secateur.calibration.watching import Key
from secateur.compensation.least_squares import RIDGES, Sums, on_support, solve
from secateur.compensation.matching import Match, Matching
from secateur.compensation.merging import Likeness, fold
from secateur.modules import named_tensors
from secateur.zeros import sparse_weights

How = Literal["mean", "merge", "lstsq"]
ROWS = 2**16  # rows of a product that are looked at, over all the data
NOTHING = 1e-10  # share of the outputs' mean square below which nothing is missing: rounding in float32
FLAT = 1e-6  # slope of a batch norm below which nothing comes through it
WIDEST = 2**13  # features of a group up to which there is memory for their products


@dataclass(frozen=True, kw_only=True)
class Refit:
    """What became of one weight.

    Attributes:
        name: the parameter.
        before, after: what its outputs lacked, as shares of their mean square; after on rows that the fit has not seen.
        ridge: strength of the regularisation; 0 where only the mean was made up for.
    """

    name: str
    before: float
    after: float
    ridge: float


@dataclass
class Refitting:
    """Refits the weights of a smaller model, one use after the other.

    Attributes:
        model, small: the original, and the smaller model.
        matching: which use in the original each one in the smaller model is fitted to.
        there, here: what follows the uses in the original, and in the smaller model.
        how: "mean", "merge" or "lstsq".
        biases: layers that may get a bias, by the names of their weights.
        share: weight of the protected data among all rows, in [0, 1), where there are both; 0 weighs all rows alike.
        offsets: what is to be added to the output of uses that have no bias yet.
    """

    model: nn.Module
    small: nn.Module
    matching: Matching
    there: Followers
    here: Followers
    how: How
    biases: frozenset[str]
    share: float = 0.0
    offsets: dict[Key, Tensor] = field(default_factory=dict[Key, Tensor])

    def __post_init__(self) -> None:
        self.originals, self.tensors = named_tensors(self.model), named_tensors(self.small)
        self.owner = owners(self.tensors)
        self.sparse = {self.owner(self.tensors[name]) for name in sparse_weights(self.small)}

    def match(self, key: Key) -> Match:
        """What a use that can be refitted is fitted to."""
        found = self.matching[key]
        assert isinstance(found, Match)
        return found

    def refit(self, key: Key, pairs: Sequence[tuple[Pause, Pause]]) -> Refit | None:
        """Set the weight, and what adds a constant to its outputs; None where nothing was missing.

        Args:
            key: the use at which all runs wait.
            pairs: for each batch, the run of the original after it and that of the smaller model before it.
        """
        use, norm = pairs[0][1].use, self.here.of[key].norm
        home = self._home(key, use)
        if self.how == "merge":
            self._merge(key, pairs, centred=home is not None)
        sums, total, (now, wanted) = self._sums(key, pairs)
        whole = sums[0] + sums[1]
        mean_square = max(total / whole.rows, torch.finfo(torch.float32).tiny)
        missing = float(whole.parts["tt"].sum()) / whole.rows
        if missing < NOTHING * mean_square:
            return None
        free = self._free(use)
        if home is None and not free:
            return None
        fit = solve(sums, intercept=home is not None, ridges=RIDGES if free else ())
        if fit.ridge and key[0] in self.sparse:
            fit = on_support(fit, sums, wide(use.matrix()), intercept=home is not None)
        if fit.ridge:
            use.put((wide(use.matrix()) + fit.change).to(use.weight))
        if home is not None:
            home(fit.offset.flatten())
        if self.how != "lstsq" and norm is not None and norm.var in self.here.alone and not self.match(key).crosses:
            var = self.tensors[norm.var]
            var.mul_(_ratio(now, wanted).to(var))
        return Refit(name=key[0], before=fit.before / mean_square, after=fit.after / mean_square, ridge=fit.ridge)

    def why_not(self, key: Key, pairs: Sequence[tuple[Pause, Pause]]) -> str | None:
        """Why a weight is left as it is; None where it can be refitted. Takes what `refit` does."""
        found = self.matching.get(key)
        if found is None or key not in self.here.of:
            return "the example inputs do not lead to it"
        if isinstance(found, str):
            return found
        if not pairs:
            return "the original does not use it"
        use = pairs[0][1].use
        if found.crosses and not self._free(use) and self._home(key, use) is None:
            wide = f"it has more than {WIDEST:,} features, and " if self.how == "lstsq" and not use.repeats else ""
            return f"{wide}no bias of its own, and no batch norm after it, can take a constant up"
        return None

    def _free(self, use: Contraction) -> bool:
        """Whether the matrix itself may change."""
        return self.how == "lstsq" and not use.repeats and use.matrix().shape[1] <= WIDEST

    def _sums(
        self, key: Key, pairs: Sequence[tuple[Pause, Pause]]
    ) -> tuple[tuple[Sums, Sums], float, tuple[Moments, Moments]]:
        """What is to be known of features, and of what the outputs lack, in two halves; the outputs' squares; and how
        outputs are spread as they are and as they should be, unless all is fitted.
        """
        parts = [[pair for pair in pairs if pair[1].protected is kind] for kind in (False, True)]
        if not (self.share and all(parts)):
            return self._sums_of(pairs).whole
        general, special = (self._sums_of(part) for part in parts)
        return (general + special.weighing(self.share / (1 - self.share) * general.rows)).whole

    def _sums_of(self, pairs: Sequence[tuple[Pause, Pause]]) -> "_Seen":
        found, most = _Seen(), max(1, ROWS // len(pairs))
        for number, (dense, small) in enumerate(pairs):
            pick = small.use.pick(most, number)
            features = small.use.rows(pick)  # (R, G, K)
            now = self._outputs(small, features)
            target = self._wanted(dense, small, pick, now.flatten(1)).reshape(now.shape)
            if self.how != "lstsq":
                for spread, values in zip(found.spreads, (now, target), strict=True):
                    spread.add(values.flatten(1), 1)
            found.total += float(target.square().sum())
            missing, half = (target - now).float(), (len(features) + number % 2) // 2  # of single rows every other
            found.halves[0].add(features[:half].float(), missing[:half])
            found.halves[1].add(features[half:].float(), missing[half:])
        return found

    @staticmethod
    def _outputs(small: Pause, features: Tensor) -> Tensor:
        """What the use gives as it is, (R, G, N)."""
        matrix = small.use.matrix()
        out = (features.transpose(0, 1) @ matrix).transpose(0, 1)
        return out if small.use.bias is None else out + small.use.bias.reshape(matrix.shape[0], -1)

    def _wanted(self, dense: Pause, small: Pause, pick: Tensor | None, now: Tensor) -> Tensor:
        """What the use should give, (R, G * N)."""
        match = self.match(small.key)
        if match.crosses:
            return self._across(dense, small, pick, now)
        target = _stay(_target(dense, pick), match)
        return target + self._gap(dense, small, pick, now) if self.how == "lstsq" else target

    def _gap(self, dense: Pause, small: Pause, pick: Tensor | None, like: Tensor) -> Tensor:
        """What the tensor that is added to the output lacks already, in units of the output; 0 where nothing is added.

        So a residual stream is matched, not one summand of it: errors of earlier blocks do not add up.
        """
        if dense.other is None or small.other is None or not _same_way(dense, small, like):
            return torch.zeros_like(like)
        gap = _stay(_added(dense, self.there, pick), self.match(small.key)) - _added(small, self.here, pick)
        slope = self.here.of[small.key].slope(self.tensors, torch.ones_like(gap[0]))
        return torch.where(slope.abs() > FLAT, gap / slope, 0.0)

    def _across(self, dense: Pause, small: Pause, pick: Tensor | None, now: Tensor) -> Tensor:
        """What the output must be for the sum that it goes into to be the one that blocks which went handed on, (R, N);
        as it is, where that can't be said.
        """
        there, here = self.there.of[dense.key], self.here.of[small.key]
        known = all((f.other is None) == (p.other is None) for f, p in ((there, dense), (here, small)))
        if not known or not _same_way(dense, small, now):
            return now
        ones = torch.ones_like(now[0])
        wanted = _target(dense, pick) * there.slope(self.originals, ones) + there.shift(self.originals, ones)
        wanted = wanted + (0 if dense.other is None else _added(dense, self.there, pick))
        wanted = wanted - (0 if small.other is None else _added(small, self.here, pick))
        slope = here.slope(self.tensors, ones)
        return torch.where(slope.abs() > FLAT, (wanted - here.shift(self.tensors, ones)) / slope, now)

    def _home(self, key: Key, use: Contraction) -> Callable[[Tensor], None] | None:
        """Where a constant that the outputs lack can go: a bias, the mean of a batch norm, a new bias; or nowhere."""
        norm, added, match = self.here.of[key].norm, self.here.of[key].bias, self.match(key)
        if norm is not None and norm.mean in self.here.alone:
            return lambda offset: _subtract(self.tensors[norm.mean], offset)
        if self.how != "lstsq" and not (match.loses or match.crosses):
            return None  # the mean of a removed unit is folded where the unit was used, and nowhere else
        bias = use.bias if added is None else self.tensors[added]
        if bias is not None:  # one that is computed can't be set
            return (lambda offset: _add(bias, offset)) if self.owner(bias) in self.here.alone else None
        if key[0] in self.biases:
            return lambda offset: self.offsets.update({key: offset.to(use.weight)})
        return None

    def _merge(self, key: Key, pairs: Sequence[tuple[Pause, Pause]], *, centred: bool) -> None:
        """Fold the weights of features that go into those of the features that are most like them."""
        first_dense, first = pairs[0]
        if first.use.groups > 1 or first_dense.use.groups > 1 or first.use.repeats:
            return
        match = self.match(key)
        gone = match.goes
        if gone is None or not len(gone):
            return
        likeness, most = Likeness(), max(1, ROWS // len(pairs))
        for number, (dense, small) in enumerate(pairs):
            every, left = (pause.use.x.movedim(pause.use.x_dim, -1).flatten(0, -2) for pause in (dense, small))
            pick = sample(len(every), most, every.shape[1], number, every.device)
            every, left = (every, left) if pick is None else (every[pick], left[pick])
            likeness.add(every[:, gone.to(every.device)].float(), left.float())
        partner, factor, _ = likeness.partners(centred=centred)
        window, matrix = first.use.window, _stay(first_dense.use.matrix()[0], match)
        lost = matrix.unflatten(0, (-1, window))[gone.to(matrix.device)].flatten(0, 1)
        merged = fold(first.use.matrix()[0], lost, partner, factor, window)
        if key[0] in self.sparse:  # what it has no place for is lost
            merged = merged * (first.use.matrix()[0] != 0)
        first.use.put(merged[None].to(first.use.weight))


@dataclass
class _Seen:
    """What is known of some rows: sums over two halves of them, how outputs are spread as they are and as they should
    be, and the sum of the outputs' squares.
    """

    halves: tuple[Sums, Sums] = field(default_factory=lambda: (Sums(), Sums()))
    spreads: tuple[Moments, Moments] = field(default_factory=lambda: (Moments(), Moments()))
    total: float = 0.0

    @property
    def rows(self) -> float:
        return self.halves[0].rows + self.halves[1].rows

    @property
    def whole(self) -> tuple[tuple[Sums, Sums], float, tuple[Moments, Moments]]:
        return self.halves, self.total, self.spreads

    def weighing(self, rows: float) -> "_Seen":
        """The same with as much weight as so many rows."""
        factor = rows / self.rows if self.rows else 0.0
        a, b = (part.weighing(part.rows * factor) for part in self.halves)
        now, wanted = (spread.times(factor) for spread in self.spreads)
        return _Seen((a, b), (now, wanted), self.total * factor)

    def __add__(self, other: "_Seen") -> "_Seen":
        (a, b), (c, d) = self.halves, other.halves
        (now, wanted), (more, most) = self.spreads, other.spreads
        return _Seen((a + c, b + d), (now + more, wanted + most), self.total + other.total)


def _stay(values: Tensor, match: Match) -> Tensor:
    """The outputs that stay, of values for all of the original's, (R, G * N)."""
    return values if match.outputs is None else values[:, match.outputs.to(values.device)]


def _same_way(dense: Pause, small: Pause, like: Tensor) -> bool:
    """Whether what is added has the shape of what it is added to, so that this run went the example's way."""
    whole = 0 if dense.out is None else dense.out.numel()
    sizes = [whole, small.use.count() * like.shape[-1]]
    return all(p.other is None or p.other.numel() == size for p, size in zip((dense, small), sizes, strict=True))


def _added(pause: Pause, followers: Followers, pick: Tensor | None) -> Tensor:
    """The tensor that is added to an output, as rows, (R, G * N)."""
    assert pause.other is not None
    other, use = pause.other, pause.use
    for order in reversed(followers.of[pause.key].moves):
        other = other.permute(sorted(range(len(order)), key=order.__getitem__))
    if isinstance(use, Product):
        other = other.reshape(*use.x.shape[:-1], -1)
    return use.outputs(other, pick).flatten(1)


def _target(dense: Pause, pick: Tensor | None) -> Tensor:
    """What the original gives, (R, G * N)."""
    assert dense.out is not None
    return dense.use.outputs(dense.out, pick).flatten(1)


def _ratio(now: Moments, wanted: Moments) -> Tensor:
    """Variance as it is by the variance as it should be, (C,), within bounds that a norm can live with."""
    return ((now.variance + 1e-8) / (wanted.variance + 1e-8)).clamp(1e-3, 1e3)


def _add(tensor: Tensor, offset: Tensor) -> None:
    tensor.add_(offset.to(tensor).reshape(tensor.shape))


def _subtract(tensor: Tensor, offset: Tensor) -> None:
    tensor.sub_(offset.to(tensor))
