"""Copies of units merged again: the inverse of repeating them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from secateur.axes import size_of
from secateur.errors import ArtifactError, SurgeryError
from secateur.modules import Walk, named_tensors
from secateur.origins import Attribute, NodeArgument
from secateur.planning.plan import Plan
from secateur.provenance import recall, remember
from secateur.surgery.apply import factor, set_attributes
from secateur.surgery.layers import update
from secateur.surgery.lengths import divided, normalised, vectors
from secateur.surgery.reindex import index
from secateur.surgery.splits import along, shares
from secateur.tracing.capture import set_argument
from secateur.tracing.shadow import copy_with, of_kind


@dataclass(frozen=True)
class Merge:
    """The change that undoes a plan which repeats units: one of each stays.

    What gives a unit becomes the mean over its copies, and what sums over it the sum, so that copies which are still
    equal give what they gave together.

    Attributes:
        plan: what is undone. It must remove nothing, because nothing brings that back.
    """

    plan: Plan

    def __post_init__(self) -> None:
        gone = [n for n, a in self.plan.axes.items() if len(set(a.kept)) < a.before]
        if gone:
            raise SurgeryError(
                f"the plan removes units of {', '.join(gone[:3])}, which merging copies does not bring back; "
                "merge what sc.grow made"
            )

    @property
    def model(self) -> str:
        """Name of the class that the plan was made for."""
        return self.plan.model

    @property
    def rewrites(self) -> tuple[str, ...]:
        """The class stays what it is."""
        return ()

    def apply(self, model: nn.Module) -> nn.Module:
        """The narrower model, as a new module; the one given is untouched.

        Raises:
            SurgeryError: the model is not of the sizes that the plan makes.
        """
        tensors = named_tensors(model)
        self._check(tensors)
        first = {alias: name for name, t in self.plan.tensors.items() for alias in t.names}
        with torch.inference_mode(False):
            new = {id(tensors[alias]): self._merged(tensors[alias], first[alias]) for alias in self.plan.kept}
            for length, direction, dim in normalised(model):
                if id(direction) in new:
                    weight = torch._weight_norm(direction.detach(), length.detach(), dim)
                    name = next(n for n in self.plan.kept if tensors[n] is direction)
                    new[id(direction)] = self._merged(weight, first[name])
                    new[id(length)] = torch.norm_except_dim(new[id(direction)], 2, dim)
            for weight, u, v, dim in divided(model):
                if id(weight) in new:
                    new[id(u)], new[id(v)] = vectors(weight, new[id(weight)], u, v, dim)
            narrow = copy_with(model, lambda t: of_kind(t, new[id(t)] if id(t) in new else t.detach().clone()))
        self._settle(narrow)
        remember(narrow, "plans", (*(recall(model, "plans") or ()), self))
        return narrow

    def _check(self, tensors: dict[str, Tensor]) -> None:
        sizes, wrong = self.plan.sizes, list[str]()
        for name, dims in self.plan.dims.items():
            wanted = tuple(size_of(d, sizes) for d in dims)
            got = tuple(tensors[name].shape) if name in tensors else None
            if got != wanted:
                wrong.append(f"{name} is {'missing' if got is None else list(got)}, and should be {list(wanted)}")
        if wrong:
            raise SurgeryError(
                f"this is not what the plan made wider: {'; '.join(wrong[:3])}. Merge the grown model itself."
            )

    def _merged(self, tensor: Tensor, name: str) -> Tensor:
        """Means over copies; where weights were divided among them, sums."""
        exact = tensor.detach()
        exact = exact.to(torch.promote_types(exact.dtype, torch.float64)) if exact.is_floating_point() else exact
        planned, kept = self.plan.tensors[name], self.plan.kept[name]
        for split in (s for s in self.plan.splits if s.tensor == name):
            exact = exact / along(shares(split, self.plan), split.dim, exact.dim()).to(exact.device)
        for scale in (s for s in self.plan.scales if s.tensor == name):
            exact = exact / factor(scale, [d.size for d in planned.dims], kept).to(exact.device)
        for k in kept:
            at = index(planned.dims[k], self.plan.units).to(exact.device)
            exact = means(exact, k, at, planned.dims[k].size)
        return exact.to(tensor.dtype)

    def _settle(self, model: nn.Module) -> None:
        """Set every size back, and let standard layers say what they have become."""
        set_attributes(model, [(site, site.value) for site, _ in self.plan.settings if isinstance(site, Attribute)])
        if isinstance(model, fx.GraphModule):
            nodes = {n.name: n for n in model.graph.nodes}
            for site, _ in self.plan.settings:
                if isinstance(site, NodeArgument):
                    set_argument(nodes[site.node], site.path, site.value)
            model.recompile()
        owners = {alias.rpartition(".")[0].partition(".parametrizations.")[0] for alias in self.plan.kept}
        present = dict(Walk(model).places)
        for owner in owners & present.keys():
            update(present[owner])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {"kind": "merge", "plan": self.plan.to_dict()}

    @staticmethod
    def from_dict(data: Any) -> "Merge":
        """Read what `to_dict` wrote.

        Raises:
            ArtifactError: it is none.
        """
        plan: Any = data.get("plan")
        if not isinstance(plan, dict):
            raise ArtifactError("a change that merges copies needs the plan that made them")
        try:
            return Merge(Plan.from_dict(plan))
        except SurgeryError as error:
            raise ArtifactError(str(error)) from error


def means(tensor: Tensor, dim: int, at: Tensor, size: int) -> Tensor:
    """Means over the positions that came of each of ``size`` positions; of whole numbers, the first.

    Args:
        tensor: after units were repeated.
        dim: along which.
        at: for each position of the dim the one that it came of, int64.
        size: of the dim before.

    Example:
        >>> means(torch.tensor([1.0, 3.0, 5.0]), 0, torch.tensor([0, 0, 1]), 2)
        tensor([2., 5.])
    """
    if not (tensor.is_floating_point() or tensor.is_complex()):
        order = torch.arange(len(at), device=at.device)
        return tensor.index_select(dim, order.new_zeros(size).scatter_reduce(0, at, order, "amin", include_self=False))
    sums = tensor.new_zeros([*tensor.shape[:dim], size, *tensor.shape[dim + 1 :]]).index_add(dim, at, tensor)
    return sums / along(torch.bincount(at, minlength=size).to(tensor.dtype), dim, tensor.dim())
