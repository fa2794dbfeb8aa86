"""The proof: the smaller model computes what the original computes with the removed units silenced."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._pytree import tree_leaves, tree_map

from secateur.axes import Expr, leaves, resolve
from secateur.choices import Follow, Note
from secateur.empties import Ancestors, Watch
from secateur.errors import ModelError, ProofFailed, SecateurError, TraceError
from secateur.graph import Graph
from secateur.inputs import Args, Kwargs, as_call, fresh
from secateur.modules import Walk, named_tensors
from secateur.planning.plan import Plan
from secateur.precision import Precise
from secateur.surgery.reindex import index
from secateur.tracing.finished import finished, live
from secateur.tracing.kernels import Kernels
from secateur.tracing.leavings import nothing_left
from secateur.tracing.rules.registry import Dims, Op, raised_at
from secateur.tracing.running import describe_inputs, tensors_in
from secateur.tracing.shadow import copy_with, fake, separate
from secateur.tracing.sizes import SizeMode
from secateur.tracing.surroundings import quiet_backends, seed_draws
from secateur.tracing.tracer import Tracer

Inputs = tuple[Args, Kwargs]
HOOKED = ("g", "v", "orig", "u")  # what a weight that a hook computes is kept as
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4}  # share of an output's scale


@dataclass(frozen=True, kw_only=True)
class Proof:
    """The result of comparing the smaller model with the silenced original.

    Attributes:
        status: "proved": the outputs agree. (Reports may also hold "shape-checked", for results without a counterpart.)
        max_difference: largest absolute difference of any output element.
        scale: largest absolute element of the output where that difference is largest by its scale.
        tolerance: largest difference allowed, as a share of the scale.
        dtype: precision that both models ran in.
        normalised: removed units' axes along which the original normalises, compared over the kept units.
        inside: the outputs were empty, so that what the modules give was compared.
    """

    status: str
    max_difference: float
    scale: float
    tolerance: float
    dtype: str
    normalised: tuple[str, ...] = ()
    inside: bool = False

    @property
    def ratio(self) -> float:
        """Difference as a share of the scale."""
        return self.max_difference / self.scale if self.scale else self.max_difference

    def to_dict(self) -> dict[str, Any]:
        """The form in report.json."""
        return {
            "status": self.status,
            "max_difference": self.max_difference,
            "scale": self.scale,
            "tolerance": self.tolerance,
            "dtype": self.dtype,
        }


def prove(
    model: nn.Module, small: nn.Module, graph: Graph, plan: Plan, args: Any, kwargs: Mapping[str, Any] | None = None
) -> Proof:
    """Compare the smaller model with the original whose removed units are silenced.

    The removed slices of every member are zeroed in a copy of the original, and both run on the example inputs, in
    float64 where the model runs in it. Where the original normalises over a removed unit (LayerNorm), the copy does so
    over the kept units alone. Then the same is done with other weights and twice the batch, so that no weight that
    happens to be zero and no size that happens to fit can hide a difference; and where the original runs in training
    mode, the smaller model must too.

    Args:
        model, small: the original, and what ``plan.apply`` made of it, before any compensation.
        graph, plan: what `trace` and `plan` gave.
        args, kwargs: example inputs.

    Raises:
        ProofFailed: the outputs differ by more than the tolerance, or the smaller model does not run.
    """
    inputs = as_call(args, kwargs)
    if any(t.device.type == "meta" for t in model.parameters()):
        raise ProofFailed(
            "a model on the meta device has no weights to run. Load the weights, or use sc.plan and "
            "plan.apply without the proof."
        )
    with quiet_backends():
        proof = _agree(model, small, graph, plan, inputs)
        if isinstance(proof, Exception):
            raise ProofFailed(
                f"the original does not run with its removed units silenced: {type(proof).__name__}: {proof}"
            ) from proof
        other = perturbed(model)
        smaller = plan.apply(other)
        again = _agree(other, smaller, graph, plan, doubled(inputs), inside=proof.inside)
        if isinstance(again, Exception):  # the model takes just the batch of the example
            again = _agree(other, smaller, graph, plan, inputs, inside=proof.inside)
        check_training(model, small, doubled(inputs))
    return again if isinstance(again, Proof) and not proof.scale else proof


def _agree(
    model: nn.Module, small: nn.Module, graph: Graph, plan: Plan, inputs: Inputs, *, inside: bool = False
) -> Proof | Exception:
    """Compare once; or why the original could not be run. ``inside``: expect the outputs to be empty.

    Raises:
        ProofFailed: they differ.
    """
    failure: Exception = ProofFailed("no precision to run in")
    for dtype in TOLERANCE:
        found = _agree_in(dtype, model, small, graph, plan, inputs, inside=inside)
        if isinstance(found, Proof):
            return found
        failure = found  # the code insists on a dtype: try the next
    with Precise(torch.float64):
        found = _agree_in(torch.float64, model, small, graph, plan, inputs, inside=inside)
    return found if isinstance(found, Proof) else failure


def _agree_in(
    dtype: torch.dtype, model: nn.Module, small: nn.Module, graph: Graph, plan: Plan, inputs: Inputs, *, inside: bool
) -> Proof | Exception:
    args, kwargs = tree_map(lambda v: cast_to(v, dtype), inputs)

    def original() -> tuple[list[Tensor], tuple[str, ...]]:
        seed_draws()  # models that draw random numbers draw the same ones twice
        return silenced(model, graph, plan, *fresh((args, kwargs)), dtype=dtype)

    try:
        reference, normalised = ([], ()) if inside else original()
        if not any(t.numel() for t in reference):
            found = _agree_inside(model, small, graph, plan, (args, kwargs), dtype)
            if found is not None:
                return found
            reference, normalised = original()
    except (RuntimeError, TypeError, ValueError) as error:
        return error
    seed_draws()
    try:
        return compare(reference, _run_small(small, *fresh((args, kwargs)), dtype=dtype), dtype, normalised)
    except ProofFailed as error:
        return _agree_between_equals(model, small, graph, plan, (args, kwargs), dtype, error)


def _agree_between_equals(
    model: nn.Module,
    small: nn.Module,
    graph: Graph,
    plan: Plan,
    inputs: Inputs,
    dtype: torch.dtype,
    failure: ProofFailed,
) -> Proof:
    """Compare again with the choices that rounding decides (the order of equal scores) made alike.

    Raises:
        ProofFailed: they differ even so.
    """
    seed_draws()
    with Note() as noted:
        reference, normalised = silenced(model, graph, plan, *fresh(inputs), dtype=dtype, noted=noted)
    if not noted.choices:
        raise failure
    seed_draws()
    with Follow(noted.choices, TOLERANCE[dtype]):
        got = _run_small(small, *fresh(inputs), dtype=dtype)
    return compare(reference, got, dtype, normalised)


def _agree_inside(
    model: nn.Module, small: nn.Module, graph: Graph, plan: Plan, inputs: Inputs, dtype: torch.dtype
) -> Proof | None:
    """Compare what modules give, where the outputs are empty; None where they are not.

    Raises:
        ProofFailed: they differ, or a tensor that was pruned takes part in none of it.
    """
    before, after, ancestors = Watch(), Watch(), Ancestors()

    def begin(copy: nn.Module, tracer: Tracer) -> None:
        ancestors.introduce(named_tensors(copy))
        before.on(copy, lambda _, tensor: not plan.axes.keys() & set(_names(tracer.dims(tensor))))

    seed_draws()
    with ancestors:
        reference, normalised = silenced(model, graph, plan, *fresh(inputs), dtype=dtype, begin=begin)
    if any(t.numel() for t in reference):
        return None
    seed_draws()
    got = _run_small(
        small,
        *fresh(inputs),
        dtype=dtype,
        begin=lambda copy: after.on(copy, lambda place, _: place in before.given),
    )
    pairs = before.pairs(after)
    seen = ancestors.of(a for a, _ in pairs)
    unseen = [name for name in plan.kept if name not in seen]
    if not pairs or unseen:
        raise ProofFailed(
            "the outputs are empty, so they prove nothing"
            + (f", and {unseen[0]} takes part in nothing else that could be compared" if pairs else "")
            + ": give example inputs of at least one sample, on which the model gives something"
        )
    proof = compare([*reference, *(a for a, _ in pairs)], [*got, *(b for _, b in pairs)], dtype, normalised)
    return replace(proof, inside=True)


def perturbed(model: nn.Module) -> nn.Module:
    """A copy with other weights: a tenth of each parameter's spread, and a little besides, added as noise."""
    torch.manual_seed(0)

    def noisy(tensor: Tensor) -> Tensor:
        if not (isinstance(tensor, nn.Parameter) and (tensor.is_floating_point() or tensor.is_complex())):
            return tensor.detach().clone()
        values = tensor.detach()
        wide = values.to(torch.complex64 if values.is_complex() else torch.float32)
        spread = float(wide.std()) if tensor.numel() > 1 else 0.0
        noise = torch.randn(tensor.shape, dtype=wide.dtype).to(tensor.device, tensor.dtype) * (0.1 * spread + 0.01)
        return nn.Parameter(values + noise, requires_grad=tensor.requires_grad)

    return copy_with(model, noisy)


