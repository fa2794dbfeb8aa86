"""Lottery tickets: the small network with the weights that the dense one had early in training."""

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from secateur.errors import SurgeryError, TrainingError
from secateur.modules import named_tensors
from secateur.planning import Plan
from secateur.tracing.shadow import copy_with, of_kind
from secateur.tuning.callbacks import Callback, Run


class Rewind(Callback):
    """Remembers a dense network's weights at one step of its training, to begin again from there when it is pruned.

    Take it into the dense training; then ``small = rewind.apply(plan)`` is the network that the plan makes, with the
    weights of that step, to be trained with what the dense training had left (weight rewinding). Frankle et al. 2020,
    "Linear Mode Connectivity and the Lottery Ticket Hypothesis", arXiv:1912.05671: large networks have winning tickets
    not at initialisation (step 0: Frankle and Carbin 2019, arXiv:1803.03635) but after a few hundredths of training.

    Renda et al. 2020, "Comparing Rewinding and Fine-tuning in Neural Network Pruning", arXiv:2003.02389, find rewinding
    the learning rate alone as good or better: keep the final weights, ``small = plan.apply(model)``, and train with the
    learning rates that the dense training had from the step on. They are in ``rates``; `rate` is a schedule of them:
    ``LambdaLR(optimizer, lambda step: rewind.rate(step) / lr)`` for an optimizer with rate ``lr``.

    Momenta are not remembered: both begin with a new optimizer. Everything is kept on the CPU.

    Args:
        step: optimizer steps done when weights are remembered, at least 0.

    Attributes:
        tensors: parameters and buffers of that step, by name; tied ones once. Empty before.
        rates: learning rates of the dense training's steps from there on.

    Raises:
        TrainingError: a step below 0.
    """

    def __init__(self, step: int = 0) -> None:
        if step < 0:
            raise TrainingError(f"step={step} must be at least 0")
        self.step = step
        self.tensors: dict[str, Tensor] = {}
        self.rates: list[float] = []
        self._model: nn.Module | None = None

    def on_start(self, run: Run) -> None:
        self._model = run.model
        if run.step == self.step and not self.tensors:
            self._remember(run.model)

    def before_step(self, run: Run) -> None:
        if run.step >= self.step:
            self.rates.append(float(run.lr))

    def after_step(self, run: Run) -> None:
        if run.step == self.step:
            self._remember(run.model)

    def apply(self, plan: Plan, model: nn.Module | None = None) -> nn.Module:
        """The smaller network with the remembered weights, as a new module.

        Args:
            plan: made for the dense network, at whatever step.
            model: the dense network's architecture, whose own weights don't count and stay; None for the model that was
                trained.

        Raises:
            TrainingError: training never came to the step, or there is no model.
            SurgeryError: model, plan and remembered weights don't fit each other.
        """
        return plan.apply(self.rewound(model))

    def rewound(self, model: nn.Module | None = None) -> nn.Module:
        """The dense network with the remembered weights, as a new module. Args and errors as for `apply`."""
        if not self.tensors:
            raise TrainingError(
                f"no weights are remembered: training must begin with this, and come to step {self.step}"
            )
        model = model if model is not None else self._model
        if model is None:
            raise TrainingError("these weights were loaded, so pass the dense network's architecture: model=")
        tensors = named_tensors(model)
        first = {id(t): name for name, t in reversed(tensors.items())}
        known = {name: list(tensor.shape) for name, tensor in self.tensors.items()}
        wrong = [
            f"{name} is {list(tensors[name].shape)}, remembered {known.get(name, 'not at all')}"
            for name in first.values()
            if known.get(name) != list(tensors[name].shape)
        ]
        if wrong:
            raise SurgeryError(
                f"the remembered weights are of another architecture than this {type(model).__name__}: "
                f"{'; '.join(wrong[:3])}. Pass a model of the original sizes."
            )
        return copy_with(
            model, lambda old: of_kind(old, self.tensors[first[id(old)]].to(old.device, old.dtype, copy=True))
        )

    def rate(self, step: int) -> float:
        """The learning rate that the dense training had so many steps after the remembered one; its last one later.

        Raises:
            TrainingError: it made no step from there.
        """
        if not self.rates:
            raise TrainingError(f"no learning rate is remembered: training made no step from step {self.step} on")
        return self.rates[min(step, len(self.rates) - 1)]

    def repeated(self) -> dict[str, Any]:
        """The remembered learning rates, stretched over a training, as ``lr``, ``schedule`` and ``warmup`` of `tune`.

        Raises:
            TrainingError: the dense training made no step from there.
        """
        self.rate(0)
        rates = list(self.rates)
        highest = max(rates)
        return {
            "lr": highest,
            "schedule": lambda done: rates[min(int(done * len(rates)), len(rates) - 1)] / highest,
            "warmup": 0.0,
        }

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "rates": list(self.rates), "tensors": dict(self.tensors)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step, self.rates = int(state["step"]), [float(rate) for rate in state["rates"]]
        self.tensors = {str(name): tensor for name, tensor in cast("Mapping[str, Tensor]", state["tensors"]).items()}

    def _remember(self, model: nn.Module) -> None:
        tensors = named_tensors(model)
        first = {id(t): name for name, t in reversed(tensors.items())}
        own = {name: t for name, t in tensors.items() if first[id(t)] == name}
        self.tensors = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in own.items()}
