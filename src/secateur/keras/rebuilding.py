"""A smaller Keras model from the config of a larger one."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from secateur.errors import SurgeryError
from secateur.keras.compiling import carry_compilation
from secateur.keras.layers import FIXED, FOLLOWING, HEADS, RULES, WRAPPED, Sizes, called
from secateur.keras.walking import INPUT_SHAPE, is_model, named_variables, operations, place_name, variables
from secateur.origins import Attribute
from secateur.surgery.reindex import take

if TYPE_CHECKING:
    from secateur.planning.plan import Plan


def rebuild(model: Any, tensors: Mapping[str, Tensor], plan: "Plan | None") -> Any:
    """A Keras model with other sizes in its config, built anew, with the given values.

    Args:
        model: a functional, sequential, or subclassed model.
        tensors: the new value of every variable, by the names of `named_variables`.
        plan: what was removed; None where nothing was.

    Raises:
        SurgeryError: the config of a layer can't say its new sizes, or what is built of it has others.
    """
    names = {id(variable): name for name, variable in named_variables(model).items()}
    sizes = Sizes(
        names=names,
        shapes={name: tuple(tensors[name].shape) for name in names.values()},
        dims={} if plan is None else plan.dims,
        axes={} if plan is None else plan.sizes,
        settings=[(s, v) for s, v in (() if plan is None else plan.settings) if isinstance(s, Attribute)],
    )
    config = _config(model, sizes, "")
    try:
        new = type(model).from_config(config)
        if not new.built:
            new.build_from_config(model.get_build_config())  # of inputs, whose sizes never change
    except Exception as error:
        raise SurgeryError(
            f"{model.name} can't be built with smaller sizes in its config: {type(error).__name__}: {error}"
        ) from error
    wanted = {name: tensors[name] for name in names.values()}
    _assign(new, {**wanted, **_singular_vectors(model, wanted, plan, names)})
    _keep_scales(model, new)
    if plan is not None:
        carry_compilation(model, new, plan)
    return new


def _config(layer: Any, sizes: Sizes, path: str) -> dict[str, Any]:
    """The config of a layer or model, with the new sizes in it, and of all layers in it."""
    config = dict(layer.get_config())
    kind = type(layer).__name__
    if "layers" in config and is_model(layer):
        own = {operation.name: operation for operation in getattr(layer, "operations", None) or layer.layers}
        config["layers"] = [_inner(entry, own, sizes, path) for entry in config["layers"]]
        config.pop("build_input_shape", None)
        return config
    for entry, attribute in WRAPPED.get(kind, {}).items():
        inner = getattr(layer, attribute, None)
        if isinstance(inner, list):
            config[entry] = [_with(e, _config(i, sizes, path)) for e, i in zip(config[entry], inner, strict=True)]
        elif inner is not None and config.get(entry) is not None:
            name = config[entry]["config"].get("name")
            config[entry] = _with(config[entry], {**_config(inner, sizes, path), **({"name": name} if name else {})})
    if _changes(layer, sizes):
        rule = next((RULES[k.__name__] for k in type(layer).__mro__ if k.__name__ in RULES), None)
        if rule is not None:
            config.update(rule(layer, sizes))
        elif kind in FIXED:
            raise SurgeryError(f"{kind} ({layer.name!r}) can't get smaller: {FIXED[kind]}")
        elif kind not in FOLLOWING and kind not in WRAPPED:
            raise SurgeryError(
                f"nobody knows how the config of {kind} ({layer.name!r}) says the sizes of its weights: write a "
                f"function with @secateur.keras.rule({kind}) that returns the entries that change, or leave the layer "
                f"whole with ignore=[{layer.name + '/*'!r}]"
            )
    if attribute := called(layer):
        config[attribute] = _called(config[attribute], attribute, sizes, path)
    return config


def _with(entry: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """A serialized layer with another config; the shape that it was built for is forgotten."""
    return {**{k: v for k, v in entry.items() if k != "build_config"}, "config": config}


def _inner(entry: dict[str, Any], own: Mapping[str, Any], sizes: Sizes, path: str) -> dict[str, Any]:
    name = entry["config"]["name"] if "name" in entry.get("config", {}) else entry.get("name")
    layer = own.get(str(name))
    if entry["class_name"] == "InputLayer":
        shape = _called(entry["config"][INPUT_SHAPE][1:], INPUT_SHAPE, sizes, f"{path}{name}/")
        return _with(entry, {**entry["config"], INPUT_SHAPE: [entry["config"][INPUT_SHAPE][0], *shape]})
    if layer is None:
        return entry
    return _with(entry, _config(layer, sizes, f"{path}{name}/"))


def _changes(layer: Any, sizes: Sizes) -> bool:
    """Whether any weight of a layer has another shape."""
    return any(sizes.of(v) != tuple(v.shape) for v in variables(layer))


def _called(value: Any, attribute: str, sizes: Sizes, path: str) -> Any:
    """An entry of the config that holds sizes which the layer uses when it is called, with the new ones in it."""
    for site, size in sizes.settings:
        if site.module == f"sizes.{place_name(path.rstrip('/'))}" and site.name == attribute:
            value = size if site.index is None else [size if k == site.index else v for k, v in enumerate(value)]
    return value


def _assign(new: Any, tensors: Mapping[str, Tensor]) -> None:
    """Give the variables their values.

    Raises:
        SurgeryError: they have other names or shapes.
    """
    made = named_variables(new)
    wrong = [
        f"{name} is {tuple(made[name].shape) if name in made else 'missing'}, where {tuple(tensor.shape)} is wanted"
        for name, tensor in tensors.items()
        if name not in made or tuple(made[name].shape) != tuple(tensor.shape)
    ]
    if wrong or len(made) != len(tensors):
        raise SurgeryError(
            f"{new.name}, built anew from its config, has other weights: {'; '.join(wrong[:3]) or 'more of them'}"
        )
    for name, tensor in tensors.items():
        made[name].assign(tensor.detach())


def _singular_vectors(
    model: Any, tensors: Mapping[str, Tensor], plan: "Plan | None", names: Mapping[int, str]
) -> dict[str, Tensor]:
    """Of layers under spectral normalization, (1, outputs), which only training reads."""
    found: dict[str, Tensor] = {}
    for _, layer in operations(model) if plan is not None else ():
        vector = getattr(layer, "vector_u", None)
        if vector is not None and plan is not None:
            kept, last = plan.kept.get(names[id(layer.kernel)], {}), len(layer.kernel.shape) - 1
            name = names[id(vector)]
            found[name] = take(tensors[name], {1: kept[last]} if last in kept else {})
    return found


def _keep_scales(old: Any, new: Any) -> None:
    """Attention divides by the root of its head size as the config says it: queries make up for a change."""
    for (_, before), (_, after) in zip(operations(old), operations(new), strict=True):
        scale = HEADS.get(type(before).__name__)
        if scale is None or getattr(before, scale) == getattr(after, scale):
            continue
        ratio = getattr(before, scale) / getattr(after, scale)
        for variable in after._query_dense.variables:
            variable.assign(variable.value * ratio)