def doubled(inputs: Inputs) -> Inputs:
    """The inputs with every sample twice, where all tensors share the size of their first dim; else as they are."""
    tensors = [t for t in tree_leaves(inputs) if isinstance(t, Tensor)]
    if not tensors or any(t.dim() == 0 or t.shape[0] != tensors[0].shape[0] for t in tensors):
        return inputs
    return tree_map(lambda v: torch.cat([v, v]) if isinstance(v, Tensor) else v, inputs)


def check_training(model: nn.Module, small: nn.Module, inputs: Inputs) -> None:
    """Demand that the smaller model runs in training mode if the original does. Nothing is computed: shapes alone.

    Raises:
        ProofFailed: it does not.
    """

    def run(module: nn.Module) -> None:
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        copy = fake(module, mode).train()
        args, kwargs = tree_map(lambda v: mode.from_tensor(v) if isinstance(v, Tensor) else v, fresh(inputs))
        with mode, Kernels(), nothing_left(Walk(module)):
            nn.Module.__call__(copy, *args, **kwargs)

    try:
        run(model)
    except Exception:  # not even the original does: a batch norm over one value, a missing target
        return
    try:
        run(small)
    except Exception as error:
        raise ProofFailed(
            f"the smaller model does not run in training mode: {type(error).__name__}: {error}"
        ) from error


