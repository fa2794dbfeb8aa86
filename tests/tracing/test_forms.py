"""What surrounds the operations: literal sizes and constants, outputs of every form, control flow on shapes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from support.operations import ROWS, Net, halved, images, rows


def test_literal_slices_of_a_shape_keep_their_part_and_say_where() -> None:
    net, inputs, _ = rows(lambda x: torch.cat([x[:, 8:], x[:, :8] * 2], 1))
    graph = sc.trace(net, inputs)
    assert all(__file__ in reason for a in graph.frozen.values() for reason in a.frozen if "__getitem__(8)" in reason)


def test_writes_at_literal_slices_are_rewritten() -> None:
    def swap(x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        out[:, :6] = x[:, 6:]
        out[:, 6:] = x[:, :6] * 2
        return out

    net, inputs, _ = rows(swap)
    result = sc.prune(net, inputs, keep=0.5)
    assert result.rewritten is not None
    assert result.model.first.out_features == 6
    assert result.model(torch.randn(5, 4)).shape == (5, 3)


def test_padding_that_is_cut_off_again_adapts() -> None:
    def there_and_back(x: Tensor) -> Tensor:
        half, width = x.shape[1] // 2, x.shape[1]
        return F.pad(x, (0, 0, 0, 0, half, half))[:, half : half + width]

    net, inputs, axes = images(there_and_back)
    halved(net, inputs, *axes)


def test_literal_sizes_of_constants_are_sizes_like_others() -> None:
    net, inputs, _ = rows(lambda x: torch.zeros(x.shape[0], 12) + x)
    graph = sc.trace(net, inputs)
    info = {**graph.axes, **graph.frozen}["first.weight:0"]
    assert any("zeros(12) at " in text and __file__ in text for text in info.rewrite)
    result = sc.prune(net, inputs, keep=0.5)
    assert result.model.first.out_features == 6
    assert result.model(torch.randn(5, 4)).shape == (5, 3)


def test_a_form_of_an_operation_that_its_rule_does_not_fit_counts_as_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    from secateur.tracing.rules import RULES

    monkeypatch.setitem(RULES, "aten::relu", lambda op: op.dims("no such argument"))
    net, inputs, _ = rows(lambda x: x.relu())
    graph = sc.trace(net, inputs)
    assert [name for name, _ in graph.unknown] == ["aten::relu"]
    assert "aten::relu at " in graph.frozen["first.weight:0"].frozen[0]


def test_constants_whose_values_differ_stay() -> None:
    net, inputs, _ = rows(lambda x: x * torch.linspace(0, 1, x.shape[1]))
    assert "aten::linspace" in sc.trace(net, inputs).frozen["first.weight:0"].frozen[0]


@dataclass
class Answer:
    value: Tensor
    more: Any = None


OUTPUTS: dict[str, Callable[[Tensor], Any]] = {
    "mapping with None": lambda y: {"value": y, "nothing": None},
    "tuple with a list": lambda y: (y, None, [2 * y]),
    "dataclass": lambda y: Answer(y, (y,)),
    "nested": lambda y: {"all": [{"one": y}]},
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_of_every_form(name: str) -> None:
    net = Net(lambda net, x: OUTPUTS[name](net.out(net.inp(x).relu())), inp=nn.Linear(4, 8), out=nn.Linear(8, 3))
    halved(net, ROWS, "inp.weight:0 hidden 8>4")


def test_control_flow_on_shapes() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.inp(x)
        y = y.relu() if y.shape[-1] > 1 and x.dim() == 2 else y.tanh()
        for _ in range(y.dim()):
            y = y + 0.5 * net.mid(y)
        return net.out(y)

    net = Net(forward, inp=nn.Linear(4, 8), mid=nn.Linear(8, 8), out=nn.Linear(8, 3))
    halved(net, ROWS, "inp.weight:0 residual 8>4")


def test_a_width_that_code_insists_on_freezes_with_its_reason() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.inp(x)
        if y.shape[1] != 8:
            raise ValueError("eight units, please")
        return net.out(net.mid(y).relu())

    net = Net(forward, inp=nn.Linear(4, 8), mid=nn.Linear(8, 6), out=nn.Linear(6, 3))
    result = halved(net, ROWS, "mid.weight:0 hidden 6>3")
    assert "eight units, please" in result.graph.frozen["inp.weight:0"].frozen[0]
