"""The predicted latency: a sum of curves, and how it is brought to the time of the whole model."""

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.timing import LatencyTable, latency_table
from secateur.timing.stopwatch import Timer
from secateur.timing.table import Predictor
from secateur.timing.widths import fast_steps, worthwhile
from support.clocks import by_work, in_blocks
from support.networks import Attention, Cnn, Grouped, Residual, example


def predictor(model: nn.Module, timer: Timer = by_work, whole: float = 1.0) -> tuple[sc.Graph, Predictor]:
    graph = sc.trace(model, example(model))
    table = latency_table(model.eval(), graph, example(model), timer=timer, whole=whole)
    return graph, table.compiled(graph.costs.order, graph.costs.dense)


def mlp(hidden: int) -> tuple[sc.Graph, Predictor]:
    net = nn.Sequential(nn.Linear(10, hidden), nn.ReLU(), nn.Linear(hidden, 2))
    graph = sc.trace(net, torch.zeros(1, 10))
    table = latency_table(net, graph, torch.zeros(1, 10), timer=in_blocks(16), whole=1e-3)
    return graph, table.compiled(graph.costs.order, graph.costs.dense)


@pytest.mark.parametrize("model", [Cnn(), Residual(), Grouped(), Attention()], ids=lambda m: type(m).__name__)
def test_the_original_takes_what_was_measured(model: nn.Module) -> None:
    graph, found = predictor(model, whole=0.004)
    assert found.value(graph.costs.dense).item() == pytest.approx(4e6)


def test_a_sum_by_hand() -> None:
    """Two products of 10 x 64 and 64 x 2, in steps of 16, and a relu that takes nothing."""
    graph, found = mlp(64)
    dense = found.total(graph.costs.dense).item()
    assert dense == pytest.approx(2e-6 * 64, rel=1e-3)
    for width, block in ((48, 48), (40, 48), (33, 48), (32, 32)):
        sizes = torch.tensor([float(width)], dtype=torch.float64)
        assert found.total(sizes).item() == pytest.approx(2e-6 * block, rel=1e-3), width
        assert found.value(sizes).item() == pytest.approx(1e6 * block / 64, rel=1e-3), width


@pytest.mark.parametrize("model", [Cnn(), Residual(), Grouped(), Attention()], ids=lambda m: type(m).__name__)
def test_slopes_are_differences(model: nn.Module) -> None:
    graph, found = predictor(model)
    sizes = graph.costs.dense * 0.61 + 0.013  # between the points of any grid
    slopes = found.slopes(sizes)
    for k in range(len(sizes)):
        up, down = sizes.clone(), sizes.clone()
        up[k] += 1e-4
        down[k] -= 1e-4
        totals = [found.total(s, stairs=False).item() * found.table.factor * 1e9 for s in (up, down)]
        assert slopes[k].item() == pytest.approx((totals[0] - totals[1]) / 2e-4, rel=1e-3)
    with torch.inference_mode():
        assert torch.equal(found.slopes(sizes), slopes)


def test_by_work_it_is_near_the_truth_everywhere() -> None:
    """What is linear in the number of elements is met exactly by the curves of it, and closely by the grids."""
    model = Residual()
    graph, found = predictor(model)
    small = sc.plan(graph, sc.score(model, graph), keep=0.5).apply(model)
    other, direct = predictor(small)
    sizes = graph.costs.dense // 2
    expected = direct.total(other.costs.dense).item()
    assert found.total(sizes).item() == pytest.approx(expected, rel=0.05)


def test_a_frozen_axis_keeps_its_size() -> None:
    model = Cnn()
    graph = sc.trace(model, example(model))
    table = latency_table(model.eval(), graph, example(model), timer=by_work, whole=1.0)
    fewer = {"conv2.weight:0": 12}
    part = table.compiled({"conv2.weight:0": 0}, torch.tensor([12.0], dtype=torch.float64))
    whole = table.compiled(graph.costs.order, graph.costs.dense)
    assert part.total(torch.tensor([6.0], dtype=torch.float64)).item() == pytest.approx(
        whole.total(graph.costs.vector({**fewer, "conv2.weight:0": 6})).item()
    )


def test_through_what_was_measured() -> None:
    table = LatencyTable(())
    one = table.through((2.0, 6.0))
    assert (one.offset, one.factor) == (0.0, 3.0)
    two = table.through((2.0, 6.0), (1.0, 4.0))
    assert (two.offset, two.factor) == (2.0, 2.0)
    odd = table.through((2.0, 6.0), (1.0, 7.0))
    assert (odd.offset, odd.factor) == (0.0, 7.0), "less work took more time: the last counts"
    same = table.through((2.0, 6.0), (2.0, 5.0))
    assert (same.offset, same.factor) == (0.0, 3.0)


def test_the_operations_of_an_axis() -> None:
    graph, found = predictor(Cnn())
    names = {t.call.operation.name for t in found.on(["conv2.weight:0"]).timed}
    assert {"aten::convolution", "aten::addmm", "aten::native_batch_norm"} <= names
    assert len(found.on(["conv2.weight:0"]).timed) < len(found.on(graph.axes).timed) < len(found.timed)


# ---------------------------------------------------------------------- widths


def test_widths_that_fill_no_block_save_nothing() -> None:
    _, found = mlp(64)
    widths = tuple(range(64, 0, -1))
    assert worthwhile(found, widths, [("0.weight:0", 1)], saving=True) == (64, 48, 32, 16)
    assert worthwhile(found, widths, [("0.weight:0", 1)], saving=False) == widths


def test_widths_that_make_an_operation_slower_are_left_out() -> None:
    net = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 2))
    graph = sc.trace(net, torch.zeros(1, 10))
    table = latency_table(net, graph, torch.zeros(1, 10), timer=in_blocks(16, penalty=0.5), whole=1e-3)
    found = table.compiled(graph.costs.order, graph.costs.dense)
    widths = worthwhile(found, range(64, 0, -1), [("0.weight:0", 1)], saving=False)
    assert 63 not in widths
    assert {64, 48, 32, 16} <= set(widths)


@pytest.mark.parametrize(("size", "step"), [(64, 16), (256, 16), (32, 8), (12, 1), (3, 1)])
def test_the_step_between_fast_widths(size: int, step: int) -> None:
    """At least four steps are left of an axis, so narrow ones get finer steps; in one block all are alike."""
    graph, found = mlp(size)
    assert fast_steps(found, {name: info.size for name, info in graph.axes.items()}) == {"0.weight:0": step}


def test_every_width_is_fast_where_time_goes_by_work() -> None:
    graph, found = predictor(Residual())
    assert set(fast_steps(found, {n: i.size for n, i in graph.axes.items()}).values()) == {1}
