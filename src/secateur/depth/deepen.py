"""``sc.deepen``: more blocks or layers, that compute the identity at first and train from there."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from secateur.depth.carrying import check_class
from secateur.depth.change import MOST, DepthChange
from secateur.depth.counting import Counters
from secateur.depth.result import DepthResult, report, unsaid
from secateur.depth.trial import Inputs, counted, prove
from secateur.depth.ways import Ways
from secateur.errors import PlanError
from secateur.inputs import as_call, fresh
from secateur.modules import Walk
from secateur.proof import check_outputs
from secateur.provenance import remember
from secateur.tracing.shadow import check_kind
from secateur.tracing.surroundings import draws_as_found

EXACT = 1e-5  # of the outputs' scale, in any precision


def deepen(
    model: nn.Module,
    after: str | Sequence[str],
    args: Any,
    kwargs: Mapping[str, Any] | None = None,
    *,
    times: int = 1,
) -> DepthResult:
    """A deeper model that computes the same, proved, and learns from there.

    After each named module comes one of these, whichever is exact:

    - After a residual block in an ``nn.Sequential`` or ``nn.ModuleList``, or one that is called by its name with one
      input: a copy of it in which the last parameters of each branch (the gain of a norm, a projection) are zero, and
      nothing else, so that it trains. Which parameters these are is found by trying (Wu et al. 2024, "LLaMA Pro",
      arXiv:2401.02415, does so for Llama).
    - After a ReLU, or whatever gives nothing negative: an identity convolution or linear layer and a ReLU (Chen et al.
      2016, "Net2Net", arXiv:1511.05641).
    - Before a ReLU, so after the layer that it belongs to: a ReLU and an identity layer. A layer that ``forward``
      calls by its name becomes an ``nn.Sequential`` of itself and these, so that its parameters are called
      ``fc1.0.weight`` instead of ``fc1.weight``.

    Nothing exact exists before or after GELU, SiLU or tanh, which change what they get a second time, nor between a
    convolution and its batch norm, nor for blocks that normalise their sum, such as BERT's: these are refused. The
    model given is untouched.

    Args:
        model: any module.
        after: paths of modules, such as "layer3.2".
        args, kwargs: example inputs: a tensor, a tuple of positional inputs, or a mapping of keyword inputs.
        times: how many come after each.

    Raises:
        PlanError: there is no such module, or nothing exact can come after it; the message says why.
        SurgeryError: the class was replaced by its graph when it was pruned.
        ProofFailed: the deeper model does not compute the same.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> sc.deepen(net, "1", torch.randn(3, 4)).model
        Sequential(
          (0): Linear(in_features=4, out_features=8, bias=True)
          (1): ReLU()
          (2): Sequential(
            (0): Linear(in_features=8, out_features=8, bias=True)
            (1): ReLU()
          )
          (3): Linear(in_features=8, out_features=2, bias=True)
        )
    """
    inputs = as_call(args, kwargs)
    names = (after,) if isinstance(after, str) else tuple(after)
    check_class(model)
    _check_names(model, names, times)
    check_outputs(model, args, kwargs)
    counters = Counters(model)
    ways = Ways(model, inputs, counters)
    found = [ways.after(name) for name in names]
    change = DepthChange(inserted=tuple(spec for spec in found for _ in range(times)), model=type(model).__name__)
    change = counted(model, change, counters, inputs)
    deeper = change.apply(model)
    proof = prove(model, deeper, change, inputs, others=_moved(inputs), tolerance=EXACT)
    remember(deeper, "inputs", inputs)  # the probe of sc.save
    config = unsaid(model, deeper, inputs)
    return DepthResult(
        model=deeper,
        change=change,
        proof=proof,
        scores={},
        refused={},
        unsaid=config,
        report=report(model, deeper, change, proof, inputs, command="sc.deepen(...)", unsaid=config),
    )


def _check_names(model: nn.Module, names: Sequence[str], times: int) -> None:
    walk = Walk(model)
    check_kind(walk)
    known = dict(walk.places)
    absent = [name for name in names if name not in known or not name]
    if absent or not names:
        some = ", ".join(n for n in list(known)[1:6])
        raise PlanError(
            f"there is no module {absent[0]!r}; this {type(model).__name__} has {some} and so on"
            if absent
            else "name the modules that something is to come after, such as after='layer3.2'"
        )
    if type(times) is not int or not 1 <= times * len(names) <= MOST:
        raise PlanError(f"times={times!r} must be a whole number from 1, and at most {MOST} blocks come in at once")


def _moved(inputs: Inputs) -> list[Inputs]:
    """Other inputs of the same form: what is nowhere negative on the example must not be so by chance."""

    def noisy(value: Any) -> Any:
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            return value
        return torch.randn_like(value) * (value.std() if value.numel() > 1 else 1) * 3

    def negative(value: Any) -> Any:
        return -value if isinstance(value, Tensor) and value.is_floating_point() else value

    with draws_as_found():
        torch.manual_seed(0)
        return [tree_map(change, fresh(inputs)) for change in (noisy, negative)]