def cast_to(value: Any, dtype: torch.dtype) -> Any:
    """A floating-point or complex tensor in another precision; anything else as it is."""
    if isinstance(value, Tensor) and value.is_complex():
        return value.to(dtype.to_complex())
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


# ---------------------------------------------------------------------- the silenced original


def silenced(
    model: nn.Module,
    graph: Graph,
    plan: Plan,
    args: Any,
    kwargs: Any,
    *,
    dtype: torch.dtype,
    noted: Note | None = None,
    begin: Callable[[nn.Module, Tracer], None] | None = None,
) -> tuple[list[Tensor], tuple[str, ...]]:
    """Outputs of the original with the removed units silenced, and the removed axes that it normalises over.

    ``begin`` is called with the copy of the model, and the tracer, just before it runs.
    """
    out, over = silenced_call(
        model, graph, plan, lambda copy: copy(*args, **kwargs), dtype=dtype, noted=noted, begin=begin
    )
    return tensors_in(out), over


def silenced_call(
    model: nn.Module,
    graph: Graph,
    plan: Plan,
    call: Callable[[nn.Module], Any],
    *,
    dtype: torch.dtype,
    noted: Note | None = None,
    begin: Callable[[nn.Module, Tracer], None] | None = None,
) -> tuple[Any, tuple[str, ...]]:
    """The same for any call of the model, with what it returns as it is."""
    tensors = named_tensors(model)
    first = {id(tensors[name]): name for name in reversed(tensors)}
    hooked = normed_by_hook(model)
    made = {f"{name}_{part}" for name in hooked for part in HOOKED}
    direct = {n: at for n, at in plan.kept.items() if ".parametrizations." not in f".{n}" and n not in made}
    copy = copy_with(model, lambda t: _silence(t, direct.get(first[id(t)], {}), dtype)).eval()
    _silence_parametrised(copy, plan)
    _silence_hooked(copy, plan)
    tracer = Tracer(keeping=False)
    axes = {name: tracer.algebra.fresh(info.size, name) for name, info in {**graph.axes, **graph.frozen}.items()}
    for name, tensor in named_tensors(copy).items():
        info = graph.tensors[first[id(tensors[name])]]
        tracer.introduce(tensor, [live(d, axes, tracer.algebra) for d in info.dims])
    over = _KeptOnly(plan, noted)
    tracer.adopted, tracer.repaired = over, over.repair
    if begin is not None:
        begin(copy, tracer)
    with tracer, SizeMode(tracer, tagging=False):
        out = call(copy)
    return out, tuple(over.seen)


