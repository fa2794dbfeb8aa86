"""Models whose sizes stand in a config, which make their smaller selves, rather than in the code of a class."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor, nn

if TYPE_CHECKING:
    from secateur.planning.plan import Plan


@runtime_checkable
class Rebuilds(Protocol):
    """A module that is built anew when it is pruned. No size in its code keeps an axis whole: the proof tells whether
    what was built computes what it should.
    """

    def rebuilt(self, tensors: Mapping[str, Tensor], plan: "Plan") -> nn.Module:
        """The module with other tensors, those that the plan changes, by name. The one called stays as it is.

        Raises:
            SurgeryError: its config can't say these sizes.
        """
        ...
