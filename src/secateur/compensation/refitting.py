"""What one use of a weight lacks, and the change of the weight that makes up for it.

Shape letters: G groups, R rows, K features, N outputs of a group.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from secateur.axes import Expr, leaves
from secateur.calibration.contraction import Contraction, Product, owners, sample
from secateur.calibration.found import Moments, wide
from secateur.calibration.lockstep import Pause
from secateur.calibration.sites import Follows, Site
from secateur.calibration.watching import Key
from secateur.compensation.least_squares import RIDGES, Sums, solve
from secateur.compensation.merging import Likeness, fold
from secateur.modules import named_tensors
from secateur.planning.plan import Plan
from secateur.surgery.reindex import index

How = Literal["mean", "merge", "lstsq"]
ROWS = 2**16  # rows of a product that are looked at, over all the data
NOTHING = 1e-10  # share of the outputs' mean square below which nothing is missing: rounding in float32
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
        small: the smaller model.
        plan: what was removed.
        sites, follows: uses of weights in the original, and what follows them in the smaller model.
        how: "mean", "merge" or "lstsq".
        alone: vectors of the smaller model that one operation takes in, so that they may be set for its sake.
        biases: layers that may get a bias, by the names of their weights.
        offsets: what is to be added to the output of uses that have no bias yet.
    """

    small: nn.Module
    plan: Plan
    sites: Mapping[Key, Site]
    follows: Mapping[Key, Follows]
    how: How
    alone: frozenset[str]
    biases: frozenset[str]
    offsets: dict[Key, Tensor] = field(default_factory=dict[Key, Tensor])

    def __post_init__(self) -> None:
        self.tensors = named_tensors(self.small)
        self.owner = owners(self.tensors)

    def refit(self, key: Key, pairs: Sequence[tuple[Pause, Pause]]) -> Refit | None:
        """Set the weight, and what adds a constant to its outputs; None where nothing was missing.

        Args:
            key: the use at which all runs wait.
            pairs: for each batch, the run of the original after it and that of the smaller model before it.
        """
        use, norm = pairs[0][1].use, self.follows[key].norm
        home = self._home(key, use)
        if self.how == "merge":
            self._merge(key, pairs, centred=home is not None)
        sums, total, (now, wanted) = self._sums(key, pairs)
        whole = sums[0] + sums[1]
        mean_square = max(total / whole.rows, torch.finfo(torch.float32).tiny)
        missing = float(whole.parts["tt"].sum()) / whole.rows
        if missing < NOTHING * mean_square:
            return None
        free = self.how == "lstsq" and not use.repeats and use.matrix().shape[1] <= WIDEST
        if home is None and not free:
            return None
        fit = solve(sums, intercept=home is not None, ridges=RIDGES if free else ())
        if fit.ridge:
            use.put((wide(use.matrix()) + fit.change).to(use.weight))
        if home is not None:
            home(fit.offset.flatten())
        if self.how != "lstsq" and norm is not None and norm.var in self.alone:
            var = self.tensors[norm.var]
            var.mul_(_ratio(now, wanted).to(var))
        return Refit(name=key[0], before=fit.before / mean_square, after=fit.after / mean_square, ridge=fit.ridge)

    def why_not(self, key: Key) -> str | None:
        """Why a weight is left as it is; None where it can be refitted."""
        site = self.sites.get(key)
        if site is None or key not in self.follows:
            return "the example inputs do not lead to it"
        if self._changes(site.rows):
            return "what it is applied to is pruned along its rows"
        return None

    def _changes(self, exprs: Sequence[Expr]) -> bool:
        return any(leaf.name in self.plan.axes for e in exprs for leaf in leaves(e))

    def _sums(
        self, key: Key, pairs: Sequence[tuple[Pause, Pause]]
    ) -> tuple[tuple[Sums, Sums], float, tuple[Moments, Moments]]:
        """What is to be known of features, and of what the outputs lack, in two halves; the outputs' squares; and how
        outputs are spread as they are and as they should be, unless all is fitted.
        """
        kept = index(self.sites[key].outputs, self.plan.units)
        halves, spreads, total = (Sums(), Sums()), (Moments(), Moments()), 0.0
        most = max(1, ROWS // len(pairs))
        for number, (dense, small) in enumerate(pairs):
            pick = small.use.pick(most, number)
            features = small.use.rows(pick)  # (R, G, K)
            now = self._outputs(small, features)
            target = _target(dense, pick)[:, kept.to(now.device)].reshape(now.shape)
            if self.how == "lstsq":
                target = target + self._gap(dense, small, kept, pick, now.flatten(1)).reshape(now.shape)
            else:
                for spread, values in zip(spreads, (now, target), strict=True):
                    spread.add(values.flatten(1), 1)
            total += float(target.square().sum())
            missing, half = (target - now).float(), (len(features) + number % 2) // 2  # of single rows every other
            halves[0].add(features[:half].float(), missing[:half])
            halves[1].add(features[half:].float(), missing[half:])
        return halves, total, spreads

    @staticmethod
    def _outputs(small: Pause, features: Tensor) -> Tensor:
        """What the use gives as it is, (R, G, N)."""
        matrix = small.use.matrix()
        out = (features.transpose(0, 1) @ matrix).transpose(0, 1)
        return out if small.use.bias is None else out + small.use.bias.reshape(matrix.shape[0], -1)

    def _gap(self, dense: Pause, small: Pause, kept: Tensor, pick: Tensor | None, like: Tensor) -> Tensor:
        """What the tensor that is added to the output lacks already, in units of the output; 0 where nothing is added.

        So a residual stream is matched, not one summand of it: errors of earlier blocks do not add up.
        """
        if dense.other is None or small.other is None or dense.out is None:
            return torch.zeros_like(like)
        if (dense.other.numel(), small.other.numel()) != (dense.out.numel(), small.use.count() * like.shape[-1]):
            return torch.zeros_like(like)  # this run has gone another way than the example's
        gap = self._added(dense, dense.other, pick)[:, kept.to(dense.other.device)] - self._added(
            small, small.other, pick
        )
        slope = self.follows[small.key].slope(self.tensors, torch.ones_like(gap[0]))
        return torch.where(slope.abs() > 1e-6, gap / slope, 0.0)

    def _added(self, pause: Pause, other: Tensor, pick: Tensor | None) -> Tensor:
        """The tensor that is added to an output, as rows, (R, G * N)."""
        for order in reversed(self.follows[pause.key].moves):
            other = other.permute(sorted(range(len(order)), key=order.__getitem__))
        use = pause.use
        if isinstance(use, Product):
            other = other.reshape(*use.x.shape[:-1], -1)
        return use.outputs(other, pick).flatten(1)

    def _home(self, key: Key, use: Contraction) -> Callable[[Tensor], None] | None:
        """Where a constant that the outputs lack can go: a bias, the mean of a batch norm, a new bias; or nowhere."""
        norm, added = self.follows[key].norm, self.follows[key].bias
        if norm is not None and norm.mean in self.alone:
            return lambda offset: _subtract(self.tensors[norm.mean], offset)
        if self.how != "lstsq" and not self._changes([self.sites[key].features]):
            return None  # the mean of a removed unit is folded where the unit was used, and nowhere else
        bias = use.bias if added is None else self.tensors[added]
        if bias is not None:  # one that is computed can't be set
            return (lambda offset: _add(bias, offset)) if self.owner(bias) in self.alone else None
        if key[0] in self.biases:
            return lambda offset: self.offsets.update({key: offset.to(use.weight)})
        return None

    def _merge(self, key: Key, pairs: Sequence[tuple[Pause, Pause]], *, centred: bool) -> None:
        """Fold the weights of features that go into those of the features that are most like them."""
        first_dense, first = pairs[0]
        if first.use.groups > 1 or first_dense.use.groups > 1 or first.use.repeats:
            return
        features, kept_out = self.sites[key].features, index(self.sites[key].outputs, self.plan.units)
        stays = index(features, self.plan.units)
        goes = torch.ones(features.size, dtype=torch.bool)
        goes[stays] = False
        gone = goes.nonzero().flatten()
        if not len(gone):
            return
        likeness, most = Likeness(), max(1, ROWS // len(pairs))
        for number, (dense, small) in enumerate(pairs):
            every, left = (pause.use.x.movedim(pause.use.x_dim, -1).flatten(0, -2) for pause in (dense, small))
            pick = sample(len(every), most, every.shape[1], number, every.device)
            every, left = (every, left) if pick is None else (every[pick], left[pick])
            likeness.add(every[:, gone.to(every.device)].float(), left.float())
        partner, factor, _ = likeness.partners(centred=centred)
        window, matrix = first.use.window, first_dense.use.matrix()[0][:, kept_out.to(first.use.x.device)]
        lost = matrix.unflatten(0, (-1, window))[gone.to(matrix.device)].flatten(0, 1)
        merged = fold(first.use.matrix()[0], lost, partner, factor, window)
        first.use.put(merged[None].to(first.use.weight))


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
