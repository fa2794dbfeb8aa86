"""A model without its weights: built from a configuration, with parameters that are filled from a checkpoint when they
are needed, and emptied again.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import ArtifactError, MissingExtra, ModelError
from secateur.modules import Walk
from secateur.sparsity.streaming.checkpoint import Checkpoint
from secateur.sparsity.streaming.tensors import DTYPES, Entry, read
from secateur.tracing.surroundings import draws_as_found

Place = Callable[[Entry], Entry]
"""From where a tensor lies in the source to where it is to be read: there, or in what was written already."""


class Skeleton:
    """A model whose parameters are on the meta device until they are loaded.

    Args:
        model: with parameters on the meta device, and its buffers.
        checkpoint: where its weights are.

    Attributes:
        entries: where each parameter and each stored buffer lies, by its qualified name; tied ones under each.

    Raises:
        ArtifactError: the checkpoint lacks parameters of the model, or has them in other shapes; all of them.
    """

    def __init__(self, model: nn.Module, checkpoint: Checkpoint) -> None:
        self.model, self.checkpoint = model.eval(), checkpoint
        self.walk = Walk(model)
        self.dtype = floating(checkpoint)
        self.entries = _matched(self.walk, model, checkpoint)
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


def _matched(walk: Walk, model: nn.Module, checkpoint: Checkpoint) -> dict[str, Entry]:
    """Which tensor of the checkpoint each parameter is, and each buffer that is stored."""
    prefix = str(getattr(model, "base_model_prefix", ""))
    found: dict[str, Entry] = {}
    by_tensor: dict[int, Entry] = {}
    wanted = {name: t for name, t in walk.tensors.items() if name in walk.parameters or _stored(walk, name)}
    for name, tensor in wanted.items():
        short = name.removeprefix(f"{prefix}.") if prefix else name
        keys = (name, short, f"{prefix}.{name}")
        if entry := next((checkpoint.entries[key] for key in keys if key in checkpoint.entries), None):
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
            f"the checkpoint {str(checkpoint.path)!r} does not fit {type(model).__name__}: {', '.join(told)}. Its "
            "config.json is of another model, or transformers lays its weights out anew when it loads them: then load "
            "and save it with transformers first"
        )
    return found


def _stored(walk: Walk, name: str) -> bool:
    path, _, own = name.rpartition(".")
    module = walk.model.get_submodule(path)
    return own in module._buffers and own not in module._non_persistent_buffers_set


def build(checkpoint: Checkpoint) -> nn.Module:
    """The model that a checkpoint's ``config.json`` describes, by transformers, its parameters on the meta device.

    Raises:
        MissingExtra: transformers is not installed.
        ModelError: transformers can't build it without code from elsewhere.
    """
    try:
        import transformers
        from accelerate import init_empty_weights
    except ImportError as error:
        raise MissingExtra("transformers", "transformers", "a checkpoint that is pruned from disk to disk") from error
    given: Any = transformers
    try:
        config = given.AutoConfig.from_pretrained(checkpoint.path, local_files_only=True)
        _say_no_cache(config)
        kinds: list[Any] = [getattr(given, str(name), None) for name in config.architectures or ()]
        with draws_as_found(), _quiet(), init_empty_weights(include_buffers=False):
            if kinds and kinds[0] is not None:
                model = kinds[0]._from_config(config, dtype=floating(checkpoint))
            else:
                model = given.AutoModelForCausalLM.from_config(config, dtype=floating(checkpoint))
    except (OSError, ValueError, KeyError, AttributeError, ImportError) as error:
        raise ModelError(
            f"transformers {given.__version__} can't build the model of {str(checkpoint.path / 'config.json')!r}: {error}"
        ) from error
    model.tie_weights()
    return model


def _say_no_cache(config: Any) -> None:
    """Blocks shall keep nothing from one run to the next."""
    for part in (config, *(getattr(config, name) for name in getattr(config, "sub_configs", ()))):
        if getattr(part, "use_cache", None):
            part.use_cache = False


@contextmanager
def _quiet() -> Iterator[None]:
    """The default dtype as it was, whatever the building does."""
    dtype = torch.get_default_dtype()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)


def find_blocks(model: nn.Module, weights: Mapping[str, int]) -> list[tuple[str, nn.Module]]:
    """The repeated blocks: children of the list that holds most of the weights that are to be pruned.

    Args:
        weights: their sizes by name.

    Raises:
        ModelError: no such list, or several.
    """
    lists = _outermost_lists(model)
    held = {path: sum(n for name, n in weights.items() if name.startswith(f"{path}.")) for path in lists}
    if not any(held.values()):
        raise ModelError(f"{type(model).__name__} has no list of blocks that hold weights to prune: load it, and prune it in memory")
    if len(several := [path for path, size in held.items() if size]) > 1:
        raise ModelError(
            f"{type(model).__name__} has several lists of blocks with weights to prune ({', '.join(several)}): load it "
            "and prune it in memory, or leave one of them out by ignore="
        )
    return [(f"{several[0]}.{name}", block) for name, block in lists[several[0]].named_children()]


def _outermost_lists(model: nn.Module) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for path, module in Walk(model).named:
        if isinstance(module, nn.ModuleList) and not any(path.startswith(f"{outer}.") for outer in found):
            found[path] = module
    return found


def weights_of(config: Path) -> str:
    """The kind of model that a ``config.json`` says."""
    said: Any = json.loads(config.read_text(encoding="utf-8"))
    return str((said.get("architectures") or [said.get("model_type", "model")])[0])


def outside(names: Iterable[str], blocks: Iterable[tuple[str, nn.Module]]) -> list[str]:
    """Those names that lie in no block."""
    starts = tuple(f"{path}." for path, _ in blocks)
    return [name for name in names if not name.startswith(starts)]
