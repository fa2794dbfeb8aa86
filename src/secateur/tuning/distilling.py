"""Learning from the dense network: its class scores, and what its modules give inside.

Shape letters: N samples in a batch, C classes, T tokens, H and W pixels.
"""

import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from secateur.errors import TrainingError
from secateur.inputs import fresh, split_batch
from secateur.modules import kept_modes, named_parts
from secateur.objectives import imitation
from secateur.objectives import is_causal as is_causal
from secateur.planning.plan import Plan
from secateur.tuning.features import Given, Outputs, Recorder, output_dims, shapes_of
from secateur.tuning.stages import sensible

Forward = Callable[[nn.Module, Any], Any]
LEAST = 1e-12  # of a teacher's variance, for features that are constant
KEEP_ROWS = 3  # how many module names an error lists


@dataclass(frozen=True)
class Distillation:
    """The dense network's answers, and its features, as further targets of training.

    The loss is ``(1 - weight) own + weight imitation + feature_weight features``. ``imitation`` is the Kullback-Leibler
    divergence of softened class scores times temperature squared (Hinton et al. 2015, arXiv:1503.02531); it takes
    scores (N, C), (N, C, H, W) and, of language models, (N, T, C), where places with labels below 0 don't count.
    ``features`` is the mean over modules of the squared distance of what student and teacher give there, by the
    variance of what the teacher gives (Romero et al. 2015, "FitNets", arXiv:1412.6550).
    Differs: a pruned network's units are some of the dense one's, and the plan says which, so that features are
    compared unit by unit, without FitNets' learnt projections.

    Args:
        teacher: the dense network. It runs in evaluation mode without gradients, may be on another device and of
            another precision, and keeps its modes.
        plan: by which the student was pruned from it; None where features have equal shapes.
        weight: of imitation against the model's own loss, in [0, 1]; 0 leaves imitation out.
        temperature: softens both sides, above 0.
        features: modules whose outputs (the first tensor of each) are compared: names or glob patterns, or "auto": the
            last of each group of repeated blocks, four spread evenly where there are fewer than three groups; without
            blocks the last layer of each size of picture. Of what a pattern matches, modules are left out that one of
            the two lacks, or whose output can't be compared; a name must fit.
        feature_weight: of the features' distance, at least 0. 1 stands for: an error as large as the features' spread
            weighs as much as one nat.
        shift: whether scores (N, T, C) at a place speak of the next place's label, as in causal language models; None
            tells by the name of the teacher's class.

    Raises:
        TrainingError: a setting out of its range, all listed.

    Example:
        >>> import torch, secateur as sc
        >>> dense = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> batch = torch.randn(16, 4), torch.randint(2, (16,))
        >>> result = sc.prune(dense, batch[0], keep=0.5)
        >>> with Distillation(dense, result.plan, features=["1"]).on(result.model) as lesson:
        ...     output = result.model(batch[0])
        ...     loss = lesson(torch.nn.functional.cross_entropy(output, batch[1]), output, batch)
        >>> lesson.matched
        ('1',)
    """

    teacher: nn.Module
    plan: Plan | None = None
    _: KW_ONLY
    weight: float = 0.7
    temperature: float = 3.0
    features: str | Iterable[str] = ()
    feature_weight: float = 0.1
    shift: bool | None = None

    def __post_init__(self) -> None:
        ranges = [
            ("weight", 0 <= self.weight <= 1, "in [0, 1]"),
            ("temperature", 0 < self.temperature < math.inf, "above 0"),
            ("feature_weight", 0 <= self.feature_weight < math.inf, "at least 0"),
        ]
        wrong = [f"{name}={getattr(self, name)} must be {text}" for name, fits, text in ranges if not fits]
        if wrong:
            raise TrainingError("; ".join(wrong))
        if not isinstance(self.features, str):
            object.__setattr__(self, "features", tuple(self.features))

    @property
    def patterns(self) -> tuple[str, ...]:
        """What ``features`` says, as a tuple; empty where their weight is 0."""
        named = (self.features,) if isinstance(self.features, str) else cast("tuple[str, ...]", self.features)
        return named if self.feature_weight else ()

    @contextmanager
    def on(self, student: nn.Module, forward: Forward | None = None) -> Generator["Lesson"]:
        """Watch the student while the context lasts: the `Lesson` then gives the loss of each batch that it ran on.

        Args:
            student: unwrapped; it may run inside a wrapper for training in parallel.
            forward: ``(model, batch) -> output``, where the teacher's inputs are not the batch's; the batch then comes
                as it is, on whatever device, and labels are those that the lesson is given.

        Raises:
            TrainingError: the student is the teacher, or a pattern matches none of their modules.
        """
        if student is self.teacher:
            raise TrainingError("the student is the teacher itself: pass another copy of the dense network")
        lesson = Lesson(self, student, forward)
        with kept_modes(self.teacher):
            self.teacher.eval()
            try:
                lesson.open()
                yield lesson
            finally:
                lesson.close()


