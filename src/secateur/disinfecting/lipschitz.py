"""The data-free screen: channels that can amplify an input far more than the others of their layer.

Shape letters: U units, I inputs, W positions of a window.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from secateur.disinfecting.followers import factors, followers
from secateur.importance import Member
from secateur.importance.views import AxisView


@dataclass(frozen=True, kw_only=True)
class ChannelLipschitz:
    """Minus the number of standard deviations by which a channel's Lipschitz bound exceeds the mean of its layer.

    The bound is the spectral norm of the channel's kernel as a matrix (inputs, window), times |gamma| / sqrt(variance)
    of the batch norm that follows. Zheng et al. 2022, "Data-free Backdoor Removal based on Channel Lipschitzness",
    arXiv:2208.03111: a channel is suspected where the bound exceeds mean + u * deviation, a score below -u here.
    Differs: a unit that several layers make (a residual stream) has the largest of their excesses, and goes from all of
    them; linear layers count too; the deviation is of a sample, n - 1.

    Args:
        norms: what the outputs of each layer are multiplied with afterwards, (outputs,), by its weight's name. `of`
            finds them.

    Example:
        >>> import secateur as sc
        >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 3))
        >>> image = torch.zeros(1, 1, 8, 8)
        >>> rate = ChannelLipschitz.of(net, image)
        >>> sc.score(net, sc.trace(net, image), rate)["0.weight:0"].shape
        torch.Size([8])
    """

    norms: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor], repr=False)

    @staticmethod
    def of(model: nn.Module, args: Any, kwargs: Mapping[str, Any] | None = None) -> "ChannelLipschitz":
        """The criterion for a model, whose batch norms are found by running it once on example inputs."""
        return ChannelLipschitz(norms=factors(model, followers(model, args, kwargs)))

    def of_axis(self, axis: AxisView) -> Tensor | None:
        """Score an axis, -> (units,); None where no layer makes its units."""
        excess = [self._excess(member) for member in axis.members if _makes(member)]
        return -torch.stack(excess).amax(0) if excess else None

    def _excess(self, member: Member) -> Tensor:
        """Standard deviations above the mean of the layer's channels, the largest of a unit's places, (U,)."""
        tensor = member.tensor.detach().float()
        bounds = torch.linalg.matrix_norm(tensor.reshape(*tensor.shape[:2], -1), 2)
        if member.name in self.norms:
            bounds = bounds * self.norms[member.name].to(bounds.device)
        excess = _standardised(bounds)
        return (excess if member.places is None else excess[member.places.to(excess.device)].amax(1)).cpu()


def _makes(member: Member) -> bool:
    """Whether a member holds the weights of outputs, one unit beside the other."""
    layer = issubclass(member.module, _ConvNd | nn.Linear) and not issubclass(member.module, _ConvTransposeNd)
    return member.dim == 0 and member.tensor.dim() >= 2 and layer


def _standardised(bounds: Tensor) -> Tensor:
    """Standard deviations above the mean; 0 where all are alike."""
    deviation = bounds.std() if len(bounds) > 1 else bounds.new_zeros(())
    return (bounds - bounds.mean()) / deviation if float(deviation) > 0 else torch.zeros_like(bounds)
