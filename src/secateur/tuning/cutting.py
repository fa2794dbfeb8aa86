"""Surgery that goes on from surgery: plans of the original's axes, carried out on a network that is smaller already.

Every plan is made from the original's graph and goes on from the units that are left, so that the last one says what
stays of the original. The smaller network is what the plan makes of the original, with the weights that the network
before it had; and it is proved against that network with the units silenced that it still had and now loses.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur.calibration.batches import checked
from secateur.compensation import Compensation, How, compensate_
from secateur.configs import Wording
from secateur.descending import restored
from secateur.errors import NothingToPrune, PlanError, ProofFailed, SurgeryError
from secateur.graph import Graph
from secateur.importance import Criterion, Scores, score
from secateur.importance.scoring import check_weights
from secateur.inputs import as_call, split_batch
from secateur.modules import Walk, named_tensors
from secateur.objectives import Loss
from secateur.planning import Budget, Plan, make_plan
from secateur.proof import Proof, check_outputs, prove
from secateur.provenance import inherit, recall, remember
from secateur.pruning import ROUNDS, as_config_says, bare_report, culprits, planned, without
from secateur.reporting import Report
from secateur.timing.settling import Clock
from secateur.tracing import trace
from secateur.tracing.shadow import check_kind

Reach = Callable[[], Plan]
"""Makes a plan from the graph as it is; more of it may be held back each time."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What one surgery gave.

    Attributes:
        plan: what stays of the original's axes.
        model: the smaller network.
        proof: the comparison with the network before it, silenced.
        compensation: what refitting did; None where there was none.
    """

    plan: Plan
    model: nn.Module
    proof: Proof
    compensation: Compensation | None


class Surgeon:
    """Scores, plans, cuts and proves, again and again, from one original.

    Args:
        model: the original, which stays as it is.
        args, kwargs: example inputs.
        importance, data, loss, seed: as for `secateur.prune`.
        how: how the weights that stay make up for those that go; None for not at all.
        uniform, planning: settings of planning, as for `secateur.prune`.

    Attributes:
        graph: of the original; axes that failed a proof are frozen in it, or as narrow as they can get.
    """

    def __init__(
        self,
        model: nn.Module,
        args: Any,
        kwargs: Mapping[str, Any] | None,
        *,
        importance: str | Criterion,
        data: Iterable[Any] | None,
        loss: Loss | None,
        how: How | None,
        seed: int,
        uniform: bool,
        planning: Mapping[str, Any],
    ) -> None:
        check_kind(Walk(model))
        check_weights(model)
        check_outputs(model, args, kwargs)
        self.model, self.args, self.kwargs = model, args, kwargs
        self.how: How | None = how
        self.data = list(data) if isinstance(data, Iterator) else data
        self.importance, self.loss, self.seed, self.planning = importance, loss, seed, planning
        self.graph: Graph = trace(model, args, kwargs)
        for batch in () if self.data is None else checked(self.data):
            positional, keywords, _ = split_batch(batch)
            check_outputs(model, positional, keywords)
            break
        self.scores = self.score(model, self.graph)
        self.wording: Wording | None = None
        if uniform:
            self.graph, self.wording = as_config_says(model, self.graph, args, kwargs)
        self._first = self.graph
        self.clock: Clock | None = None
        self._timer: Clock | None = None

    @property
    def inputs(self) -> Any:
        """The example inputs, as a result remembers them."""
        return as_call(self.args, self.kwargs)

    def start_clock(self, budget: Budget) -> None:
        """Time the original's operations where the budget, or the steps between widths, ask for times."""
        asked = self.planning.get("multiple_of")
        self._timer = Clock.where_asked(self.model, self.graph, self.args, self.kwargs, budget, asked)

    def score(self, model: nn.Module, graph: Graph) -> Scores:
        """The importance of the units of a model."""
        return score(model, graph, self.importance, self.data, self.loss, seed=self.seed)

    def pick(self, scores: Mapping[str, Tensor], budget: Budget, earlier: Plan | None = None) -> Plan:
        """A plan from the original's graph, which removes what an earlier one did, and goes on from there."""
        within = {} if earlier is None else earlier.units
        chosen = {**self.planning, "budget": budget, "within": within}
        timer = self._timer
        if timer is None:
            return planned(self.graph, scores, self.wording, chosen)
        self.clock = Clock(self.model, budget, timer.table, timer.measure)
        return self.clock.settle(
            self.graph, lambda table: planned(self.graph, scores, self.wording, {**chosen, "latency": table})
        )

    def further(self, before: nn.Module, earlier: Plan | None, budget: Budget) -> Cut:
        """Cut a network that an earlier plan made, and that was trained since, down to a budget.

        Args:
            before: the network as it is; the original where there is no earlier plan.
        """
        own = self.graph if earlier is None else trace(before, self.args, self.kwargs)
        if earlier is not None:
            self.scores = restored(self.graph, earlier, self.score(before, own), self.scores)
            self._hold_what_changed(own, earlier)
        return self.cut(before, own, earlier, lambda: self.pick(self.scores, budget, earlier))

    def whole(self, before: nn.Module, made: Plan, budget: Budget) -> Cut:
        """Cut a trained copy of the original by a plan; by another one for the same budget where its proof fails."""
        first: list[Plan] = [made]

        def reach() -> Plan:
            if first:
                return first.pop()
            self.scores = self.score(before, self.graph)
            return self.pick(self.scores, budget)

        return self.cut(before, self.graph, None, reach)

    def confirm(self, made: Cut) -> None:
        """Measure a result, where latency counts.

        Raises:
            UnreachableBudget: compensation made it miss the budget.
        """
        if self.clock is not None:
            self.clock.confirm(self.graph, made.plan, made.model, changed=made.compensation is not None)

    def report(self, made: Plan, proof: Proof, small: nn.Module) -> Report:
        """The report of a bare pruning."""
        dead = sum(self.scores.dead.values())
        clock = self.clock if self.clock is not None and self.clock.found is not None else None
        bare = bare_report(
            self.model,
            self.graph,
            made,
            proof,
            seed=self.seed,
            compensation=None,
            held_out=None,
            clock=clock,
            dead=dead,
        )
        if not made.biases:
            return bare
        return bare.replace(pruned={**bare["pruned"], "params": sum(p.numel() for p in small.parameters())})

    def held(self) -> dict[str, Any]:
        """What failed a proof, as plain data."""
        first = self._first
        return {
            "frozen": {n: list(a.frozen) for n, a in self.graph.frozen.items() if n in first.axes},
            "least": {n: a.least for n, a in self.graph.axes.items() if a.least != first.axes[n].least},
        }

    def hold(self, held: Mapping[str, Any]) -> None:
        """Hold what an earlier run of the same pruning found to fail a proof."""
        for name, reasons in held["frozen"].items():
            self.graph = without(self.graph, [name], reasons[0])
        least = held["least"]
        axes = {n: replace(a, least=least.get(n, a.least)) for n, a in self.graph.axes.items()}
        self.graph = replace(self.graph, axes=axes)

    def cut(self, before: nn.Module, own: Graph, earlier: Plan | None, reach: Reach) -> Cut:
        """Plan, carry out and prove; where the proof fails, hold the axes responsible back, and plan again.

        Args:
            own: the graph of the network before.

        Raises:
            ProofFailed: no plan passes the proof.
        """
        failure: Exception | None = None
        for _ in range(ROUNDS):
            made = reach()
            biases = () if earlier is None else earlier.biases
            made, part = replace(made, biases=biases), part_of(own, made, earlier)
            try:
                small = self.carried_over(before, made, part)
                proof = prove(before, small, own, part, self.args, self.kwargs)
                if self.wording is not None:
                    self.wording.check(small, *self.inputs)
            except (ProofFailed, SurgeryError) as error:
                failure = error
                self._hold_culprits(before, own, earlier, part, error)
                continue
            return self._finished(before, small, own, made, part, proof)
        raise ProofFailed(
            f"no plan passes the proof after {ROUNDS} rounds of holding back the axes responsible ({failure}); freeze "
            "modules with ignore=[...]"
        ) from failure

    def rehearse(self, budget: Budget) -> Cut:
        """Cut the original itself, to find before any training which axes fail the proof."""
        how, self.how = self.how, None
        try:
            return self.cut(self.model, self.graph, None, lambda: self.pick(self.scores, budget))
        finally:
            self.how = how

    def carried_over(self, before: nn.Module, made: Plan, part: Plan) -> nn.Module:
        """What a plan makes of the original, with the weights of the network before.

        Raises:
            SurgeryError: these are of another form.
        """
        return filled(made.apply(self.model), named_tensors(part.apply(before)))

    def _finished(self, before: nn.Module, small: nn.Module, own: Graph, made: Plan, part: Plan, proof: Proof) -> Cut:
        compensation = None
        if self.how is not None and self.data is not None:
            compensation = compensate_(before, small, own, part, self.data, how=self.how, biases=self.wording is None)
            made = replace(made, biases=(*made.biases, *compensation.biases))
        remember(small, "plans", (*(recall(self.model, "plans") or ()), made))
        remember(small, "inputs", self.inputs)  # the probe of sc.save
        inherit(small, self.model)
        return Cut(plan=made, model=small, proof=proof, compensation=compensation)

    # ------------------------------------------------------------------ what can't go further

    def _hold_what_changed(self, own: Graph, earlier: Plan) -> None:
        """Hold axes that the smaller network does not have as the original has them."""
        sizes = earlier.sizes
        width = {name: sizes.get(name, info.size) for name, info in self.graph.axes.items()}
        lost = [n for n, size in width.items() if size > 1 and (n not in own.axes or own.axes[n].size != size)]
        self._hold(lost, earlier, "the smaller network does not have it as an axis of its own")

    def _hold_culprits(self, before: nn.Module, own: Graph, earlier: Plan | None, part: Plan, error: Exception) -> None:
        asked = {n: own.axes[n].asked[0] for n, size in part.sizes.items() if size < own.axes[n].asked[0]}
        if asked:
            known = self.graph.axes
            least = {n: min(known[n].asked[0], own.axes[n].size) for n in asked}
            self.graph = replace(
                self.graph, axes={n: replace(a, least=least.get(n, a.least)) for n, a in known.items()}
            )
            return
        found = culprits(before, own, part, None, self.args, self.kwargs)
        self._hold(found or list(part.axes), earlier, f"the proof fails when it is pruned: {error}")
        if not self.graph.axes:
            raise NothingToPrune(
                f"every axis that could be pruned fails the proof; the last failure: {error}"
            ) from error

    def _hold(self, names: Iterable[str], earlier: Plan | None, reason: str) -> None:
        """Freeze axes that are whole; let others, whose units are gone already, keep what they have."""
        sizes = {} if earlier is None else earlier.sizes
        group = {name: tie for tie in self.graph.ties for name in tie}
        held = {n for name in names for n in group.get(name, (name,)) if n in self.graph.axes}
        narrow = {n for n in held if not sizes.keys().isdisjoint(group.get(n, (n,)))}
        axes = {
            n: replace(info, least=sizes.get(n, info.size)) if n in narrow else info
            for n, info in self.graph.axes.items()
        }
        self.graph = without(replace(self.graph, axes=axes), held - narrow, reason)


