"""What a head is given by a network that stays as it is, computed once: training the head alone is then a trifle.

Shape letters: N samples, C classes.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from secateur.adapting.classes import target_of
from secateur.adapting.passes import same_pass
from secateur.adapting.regression import Samples
from secateur.modules import kept_modes
from secateur.objectives import forward, logits_of

MOST_BYTES = 2**30  # of features that are kept in memory


class Features:
    """The inputs of a network's last layer over batches, and their labels.

    Args:
        model: the network; it runs in evaluation mode, so without dropout.
        layer: path of its head.
    """

    def __init__(self, model: nn.Module, layer: str) -> None:
        self.model, self.head = model, model.get_submodule(layer)

    def of(self, batches: Iterable[Any], *, seed: int, device: str) -> Samples | None:
        """One pass over the batches.

        Returns:
            Features (N, D) and labels (N,), or None where the head can't be trained by itself: what it gives is not
            what the network gives, or they would take more than a gigabyte.
        """
        inputs: list[Tensor] = []
        labels: list[Tensor] = []
        for given, target in self._seen(batches, seed, device):
            inputs.append(given)
            labels.append(target)
            if sum(t.nbytes for t in inputs) > MOST_BYTES:
                return None
        if not inputs or sum(map(len, inputs)) < self.expected:
            return None
        return torch.cat(inputs), torch.cat(labels)

    def _seen(self, batches: Iterable[Any], seed: int, device: str) -> Iterator[tuple[Tensor, Tensor]]:
        self.expected = 0
        seen: list[tuple[Any, Any]] = []
        hook = self.head.register_forward_hook(lambda _, given, gave: seen.append((given, gave)))
        try:
            for batch in same_pass(batches, seed, device):
                seen.clear()
                with kept_modes(self.model), torch.no_grad():
                    self.model.eval()
                    scores, target = logits_of(forward(self.model, batch, device)[0]), target_of(batch)
                self.expected += len(target)
                if len(seen) != 1 or not _alone(*seen[0], scores, target):
                    return
                yield seen[0][0][0].detach().clone(), target.detach().cpu()
        finally:
            hook.remove()


def _alone(given: Any, gave: Any, scores: Tensor | None, target: Tensor) -> bool:
    """Whether a layer's output on (N, ...) is the network's, with one label (N,) for each sample."""
    if len(given) != 1 or not isinstance(given[0], Tensor) or scores is None:
        return False
    same = isinstance(gave, Tensor) and gave.shape == scores.shape and torch.equal(gave, scores)
    return same and given[0].dim() == gave.dim() == 2 and target.shape == gave.shape[:1]
