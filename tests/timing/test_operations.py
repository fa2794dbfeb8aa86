"""Operations are recorded with the dims that change, and run alone at other sizes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.axes import Leaf, concat, product
from secateur.errors import MeasureError
from secateur.timing.operations import Call, Operand, as_call, variables
from secateur.timing.recording import record
from secateur.timing.stopwatch import prepared, seconds
from support.networks import Attention, Cnn, Grouped, Mlp, Residual, Transposed, example

A, B, C = Leaf("a", 4), Leaf("b", 8), Leaf("c", 2)


def recorded(model: nn.Module, inputs: Any = None) -> list[Call]:
    inputs = example(model) if inputs is None else inputs
    return record(model, sc.trace(model, inputs), inputs)


@pytest.mark.parametrize(
    ("dims", "wanted"),
    [
        ([A, A, Leaf(None, 3)], [A]),
        ([product([A, B, Leaf(None, 49)]), Leaf("frozen", 7)], [product([A, B])]),
        ([product([A, B]), B], [A, B]),
        ([concat([A, B]), C], [concat([A, B]), C]),
        ([concat([A, B]), product([A, C])], [A, B, C]),
        ([Leaf("frozen", 7)], []),
    ],
)
def test_variables_share_no_axis(dims: list[Any], wanted: list[Any]) -> None:
    assert variables(dims, {"a", "b", "c"}) == wanted


def test_an_operation_is_the_same_wherever_it_stands() -> None:
    def call(channels: Leaf, out: Leaf) -> Call:
        left = Operand((Leaf(None, 3), channels), "float32", (0, 1))
        right = Operand((channels, out), "float32", (0, 1))
        names = {str(channels.name), str(out.name)}
        return as_call("aten::mm", [("self", left), ("mat2", right)], [[Leaf(None, 3), out]], names)

    one, other = call(A, B), call(Leaf("x", 4), Leaf("y", 8))
    assert one.operation == other.operation
    assert one.variables != other.variables
    assert call(A, A).operation.key != one.operation.key
    wider = call(Leaf("x", 40), Leaf("y", 80)).operation
    assert wider.key == one.operation.key, "samples at equal sizes are shared"
    assert wider.dense == (40, 80)


def test_views_and_what_only_looks_are_left_out() -> None:
    names = [call.operation.name for call in recorded(Cnn())]
    assert names.count("aten::convolution") == 2
    assert names.count("aten::addmm") == 1
    assert not {"aten::view", "aten::detach", "aten::t"} & set(names)


def test_variables_of_a_convolution_are_its_channels() -> None:
    first, second = (c for c in recorded(Cnn()) if c.operation.name == "aten::convolution")
    assert first.operation.dense == (8,)
    assert second.operation.dense == (8, 12)
    assert second.variables == (Leaf("conv1.weight:0", 8), Leaf("conv2.weight:0", 12))


class Norms(nn.Module):
    """Layer norm and group norm over what can be pruned, and attention without a scale of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.groups = nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8)
        self.up, self.norm, self.down = nn.Linear(8, 12), nn.LayerNorm(12), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.norm(self.up(self.groups(self.conv(x)).mean((2, 3)))))


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (Mlp(), torch.zeros(1, 4)),
        (Cnn(), torch.zeros(1, 3, 8, 8)),
        (Residual(), torch.zeros(1, 3, 8, 8)),
        (Grouped(), torch.zeros(1, 3, 8, 8)),
        (Transposed(), torch.zeros(1, 3, 8, 8)),
        (Attention(), None),
        (Norms(), torch.zeros(1, 3, 8, 8)),
        (Norms().double(), torch.zeros(1, 3, 8, 8, dtype=torch.float64)),
        (Cnn().to(memory_format=torch.channels_last), torch.zeros(1, 3, 8, 8)),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_operations_run_at_other_sizes(model: nn.Module, inputs: Tensor | None) -> None:
    """At the model's own widths and at half of them, they give the shapes that the dims say."""
    calls = recorded(model.eval(), inputs)
    assert any(call.variables for call in calls)
    for operation in {call.operation for call in calls}:
        for sizes in (operation.dense, tuple(size // 2 for size in operation.dense)):
            out = prepared(operation, sizes)()
            first = out if isinstance(out, Tensor) else out[0]
            assert tuple(first.shape) == operation.results(sizes)[0], operation.key


def test_tensors_lie_in_memory_as_in_the_model() -> None:
    """A linear layer multiplies by a transposed weight."""
    second = recorded(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), torch.zeros(1, 4))[-1].operation
    assert second.name == "aten::addmm"
    assert dict(second.arguments)["mat2"].order == (1, 0)


def test_what_does_not_run_has_no_time() -> None:
    operation = next(c.operation for c in recorded(Cnn()) if c.operation.name == "aten::convolution")
    assert seconds(operation, operation.dense) > 0
    broken = as_call("aten::mm", [("self", Operand((A,), "float32", (0,))), ("mat2", None)], [[A]], {"a"}).operation
    assert seconds(broken, (4,)) != seconds(broken, (4,)), "NaN"


def test_a_model_without_weights_cannot_be_timed() -> None:
    model = Mlp()
    graph = sc.trace(model, torch.zeros(1, 4))
    with pytest.raises(MeasureError, match="on the meta device, where nothing can be timed: load its weights"):
        record(model.to("meta"), graph, torch.zeros(1, 4))
