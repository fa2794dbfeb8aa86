"""Costs as polynomials, against by-hand numbers, finite differences and torch's own counter."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import secateur as sc
from secateur.axes import Leaf, concat, product
from secateur.costs import Compiled, Costs, multiply, polynomial
from secateur.inputs import run
from support import networks
from support.networks import Cnn, Grouped, Mlp, Tied, Transposed, example

A, B, THREE = Leaf("a", 4), Leaf("b", 6), Leaf(None, 3)


def test_polynomials_by_hand() -> None:
    prunable = {"a": 4, "b": 6}
    assert polynomial(5, prunable) == {(): 5.0}
    assert polynomial(A, prunable) == {("a",): 1.0}
    assert polynomial(A, {"b": 6}) == {(): 4.0}
    assert polynomial(product((B, THREE, A)), prunable) == {("a", "b"): 3.0}
    assert polynomial(concat((A, A, THREE)), prunable) == {("a",): 2.0, (): 3.0}


def test_products_of_sums_multiply_out() -> None:
    total = multiply([{("a",): 2.0, (): 3.0}, {("a",): 1.0, ("b",): 5.0}])
    assert total == {("a", "a"): 2.0, ("a", "b"): 10.0, ("a",): 3.0, ("b",): 15.0}
    assert multiply([]) == {(): 1.0}


def test_values_and_slopes_by_hand() -> None:
    """2 a^2 b + 7 at a=4, b=6."""
    compiled = Compiled.of({("a", "a", "b"): 2.0, (): 7.0}, {"a": 0, "b": 1})
    sizes = torch.tensor([4.0, 6.0], dtype=torch.float64)
    assert compiled.value(sizes).item() == 2 * 16 * 6 + 7
    assert compiled.slopes(sizes).tolist() == [4 * 4 * 6, 2 * 16]


def test_a_constant_polynomial_has_no_slope() -> None:
    compiled = Compiled.of({(): 7.0}, {"a": 0})
    sizes = torch.tensor([4.0], dtype=torch.float64)
    assert compiled.value(sizes).item() == 7
    assert compiled.slopes(sizes).tolist() == [0.0]
    assert Compiled.of({}, {"a": 0}).value(sizes).item() == 0


def test_costs_of_two_layers_by_hand() -> None:
    """A (6, 4) matrix of two-byte elements, a buffer of 6 floats, and 5 products with it."""
    costs = Costs.of({"a": 4, "b": 6}, [((B, A), 2)], [((B,), 4)], [(5, B, A)])
    assert costs.at({}) == {"params": 24, "macs": 120, "bytes": 72}
    assert costs.at({"a": 3, "unknown": 1}) == {"params": 18, "macs": 90, "bytes": 60}


@pytest.mark.parametrize("make", [Cnn, Grouped, networks.Attention, Tied])
@pytest.mark.parametrize("kind", ["params", "macs", "bytes"])
def test_slopes_are_finite_differences(make: type[nn.Module], kind: str) -> None:
    model = make().eval()
    costs = sc.trace(model, example(model)).costs
    compiled, step = costs.kinds[kind], 1e-4
    numeric = []
    for k in range(len(costs.dense)):
        shift = torch.zeros_like(costs.dense)
        shift[k] = step
        ahead, behind = compiled.value(costs.dense + shift), compiled.value(costs.dense - shift)
        numeric.append((ahead - behind) / (2 * step))
    torch.testing.assert_close(compiled.slopes(costs.dense), torch.stack(numeric), rtol=1e-6, atol=1e-6)


def test_the_mlp_by_hand() -> None:
    graph = sc.trace(Mlp(), torch.zeros(3, 4))
    assert graph.cost() == {"params": 40 + 18, "macs": 3 * (32 + 16), "bytes": 4 * 58}
    assert graph.cost({"0.weight:0": 5}) == {"params": 25 + 12, "macs": 3 * (20 + 10), "bytes": 4 * 37}


def test_tied_parameters_cost_once() -> None:
    assert sc.trace(Tied(), torch.zeros(1, 2, dtype=torch.long)).cost()["params"] == 11 * 8 + 16 * 9 + 8 * 17


def counted(model: nn.Module, args: object) -> dict[str, int]:
    """Params and MACs by counting elements, and as torch counts them."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        run(model.eval(), args)
    return {"params": sum(p.numel() for p in model.parameters()), "macs": counter.get_total_flops() // 2}


@pytest.mark.parametrize("make", [Cnn, Grouped, Transposed, networks.Attention, networks.llama, networks.bert])
def test_torch_counts_the_same_before_and_after(make: type[nn.Module]) -> None:
    model = make().eval()
    args = example(model)
    graph = sc.trace(model, args)
    plan = sc.plan(graph, sc.score(model, graph), keep=0.5)
    small = plan.apply(model)
    for now, sizes in ((model, {}), (small, plan.sizes)):
        cost, wanted = graph.cost(sizes), counted(now, args)
        assert {kind: cost[kind] for kind in wanted} == wanted
    everything = [*small.parameters(), *small.buffers()]
    assert graph.cost(plan.sizes)["bytes"] == sum(t.numel() * t.element_size() for t in everything)


class Buffers(nn.Module):
    """A buffer that `state_dict` leaves out, one of another type, half precision, and tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 4).half()
        self.norm = nn.BatchNorm1d(16)
        self.second.weight = nn.Parameter(torch.randn(16, 16))
        self.also = nn.Linear(16, 16)
        self.also.weight = self.second.weight
        self.register_buffer("mask", torch.ones(16), persistent=False)
        self.register_buffer("offset", torch.zeros(16, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(torch.relu(self.first(x)) * self.mask + self.offset.float())
        return self.head(torch.relu(self.also(torch.relu(self.second(hidden)))).half())


@pytest.mark.parametrize("make", [Cnn, Tied, Buffers, networks.bert])
def test_bytes_are_those_that_are_stored(make: type[nn.Module], tmp_path: Path) -> None:
    """Parameters and buffers, tied ones once, each with its own bytes an element: the tensors of the saved file."""
    model = make().eval()
    args = torch.randn(3, 6) if make is Buffers else example(model)
    graph = sc.trace(model, args)
    plan = sc.plan(graph, sc.score(model, graph), budget=sc.Budget(bytes=0.6))
    small = plan.apply(model)
    cost = graph.cost(plan.sizes)["bytes"]
    assert cost <= 0.6 * graph.cost()["bytes"]
    sc.save(small, tmp_path / "small", args=args)
    with safe_open(tmp_path / "small" / "model.safetensors", "pt") as stored:
        tensors = [stored.get_tensor(name) for name in stored.keys()]  # noqa: SIM118
    assert sum(t.numel() * t.element_size() for t in tensors) == cost