def _silence(tensor: Tensor, kept: Mapping[int, Tensor], dtype: torch.dtype) -> Tensor:
    """A copy of the tensor with everything but the kept positions zeroed."""
    out = cast_to(tensor.detach(), dtype).clone()
    for dim, at in kept.items():
        gone = torch.ones(out.shape[dim], dtype=torch.bool)
        gone[at] = False
        out.index_fill_(dim, gone.nonzero().flatten().to(out.device), 0)
    return nn.Parameter(out, requires_grad=False) if isinstance(tensor, nn.Parameter) else out


class _Mask(nn.Module):
    """Zeroes slices of an effective weight."""

    def __init__(self, like: Tensor, kept: Mapping[int, Tensor]) -> None:
        super().__init__()
        self.__dict__["mask"] = _silence(torch.ones_like(like), kept, like.dtype)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.__dict__["mask"]


def _silence_parametrised(model: nn.Module, plan: Plan) -> None:
    """Silence what parametrizations compute, not what they compute it from: a vector of zeros has no direction."""
    for path, module in list(model.named_modules()):
        if not parametrize.is_parametrized(module):
            continue
        for name, computed in cast("dict[str, nn.Module]", module.parametrizations).items():
            weight = getattr(module, name)
            prefix = f"{path}.parametrizations.{name}".removeprefix(".")
            for original, tensor in computed.named_parameters(recurse=False):
                kept = plan.kept.get(f"{prefix}.{original}")
                if kept and tensor.shape == weight.shape:
                    parametrize.register_parametrization(module, name, _Mask(weight, kept), unsafe=True)
                    break


