"""A model without its weights: built from a configuration, with parameters that are filled from a checkpoint when they
are needed, and emptied again.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from secateur.errors import ArtifactError
from secateur.modules import Walk
from secateur.sparsity.streaming.checkpoint import Checkpoint
from secateur.sparsity.streaming.tensors import DTYPES, Entry, read

Place = Callable[[Entry], Entry]
"""From where a tensor lies in the source to where it is to be read: there, or in what was written already."""


class Skeleton:
    """A model whose parameters are on the meta device until they are loaded.

    Args:
        model: with parameters on the meta device, and its buffers.
        checkpoint: where its weights are.
        names: of tensors of the checkpoint that the model calls otherwise, by the model's names.

    Attributes:
        dtype: that the model computes in.
        entries: where each parameter and each stored buffer lies, by its qualified name; tied ones under each.

    Raises:
        ArtifactError: the checkpoint lacks parameters of the model, or has them in other shapes; all of them.
    """

    def __init__(self, model: nn.Module, checkpoint: Checkpoint, names: Mapping[str, str]) -> None:
        self.model, self.checkpoint = model.eval(), checkpoint
        self.walk = Walk(model)
        self.dtype = floating(checkpoint)
        self.entries = _matched(self.walk, checkpoint, names)
        self._meta: dict[str, nn.Parameter] = {}

    def load(self, path: str, module: nn.Module, place: Place = lambda entry: entry, *, whole: bool = True) -> None:
        """Fill the parameters and stored buffers of a module.

        Args:
            path: its qualified name.
            module: the module.
            place: where to read them from.
            whole: with all modules in it; else its own only.
        """
        held = Walk(module).places if whole else [("", module)]
        own: dict[int, Tensor] = {}
        for inner, part in held:
            for name, tensor in [*part._parameters.items(), *part._buffers.items()]:
                full = ".".join(p for p in (path, inner, name) if p)
                if tensor is None or full not in self.entries or not (tensor.is_meta or name in part._buffers):
                    continue
                if id(tensor) not in own:
                    own[id(tensor)] = self._filled(tensor, read(place(self.entries[full])))
                if isinstance(tensor, nn.Parameter):
                    self._meta.setdefault(full, tensor)
                    part._parameters[name] = own[id(tensor)]  # pyright: ignore[reportArgumentType]
                else:
                    part._buffers[name] = own[id(tensor)]

    def _filled(self, old: Tensor, values: Tensor) -> Tensor:
        if values.is_floating_point() and old.is_floating_point():
            values = values.to(self.dtype if isinstance(old, nn.Parameter) else old.dtype)
        return nn.Parameter(values, requires_grad=False) if isinstance(old, nn.Parameter) else values

    def empty(self) -> None:
        """Let go of all parameters that were loaded."""
        for full, tensor in self._meta.items():
            path, _, name = full.rpartition(".")
            self.model.get_submodule(path)._parameters[name] = tensor
        self._meta.clear()


def floating(checkpoint: Checkpoint) -> torch.dtype:
    """The floating dtype of most bytes of a checkpoint.

    Raises:
        ArtifactError: there is none.
    """
    size: dict[torch.dtype, int] = {}
    for entry in checkpoint.entries.values():
        dtype = DTYPES.get(entry.dtype)
        if dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
            size[dtype] = size.get(dtype, 0) + entry.size
    if not size:
        kinds = ", ".join(sorted({entry.dtype for entry in checkpoint.entries.values()}))
        raise ArtifactError(f"the checkpoint {str(checkpoint.path)!r} has no floating weights, only {kinds}")
    return max(size, key=lambda dtype: size[dtype])


def _matched(walk: Walk, checkpoint: Checkpoint, names: Mapping[str, str]) -> dict[str, Entry]:
    """Which tensor of the checkpoint each parameter is, and each buffer that is stored."""
    found: dict[str, Entry] = {}
    by_tensor: dict[int, Entry] = {}
    wanted = {name: t for name, t in walk.tensors.items() if name in walk.parameters or _stored(walk, name)}
    for name, tensor in wanted.items():
        if entry := checkpoint.entries.get(names.get(name, name)):
            found[name] = entry
            by_tensor.setdefault(id(tensor), entry)
    found |= {n: by_tensor[id(t)] for n, t in wanted.items() if n not in found and id(t) in by_tensor}
    lost = [name for name in wanted if name not in found and name in walk.parameters]
    odd = [
        f"{name} is {list(found[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in found and tuple(tensor.shape) != found[name].shape
    ]
    if lost or odd:
        told = [f"it lacks {len(lost)} ({', '.join(lost[:3])})"] if lost else []
        told += [f"{len(odd)} have other shapes ({'; '.join(odd[:3])})"] if odd else []
        raise ArtifactError(
            f"the checkpoint {str(checkpoint.path)!r} does not fit {type(walk.model).__name__}: {', '.join(told)}. Its "
            "config.json is of another model, or transformers lays weights out anew when it loads them (of "
            "experts, say): then load it, and prune it in memory"
        )
    return found


def _stored(walk: Walk, name: str) -> bool:
    path, _, own = name.rpartition(".")
    module = walk.model.get_submodule(path)
    return own in module._buffers and own not in module._non_persistent_buffers_set
