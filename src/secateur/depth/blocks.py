"""Which blocks of a model can be left out: residual ones in sequences, found by running the model and looking."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from secateur.depth.change import DepthChange
from secateur.depth.containers import is_sequence
from secateur.depth.counting import Counters
from secateur.depth.identity import carries_input
from secateur.depth.streams import Calls, watch_calls
from secateur.depth.trial import Inputs, counted
from secateur.errors import PlanError, ProofFailed, SurgeryError
from secateur.inputs import fresh
from secateur.modules import Walk
from secateur.tracing.shadow import shadow
from secateur.tracing.surroundings import quiet_backends, seed_draws


@dataclass
class Blocks:
    """What can be left out of a model, and what can't.

    Attributes:
        found: paths of blocks, in the order in which they run.
        refused: why other children of sequences stay, by path.
    """

    found: list[str] = field(default_factory=list[str])
    refused: dict[str, str] = field(default_factory=dict[str, str])


def children(model: nn.Module) -> list[str]:
    """Paths of the children of all sequences that have weights; those inside of others come after them."""
    found: list[str] = []
    for path, module in Walk(model).places:
        if is_sequence(module):
            held = ((f"{path}.{name}".strip("."), child) for name, child in module._modules.items())
            found += [name for name, child in held if child is not None and _has_matrix(child)]
    return found


def _has_matrix(module: nn.Module) -> bool:
    return any(p.dim() > 1 for p in module.parameters())


def find_blocks(
    model: nn.Module,
    inputs: Inputs,
    counters: Counters,
    *,
    only: tuple[str, ...] | None = None,
    on_block: Callable[[int, int], None] = lambda done, total: None,
) -> Blocks:
    """The blocks that can be left out.

    A block is a child of an ``nn.Sequential`` or ``nn.ModuleList`` that is called once, hands on something of the shape
    of an input, lets that input through past its matrices, and is such that the model without it computes what the
    model does when the block hands on what it was given. Of blocks within blocks, the inner ones count.

    Args:
        inputs: example inputs.
        counters: of the model.
        only: paths to look at; all children of sequences where none are given.
        on_block: called with how many were tried, and how many there are.

    Raises:
        PlanError: there is no such module.
    """
    names = children(model) if only is None else list(only)
    if absent := [name for name in names if name not in dict(Walk(model).places)]:
        raise PlanError(f"there is no module {absent[0]} in this {type(model).__name__}")
    calls = recorded(model, names, inputs)
    blocks, modules = Blocks(), dict(Walk(model).places)
    residual: list[str] = []
    for name in sorted(names, key=lambda n: calls.order.index(n) if n in calls.count else len(names)):
        why = _why_not(model, modules[name], name, calls)
        if why:
            blocks.refused[name] = why
        else:
            residual.append(name)
    inner_first = sorted(residual, key=lambda n: -n.count("."))
    for done, name in enumerate(inner_first):
        on_block(done, len(residual))
        if only is None and any(other.startswith(f"{name}.") for other in blocks.found):
            blocks.refused[name] = "it holds blocks that can be left out one by one"
            continue
        try:
            counted(model, DepthChange(dropped=(name,)), counters, inputs)
        except (ProofFailed, SurgeryError) as error:
            blocks.refused[name] = str(error)
        else:
            blocks.found.append(name)
    blocks.found.sort(key=residual.index)
    return blocks


def recorded(model: nn.Module, names: list[str], inputs: Inputs) -> Calls:
    """How the model calls some of its modules on the example inputs."""
    with quiet_backends():
        double = shadow(model)
        seed_draws()
        with watch_calls(double, names) as calls:
            nn.Module.__call__(double, *fresh(inputs[0]), **fresh(inputs[1]))
    return calls


def _why_not(model: nn.Module, block: nn.Module, name: str, calls: Calls) -> str:
    """Why a block can't be left out, as far as it shows on its own; empty where nothing does."""
    parent = model.get_submodule(name.rpartition(".")[0])
    if not is_sequence(parent):
        return "it is in no nn.Sequential or nn.ModuleList"
    if len(parent._modules) < 2:
        return "nothing would be left of its sequence"
    times = calls.count.get(name, 0)
    if times != 1:
        return f"it is called {times} times in a forward pass" if times else "it is not called as a module"
    if name not in calls.first:
        return "it hands on nothing of the shape of an input"
    with quiet_backends():
        if not carries_input(block, calls.first[name]):
            return "it is not residual: its input does not reach its output past its matrices"
    return ""
