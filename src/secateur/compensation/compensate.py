"""Refitting a pruned model, use of a weight by use of a weight, to the original on calibration data."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from secateur.calibration.contraction import Contraction
from secateur.calibration.lockstep import Pause, Run
from secateur.calibration.sites import Follows, Norm, Site, find_followers, find_sites
from secateur.calibration.watching import Key, running
from secateur.compensation.least_squares import Sums, solve
from secateur.graph import Graph, named
from secateur.inputs import split_batch
from secateur.modules import named_tensors
from secateur.planning.plan import Plan
from secateur.surgery.reindex import index
from secateur.tracing.surroundings import quiet_backends

How = Literal["mean", "lstsq"]
ROWS = 2**17  # rows of a product that are looked at, over all the data
SMALL = 1e-10  # share of an output's mean square below which nothing is missing


@dataclass(frozen=True, kw_only=True)
class Refit:
    """What became of one weight: shares of the mean square of its outputs that were missing before and after."""

    name: str
    before: float
    after: float
    ridge: float


@dataclass(kw_only=True)
class Compensation:
    """What compensation did.

    Attributes:
        how: "mean" or "lstsq".
        refits: the weights that were refitted.
        left: the weights that were left as cut, with the reason.
        batches, samples: calibration data used.
    """

    how: str
    refits: list[Refit] = field(default_factory=list[Refit])
    left: dict[str, str] = field(default_factory=dict[str, str])
    batches: int = 0


def compensate_(
    model: nn.Module,
    small: nn.Module,
    graph: Graph,
    plan: Plan,
    args: Any,
    kwargs: Mapping[str, Any] | None,
    data: Iterable[Any],
    *,
    how: How = "lstsq",
    rescale: bool = False,
    joined: bool = True,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Compensation:
    """Refit the weights of the smaller model, in place."""
    batches = list(data)
    call = forward or _call
    sites = find_sites(model, graph, args, kwargs)
    follows = [find_followers(m, args, kwargs) for m in (model, small)]
    offsets: dict[Key, Tensor] = {}
    dense, pruned = running(model), running(small)
    runs = [
        (
            Run(dense, lambda b=batch: call(dense, b), follows[0], before=False),
            Run(pruned, lambda b=batch: call(pruned, b), follows[1], before=True, offsets=offsets),
        )
        for batch in batches
    ]
    work = _Work(model, small, plan, sites, follows[1], how, rescale, joined, offsets)
    try:
        with quiet_backends(), torch.no_grad():
            done = 0
            while True:
                pauses = [(b.advance(), a) for a, b in runs]
                if all(p is None for p, _ in pauses):
                    break
                pairs = [(_until(a, p.key), p) for p, a in pauses if p is not None]
                work.at(pairs)
                done += 1
                if progress is not None:
                    progress(done, len(sites))
    finally:
        for pair in runs:
            for run in pair:
                run.stop()
    work.settle()
    return work.done


def _call(model: nn.Module, batch: Any) -> Any:
    args, kwargs, _ = split_batch(batch)
    return model(*args, **kwargs)


def _until(run: Run, key: Key) -> Pause:
    while True:
        pause = run.advance()
        if pause is None:
            raise RuntimeError(f"the original does not use {key}")
        if pause.key == key:
            return pause


class _Work:
    def __init__(
        self,
        model: nn.Module,
        small: nn.Module,
        plan: Plan,
        sites: Mapping[Key, Site],
        follows: Mapping[Key, Follows],
        how: How,
        rescale: bool,
        joined: bool,
        offsets: dict[Key, Tensor],
    ) -> None:
        self.small, self.plan, self.sites, self.follows, self.how = small, plan, sites, follows, how
        self.rescale, self.joined, self.offsets = rescale, joined, offsets
        self.tensors = named_tensors(small)
        self.done = Compensation(how=how)
        self.created: dict[Key, Tensor] = {}

    def at(self, pairs: Sequence[tuple[Pause, Pause]]) -> None:
        key = pairs[0][1].key
        site, follow = self.sites[key], self.follows[key]
        name = key[0]
        if key[1] or any(n in self.plan.axes for e in site.rows for n in named([e])):
            self.done.left[name] = "used several times" if key[1] else "its rows are pruned"
            return
        kept = index(site.outputs, self.plan.units)
        norm = follow.norm
        intercept = pairs[0][1].use.bias is not None or norm is not None or self._may_create(key)
        folds, total, seen = (Sums(), Sums()), 0.0, 0
        had = wanted = None
        per = max(1, ROWS // len(pairs))
        for number, (dense, small) in enumerate(pairs):
            count = small.use.count()
            pick = None
            if count > per:
                generator = torch.Generator().manual_seed(number)
                pick = torch.randperm(count, generator=generator)[:per].sort().values
                pick = pick.to(small.use.x.device)
            x = small.use.rows(pick)  # (R, G, K)
            matrix = small.use.matrix()
            now = torch.einsum("rgk,gkn->rgn", x, matrix)
            if small.use.bias is not None:
                now = now + small.use.bias.reshape(matrix.shape[0], -1)
            assert dense.out is not None
            target = dense.use.outputs(dense.out, pick).flatten(1)[:, kept].reshape(now.shape)
            if self.joined and dense.other is not None and small.other is not None:
                gap = self._rows(dense, dense.other, pick)[:, kept] - self._rows(small, small.other, pick)
                target = target + (gap / self._slope(norm, gap)).reshape(now.shape)
            total += float(target.square().sum())
            seen += len(x)
            missing = target - now
            half = len(x) // 2
            folds[0].add(x[:half], missing[:half])
            folds[1].add(x[half:], missing[half:])
            if self.rescale and norm is not None:
                had = _spread(had, now)
                wanted = _spread(wanted, target)
        whole = folds[0] + folds[1]
        total = max(total / seen, 1e-30)
        if float(whole.parts["tt"].sum()) / whole.rows < SMALL * total:
            return
        fit = solve(folds, intercept=intercept, ridges=() if self.how == "mean" else _ridges())
        use = pairs[0][1].use
        if fit.ridge:
            use.put((use.matrix() + fit.change).to(use.weight.dtype))
        if intercept:
            self._offset(key, use, norm, fit.offset.flatten())
        if had is not None and wanted is not None and norm is not None:
            ratio = (_variance(had) / _variance(wanted).clamp_min(1e-12)).clamp(1e-3, 1e3)
            var = self.tensors[norm.var]
            var.mul_(ratio.flatten().to(var))
        self.done.refits.append(Refit(name=name, before=fit.before / total, after=fit.after / total, ridge=fit.ridge))

    def _may_create(self, key: Key) -> bool:
        owner, _, role = key[0].rpartition(".")
        module = self.small.get_submodule(owner)
        return self.how == "mean" and role == "weight" and isinstance(module, nn.Linear | _ConvNd)

    def _rows(self, pause: Pause, other: Tensor, pick: Tensor | None) -> Tensor:
        """What is added to an output, in the shape of the output's rows, (R, G*N)."""
        for order in reversed(self.follows[pause.key].moves):
            other = other.permute(sorted(range(len(order)), key=order.__getitem__))
        use = pause.use
        shape = list(pause.out.shape) if pause.out is not None else None
        if shape is None:
            rows = use.matrix()
            shape = [use.count(), rows.shape[-1]] if not hasattr(use, "places") else list(other.shape)
        return use.outputs(other.reshape(shape), pick).flatten(1)

    def _slope(self, norm: Norm | None, like: Tensor) -> Tensor:
        if norm is None:
            return torch.ones_like(like[0])
        scale = (self.tensors[norm.var] + norm.eps).rsqrt()
        scale = scale * self.tensors[norm.weight] if norm.weight is not None else scale
        return torch.where(scale.abs() > 1e-6, scale, torch.inf)

    def _offset(self, key: Key, use: Contraction, norm: Norm | None, offset: Tensor) -> None:
        if use.bias is not None:
            use.bias.add_(offset.to(use.bias))
        elif norm is not None:
            mean = self.tensors[norm.mean]
            mean.sub_(offset.to(mean))
        else:
            self.offsets[key] = self.created[key] = offset.to(use.weight)

    def settle(self) -> None:
        for (name, _), offset in self.created.items():
            module = self.small.get_submodule(name.rpartition(".")[0])
            module.bias = nn.Parameter(offset)


def _ridges() -> Sequence[float]:
    from secateur.compensation.least_squares import RIDGES

    return RIDGES


def _spread(sums: Any, values: Tensor) -> Any:
    new = (len(values), values.double().sum(0), values.double().square().sum(0))
    return new if sums is None else tuple(a + b for a, b in zip(sums, new, strict=True))


def _variance(sums: Any) -> Tensor:
    count, first, second = sums
    return second / count - (first / count).square()
