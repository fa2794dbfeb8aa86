"""Which block of a model a weight lies in: a child of a sequence of like ones."""

from torch import nn

from secateur.depth.containers import is_sequence


def block_of(model: nn.Module, name: str) -> str:
    """The path of the outermost like block that a parameter lies in; the layer's own path where it lies in none.

    A like block is a child of an ``nn.Sequential`` or ``nn.ModuleList`` that has others of its class, and is itself no
    sequence.

    >>> class Block(nn.ModuleDict): pass
    >>> net = nn.Sequential(*[Block({"up": nn.Linear(1, 1)}) for _ in "ab"], nn.Linear(1, 1))
    >>> block_of(net, "1.up.weight"), block_of(net, "2.weight")
    ('1', '2')
    """
    parts = name.split(".")[:-1]
    module: nn.Module = model
    for depth, part in enumerate(parts):
        child = module.get_submodule(part)
        like = is_sequence(module) and sum(type(other) is type(child) for other in module.children()) > 1
        if like and not is_sequence(child):
            return ".".join(parts[: depth + 1])
        module = child
    return ".".join(parts)
