"""Whether a change of depth does what it should: compared with the original, by running both."""

from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from secateur.depth.carrying import carry_out
from secateur.depth.change import DepthChange
from secateur.depth.counting import Counters
from secateur.depth.streams import count_calls, skipping
from secateur.errors import ProofFailed, SecateurError
from secateur.inputs import Args, Kwargs, fresh
from secateur.precision import Precise
from secateur.proof import TOLERANCE, Proof, cast_to, check_training, compare, doubled, perturbed
from secateur.tracing.kernels import Kernels
from secateur.tracing.running import tensors_in
from secateur.tracing.shadow import copy_with, of_kind, shadow
from secateur.tracing.surroundings import draws_as_found, quiet_backends, seed_draws

Inputs = tuple[Args, Kwargs]


def counted(model: nn.Module, change: DepthChange, counters: Counters, inputs: Inputs) -> DepthChange:
    """A change with everything that counts blocks in it, tried on the model as it is.

    Raises:
        ProofFailed: the model computes something else then, or passes over a block; or it does not run.
    """
    failure: ProofFailed | None = None
    for maybe in ((), *((site,) for site in counters.possible(change))):
        made = counters.counted(change, maybe)
        try:
            compare_once(model, made, inputs)
        except ProofFailed as error:
            failure = failure or error
            continue
        return made
    assert failure is not None
    raise failure


def compare_once(model: nn.Module, change: DepthChange, inputs: Inputs, *, again: bool = False) -> None:
    """Run the model as it is, and as it would be, and compare; cheap, since both share their weights.

    Raises:
        ProofFailed: they differ, the changed one does not run, or passes over what is new.
    """
    with quiet_backends():
        reference = shadow(model)
        seed_draws()
        with skipping(reference, change.dropped), Kernels():
            wanted = tensors_in(nn.Module.__call__(reference, *fresh(inputs[0]), **fresh(inputs[1])))
        changed = shadow(model)
        try:
            new = carry_out(change, changed)
        except SecateurError as error:
            raise ProofFailed(str(error)) from error
        seed_draws()
        with count_calls(changed, new) as called:
            got = _called(changed, inputs)
    if not any(t.any() for t in wanted) and not again:  # a head of zeros says nothing
        with draws_as_found():
            other = perturbed(model)
        return compare_once(other, change, inputs, again=True)
    passed = [name for name in new if not called[name]]
    if passed:
        raise ProofFailed(f"the model passes over {passed[0]}, so something in its code counts its blocks")
    compare(wanted, got, torch.float32, names=_names(change))
    return None


def _names(change: DepthChange) -> tuple[str, str]:
    """What to call both models in an error."""
    if change.inserted:
        return "deeper model", "original"
    return "shorter model", "original whose dropped blocks hand on what they are given"


def _called(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    try:
        with Kernels():
            return tensors_in(nn.Module.__call__(model, *fresh(inputs[0]), **fresh(inputs[1])))
    except Exception as error:
        raise ProofFailed(f"the model does not run then: {type(error).__name__}: {error}") from error


def prove(
    model: nn.Module,
    changed: nn.Module,
    change: DepthChange,
    inputs: Inputs,
    *,
    others: Sequence[Inputs] = (),
    tolerance: float | None = None,
) -> Proof:
    """Compare the changed model with the original, in which the dropped blocks hand on what they are given.

    Both run on the example inputs, in float64 where the model runs in it. Then the same is done with other weights and
    twice the batch, and on other inputs; and where the original runs in training mode, the changed model must too.

    Args:
        others: further inputs, passed over where the original does not run on them.
        tolerance: largest difference as a share of the outputs' scale, where that is less than the precision's.

    Raises:
        ProofFailed: the outputs differ by more than the tolerance, or the changed model does not run.
    """
    if any(t.is_meta for t in model.parameters()):
        raise ProofFailed("a model on the meta device has no weights to run: load the weights first")
    with quiet_backends():
        proof = _agree(model, changed, change, inputs)
        other = perturbed(model)
        changed_other = change.apply(other)
        try:
            again = _agree(other, changed_other, change, doubled(inputs))
        except _Unrunnable:  # the model takes just the batch of the example
            again = _agree(other, changed_other, change, inputs)
        proof = proof if proof.scale else again  # a head of zeros proves nothing
        for more in others:
            with suppress(_Unrunnable):
                _agree(model, changed, change, more)
        if tolerance is not None and not proof.ratio <= tolerance:
            raise ProofFailed(f"the outputs differ by {proof.ratio:.2g} of their scale, more than {tolerance:g}")
        check_training(model, changed, doubled(inputs))
    return proof


class _Unrunnable(ProofFailed):
    """The original itself does not run so."""


def _agree(model: nn.Module, changed: nn.Module, change: DepthChange, inputs: Inputs) -> Proof:
    failure: _Unrunnable | None = None
    for dtype in TOLERANCE:
        try:
            return _agree_in(dtype, model, changed, change, inputs)
        except _Unrunnable as error:  # the code insists on a dtype: try the next
            failure = failure or error
    with Precise(torch.float64):
        try:
            return _agree_in(torch.float64, model, changed, change, inputs)
        except _Unrunnable as error:
            raise failure or error from error


def _agree_in(dtype: torch.dtype, model: nn.Module, changed: nn.Module, change: DepthChange, inputs: Inputs) -> Proof:
    def run(one: nn.Module, names: tuple[str, ...]) -> list[Tensor]:
        seed_draws()
        args, kwargs = tree_map(lambda v: cast_to(v, dtype), fresh(inputs))
        copy = copy_with(one, lambda t: of_kind(t, cast_to(t.detach(), dtype).clone())).eval()
        with skipping(copy, names), Kernels():
            return tensors_in(nn.Module.__call__(copy, *args, **kwargs))

    try:
        wanted = run(model, change.dropped)
    except Exception as error:
        raise _Unrunnable(f"the original does not run: {type(error).__name__}: {error}") from error
    try:
        got = run(changed, ())
    except Exception as error:
        raise ProofFailed(f"the changed model does not run: {type(error).__name__}: {error}") from error
    return compare(wanted, got, dtype, names=_names(change))
