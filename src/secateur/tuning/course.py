"""The course of a gradual pruning: its stages in order, from wherever an earlier run of it was left."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import SurgeryError, TrainingError
from secateur.importance import Scores
from secateur.modules import named_tensors
from secateur.objectives import Loss
from secateur.planning import Budget, Plan
from secateur.provenance import inherit, recall, remember
from secateur.tracing.shadow import copy_with, own_tensor
from secateur.tuning import randomness
from secateur.tuning.callbacks import Callback
from secateur.tuning.choosing import Rate
from secateur.tuning.counting import steps_per_epoch
from secateur.tuning.cutting import Cut, Surgeon, filled
from secateur.tuning.distilling import Distillation
from secateur.tuning.evaluating import evaluate
from secateur.tuning.history import Epoch, History
from secateur.tuning.rewinding import Rewind
from secateur.tuning.scheduled import Fading, Growing
from secateur.tuning.softmasks import fade_
from secateur.tuning.steps import PruningStep, Stages
from secateur.tuning.tune import tune
from secateur.tuning.units import pack, unpack

Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a network is pruned gradually; see `secateur.tuning.prune_gradually`."""

    mode: str
    budgets: tuple[Budget, ...]
    epochs: int
    final_epochs: int
    lr: Rate
    lr_schedule: str | Callable[[float], float]
    strength: float
    rewind: str | None
    ticket: Rewind | None
    teacher: nn.Module | Distillation | None
    loss: Loss | None
    seed: int
    tuning: Mapping[str, Any]

    def rates(self) -> dict[str, Any]:
        """The learning rates of a training that rewinds, as `tune` takes them."""
        return {} if self.rewind is None or self.ticket is None else self.ticket.repeated()


@dataclass(frozen=True, kw_only=True)
class State:
    """Where a gradual pruning stands.

    Attributes:
        model: the network; trained in place.
        plan: by which it was cut from the original; None while it is whole.
        going: what a whole network is about to lose.
        steps: surgeries so far.
        masked: the training under masks or a penalty.
    """

    model: nn.Module
    plan: Plan | None = None
    going: Plan | None = None
    steps: tuple[PruningStep, ...] = ()
    masked: History | None = None


@dataclass(frozen=True)
class Stage:
    """One thing to do: "mask" the whole network in training, "cut" or "train" at the step of a number."""

    kind: str
    number: int


@dataclass
class Telling:
    """Who is told of what goes on."""

    on_step: Callable[[PruningStep], None] | None = None
    on_epoch: Callable[[Epoch], None] | None = None
    progress: Callable[[int, int], None] | None = None


@dataclass(frozen=True)
class Later:
    """Batches whose epochs are counted on from those of earlier trainings."""

    batches: Any
    before: int

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.batches, name)

    def set_epoch(self, epoch: int) -> None:
        self.batches.set_epoch(self.before + epoch)


