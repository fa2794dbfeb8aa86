"""The gradient of a step: of the mean loss over all samples of its batches, in whatever pieces they are done."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from secateur.errors import TrainingError
from secateur.objectives import Totals, logits_of
from secateur.tuning import randomness
from secateur.tuning.memory import Pieces
from secateur.tuning.parts import Part, pieces, share
from secateur.tuning.parts import size_of as samples_of
from secateur.tuning.processes import Processes

Objective = Callable[[nn.Module, Any], tuple[Tensor, Any, Any]]
"""From a model and a batch to the loss, the output and the target."""


class NotFinite(ArithmeticError):
    """Losses that are no numbers; caught in the loop, which knows where it stands."""


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """Computes gradients, step after step.

    Args:
        wrapped: the model as the processes run it.
        optimizer: whose gradients these are.
        objective: what is minimised.
        processes: each takes its share of every batch.
        memory: batches that don't fit are done in pieces, where that is allowed.
        weigh: what a batch weighs in the mean over a step: its samples, or its labels.
    """

    wrapped: nn.Module
    optimizer: Any
    objective: Objective
    processes: Processes
    memory: Pieces
    weigh: Callable[[Any], int]

    def __call__(self, group: Sequence[Any], split: int, where: str) -> tuple[Totals, int]:
        """The gradients of a step's batches.

        Args:
            group: the batches.
            split: pieces that a batch is done in.
            where: such as "at step 3", for errors.

        Returns:
            Sums over the samples of this process, and the pieces that batches are done in from here on.

        Raises:
            NotFinite: the loss is no number.
            TrainingError: memory does not suffice.
        """
        shares = [share(batch, self.processes.rank, self.processes.count) for batch in group]
        before = self._fleeting() if self.memory.allowed else ({}, {})
        whole = max(1, sum(map(self.weigh, group)))
        each = [samples_of(batch) / labels if (labels := self.weigh(batch)) else 0.0 for batch in group]
        while True:
            cut = [(piece, n) for part, n in zip(shares, each, strict=True) for piece in pieces(part, split)]
            try:
                return self._backward(cut, whole), split
            except (RuntimeError, MemoryError) as error:
                largest = max(part.samples for part in shares)
                exact = "with the gradient of the whole batch (batch norms see the pieces)"
                split = self.memory.more(error, split, largest, where, exact)
            self.optimizer.zero_grad(set_to_none=True)
            self._put_back(before)

    def _backward(self, parts: Sequence[tuple[Part, float]], whole: int) -> Totals:
        """Gradients of all parts; sums over them.

        Args:
            parts: each with the samples that a label of its batch counts for; 0 where that has none.
            whole: what all batches of the step weigh, over all processes.
        """
        totals, bad = Totals(), list[float]()
        for number, (part, each) in enumerate(parts):
            with self.processes.alone(self.wrapped, last=number == len(parts) - 1):
                loss, output, target = self.objective(self.wrapped, part.batch)
                if self.processes.sharded:
                    _seen(output)
                if not loss.requires_grad:
                    raise TrainingError(
                        "no gradient comes from the loss: it must be computed from the model's output, without "
                        "detach(), item() or torch.no_grad(), and hang on parameters that train"
                    )
                # DDP averages over processes, each of which has its share.
                labels = self.weigh(part.batch) if part.counts else 0
                weight = labels * self.processes.count / whole
                value = float(loss.detach())
                bad += [value] if weight and not math.isfinite(value) else []
                self.processes.accelerator.backward(loss * weight if weight else nothing(loss, output))
            if part.counts and each:
                totals.add(value if weight else 0.0, detached(output), target, labels * each, part.samples)
        if self.processes.total(len(bad))[0]:
            self.optimizer.zero_grad(set_to_none=True)
            raise NotFinite(", ".join(f"{value:g}" for value in bad) or "NaN or infinite in another process")
        return totals

    def _fleeting(self) -> tuple[randomness.State, dict[str, Tensor]]:
        """What a pass that fails halfway leaves changed: random states and buffers."""
        buffers = {name: buffer.detach().clone() for name, buffer in self.wrapped.named_buffers()}
        return randomness.drawn(self.processes.device), buffers

    @torch.no_grad()
    def _put_back(self, before: tuple[randomness.State, dict[str, Tensor]]) -> None:
        draws, buffers = before
        randomness.put(draws, self.processes.device)
        for name, buffer in self.wrapped.named_buffers():
            if name in buffers and buffer.shape == buffers[name].shape:
                buffer.copy_(buffers[name])


def summed(totals: Totals, processes: Processes) -> Totals:
    """Over all processes."""
    if processes.count == 1:
        return totals
    loss, *counts = processes.total(totals.loss_sum, totals.samples, totals.hits, totals.labelled)
    return Totals(loss, *map(int, counts))


def merged(parts: Iterable[Totals]) -> Totals:
    """Sums of sums."""
    whole = Totals()
    for part in parts:
        for name, value in vars(part).items():
            setattr(whole, name, getattr(whole, name) + value)
    return whole


def nothing(loss: Tensor, output: Any) -> Tensor:
    """A loss of 0 that goes back through all of the model, as processes wait for each other's gradients."""
    scores = logits_of(output)
    return 0.0 * (loss if scores is None else scores.sum())  # a mean over no label is NaN


def _seen(output: Any) -> None:
    """FSDP exchanges gradients only if it finds the tensors that a model gives; else it learns wrongly in silence.

    Raises:
        TrainingError: it finds none.
    """
    if not any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_leaves(output)):
        raise TrainingError(
            f"FSDP can't look into the {type(output).__name__} that the model returns: return tensors, or tuples or "
            f"dicts of them, register its class by torch.utils._pytree.register_pytree_node, or train with DDP"
        )


def detached(output: Any) -> Any:
    """The output without its history of gradients, which would hold memory."""
    return tree_map_only(Tensor, Tensor.detach, output)