def normed_by_hook(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Weights that the old weight_norm and spectral_norm compute before each call, by qualified name."""
    return {
        f"{path}.{hook.name}".removeprefix("."): (module, hook.name)
        for path, module in model.named_modules()
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, WeightNorm | SpectralNorm)
    }


def _silence_hooked(model: nn.Module, plan: Plan) -> None:
    """The same for weights that a hook computes: another hook behind it."""
    for weight, (module, name) in normed_by_hook(model).items():
        original = "orig" if hasattr(module, f"{name}_orig") else "v"
        if kept := plan.kept.get(f"{weight}_{original}"):
            mask = _Mask(getattr(module, f"{name}_{original}"), kept)
            module.register_forward_pre_hook(partial(_mask_hooked, name, mask))


def _mask_hooked(name: str, mask: _Mask, module: nn.Module, args: Any) -> None:
    setattr(module, name, mask(getattr(module, name)))


class _KeptOnly:
    """Repeats an operation that normalises over a removed unit on the kept units alone, the rest of its result zero."""

    def __init__(self, plan: Plan, noted: Note | None = None) -> None:
        self.noted = noted
        self.units = {name: at.unique() for name, at in plan.units.items()}  # the original has no copies
        self.fewer = {name for name, at in self.units.items() if len(at) < plan.axes[name].before}
        self.seen: dict[str, None] = {}

    def __call__(self, op: Op, over: Sequence[Expr], results: Sequence[Dims]) -> Any:
        axes = {n for n in _names(over) if n in self.fewer}
        if not axes:
            return op.out
        self.seen.update(dict.fromkeys(sorted(axes)))
        arguments = {k: self._cut(op, v, axes) for k, v in op.arguments.items()}
        _resize(op, arguments, over, self.units)
        positional = [v for k, v in arguments.items() if k not in op.said.keywords]
        before = len(self.noted.choices) if self.noted else 0
        out = op.func(*positional, **{k: v for k, v in arguments.items() if k in op.said.keywords})
        if self.noted and len(self.noted.choices) > before:
            del self.noted.choices[before - 1]  # what the same call picked from all units
        outputs = [out] if isinstance(out, Tensor) else list(out)
        outputs = [self._original(t, op.named.get(k)) for k, t in enumerate(outputs)]
        wide = [self._widen(t, dims) for t, dims in zip(outputs, results, strict=True)]
        return wide[0] if isinstance(out, Tensor) else tuple(wide)

    def repair(self, out: Tensor, dims: Dims) -> None:
        """Where a silenced unit gives no number (zero by zero), it counts as zero, in place."""
        if not out.is_floating_point() or bool(out.isfinite().all()):
            return
        for k, dim in enumerate(dims):
            at = self._positions(dim, self.fewer)
            if at is not None:
                gone = torch.ones(out.shape[k], dtype=torch.bool, device=out.device)
                gone[at.to(out.device)] = False
                wide = gone.view(-1, *[1] * (out.dim() - k - 1))
                out.masked_fill_(wide & ~out.isfinite(), 0)

    def _positions(self, dim: Expr, axes: set[str]) -> Tensor | None:
        dim = resolve(dim)
        return index(finished(dim), self.units) if axes & set(_names([dim])) else None

    def _cut(self, op: Op, value: Any, axes: set[str]) -> Any:
        if isinstance(value, Tensor):
            for k, dim in enumerate(op.dims(value)):
                at = self._positions(dim, axes)
                value = value if at is None else value.index_select(k, at.to(value.device))
        return value

    def _original(self, tensor: Tensor, along: Expr | None) -> Tensor:
        """Positions among the kept units become those among all."""
        return tensor if along is None else index(finished(along), self.units).to(tensor.device)[tensor]

    def _widen(self, tensor: Tensor, dims: Dims) -> Tensor:
        for k, dim in enumerate(dims):
            if tensor.shape[k] != dim.size:
                at = index(finished(dim), self.units)
                shape = [*tensor.shape[:k], dim.size, *tensor.shape[k + 1 :]]
                tensor = tensor.new_zeros(shape).index_copy(k, at.to(tensor.device), tensor)
        return tensor


def _names(exprs: Sequence[Expr]) -> list[str]:
    return [leaf.name for e in exprs for leaf in leaves(resolve(e)) if leaf.name is not None]


def _resize(op: Op, arguments: dict[str, Any], over: Sequence[Expr], units: Mapping[str, Tensor]) -> None:
    """Sizes among an operation's arguments, made to fit what was cut."""
    if "normalized_shape" in arguments:
        shape = arguments["input"].shape
        arguments["normalized_shape"] = list(shape[len(shape) - len(arguments["normalized_shape"]) :])
    if "HxW" in arguments:
        inside = len(index(finished(over[0]), units))
        arguments["C"] = arguments["input"].shape[1]
        arguments["group"] = arguments["C"] // inside


# ---------------------------------------------------------------------- comparing


def _run_small(
    small: nn.Module, args: Any, kwargs: Any, *, dtype: torch.dtype, begin: Callable[[nn.Module], None] | None = None
) -> list[Tensor]:
    copy = copy_with(small, lambda t: _silence(t, {}, dtype)).eval()
    if begin is not None:
        begin(copy)
    try:
        with Kernels():
            return tensors_in(
                nn.Module.__call__(copy, *args, **kwargs)
            )  # a graph module's own call prints its code on errors
    except SecateurError:
        raise
    except Exception as error:
        raise ProofFailed(f"the smaller model does not run: {type(error).__name__}: {error}") from error


def compare(
    reference: list[Tensor],
    got: list[Tensor],
    dtype: torch.dtype,
    normalised: tuple[str, ...] = (),
    *,
    names: tuple[str, str] = ("smaller model", "silenced original"),
) -> Proof:
    """The proof that two lists of outputs agree to the tolerance of a precision.

    Args:
        reference, got: outputs of the original, and of the changed model.
        dtype: precision that both ran in.
        normalised: as in `Proof`.
        names: what to call the changed model and the original.

    Raises:
        ProofFailed: they differ.
    """
    shapes, small_shapes = [tuple(t.shape) for t in reference], [tuple(t.shape) for t in got]
    if not any(t.numel() for t in reference):
        raise ProofFailed("the outputs are empty, so they prove nothing: give example inputs of at least one sample")
    if shapes != small_shapes:
        raise ProofFailed(f"the {names[0]} gives outputs of shapes {small_shapes}, the original {shapes}")
    worst = Proof(
        status="proved",
        max_difference=0.0,
        scale=0.0,
        tolerance=TOLERANCE[dtype],
        dtype=str(dtype).removeprefix("torch."),
        normalised=normalised,
    )
    for expected, actual in zip(reference, got, strict=True):
        difference, scale = _difference(expected, actual)
        candidate = replace(worst, max_difference=difference, scale=scale)
        worst = candidate if candidate.ratio >= worst.ratio else worst
    if not worst.ratio <= worst.tolerance:
        raise ProofFailed(
            f"the {names[0]} differs from the {names[1]} by {worst.max_difference:.3g} where "
            f"outputs reach {worst.scale:.3g}, "
            f"above the tolerance of {worst.tolerance:g} of that in {worst.dtype}"
        )
    return worst


def _difference(expected: Tensor, actual: Tensor) -> tuple[float, float]:
    """Largest absolute difference and largest absolute finite element."""
    if not expected.numel():
        return 0.0, 0.0
    if not (expected.is_floating_point() or expected.is_complex()):
        return float((expected != actual).any()), 1.0
    same = (expected == actual) | (expected.isnan() & actual.isnan())
    difference = torch.where(same, 0.0, (expected - actual).abs())
    finite = expected[expected.isfinite()].abs()
    worst = float(difference.max())
    return float("inf") if worst != worst else worst, float(finite.max()) if finite.numel() else 0.0


def check_outputs(model: nn.Module, args: Any, kwargs: Mapping[str, Any] | None = None) -> None:
    """Refuse a model that does not run on the example inputs, or whose outputs hold NaN.

    Raises:
        TraceError: it does not run: numbers out of range, say, which tracing by shapes alone does not see.
        ModelError: NaN.
    """
    positional, keywords = fresh(as_call(args, kwargs))
    with quiet_backends():
        try:
            outputs = tensors_in(separate(model)(*positional, **keywords))
        except SecateurError:
            raise
        except Exception as error:
            inputs = describe_inputs(positional, keywords)
            raise TraceError(
                f"{type(model).__name__} does not run on the example inputs {inputs}: {type(error).__name__}: {error} "
                f"(at {raised_at(error)}). Pass inputs that model(*args, **kwargs) accepts."
            ) from error
    if any(bool(t.isnan().any()) for t in outputs if t.is_floating_point()):
        raise ModelError(
            "the model's own outputs hold NaN on the example inputs, so nothing can be proved of it. "
            "Check its weights and the inputs' range."
        )