class Course:
    """A gradual pruning.

    Args:
        surgeon: cuts and proves.
        train, validate: batches.
        way: the settings.
        stages: where states are kept.

    Attributes:
        interrupted: what Ctrl-C cut short, in words; empty if nothing.
    """

    def __init__(
        self, surgeon: Surgeon, train: Iterable[Any], validate: Iterable[Any] | None, way: Way, stages: Stages
    ) -> None:
        self.surgeon, self.train, self.validate, self.way, self.kept = surgeon, train, validate, way, stages
        self.count = len(way.budgets)
        self.home = next((t.device for t in named_tensors(surgeon.model).values()), torch.device("cpu"))
        if way.mode == "cut":
            self.todo = [Stage(kind, k + 1) for k in range(self.count) for kind in ("cut", "train")]
            self.state = State(model=surgeon.model)
        else:
            self.todo = [Stage(kind, self.count) for kind in ("mask", "cut", "train")]
            self.state = State(model=copy_with(surgeon.model, own_tensor))
        self.complete: State | None = None
        self.interrupted = ""
        self.telling = Telling()

    def go(self, **telling: Any) -> None:
        """All stages that are not done yet, or as many as there are until Ctrl-C.

        Raises:
            KeyboardInterrupt: Ctrl-C before there was anything worth keeping.
        """
        self.telling = Telling(**telling)
        done = self._take_up()
        if self.way.mode != "cut" and not done:
            self.surgeon.rehearse(self.way.budgets[-1])
        try:
            while done < len(self.todo) and not self.interrupted:
                self._do(done)
                if not self.interrupted:
                    done += 1
                    self.kept.save(done, self._packed())
        except KeyboardInterrupt:
            self.interrupted = "the gradual pruning was stopped"
        if self.interrupted:
            self._settle(self.todo[done])

    def final(self) -> State:
        """What it came to."""
        return self.state

    def _do(self, at: int) -> None:
        stage = self.todo[at]
        if stage.kind == "cut":
            with randomness.seeded(self.way.seed, at, device=self.home):  # of data that are shuffled anew
                self._cut(stage.number)
        elif stage.kind == "mask":
            self._mask(at)
        else:
            self._train(at)

    def _settle(self, stage: Stage) -> None:
        """After Ctrl-C, go back to what is worth keeping, and say what it is."""
        state = self.state
        words = f"the gradual pruning was stopped at step {stage.number} of {self.count}"
        if stage.kind == "mask" and state.going is not None and state.masked is not None and state.masked.epochs:
            self._cut(self._reached(state.going))
            words = "the training over the steps of the gradual pruning was stopped"
            kept = "what was going by then is cut, and not trained after it"
        elif stage.kind == "train" and stage.number == self.count:
            words = "the training after the last step of the gradual pruning was stopped"
            kept = "kept is its best state so far"
        elif self.complete is not None:
            self.state = self.complete
            kept = f"kept is the network after step {self.complete.steps[-1].number}"
        else:
            raise KeyboardInterrupt
        self.interrupted = f"{words}; {kept}"

    def _reached(self, going: Plan) -> int:
        """The number of the last step whose budget a plan meets, or the first."""
        graph = self.surgeon.graph
        cost = graph.cost(going.sizes)
        for number, budget in enumerate(self.way.budgets, 1):
            targets = {k: t for k, t in budget.given.items() if k in cost}
            if targets and any(cost[k] > t for k, t in Budget(**targets).targets(graph.cost()).items()):
                return max(number - 1, 1)
        return self.count

    # ------------------------------------------------------------------ surgery

    def _cut(self, number: int) -> None:
        state, budget = self.state, self.way.budgets[number - 1]
        if self.way.mode == "cut":
            made = self.surgeon.further(state.model, state.plan, budget)
        else:
            assert state.going is not None
            if self.way.mode == "soft":
                fade_(state.model, state.going, 0.0)
            made = self.surgeon.whole(state.model, state.going, budget)
        if number == self.count:
            self.surgeon.confirm(made)
        model = self._rewound(made)
        graph = self.surgeon.graph
        after, before = graph.cost(made.plan.sizes), graph.cost()
        step = PruningStep(
            number=number,
            budget=budget.given,
            cost={kind: after[kind] / max(before[kind], 1) for kind in before},
            proof=made.proof,
            compensation=None if made.compensation is None else made.compensation.to_dict(),
            cut=self._validated(model),
        )
        self.state = replace(state, model=model, plan=made.plan, going=None, steps=(*state.steps, step))

    def _rewound(self, made: Cut) -> nn.Module:
        """The network after surgery, with earlier weights if these are asked for."""
        if self.way.rewind != "weights":
            return made.model
        ticket, original = self.way.ticket, self.surgeon.model
        dense = original if ticket is None else ticket.rewound(original)
        return filled(made.model, named_tensors(made.plan.apply(dense)))

    def _validated(self, model: nn.Module) -> dict[str, float]:
        if self.validate is None:
            return {}
        with randomness.seeded(self.way.seed, 0, device=self.home):
            return evaluate(model, self.validate, self.home, loss=self.way.loss)

    # ------------------------------------------------------------------ training

    def _train(self, at: int) -> None:
        state, stage = self.state, self.todo[at]
        if self._epochs(stage):
            history = self._tuned(at, state.plan)
            state = replace(state, steps=(*state.steps[:-1], replace(state.steps[-1], history=history)))
        self.state = state
        if not self.interrupted:
            self.complete = state
            if self.telling.on_step is not None:
                self.telling.on_step(state.steps[-1])

    def _mask(self, at: int) -> None:
        def choose(model: nn.Module, number: int) -> Plan:
            surgeon = self.surgeon
            with randomness.seeded(way.seed, number, device=self.home):
                surgeon.scores = surgeon.score(model, surgeon.graph)
            return surgeon.pick(surgeon.scores, way.budgets[number])

        graph, way = self.surgeon.graph, self.way
        masks = Fading(choose, self.count) if way.mode == "soft" else Growing(graph, choose, self.count, way.strength)
        history = self._tuned(at, None, masks, keep="last", patience=None, ema=None)
        self.state = replace(self.state, going=masks.chosen, masked=history)

    def _tuned(self, at: int, plan: Plan | None, *masks: Callback, **other: Any) -> History:
        """Train the network in place."""
        way, model, before = self.way, self.state.model, self._epochs_before(at)
        callbacks: Sequence[Callback] = way.tuning.get("callbacks", ())
        options = {"lr": way.lr, "schedule": way.lr_schedule, **way.tuning, **way.rates(), **other}
        later = callable(getattr(self.train, "set_epoch", None))
        history = tune(
            model,
            Later(self.train, before) if later else self.train,
            self.validate,
            **{**options, "callbacks": (*masks, *callbacks)},
            epochs=self._epochs(self.todo[at]),
            teacher=self._teacher(plan),
            loss=way.loss,
            seed=way.seed + at,
            on_epoch=self.telling.on_epoch,
            progress=self._progress(before),
            **self.kept.training(at),
        )
        for moved in (model, self.surgeon.model):  # training may be on another device than the example inputs
            moved.to(self.home)
        if history.interrupted:
            self.interrupted = "the gradual pruning was stopped"
        return history

    def _teacher(self, plan: Plan | None) -> nn.Module | Distillation | None:
        """The teacher, told which units of its own the network still has."""
        teacher = self.way.teacher
        if isinstance(teacher, Distillation) and teacher.patterns and teacher.plan is None:
            return replace(teacher, plan=plan)
        return teacher

    def _epochs(self, stage: Stage) -> int:
        if stage.kind == "mask":
            return self.count * self.way.epochs
        if stage.kind == "cut":
            return 0
        return self.way.final_epochs if stage.number == self.count else self.way.epochs

    def _epochs_before(self, at: int) -> int:
        return sum(map(self._epochs, self.todo[:at]))

    def _progress(self, before: int) -> Callable[[int, int], None] | None:
        tell = self.telling.progress
        if tell is None:
            return None
        length = steps_per_epoch(self.train, int(self.way.tuning.get("accumulate", 1)))
        total = length * self._epochs_before(len(self.todo))
        return lambda done, _: tell(before * length + done, total)

    # ------------------------------------------------------------------ states on the disk

    def _packed(self) -> dict[str, Any]:
        """The state as plain data and tensors."""
        state, surgeon = self.state, self.surgeon
        first: dict[int, str] = {}
        tensors = {n: t for n, t in named_tensors(state.model).items() if first.setdefault(id(t), n) == n}
        return {
            "tensors": {name: tensor.detach() for name, tensor in tensors.items()},
            "plan": pack(state.plan),
            "going": pack(state.going),
            "steps": [step.to_dict() for step in state.steps],
            "masked": None if state.masked is None else state.masked.to_dict(),
            "scores": dict(surgeon.scores),
            "comparable": surgeon.scores.comparable,
            "held": surgeon.held(),
            "loader": randomness.states_of(self.train),
        }

    def _unpacked(self, kept: Mapping[str, Any]) -> State:
        """The state that was packed.

        Raises:
            TrainingError: it is of another model.
        """
        plan = unpack(kept["plan"])
        original = self.surgeon.model
        model = copy_with(original, own_tensor) if plan is None else plan.apply(original)
        try:
            tensors = dict(kept["tensors"])
            first: dict[int, str] = {}
            for name, tensor in named_tensors(model).items():  # tied tensors have several names
                tensors.setdefault(name, tensors.get(first.setdefault(id(tensor), name), tensor))
            filled(model, tensors)
        except SurgeryError as error:
            raise TrainingError(f"{self.kept.folder} holds the gradual pruning of another model: {error}") from error
        if plan is not None:
            remember(model, "plans", (*(recall(original, "plans") or ()), plan))
            remember(model, "inputs", self.surgeon.inputs)
            inherit(model, original)
        return State(
            model=model,
            plan=plan,
            going=unpack(kept["going"]),
            steps=tuple(map(PruningStep.from_dict, kept["steps"])),
            masked=None if kept["masked"] is None else History.from_dict(kept["masked"]),
        )

    def _take_up(self) -> int:
        """Go on from the last state that was kept; how many stages are done."""
        kept = self.kept.latest()
        if kept is None:
            return 0
        done, state = kept
        self.surgeon.hold(state["held"])
        self.surgeon.scores = Scores(state["scores"], comparable=state["comparable"])
        randomness.put_states(self.train, state["loader"])
        self.state = self._unpacked(state)
        trained = self.todo[done - 1].kind == "train"
        before = self.kept.after(done - 1) if self.way.mode == "cut" and not trained else None
        self.complete = self.state if trained else None if before is None else self._unpacked(before)
        return done