def part_of(own: Graph, made: Plan, earlier: Plan | None) -> Plan:
    """A plan of the original's axes as a plan for the network that an earlier one made of it.

    Args:
        own: the graph of that network.

    Raises:
        PlanError: it brings units back that are gone.
    """
    if earlier is None:
        return made
    kept: dict[str, Tensor] = {}
    back: list[str] = []
    for name, axis in earlier.axes.items():
        left = made.units.get(name, torch.arange(axis.before))
        at = torch.searchsorted(earlier.units[name], left).clamp_max(len(axis.kept) - 1)
        if not torch.equal(earlier.units[name][at], left):
            back.append(name)
        kept[name] = at
    if back:
        raise PlanError(
            f"the widths that the config can say bring units of {', '.join(back[:3])} back, which are gone. Prune by "
            'mode="soft" or "regularised", which cut once; or without uniform=True'
        )
    return make_plan(own, {**made.units, **kept})


@torch.no_grad()
def filled(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The model with the values of other tensors, by name, in memory of its own. Returns it.

    Raises:
        SurgeryError: a name or a shape differs.
    """
    own = named_tensors(model)
    wrong = [n for n in own.keys() | tensors.keys() if n not in own or n not in tensors]
    wrong += [n for n, t in own.items() if n in tensors and t.shape != tensors[n].shape]
    if wrong:
        raise SurgeryError(
            f"{', '.join(sorted(wrong)[:3])} of {type(model).__name__} can't be carried over to the smaller network: "
            "they are missing in one of the two, or of another shape"
        )
    for name, tensor in own.items():
        tensor.detach().copy_(tensors[name])
    return model
