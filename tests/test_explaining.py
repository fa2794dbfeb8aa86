"""``graph.explain``: every field by hand on small networks, and the text that they print as."""

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import UnknownTensor
from secateur.examples import SimpleNet
from secateur.explaining import Explanation
from support.networks import Attention, Chunked, Normed, Tied, example, llama


def explained(model: nn.Module, tensor: str, dim: int | None = None) -> Explanation:
    return sc.trace(model, example(model)).explain(tensor, dim)


def line_of(code: str, file: str) -> str:
    """The place of a line of code, as reports name it."""
    with open(file) as lines:
        return f"{file}:{next(k for k, line in enumerate(lines, 1) if code in line)}"


def test_a_plain_axis_names_its_members() -> None:
    found = explained(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), "2.weight", 1)
    assert (found.tensor, found.dim, found.size, found.expression) == ("2.weight", 1, 8, "hidden 8")
    (axis,) = found.axes
    assert (axis.name, axis.size, axis.kind) == ("0.weight:0", 8, "hidden")
    assert axis.coupled == (("0.weight", 0), ("0.bias", 0))
    assert axis.prunable
    assert found.prunable
    assert [axis.tied, axis.sizes, axis.equations, axis.normalising, axis.rewrite, axis.frozen] == [()] * 6


def test_a_frozen_axis_says_why() -> None:
    found = explained(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), "2.bias", 0)
    assert not found.prunable
    assert found.axes[0].frozen == ("an output of the model",)
    assert "must keep its size" in str(found)
    assert "because                 an output of the model" in str(found)


def test_a_literal_is_named_with_file_and_line() -> None:
    import secateur.examples

    found = sc.trace(SimpleNet(), torch.randn(2, 1, 10, 10)).explain("fc1.weight", 1)
    assert found.expression == "(channels 16 x hidden1 6 x hidden2 6)"
    channels, height, width = found.axes
    place = line_of(".view(", str(secateur.examples.__file__))
    assert channels.rewrite == (f"view(576) at {place}",)
    assert channels.prunable
    assert f"rewrites the graph for  view(576) at {place}" in str(found)
    for side in (height, width):
        assert not side.prunable
        assert side.frozen == ("a spatial dim of a convolution",)


def test_a_tie_names_its_partner_and_the_size_that_ties() -> None:
    found = explained(Chunked(), "both.weight", 0)
    assert found.expression == "{hidden1 8 + hidden2 8}"
    left, right = found.axes
    assert left.tied == (right.name,)
    assert right.tied == (left.name,)
    assert left.coupled == (("both.bias", 0), ("left.weight", 1))
    assert left.equations[0].startswith("chunk(size of ")
    assert "networks.py:" in left.equations[0]


def test_an_attribute_that_follows_is_named() -> None:
    found = explained(Attention(), "qkv.weight", 0)
    assert found.expression.count("heads 4") == 3
    heads = next(axis for axis in found.axes if axis.kind == "heads")
    assert heads.sizes == ("heads",)
    assert "sizes that follow       heads" in str(found)


def test_a_norm_is_named() -> None:
    found = explained(Normed(nn.LayerNorm(8)), "hidden.weight", 1)
    assert found.axes[0].normalising[0].startswith("aten::layer_norm at ")
    assert "normalised over by      aten::layer_norm at " in str(found)


def test_limits_are_named() -> None:
    from dataclasses import replace

    graph = sc.trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4))
    limited = {name: replace(axis, least=2, step=4) for name, axis in graph.axes.items()}
    found = replace(graph, axes=limited).explain("0.weight:0")
    assert found.axes[0].limits == ("at least 2 units", "a multiple of 4")
    assert "keeps                   at least 2 units" in str(found)


def test_products_of_grouped_queries_are_told_apart() -> None:
    found = explained(llama(), "model.layers.0.self_attn.o_proj.weight", -1)
    assert found.dim == 1
    assert found.expression == "(kv_groups 2 x heads 2 x head_dim 8)"
    assert [axis.label for axis in found.axes] == ["kv_groups", "heads", "head_dim"]
    assert ("model.layers.0.self_attn.k_proj.weight", 0) in found.axes[0].coupled
    assert ("model.layers.0.self_attn.k_proj.weight", 0) not in found.axes[1].coupled


def test_a_tied_tensor_answers_to_all_its_names() -> None:
    by_one, by_other = explained(Tied(), "head.weight", 1), explained(Tied(), "embed.weight", 1)
    assert by_one == by_other
    assert by_one.names == ("embed.weight", "head.weight")
    assert str(by_one).startswith("embed.weight (also head.weight), dim 1: 8 = ")


def test_windows_and_single_positions_are_no_axes() -> None:
    graph = sc.trace(SimpleNet(), torch.randn(2, 1, 10, 10))
    assert graph.explain("conv1.weight", 2).expression == "3 fixed"
    assert "positions of a window, which stay" in str(graph.explain("conv1.weight", 2))
    assert graph.explain("conv1.weight", 1).expression == "a single position"
    assert not graph.explain("conv1.weight", 1).prunable


def test_the_name_of_any_axis_will_do() -> None:
    graph = sc.trace(llama(), example(llama()))
    for name in [*graph.axes, *graph.frozen]:
        assert name in [axis.name for axis in graph.explain(name).axes]


def test_it_prints_richly() -> None:
    from secateur.printing import as_text

    found = explained(Chunked(), "left.weight:1")
    assert as_text(found).splitlines()[0] == str(found).splitlines()[0]


def test_an_unknown_operation_comes_with_a_remedy() -> None:
    class Sorting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.ops.secateur_explaining.strange(self.a(x)))

    with torch.library._scoped_library("secateur_explaining", "DEF") as library:
        library.define("strange(Tensor x) -> Tensor")
        library.impl("strange", lambda x: x.flip(1), "CompositeExplicitAutograd")
        found = sc.trace(Sorting(), torch.randn(2, 4)).explain("a.weight", 0)
    assert found.axes[0].frozen[0].startswith(f"secateur_explaining::strange at {__file__}:")
    assert found.axes[0].remedy.endswith('@sc.rule("secateur_explaining::strange")')


@pytest.mark.parametrize(
    ("tensor", "dim", "words"),
    [
        ("fc1.wieght", 0, "no parameter or buffer 'fc1.wieght'. The nearest names are fc1.weight"),
        ("transformer.h.0", 0, "The nearest names are "),
        ("fc1.weight", 2, r"fc1.weight has 2 dims, \[120, 576\]; there is no dim 2"),
        ("fc1.weight", -3, "there is no dim -3"),
        ("fc1.weight", None, "does not say which dim: .* name:0"),
        ("fc1.weight:x", None, "does not say which dim"),
    ],
)
def test_what_is_not_there_is_refused(tensor: str, dim: int | None, words: str) -> None:
    graph = sc.trace(SimpleNet(), torch.randn(2, 1, 10, 10))
    with pytest.raises(UnknownTensor, match=words):
        graph.explain(tensor, dim)
