"""The model that a checkpoint says it is of, built by transformers without weights; and where its blocks are."""

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from secateur.errors import MissingExtra, ModelError
from secateur.modules import Walk
from secateur.sparsity.streaming.checkpoint import Checkpoint
from secateur.sparsity.streaming.skeleton import Skeleton, floating
from secateur.tracing.surroundings import draws_as_found


def build(checkpoint: Checkpoint) -> Skeleton:
    """The model that a checkpoint's ``config.json`` describes, its parameters on the meta device.

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
            f"transformers {given.__version__} can't build the model of {str(checkpoint.path)!r}: {error}. Its "
            "code must be part of transformers"
        ) from error
    model.tie_weights()
    return Skeleton(model, checkpoint, _names(model, checkpoint))


def _names(model: Any, checkpoint: Checkpoint) -> dict[str, str]:
    """What the checkpoint calls the model's tensors, where transformers gives them other names when it loads them."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    known: dict[str, Any] = model.state_dict(keep_vars=True)
    rules: list[Any] = [rule for rule in get_model_conversion_mapping(model) if isinstance(rule, WeightRenaming)]
    prefix: str | None = model.base_model_prefix or None
    return {str(rename_source_key(name, rules, [], prefix, known)[0]): name for name in checkpoint.entries}


def _say_no_cache(config: Any) -> None:
    """Blocks shall keep nothing from one run to the next."""
    for part in (config, *(getattr(config, name) for name in getattr(config, "sub_configs", ()))):
        if getattr(part, "use_cache", None):
            part.use_cache = False


@contextmanager
def _quiet() -> Generator[None]:
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
        raise ModelError(
            f"{type(model).__name__} has no list of blocks that hold weights to prune: load it, and prune it in memory"
        )
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


def outside(names: Iterable[str], blocks: Iterable[tuple[str, nn.Module]]) -> list[str]:
    """Those names that lie in no block."""
    starts = tuple(f"{path}." for path, _ in blocks)
    return [name for name in names if not name.startswith(starts)]
