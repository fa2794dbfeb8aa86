"""The modules of a model in one pass: torch's own iterators nest one generator in another for each level of modules."""

from torch import Tensor, nn


def named_parts(model: nn.Module, *, repeated: bool = False) -> list[tuple[str, nn.Module]]:
    """What ``model.named_modules()`` gives, in the same order.

    Args:
        repeated: name a module that has several places at each of them.
    """
    found: list[tuple[str, nn.Module]] = []
    _visit(model, "", found, None if repeated else set())
    return found


def _visit(module: nn.Module, path: str, found: list[tuple[str, nn.Module]], seen: set[int] | None) -> None:
    if seen is not None:
        if id(module) in seen:
            return
        seen.add(id(module))
    found.append((path, module))
    if module._modules:
        start = f"{path}." if path else ""
        for name, part in module._modules.items():
            if part is not None:
                _visit(part, start + name, found, seen)


def parts(model: nn.Module) -> list[nn.Module]:
    """What ``model.modules()`` gives, in the same order."""
    return [module for _, module in named_parts(model)]


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by qualified name, in the model's own order; tied ones under each of their names."""
    parameters: dict[str, Tensor] = {}
    buffers: dict[str, Tensor] = {}
    for path, module in named_parts(model, repeated=True):
        for held, found in ((module._parameters, parameters), (module._buffers, buffers)):
            if held:
                start = f"{path}." if path else ""
                for name, tensor in held.items():
                    if tensor is not None:
                        found[start + name] = tensor
    return parameters | buffers


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters by qualified name; tied ones under each of their names."""
    return {
        f"{path}.{name}" if path else name: tensor
        for path, module in named_parts(model, repeated=True)
        for name, tensor in module._parameters.items()
        if tensor is not None
    }
