"""``sc.shorten``: whole blocks go, the least important first, and the rest computes what it did with these skipped."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from secateur.calibration.batches import Forward, checked
from secateur.compensation import Compensation
from secateur.depth.blocks import Blocks, find_blocks
from secateur.depth.carrying import carry_out, check_class
from secateur.depth.change import DepthChange
from secateur.depth.compensating import compensate_blocks_, way
from secateur.depth.containers import parent_of
from secateur.depth.counting import Counters
from secateur.depth.importance import Scorer, scorer
from secateur.depth.result import DepthResult, costs, report, unsaid
from secateur.depth.trial import Inputs, counted, prove
from secateur.errors import NothingToPrune, PlanError, UnreachableBudget
from secateur.inputs import as_call
from secateur.measuring import measure
from secateur.modules import Walk
from secateur.objectives import Loss
from secateur.planning import Budget
from secateur.proof import check_outputs
from secateur.provenance import remember
from secateur.tracing.shadow import check_kind, shadow

Progress = Callable[[int, int], None]


def shorten(
    model: nn.Module,
    args: Any,
    kwargs: Mapping[str, Any] | None = None,
    *,
    blocks: int | None = None,
    keep: float | None = None,
    budget: Budget | None = None,
    importance: str | Sequence[str] = "influence",
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    forward: Forward | None = None,
    compensate: str | None = "auto",
    rescore: bool = False,
    seed: int = 0,
    on_block: Progress = lambda done, total: None,
) -> DepthResult:
    """A model with fewer blocks, that computes what the original computes with these blocks skipped, proved.

    Where there are data, its weights are then refitted in closed form to give what the original gives: the last
    projection before blocks that went to what these handed on, and all others to what they gave.

    Blocks that can go are found, never declared: children of an ``nn.Sequential`` or ``nn.ModuleList`` that are
    residual, and without which the model still computes what it does when they hand on what they are given. What counts
    the layers (attributes, a config's values and lists, indices that layers know of themselves) follows, so that a
    model of transformers is saved by ``save_pretrained``, loads without secateur, and generates with its cache. The
    model given is untouched.

    Args:
        model: any module.
        args, kwargs: example inputs: a tensor, a tuple of positional inputs, or a mapping of keyword inputs.
        blocks, keep, budget: how far; exactly one, unless blocks are named.
        blocks: how many go, from 1.
        keep: share of the blocks that can go which stays, in (0, 1); rounded.
        budget: what the result may cost; blocks go until all of it is met.
        importance: "influence", how far a block moves its input on ``data``; "loss", what the loss on ``data`` rises by
            without it; "random", as a control; or the paths of the blocks that go.
        data: batches for calibration, of training data: for scores, with labels for "loss", and for compensation.
        loss: ``(output, target) -> scalar``, for "loss"; by default the model's own, else cross-entropy.
        forward: ``(model, batch) -> output``, where the model's inputs are not the batch's.
        compensate: how the weights that stay make up for the blocks that went, after the proof: "lstsq", "mean", or
            None for not at all; see `secateur.depth.compensate_blocks_`. "auto" is "lstsq" where there are data.
        rescore: score the blocks that are left anew after each one that goes.
        seed: for "random".
        on_block: called with how many blocks were tried, and how many there are.

    Raises:
        PlanError: arguments that contradict each other, or more blocks than can go.
        NothingToPrune: no block can go; the message says why.
        UnreachableBudget: all blocks that can go do not make up for it.
        DataError, ScoreError: the data do not fit, or give no loss.
        SurgeryError: the class was replaced by its graph when it was pruned.
        ProofFailed: the shorter model does not compute what it should.

    Example:
        >>> import torch, secateur as sc
        >>> class Block(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.inner, self.outer = torch.nn.Linear(8, 16), torch.nn.Linear(16, 8)
        ...     def forward(self, x):
        ...         return x + self.outer(torch.relu(self.inner(x)))
        >>> net = torch.nn.Sequential(*(Block() for _ in range(6)), torch.nn.Linear(8, 2))
        >>> batches = [torch.randn(16, 8)]
        >>> result = sc.shorten(net, batches[0], blocks=2, data=batches)
        >>> len(result.model), len(result.dropped), result.proof.status
        (5, 2, 'proved')
    """
    inputs = as_call(args, kwargs)
    named = None if isinstance(importance, str) else tuple(importance)
    _check_goal(blocks, keep, budget, named)
    how = way(compensate, data)
    check_class(model)
    check_kind(Walk(model))
    check_outputs(model, args, kwargs)
    if isinstance(data, Iterator):  # it can be gone through once only
        data = list(data)
    rate = None if named is not None else scorer(model, str(importance), data, loss, forward, seed)
    if data is not None:
        checked(data)
    counters = Counters(model)
    found = find_blocks(model, inputs, counters, only=named, on_block=on_block)
    if named is not None:
        _check_named(found, named)
    elif not found.found:
        raise NothingToPrune(f"no block of this {type(model).__name__} can be left out. {_refusals(found)}")
    choice = _Choice(model, inputs, counters, found, rate, rescore)
    change = choice.named(named) if named is not None else choice.until(blocks, keep, budget)
    short = change.apply(model)
    proof = prove(model, short, change, inputs)
    remember(short, "inputs", inputs)  # the probe of sc.save
    config = unsaid(model, short, inputs)
    compensation: Compensation | None = None
    if how is not None and data is not None:
        compensation = compensate_blocks_(model, short, change, data, how=how, forward=forward)
    return DepthResult(
        model=short,
        change=change,
        proof=proof,
        compensation=compensation,
        scores=choice.scores,
        refused=found.refused,
        unsaid=config,
        report=report(
            model,
            short,
            change,
            proof,
            inputs,
            command="sc.shorten(...)",
            seed=seed,
            compensation=compensation,
            importance="named" if named is not None else str(importance),
            scores=choice.scores,
            blocks=len(found.found),
            unsaid=config,
        ),
    )


def _check_goal(blocks: int | None, keep: float | None, budget: Budget | None, named: tuple[str, ...] | None) -> None:
    given = {n: v for n, v in {"blocks": blocks, "keep": keep, "budget": budget}.items() if v is not None}
    if named is not None:
        if given:
            raise PlanError(f"blocks are named, so {' and '.join(given)} would say something else: leave it out")
        if not named or len(set(named)) < len(named):
            raise PlanError(f"importance={list(named)!r}: name at least one block, and each once")
        return
    if len(given) != 1:
        raise PlanError(
            f"{' and '.join(given) or 'nothing'} given: say how far by exactly one of blocks=2, keep=0.75, "
            "budget=sc.Budget(params=0.8); or name the blocks, importance=['layers.3']"
        )
    if blocks is not None and (type(blocks) is not int or blocks < 1):
        raise PlanError(f"blocks={blocks!r} must be a whole number from 1: how many go")
    if keep is not None and not 0 < keep < 1:
        raise PlanError(f"keep={keep!r} must be in (0, 1): the share of the blocks that stays")


def _check_named(found: Blocks, named: Sequence[str]) -> None:
    wrong = [f"{name}: {found.refused[name]}" for name in named if name in found.refused]
    if wrong:
        raise PlanError(f"{'; '.join(wrong[:3])}. Name blocks that can be left out, or let them be found with blocks=1")


def _refusals(found: Blocks) -> str:
    said = [f"{name}: {why}" for name, why in found.refused.items()]
    if not said:
        return "It has no nn.Sequential or nn.ModuleList of blocks with weights."
    return f"{'; '.join(said[:3])}{f' and {len(said) - 3} more' if len(said) > 3 else ''}."


@dataclass
class _Choice:
    """Which blocks go.

    Attributes:
        scores: of all blocks, as they were scored last.
    """

    model: nn.Module
    inputs: Inputs
    counters: Counters
    found: Blocks
    rate: Scorer | None
    rescore: bool
    scores: dict[str, float] = field(default_factory=dict[str, float])

    def named(self, names: Sequence[str]) -> DepthChange:
        """The change that drops the named blocks.

        Raises:
            PlanError: a sequence would be left empty.
        """
        gone: list[str] = []
        for name in names:
            if self._last(name, gone):
                raise PlanError(
                    f"nothing would be left of {parent_of(name) or 'the model'}: leave one of its blocks in"
                )
            gone.append(name)
        return self._change(gone)

    def until(self, blocks: int | None, keep: float | None, budget: Budget | None) -> DepthChange:
        """The change that drops the least important blocks, one after the other, until the goal is met.

        Raises:
            PlanError, UnreachableBudget: there are not enough of them.
        """
        count = len(self.found.found)
        number = blocks if keep is None else count - max(round(keep * count), 0)
        if keep is not None and not number:
            raise PlanError(f"keep={keep} of {count} blocks is all of them: give less, or blocks=1")
        meets = _Meets(self.model, self.inputs, budget) if budget is not None else None
        gone: list[str] = []
        while (made := self._met(gone, number, meets)) is None:
            name = self._next(gone)
            if name is None:
                raise self._short(gone, number, meets)
            gone.append(name)
        return made

    def _met(self, gone: list[str], number: int | None, meets: "_Meets | None") -> DepthChange | None:
        if not gone:
            return None
        if meets is None:
            return self._change(gone) if len(gone) == number else None
        made = self._change(gone)
        return made if meets(made) else None

    def _next(self, gone: Sequence[str]) -> str | None:
        """The least important block that can still go; of equal ones the last."""
        left = [n for n in self.found.found if n not in gone]
        if left and self.rate is not None and (self.rescore or not self.scores):
            self.scores |= self.rate(left, gone)
        free = [n for n in left if not self._last(n, gone)]
        return min(reversed(free), key=self.scores.__getitem__, default=None)

    def _last(self, name: str, gone: Sequence[str]) -> bool:
        """Whether a block is the last one of its sequence."""
        owner = parent_of(name)
        return len(self.model.get_submodule(owner)._modules) - sum(parent_of(g) == owner for g in gone) < 2

    def _short(self, gone: Sequence[str], number: int | None, meets: "_Meets | None") -> PlanError:
        if meets is None:
            return PlanError(
                f"{number} blocks are to go, but only {len(gone)} of this {type(self.model).__name__} can. "
                f"{_refusals(self.found)}"
            )
        return UnreachableBudget(
            f"without all {len(gone)} blocks that can go the model still costs {meets.said}. Raise the budget, or "
            "prune its widths too, with sc.prune"
        )

    def _change(self, gone: Sequence[str]) -> DepthChange:
        ordered = tuple(name for name in self.found.found if name in gone)
        return counted(
            self.model, DepthChange(dropped=ordered, model=type(self.model).__name__), self.counters, self.inputs
        )


class _Meets:
    """Whether a shorter model keeps to a budget."""

    def __init__(self, model: nn.Module, inputs: Inputs, budget: Budget) -> None:
        self.model, self.inputs, self.budget = model, inputs, budget
        self.said = ""
        self.targets = budget.targets(self._costs(model))

    def __call__(self, change: DepthChange) -> bool:
        double = shadow(self.model)
        carry_out(change, double)
        found = self._costs(double)
        over = [kind for kind, most in self.targets.items() if found[kind] > most]
        self.said = ", ".join(f"{kind} {found[kind]:,} of {self.targets[kind]:,.0f}" for kind in over)
        return not over

    def _costs(self, model: nn.Module) -> dict[str, int]:
        found = costs(model, self.inputs)
        if "latency" in self.budget.given:
            timed = measure(model, *self.inputs, training=False, memory=False)
            found["latency"] = round(timed.latency_ms * 1e6)
        return found
