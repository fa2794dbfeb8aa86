"""The sizes that the code knows: attributes, shapes, expressions, equal splits, literals."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from secateur.origins import Attribute, Literal, Operation, Origin, Shape, SourcedInt, evaluate, origin_of


class Session:
    """Notes the sizes that became floats."""

    def __init__(self) -> None:
        self.numbers: list[Origin] = []

    def escaped(self, origin: Origin) -> None:
        self.numbers.append(origin)

    def compared(self, a: Origin, b: Origin) -> None:
        pass


SESSION = Session()


def sourced(value: int, name: str = "size") -> SourcedInt:
    return SourcedInt(value, Attribute("net", name, None, value), SESSION)


def test_origins_survive_arithmetic() -> None:
    size = 3 * sourced(8) // 2 - 1
    assert size == 11
    assert evaluate(size.origin, {}, {Attribute("net", "size", None, 8): 4}) == 5


def test_floats_and_other_traces_lose_the_origin() -> None:
    assert origin_of(int(sourced(8) * 0.5), SESSION) == Literal(4)
    assert origin_of(sourced(8), Session()) == Literal(8)


@pytest.mark.parametrize(
    "calculate", [math.sqrt, lambda n: n / 2, lambda n: 2 / n, lambda n: n**-0.5, lambda n: n * 1.5]
)
def test_a_size_that_becomes_a_float_is_noted(calculate: Callable[[int], float]) -> None:
    SESSION.numbers.clear()
    assert calculate(sourced(8)) == calculate(8)
    assert SESSION.numbers == [Attribute("net", "size", None, 8)]


def test_whole_powers_keep_the_origin() -> None:
    assert evaluate((sourced(8) ** 2).origin, {}, {Attribute("net", "size", None, 8): 4}) == 16


def test_an_origin_prints_as_people_would_write_it() -> None:
    from secateur.axes import Leaf
    from secateur.tracing.build import describe

    assert describe(Operation("//", Shape(Leaf("fc.weight:0", 8)), Literal(2))) == "size of fc.weight:0 // 2"


class Net(nn.Module):
    """(N, 2, 6, 6) through a convolution to rows, by the function that a test gives it."""

    def __init__(self, how: str, width: int = 8) -> None:
        super().__init__()
        self.conv, self.fc, self.out = nn.Conv2d(2, width, 3), nn.Linear(width * 16, 12), nn.Linear(12, 3)
        self.flat, self.sizes, self.width, self.how = width * 16, (width, 16), width, how

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        match self.how:
            case "shape":
                x = x.view(x.shape[0], -1)
            case "attribute":
                x = x.view(-1, self.flat)
            case "tuple":
                x = x.view(-1, self.sizes[0], self.sizes[1]).flatten(1)
            case "expression":
                x = x.view(-1, self.width * 16)
            case "float":
                x = x.view(-1, int(self.width * 16.0))
            case _:
                x = x.view(-1, 128)
        return self.out(self.fc(x).relu())


@pytest.mark.parametrize("how", ["shape", "attribute", "tuple", "expression", "float", "literal"])
def test_every_source_of_a_size_is_followed(how: str) -> None:
    model = Net(how)
    result = sc.prune(model, torch.randn(2, 2, 6, 6), keep=0.5)
    assert result.model.conv.out_channels == 4  # type: ignore[union-attr]
    assert result.model(torch.randn(5, 2, 6, 6)).shape == (5, 3)
    kept = how in ("shape", "attribute", "tuple", "expression")
    assert isinstance(result.model, Net) == kept
    assert (result.rewritten is None) == kept


def test_attributes_say_the_new_sizes_and_the_original_keeps_its_own() -> None:
    model = Net("attribute")
    small = sc.prune(model, torch.randn(2, 2, 6, 6), keep=0.5).model
    assert (small.flat, model.flat) == (64, 128)


def test_a_rewritten_result_says_where_the_literal_stands() -> None:
    result = sc.prune(Net("literal"), torch.randn(2, 2, 6, 6), keep=0.5)
    assert result.rewritten is not None
    assert "view(128)" in result.rewritten
    assert __file__ in result.rewritten


def test_keep_class_leaves_the_axes_of_literals_alone() -> None:
    result = sc.prune(Net("literal"), torch.randn(2, 2, 6, 6), keep=0.5, keep_class=True)
    assert isinstance(result.model, Net)
    assert result.model.conv.out_channels == 8
    assert result.model.fc.out_features == 6


class Split(nn.Module):
    """A gate from a width cut in two by the function that a test gives it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.inp, self.out, self.half, self.how = nn.Linear(4, 16), nn.Linear(8, 3), 8, how

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        match self.how:
            case "chunk":
                a, b = x.chunk(2, -1)
            case "split by attribute":
                a, b = x.split(self.half, -1)
            case "split by list":
                a, b = x.split([self.half, self.half], -1)
            case "slice":
                a, b = x[..., : self.half], x[..., self.half :]
            case "half the shape":
                a, b = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
            case "narrow":
                a, b = x.narrow(-1, 0, self.half), x.narrow(-1, self.half, self.half)
            case _:
                a, b = x.unflatten(-1, (2, self.half)).sum(1), x[..., : self.half]
        return self.out(F.silu(a) * b)