class Lesson:
    """One student's distillation, made by `Distillation.on`.

    Attributes:
        matched: the modules whose features are compared, known from the first batch on.
        terms: the last batch's terms, before weights: "own", "imitation", "features", as far as they count.
    """

    def __init__(self, settings: Distillation, student: nn.Module, forward: Forward | None) -> None:
        self.settings, self.student, self.forward = settings, student, forward
        self.learnt, self.taught = Recorder(grads=True), Recorder(grads=False)
        self.matched: tuple[str, ...] = ()
        self.terms: dict[str, Tensor] = {}
        self._both: list[str] = []
        self._kept: dict[str, list[Mapping[int, Tensor]]] | None = None
        first = next((t for t in settings.teacher.parameters() if t.is_floating_point()), torch.empty(0))
        self._device, self._dtype = first.device, first.dtype
        shift = settings.shift
        self._shift = is_causal(settings.teacher) if shift is None else shift

    def __call__(self, own: Tensor, output: Any, batch: Any, target: Any = None) -> Tensor:
        """The loss of a batch that the student has just run on.

        Args:
            own: the student's own loss.
            output: what the student returned.
            batch: a tensor, a mapping, or a pair (inputs, target), as for ``forward``.
            target: labels; None takes the batch's, where the batch is of the usual form.

        Raises:
            TrainingError: scores or features that can't be compared, or features of a student that did not run.
        """
        settings = self.settings
        if settings.weight == 0 and not settings.patterns:
            return own
        taught = self._teach(batch)
        loss = own if settings.weight == 0 else (1 - settings.weight) * own
        self.terms = {"own": own.detach()}
        if settings.weight:
            labels = _labels(batch) if target is None and self.forward is None else target
            term = imitation(output, taught, settings.temperature, labels, shift=self._shift)
            loss, self.terms["imitation"] = loss + settings.weight * term, term.detach()
        if settings.patterns:
            term = self._distance(_padding(batch) if self.forward is None else None).to(own.device)
            loss, self.terms["features"] = loss + settings.feature_weight * term, term.detach()
        self.learnt.clear()
        self.taught.clear()
        return loss

    def open(self) -> None:
        """Watch the modules that both models have."""
        patterns = self.settings.patterns
        if not patterns:
            return
        both = [path for path, _ in named_parts(self.student) if path]
        present = {path for path, _ in named_parts(self.settings.teacher)}
        both = [path for path in both if path in present]
        lost = [p for p in patterns if p != "auto" and not any(fnmatchcase(path, p) for path in both)]
        if lost:
            raise TrainingError(f"features={lost} match no module that both models have. They share {_few(both)}.")
        self._both = both
        self.learnt.on(self.student, both)  # all of them on the first batch, so that errors can say what would fit
        if self.settings.plan is None:
            self.taught.on(self.settings.teacher, both)

    def close(self) -> None:
        """Take all hooks away."""
        self.learnt.off()
        self.taught.off()

    # ------------------------------------------------------------------ the teacher

    def _teach(self, batch: Any) -> Any:
        """What the teacher returns; on the first batch it is found out, too, what there is to compare."""
        with torch.no_grad():
            if not self.settings.patterns or self._kept is not None:
                return self._run(self.settings.teacher, batch)
            if not self.learnt.given:
                raise TrainingError(
                    "no features of the student were recorded: run it on the batch, with gradients, before its lesson"
                )
            plan, teacher = self.settings.plan, self.settings.teacher
            if plan is None:
                out = self._run(teacher, batch)
                self._settle(shapes_of(self.taught.given))
                self.taught.narrow(teacher, self.matched)
                return out
            _, outputs = output_dims(teacher, plan, lambda copy: self._run(copy, batch))
            self._settle(outputs)
            self.taught.on(teacher, self.matched)
            return self._run(teacher, batch)

    def _run(self, teacher: nn.Module, batch: Any) -> Any:
        if self.forward is not None:
            return self.forward(teacher, batch)
        args, kwargs, _ = fresh(split_batch(batch))
        args, kwargs = tree_map_only(Tensor, self._moved, (args, kwargs))
        return teacher(*args, **kwargs)

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, self._dtype if tensor.is_floating_point() else None)

    # ------------------------------------------------------------------ features

    def _settle(self, outputs: Outputs) -> None:
        """Choose the modules to compare, and which positions of the teacher's outputs the student has."""
        plan, learnt = self.settings.plan, shapes_of(self.learnt.given)
        scaled = {scale.tensor.rpartition(".")[0] for scale in plan.scales} if plan is not None else set[str]()
        comparable = set(self._both) - scaled  # queries that carry the change of a head size are another multiple
        fit = [path for path in outputs if path in comparable and _fits(outputs[path], learnt.get(path), plan)]
        chosen: dict[str, None] = {}
        for pattern in self.settings.patterns:
            auto = pattern == "auto"
            found = (
                sensible(self.settings.teacher, outputs, fit) if auto else [m for m in fit if fnmatchcase(m, pattern)]
            )
            if not found:
                raise TrainingError(self._unfit(pattern, outputs, learnt, fit))
            chosen |= dict.fromkeys(found)
        self.matched = tuple(path for path in outputs if path in chosen)
        self._kept = {path: [given.kept(plan) for given in outputs[path]] for path in self.matched}
        self.learnt.narrow(self.student, self.matched)

    def _unfit(self, pattern: str, outputs: Outputs, learnt: Outputs, fit: Sequence[str]) -> str:
        """Why nothing that a pattern matches can be compared."""
        plan = self.settings.plan
        rows = [
            f"{path} gives {[g.smaller(plan) for g in outputs.get(path, [])]}, the student's "
            f"{[g.shape for g in learnt.get(path, [])]}"
            for path in self._both
            if pattern == "auto" or fnmatchcase(path, pattern)
        ]
        ways = "" if plan is not None else " Where the student was pruned from the teacher, pass plan=result.plan."
        return (
            f"features={pattern!r}: nothing can be compared ({'; '.join(rows[:KEEP_ROWS])}). "
            f"Modules that can be: {_few(fit)}.{ways}"
        )

    def _distance(self, valid: Tensor | None) -> Tensor:
        """Mean over modules of the squared distance, by the variance of what the teacher gives."""
        assert self._kept is not None
        total: list[Tensor] = []
        for path, kept in self._kept.items():
            learnt, taught = self.learnt.given.get(path, []), self.taught.given.get(path, [])
            if not len(learnt) == len(taught) == len(kept):
                raise TrainingError(
                    f"{path} ran {len(learnt)} times in the student and {len(taught)} times in the teacher, after "
                    f"{len(kept)} times on the first batch: leave it out of features"
                )
            total += [_error(a, _part(b, at), valid) for a, b, at in zip(learnt, taught, kept, strict=True)]
        return torch.stack([value.to(total[0].device) for value in total]).mean()


