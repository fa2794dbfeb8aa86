"""Where an axis's units sit in a dim, and the uniform view that criteria get."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import secateur as sc
from secateur.axes import Expr, Leaf, concat, product
from secateur.importance.members import members, positions
from support.expressions import SIZES, brute_force, exprs
from support.networks import Attention, Grouped, Tied, example


@given(exprs(), st.sampled_from([*SIZES, "absent"]))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_positions_against_brute_force(expr: Expr, axis: str) -> None:
    wanted: dict[int, list[list[int]]] = {}
    for place, row in enumerate(brute_force(expr)):
        for occurrence, name, unit in row:
            if name == axis:
                wanted.setdefault(occurrence, [[] for _ in range(SIZES[axis])])[unit].append(place)
    got = [at.sort(1).values.tolist() for at in positions(expr, axis)]
    assert got == [wanted[k] for k in sorted(wanted)]


def test_complex_weights_count_by_their_size() -> None:
    net = nn.Sequential(nn.Linear(2, 3, dtype=torch.cfloat), nn.Linear(3, 1, dtype=torch.cfloat))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        net[0].weight[1, 0] = 3 + 4j  # type: ignore[operator]
    graph = sc.trace(net, torch.randn(2, 2, dtype=torch.cfloat))
    assert sc.score(net, graph, "l2")["0.weight:0"].tolist() == [0.0, 25.0, 0.0]


def test_positions_by_hand() -> None:
    heads, width = Leaf("heads", 2), Leaf("width", 3)
    fused = concat([product((heads, width))] * 2)
    assert [at.tolist() for at in positions(fused, "heads")] == [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]]
    assert positions(product((heads, width)), "width")[0].tolist() == [[0, 3], [1, 4], [2, 5]]


def view_of(model: nn.Module, axis: str) -> dict[tuple[str, int], torch.Tensor]:
    graph = sc.trace(model, example(model))
    return {(m.name, m.dim): m.weight for m in members(model, graph, axis)}


def test_a_member_holds_each_weight_of_a_unit_once() -> None:
    model = Attention(heads=4, width=6)
    seen = view_of(model, "qkv.weight:0/heads")
    qkv = model.qkv.weight.detach().view(3, 4, 6, 8)
    assert set(seen) == {("qkv.weight", 0), ("qkv.bias", 0), ("out.weight", 1)}
    torch.testing.assert_close(seen["qkv.weight", 0].sum(1), qkv.sum((0, 2, 3)))
    torch.testing.assert_close(seen["out.weight", 1].sum(1), model.out.weight.detach().view(8, 4, 6).sum((0, 2)))
    assert seen["qkv.weight", 0].shape == (4, 3 * 6 * 8)


def test_groups_of_a_convolution_own_their_channels() -> None:
    model = Grouped()
    seen = view_of(model, "mix.weight:0/groups")
    assert seen["grouped.weight", 0].shape == (4, 3 * 2 * 9)
    torch.testing.assert_close(seen["mix.weight", 0][1], model.mix.weight.detach()[2:4].flatten())


def test_what_a_criterion_is_told() -> None:
    model = Tied()
    found = list(members(model, sc.trace(model, example(model)), "embed.weight:1"))
    assert [(m.name, m.dim, m.module, m.role) for m in found] == [
        ("embed.weight", 1, nn.Embedding, "weight"),
        ("hidden.weight", 1, nn.Linear, "weight"),
        ("back.weight", 0, nn.Linear, "weight"),
        ("back.bias", 0, nn.Linear, "bias"),
    ]
    assert {m.axis for m in found} == {"embed.weight:1"}