@pytest.mark.parametrize(
    "how", ["chunk", "split by attribute", "split by list", "slice", "half the shape", "narrow", "unflatten"]
)
def test_halves_lose_the_same_units(how: str) -> None:
    result = sc.prune(Split(how), torch.randn(2, 4), keep=0.5)
    kept = result.plan.kept["inp.weight"][0]
    assert isinstance(result.model, Split)
    assert torch.equal(kept[:4] + 8, kept[4:])


class Unequal(nn.Module):
    """Two parts that only an equal split ties: each feeds a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.a, self.b = nn.Linear(4, 16), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.inp(x).relu().chunk(2, -1)
        return self.a(a) + self.b(b)


def test_equal_splits_tie_sizes_but_not_units() -> None:
    graph = sc.trace(Unequal(), torch.randn(2, 4))
    assert len(graph.ties) == 1
    assert len(graph.ties[0]) == 2
    result = sc.prune(Unequal(), torch.randn(2, 4), budget=sc.Budget(params=0.7))
    assert len({row["after"] for row in result.axes}) == 1


def test_the_same_int_used_for_two_sizes_keeps_them_equal() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out, self.width = nn.Linear(4, 12), nn.Linear(4, 12), nn.Linear(24, 2), 12

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.a(x).view(-1, self.width), self.b(x).view(-1, self.width)
            return self.out(torch.cat([a, b], 1).relu())

    result = sc.prune(Two(), torch.randn(3, 4), keep=0.5)
    assert result.proof.status == "proved"
    assert isinstance(result.model, Two)
    assert result.model.width == 6


def test_dropout_of_a_rewritten_model_still_follows_its_mode() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 8, 3), nn.Linear(128, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.dropout(self.a(x).view(-1, 8 * 16), 0.5, self.training))

    small = sc.prune(Dropping().eval(), torch.randn(2, 1, 6, 6), keep=0.5).model
    x = torch.randn(4, 1, 6, 6)
    assert torch.equal(small(x), small(x))
    small.train()
    assert not torch.equal(small(x), small(x))


class Branching(nn.Module):
    """Literal sizes in code that looks at shapes, has optional arguments and makes constants of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.out = nn.Conv2d(2, 8, 3), nn.Linear(128, 12), nn.Linear(12, 3)
        self.register_buffer("offset", torch.ones(1))

    def forward(self, x: Tensor, mask: Tensor | None = None, *, twice: bool = False) -> dict[str, Tensor]:
        assert x.dim() == 4
        batch, _, height, _ = x.shape
        x = self.conv(x).relu()
        if height > 4 and len(x.shape) == 4:
            x = x * torch.arange(4.0)[None, None, None]
        if mask is not None:
            x = x * mask
        x = self.fc(x.view(batch, 8 * 16)).relu() + self.offset.exp()
        return {"out": self.out(2 * x if twice else x)}


@pytest.mark.parametrize("given", [{}, {"twice": True}, {"mask": torch.ones(4, 4)}])
def test_a_graph_is_captured_through_control_flow_on_shapes(given: dict[str, object], tmp_path: Path) -> None:
    model = Branching()
    result = sc.prune(model, torch.randn(2, 2, 6, 6), given, keep=0.5)
    assert result.rewritten is not None
    x = torch.randn(5, 2, 6, 6)
    before = result.model(x, **given)["out"]
    sc.save(result, tmp_path / "saved")
    assert torch.equal(sc.load(tmp_path / "saved")(x, **given)["out"], before)


def test_a_branch_on_values_can_not_be_captured_and_freezes_with_that_reason() -> None:
    class Deciding(Branching):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            x = self.conv(x)
            x = x.relu() if x.sum() > 0 else x.abs()
            return self.out(self.fc(x.view(-1, 8 * 16)).relu())

    graph = sc.trace(Deciding(), torch.randn(2, 2, 6, 6))
    assert list(graph.axes) == ["fc.weight:0"]
    assert "a tensor's values decide which code runs" in graph.frozen["conv.weight:0"].frozen[0]