def _error(learnt: Tensor, taught: Tensor, valid: Tensor | None) -> Tensor:
    """Mean squared distance by the variance of what was taught, without places that are padding."""
    a, b = learnt.float(), taught.to(learnt.device).float()
    if valid is not None and a.shape[:2] == valid.shape and a.dim() > 2:
        a, b = a[valid.to(a.device)], b[valid.to(a.device)]
    return (a - b).square().mean() / b.var(correction=0).clamp_min(LEAST)


def _part(tensor: Tensor, kept: Mapping[int, Tensor]) -> Tensor:
    for dim, at in kept.items():
        tensor = tensor.index_select(dim, at.to(tensor.device))
    return tensor


def _fits(taught: Sequence[Given], learnt: Sequence[Given] | None, plan: Plan | None) -> bool:
    return learnt is not None and [g.smaller(plan) for g in taught] == [g.shape for g in learnt]


def _labels(batch: Any) -> Any:
    _, kwargs, target = split_batch(batch)
    return kwargs.get("labels") if target is None else target


def _padding(batch: Any) -> Tensor | None:
    """Which tokens are none of padding, (N, T) bool; None where the batch has no attention mask of that form."""
    inputs: Any = batch[0] if isinstance(batch, tuple | list) and batch else batch
    mask: Any = cast("Mapping[str, Any]", inputs).get("attention_mask") if isinstance(inputs, Mapping) else None
    return mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 and bool(mask.any()) else None


def _few(paths: Sequence[str]) -> str:
    shown = ", ".join(paths[: 4 * KEEP_ROWS]) or "none"
    return f"{shown} and {len(paths) - 4 * KEEP_ROWS} more" if len(paths) > 4 * KEEP_ROWS else shown
