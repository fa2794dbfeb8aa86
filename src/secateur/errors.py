"""Every error that secateur raises on purpose.

SecateurError
├── TraceError              the model could not be followed on the example inputs
├── ModelError              the model itself is unfit: NaN weights, nothing to prune, can't be copied
│   └── NothingToPrune
├── UnknownTensor           (also a ValueError) a parameter, a buffer or a dim that the model does not have
├── UnknownImportance       (also a ValueError) a criterion's name that nobody knows
├── ScoreError              an importance gave something that is no score
├── PlanError               (also a ValueError) arguments to ``plan`` that contradict each other or the graph
│   ├── UnreachableBudget   the budget asks for less than the model can become
│   ├── NotGrowable         units of an axis can't be repeated so that the function stays
│   └── UnreachableBound    nothing can be removed without making the metric worse than allowed
├── SparsityError           (also a ValueError) arguments to ``sparsify`` that contradict each other or the model
│   └── PatternError        scores, a share or a shape that a pattern can't do anything with
├── SurgeryError            a plan does not fit the model that it is applied to
├── RemapError              an optimizer, a copy or a checkpoint does not belong to the model that was pruned
├── ProofFailed             the smaller model does not compute what the silenced original computes
├── ArtifactError           a saved result is truncated, altered, foreign or of another version
├── MeasureError            a model could not be measured
├── ExportError             a model can't be exported, or the file computes something else
├── HubError                the Hub could not be reached, or refused
├── TrainingError           training stopped because its result would be useless (NaN loss, no batch, ...)
│   └── Diverged            the loss became NaN or infinite
├── DataError               data that can't be found, read or matched to the model
├── ConfigError             (also a ValueError) settings that can't be read or contradict each other
├── OutputError             the place to write to is not usable
└── MissingExtra            (also an ImportError) an optional dependency is not installed
"""

from typing import Any


class SecateurError(Exception):
    """Root of all errors raised on purpose."""


class TraceError(SecateurError):
    """The model could not be followed on the example inputs."""


class ModelError(SecateurError):
    """The model itself is unfit."""


class NothingToPrune(ModelError):
    """No axis of the model can be pruned; the message says what froze the largest ones."""


class UnknownTensor(SecateurError, ValueError):
    """A parameter, a buffer or a dim that the model does not have."""


class UnknownImportance(SecateurError, ValueError):
    """A criterion's name that nobody knows."""


class ScoreError(SecateurError):
    """An importance gave something that is no score."""


class PlanError(SecateurError, ValueError):
    """Arguments to ``plan`` that contradict each other or the graph."""


class UnreachableBudget(PlanError):
    """The budget asks for less than the model can become."""


class NotGrowable(PlanError):
    """Units of an axis can't be repeated so that the model computes what it did; the message says why."""


class UnreachableBound(PlanError):
    """Nothing can be removed without making the metric on held-out data worse than allowed."""


class SparsityError(SecateurError, ValueError):
    """Arguments to ``sparsify`` that contradict each other or the model."""


class PatternError(SparsityError):
    """Scores, a share or a shape that a pattern can't do anything with."""


class SurgeryError(SecateurError):
    """A plan does not fit the model that it is applied to."""


class RemapError(SecateurError):
    """An optimizer, a copy or a checkpoint does not belong to the model that was pruned."""


class ProofFailed(SecateurError):
    """The smaller model does not compute what the silenced original computes."""


class ArtifactError(SecateurError):
    """A saved result is truncated, altered, foreign or of another version."""


class MeasureError(SecateurError):
    """A model could not be measured."""


class ExportError(SecateurError):
    """A model can't be exported, or what was written computes something else."""


class HubError(SecateurError):
    """The Hub could not be reached, or refused what was asked of it."""


class TrainingError(SecateurError):
    """Training stopped because its result would be useless."""


class Diverged(TrainingError):
    """The loss became NaN or infinite.

    Attributes:
        history: the training up to there, as `secateur.tuning.History`, where there was one.
    """

    history: Any = None


class DataError(SecateurError):
    """Data that can't be found, read or matched to the model."""


class ConfigError(SecateurError, ValueError):
    """Settings that can't be read or contradict each other."""


class OutputError(SecateurError):
    """The place to write to is not usable."""


class MissingExtra(SecateurError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}, which is not installed: pip install 'secateur[{extra}]'")
