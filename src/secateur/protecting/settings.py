"""What is to be protected, and how strongly."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from secateur.calibration.batches import Batches, Forward
from secateur.calibration.watching import running
from secateur.errors import DataError, PlanError
from secateur.tracing.surroundings import draws_as_found, quiet_backends

NAME = "protected data"


@dataclass(frozen=True)
class Protect:
    """A data set on which a pruned model must behave as the original does: a rare class, refusals, a safety case.

    Protected samples make up ``share`` of all that is looked at, by weight, however few they are: of the statistics
    that units are scored by, so that units which matter there are kept, and of the rows that the weights which stay are
    refitted to. The weighting is ours. That a pruned network fails on few of its inputs, often the rare ones: Hooker et
    al. 2019, "What Do Compressed Deep Neural Networks Forget?", arXiv:1911.05248.

    Args:
        data: batches as for ``data=`` of `secateur.prune`, or one batch alone: a tensor, a mapping, or a tuple (inputs,
            targets) of two tensors with as many samples; two batches in a list are two.
        share: weight of the protected data, in [0, 1). 0 changes nothing, and only compares.
        test: batches that the report's figures of the protected data are measured on, which neither scores nor the
            refit see. None takes ``data``, and the report says so.
        general_test: the same for the general data; None takes ``data=`` of `secateur.prune`.

    Raises:
        PlanError: a share that is out of range.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> general, rare = torch.randn(64, 4), torch.randn(16, 4) + 3
        >>> result = sc.prune(net, torch.randn(1, 4), keep=0.5, data=[general], protect=sc.Protect([rare], share=0.7))
        >>> result.report["protected"]["samples"]
        16
    """

    data: Any
    _: KW_ONLY
    share: float = 0.5
    test: Any = None
    general_test: Any = None

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise PlanError(
                f"share={self.share}: give the weight of the protected data among all that is looked at, in [0, 1)"
            )

    @property
    def batches(self) -> Sequence[Any]:
        """The protected data, in memory; see `settled`."""
        return cast("Sequence[Any]", self.data)


def settled(protect: "Protect | Iterable[Any] | Any", model: nn.Module, forward: Forward | None) -> Protect | None:
    """What was given as ``protect=`` with its batches in memory, each checked, the first one run.

    Args:
        protect: settings, batches or one batch; None protects nothing.
        model: the original; it stays as it is.
        forward: as for `secateur.prune`.

    Raises:
        DataError: there is no sample, a batch holds NaN or has no form that we know, or the model fails on the first.
    """
    if protect is None:
        return None
    asked = protect if isinstance(protect, Protect) else Protect(protect)
    made = replace(
        asked,
        data=_in_memory(asked.data, "protect="),
        test=None if asked.test is None else _in_memory(asked.test, "Protect(test=)"),
        general_test=None if asked.general_test is None else _in_memory(asked.general_test, "Protect(general_test=)"),
    )
    for name, batches in (("protect=", made.data), ("test=", made.test), ("general_test=", made.general_test)):
        if batches is not None:
            _check(model, batches, forward, name)
    return made


def _in_memory(data: Any, name: str) -> tuple[Any, ...]:
    """Batches as a tuple; one batch alone is one."""
    if isinstance(data, Tensor | Mapping) or _is_pair(data):
        return (data,)
    if isinstance(data, str) or not isinstance(data, Iterable):
        raise DataError(
            f"{name} is a {type(data).__name__}: give batches such as [(inputs, labels)], a DataLoader, or one batch"
        )
    return tuple(cast("Iterable[Any]", data))


def _is_pair(data: Any) -> bool:
    """Whether data are one batch (inputs, targets), the targets of any kind: two tensors of as many samples."""
    if not isinstance(data, tuple):
        return False
    parts = cast("tuple[Any, ...]", data)
    if len(parts) != 2 or not all(isinstance(part, Tensor) and part.dim() for part in parts):
        return False
    return len(parts[0]) == len(parts[1])


def _check(model: nn.Module, batches: Sequence[Any], forward: Forward | None, name: str) -> None:
    known = list(Batches(model, batches, forward, name=f"data of {name}"))
    filled = [batch for batch in known if batch.samples]
    if not filled:
        raise DataError(f"{name} holds no sample: pass at least one batch (a generator that was used up is empty)")
    with torch.no_grad(), draws_as_found(), quiet_backends(model):
        filled[0].run(running(model))
