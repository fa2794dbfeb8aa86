"""``sc.accelerate``: each layer with zeros by the kernel that is fastest for it on this machine."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from secateur.accelerating.kernels import kernels
from secateur.accelerating.result import Accelerated, LayerSpeed
from secateur.accelerating.timing import Stopwatch, in_turns
from secateur.changes import Changed, model_of
from secateur.errors import MeasureError
from secateur.inputs import as_call, fresh
from secateur.measuring import left_as_found
from secateur.rebuilding import as_module
from secateur.tracing.shadow import shadow

MARGIN = 0.05  # share of the dense kernel's time that a sparse one has to save to be kept
KINDS = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)  # whose zeros are looked at; kernels are for the first two
WEIGHTS = ("weight", "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")  # of these kinds
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}


def accelerate(
    model_or_result: nn.Module | Changed,
    args: Any,
    kwargs: Mapping[str, Any] | None = None,
    *,
    least_zeros: float = 0.3,
    stopwatch: Stopwatch = in_turns,
) -> Accelerated:
    """Run layers by sparse kernels where that is faster here, on these inputs.

    Linear layers and convolutions of one group are tried: on a CPU with weights in rows (CSR) and in square blocks
    (BSR) where many are empty; on CUDA with semi-structured tensors, too, where a weight in half precision is 2:4. A
    kernel is kept where it computes the same as the dense one (to 1e-4 of the output's scale in float32) and was
    measured to be at least 5 % faster; and all of them together only where the whole model is faster with them. What
    that is hangs on the machine, the number of threads and the size of the inputs.

    Args:
        model_or_result: the model; it is left as it is.
        args, kwargs: example inputs, as for `secateur.measure`.
        least_zeros: share of a layer's weights that must be zeros for it to be tried, in (0, 1].
        stopwatch: gives the seconds of each of several calls; by default medians of calls in turns.

    Returns:
        The model for inference, what every layer took, and a sentence. Save the model that was given, not this one:
        sparse layouts are of one machine.

    Raises:
        MeasureError: the model does not run on these inputs.
        ModelError: it can't be copied, or was accelerated already.

    Example:
        >>> import secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(64, 64))
        >>> with torch.no_grad():
        ...     _ = net[0].weight[:, 2:].zero_()
        >>> found = sc.accelerate(net, torch.randn(8, 64))
        >>> [(layer.name, round(layer.zeros, 2)) for layer in found.layers]
        [('0', 0.97)]
    """
    model = as_module(model_of(model_or_result))
    if not 0 < least_zeros <= 1:
        raise MeasureError(f"least_zeros={least_zeros} must be in (0, 1]")
    positional, named = fresh(as_call(args, kwargs))
    with left_as_found([model]), torch.no_grad():
        base = shadow(model)
        wanted, inputs, untried = _watched(base, positional, named, least_zeros)
        tried = {name: _tried(name, layer, x, stopwatch) for name, (layer, x) in inputs.items()}
        layers, chosen = tuple(speed for speed, _ in tried.values()), {n: new for n, (_, new) in tried.items() if new}
        dense = Accelerated(model=model, layers=layers, zeros=share_of_zeros(model), untried=untried)
        if not chosen:
            return dense
        fast = _with(shadow(model), chosen)
        times, wrong = _compared(base, fast, positional, named, wanted, stopwatch)
        if wrong:
            dropped = tuple(replace(layer, kept=None) for layer in layers)
            return replace(dense, layers=dropped, notes=(wrong,))
        return replace(dense, model=fast, dense_ms=times["dense"] * 1e3, sparse_ms=times["sparse"] * 1e3)


def share_of_zeros(model: nn.Module) -> float:
    """Of all parameters that are floating-point numbers, tied ones once."""
    tensors = [p for p in model.parameters() if p.is_floating_point() and p.layout == torch.strided and not p.is_meta]
    total = sum(p.numel() for p in tensors)
    return sum(p.numel() - int(torch.count_nonzero(p)) for p in tensors) / total if total else 0.0


def has_zeros(model: nn.Module, least: float = 0.3) -> bool:
    """Whether a linear layer, a convolution or attention has a weight with at least this share of zeros."""
    return any(_zeros(module) >= least for module in model.modules())


def _zeros(layer: nn.Module) -> float:
    """Largest share of zeros in a weight of a layer of our kinds, or of one derived from them; else 0."""
    held = [getattr(layer, name, None) for name in WEIGHTS] if isinstance(layer, KINDS) else []
    return max((_share(weight) for weight in held if isinstance(weight, Tensor)), default=0.0)


def _share(weight: Tensor) -> float:
    if weight.is_meta or weight.layout != torch.strided or not weight.is_floating_point() or not weight.numel():
        return 0.0
    return 1 - int(torch.count_nonzero(weight)) / weight.numel()


def _watched(
    model: nn.Module, args: Any, kwargs: Any, least_zeros: float
) -> tuple[list[Tensor], dict[str, tuple[nn.Module, Tensor]], tuple[str, ...]]:
    """The model's outputs, the layers with enough zeros with the input that each gets, and those that get no single
    one: code that reads their weights computes with these itself.
    """
    layers = {name: layer for name, layer in model.named_modules() if _zeros(layer) >= least_zeros}
    found: dict[str, Tensor] = {}
    hooks: list[Any] = []
    for name, layer in layers.items():

        def note(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any], name: str = name) -> None:
            values = [*given, *named.values()]
            if name not in found and len(values) == 1 and isinstance(values[0], Tensor):
                x = values[0]
                found[name] = torch.cat(x.unbind()) if x.is_nested else x.clone()

        hooks.append(layer.register_forward_pre_hook(note, with_kwargs=True))
    try:
        outputs = _outputs(model(*args, **kwargs))
    except Exception as error:
        raise MeasureError(
            f"{type(model).__name__} does not run on these inputs: {type(error).__name__}: {error}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    inputs = {name: (layers[name], x) for name, x in found.items() if type(layers[name]) in (nn.Linear, nn.Conv2d)}
    return outputs, inputs, tuple(name for name in layers if name not in found)


def _tried(name: str, layer: nn.Module, x: Tensor, stopwatch: Stopwatch) -> tuple[LayerSpeed, nn.Module | None]:
    """What a layer takes by each kernel, and the layer that is faster, if one is."""
    wanted = [layer(x)]
    made: dict[str, nn.Module] = {}
    failed: dict[str, str] = {}
    for kernel, make in kernels(layer):
        try:
            made[kernel] = make(layer)
            off = _off([made[kernel](x)], wanted)
            if not off <= TOLERANCE.get(wanted[0].dtype, 1e-4):
                raise ValueError(f"it is off by {off:.1e} of the output's scale")
        except Exception as error:  # a kernel that this machine, type or size does not have
            made.pop(kernel, None)
            failed[kernel] = _in_short(error)
    calls = {"dense": layer, **made}
    times = stopwatch({key: lambda module=module: module(x) for key, module in calls.items()}) if made else {}
    best = min(made, key=lambda kernel: times[kernel], default=None)
    kept = best if best is not None and times[best] < (1 - MARGIN) * times["dense"] else None
    speed = LayerSpeed(
        name=name,
        zeros=_zeros(layer),
        dense_ms=times["dense"] * 1e3 if times else float("nan"),
        times_ms={kernel: times[kernel] * 1e3 for kernel in made},
        kept=kept,
        failed=failed,
    )
    return speed, made[kept] if kept is not None else None


def _with(model: nn.Module, chosen: Mapping[str, nn.Module]) -> nn.Module:
    """The model with other layers in all places where these are."""
    old = {id(model.get_submodule(name)): new for name, new in chosen.items()}
    if id(model) in old:
        return old[id(model)]
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):  # a layer that is there twice, both times
            if id(child) in old:
                setattr(module, name, old[id(child)])
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.register_forward_pre_hook(_layer_by_layer)
    return model.eval()


def _layer_by_layer(module: nn.Module, given: Any) -> None:
    """Changes nothing: an encoder layer of torch with a hook doesn't hand its weights to a kernel for dense ones."""


def _compared(
    dense: nn.Module, fast: nn.Module, args: Any, kwargs: Any, wanted: list[Tensor], stopwatch: Stopwatch
) -> tuple[Mapping[str, float], str]:
    """Seconds of both models, and why the fast one is no use, if it is not."""
    try:
        off = _off(_outputs(fast(*args, **kwargs)), wanted)
    except Exception as error:  # code that reads the weight of a layer, and finds it in another form
        return {}, f"the model does not run with sparse layers ({_in_short(error)})"
    allowed = max((TOLERANCE.get(t.dtype, 1e-4) for t in wanted), default=1e-4)
    if not off <= allowed:
        return {}, f"with sparse layers the model's outputs are off by {off:.1e} of their scale"
    times = stopwatch({"dense": lambda: dense(*args, **kwargs), "sparse": lambda: fast(*args, **kwargs)})
    if times["sparse"] >= times["dense"]:
        ratio = times["dense"] / times["sparse"]
        return times, f"layers are faster by themselves, but the model is {ratio:.2f} times as fast with them"
    return times, ""


def _in_short(error: Exception) -> str:
    """Its kind and first sentence: torch goes on with lists of all its kernels."""
    return f"{type(error).__name__}: {error}".splitlines()[0].split(". ")[0].removesuffix(".")


def _outputs(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _off(got: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest difference, as a share of the output's scale; infinite where these are other outputs."""
    if [t.shape for t in got] != [t.shape for t in wanted]:
        return float("inf")
    worst = 0.0
    for a, b in zip(got, wanted, strict=True):
        if b.numel():
            scale = b.double().abs().max().item()
            off = (a.double() - b.double()).abs().max().item()
            worst = max(worst, off / scale if scale else off)
    return worst
