"""Operations of the user's own: what no rule knows freezes and is named; a rule of a few lines makes it prunable."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from secateur.errors import NothingToPrune, TraceError
from secateur.tracing import Op
from secateur.tracing.rules import RULES


@torch.library.custom_op("secateur_test::linear_gelu", mutates_args=())
def linear_gelu(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """A fused layer, as people write in CUDA: every size but the batch is contracted or made."""
    return F.gelu(x @ w.t() + b)


@linear_gelu.register_fake
def _(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], w.shape[0])


@torch.library.custom_op("secateur_test::swap", mutates_args=())
def swap(x: Tensor) -> Tensor:
    """Without a fake form. The halves of the last dim change places."""
    return x.roll(x.shape[-1] // 2, -1)


@torch.library.custom_op("secateur_test::scale_", mutates_args={"x"})
def scale_(x: Tensor, by: float) -> None:
    x.mul_(by)


@scale_.register_fake
def _(x: Tensor, by: float) -> None: ...


@torch.library.custom_op("secateur_test::twice", mutates_args=(), tags=[torch.Tag.pointwise])
def twice(x: Tensor) -> Tensor:
    return 2 * x


@twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("secateur_test::centre", mutates_args=())
def centre(xs: list[Tensor], factor: float = 1.0) -> tuple[Tensor, list[Tensor]]:
    """The mean of several tensors over the batch, and each without it."""
    mean = torch.stack(xs).mean((0, 1))
    return mean, [factor * (x - mean) for x in xs]


@centre.register_fake
def _(xs: list[Tensor], factor: float = 1.0) -> tuple[Tensor, list[Tensor]]:
    return xs[0].new_empty(xs[0].shape[1]), [torch.empty_like(x) for x in xs]


@torch.library.custom_op("secateur_test::peak", mutates_args=())
def peak(x: Tensor) -> float:
    """Its value leaves the tensors."""
    return float(x.abs().amax())


class Net(nn.Module):
    """A layer before the operation, and two after it: the operation touches the first, the last two it does not."""

    def __init__(self, operation: Callable[[nn.Linear, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.touched, self.free = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 12)
        self.out = nn.Linear(12, 3)
        self.__dict__["operation"] = operation

    def forward(self, x: Tensor) -> Tensor:
        h = self.__dict__["operation"](self.touched, self.first(x).relu())
        return self.out(self.free(h).relu())


def fused(layer: nn.Linear, x: Tensor) -> Tensor:
    return linear_gelu(x, layer.weight, layer.bias)


def swapped(layer: nn.Linear, x: Tensor) -> Tensor:
    return swap(layer(x))


def in_place(layer: nn.Linear, x: Tensor) -> Tensor:
    scale_(h := layer(x), 2.0)
    return h


def tagged(layer: nn.Linear, x: Tensor) -> Tensor:
    return twice(layer(x))


def centred(layer: nn.Linear, x: Tensor) -> Tensor:
    mean, (one, other) = centre([layer(x), 2 * layer(x)], factor=0.5)
    return one + other + mean


def read(layer: nn.Linear, x: Tensor) -> Tensor:
    return layer(x) / peak(layer(x))


X = torch.randn(2, 4)


@pytest.fixture
def rules() -> Iterator[dict[str, Any]]:
    """The rules, as they were, after the test."""
    before = dict(RULES)
    yield RULES
    RULES.clear()
    RULES.update(before)


def place_in_this_file(code: str) -> str:
    with open(__file__) as lines:
        return f"{__file__}:{next(k for k, line in enumerate(lines, 1) if code in line)}"


# ---------------------------------------------------------------------- without a rule


@pytest.mark.parametrize(
    ("operation", "name", "code", "frozen"),
    [
        (fused, "linear_gelu", "return linear_gelu(x", {"first.weight:0", "touched.weight:0"}),
        (swapped, "swap", "return swap(layer", {"touched.weight:0"}),
        (in_place, "scale_", "scale_(h :=", {"touched.weight:0"}),
        (centred, "centre", "= centre([layer", {"touched.weight:0"}),
    ],
)
def test_it_freezes_what_it_touches_and_is_named(operation: Any, name: str, code: str, frozen: set[str]) -> None:
    result = sc.prune(Net(operation), X, keep=0.5)
    graph, place = result.graph, place_in_this_file(code)
    assert graph.unknown == ((f"secateur_test::{name}", place),)
    assert set(graph.axes) == {"first.weight:0", "touched.weight:0", "free.weight:0"} - frozen
    for axis in frozen:
        assert graph.frozen[axis].frozen[0] == f"secateur_test::{name} at {place}"
    printed = "".join(str(graph).splitlines())
    assert f"no rule knows secateur_test::{name} at {place}" in printed
    assert f'@sc.rule("secateur_test::{name}")' in printed
    explanation = graph.explain("touched.weight", 0)
    assert explanation.axes[0].frozen[0] == f"secateur_test::{name} at {place}"
    assert f'@sc.rule("secateur_test::{name}")' in str(explanation)
    assert result.model.free.out_features == 6  # type: ignore[union-attr]
    assert result.proof.status == "proved"


def test_nothing_to_prune_names_the_way_out() -> None:
    class Only(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(swap(self.first(x)))

    with pytest.raises(
        NothingToPrune, match=r'No rule knows secateur_test::swap: .*@sc\.rule\("secateur_test::swap"\)'
    ):
        sc.prune(Only(), torch.randn(2, 4))


def test_a_value_that_leaves_the_tensors_freezes_what_it_was_computed_from() -> None:
    graph = sc.trace(Net(read), X)
    reason = graph.frozen["touched.weight:0"].frozen[0]
    assert reason.startswith(f"secateur_test::peak: its value is read by Python code at {__file__}:")
    assert "free.weight:0" in graph.axes


def test_without_a_fake_form_a_model_without_weights_can_not_be_traced() -> None:
    with pytest.raises(TraceError, match="register_fake"):
        sc.trace(Net(swapped).to("meta"), X)


def test_functions_with_a_backward_of_their_own_need_no_rule() -> None:
    class Doubling(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return 2 * x.sort(0).values  # over the batch: the units stay apart

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            return gradients[0]

    result = sc.prune(Net(lambda layer, x: Doubling.apply(layer(x))), X, keep=0.5)  # type: ignore[arg-type,return-value]
    assert set(result.plan.axes) == {"first.weight:0", "touched.weight:0", "free.weight:0"}
    result.model(X).sum().backward()
    assert result.model.first.weight.grad.any()  # type: ignore[union-attr,operator]


def test_functions_on_functions_are_named() -> None:
    def either(layer: nn.Linear, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, torch.relu, torch.tanh, (layer(x),))

    graph = sc.trace(Net(either), X)
    assert graph.unknown[0] == ("cond", place_in_this_file("torch.cond(x"))
    assert "touched.weight:0" in graph.frozen
    assert "free.weight:0" in graph.axes


# ---------------------------------------------------------------------- with a rule


def test_a_rule_in_under_ten_lines_makes_it_prunable(rules: dict[str, Any]) -> None:
    @sc.rule("secateur_test::linear_gelu")
    def linear_gelu_dims(op: Op) -> Any:
        x, w, b = op.dims("x"), op.dims("w"), op.dims("b")
        op.unify(x[-1], w[1])
        op.unify(w[0], b[0])
        op.macs(*x, w[0])
        return [*x[:-1], w[0]]

    result = sc.prune(Net(fused), X, keep=0.5)
    assert not result.graph.unknown
    assert {n: len(a.kept) for n, a in result.plan.axes.items()} == {
        "first.weight:0": 4, "touched.weight:0": 4, "free.weight:0": 6,
    }  # fmt: skip
    assert result.proof.status == "proved"
    assert result.graph.cost()["macs"] == 2 * (4 * 8 + 8 * 8 + 8 * 12 + 12 * 3)
    assert result.model.touched.weight.shape == (4, 4)  # type: ignore[union-attr]


def test_a_rule_for_an_operation_without_a_fake_form(rules: dict[str, Any]) -> None:
    @sc.rule("secateur_test::swap")
    def swap_dims(op: Op) -> Any:
        *batch, last = op.dims("x")
        first, second = op.pieces(last, [last.size // 2] * 2)
        op.unify(first, second)  # so that both halves keep the same units, and stay halves
        return [*batch, op.algebra.concat([second, first])]

    result = sc.prune(Net(swapped), X, keep=0.5)
    assert result.graph.explain("touched.weight", 0).expression == "{hidden 4 + hidden 4}"
    assert result.model.touched.out_features == 4  # type: ignore[union-attr]
    assert result.proof.status == "proved"


def test_a_wrong_rule_does_not_get_past_the_proof(rules: dict[str, Any]) -> None:
    sc.rule("secateur_test::swap")(lambda op: op.dims("x"))
    assert "touched.weight:0" in sc.trace(Net(swapped), X).axes
    result = sc.prune(Net(swapped), X, keep=0.5)
    assert result.model.touched.out_features == 8  # type: ignore[union-attr]
    assert "the proof fails when it is pruned" in result.graph.frozen["touched.weight:0"].frozen[0]


def test_a_rule_for_an_operation_that_writes_to_its_argument(rules: dict[str, Any]) -> None:
    @sc.rule("secateur_test::scale_")
    def scale_dims(op: Op) -> Any:
        return []

    result = sc.prune(Net(in_place), X, keep=0.5)
    assert result.model.touched.out_features == 4  # type: ignore[union-attr]
    assert result.proof.status == "proved"


def test_a_rule_for_tensors_in_lists(rules: dict[str, Any]) -> None:
    @sc.rule("secateur_test::centre")
    def centre_dims(op: Op) -> Any:
        first, *others = (op.dims(x) for x in op["xs"])
        for other in others:
            op.unify(first[1], other[1])
        return [[first[1]], *(op.dims(x) for x in op["xs"])]

    result = sc.prune(Net(centred), X, keep=0.5)
    assert result.model.touched.out_features == 4  # type: ignore[union-attr]
    assert result.proof.status == "proved"


def test_an_operation_that_torch_knows_as_pointwise_needs_none() -> None:
    result = sc.prune(Net(tagged), X, keep=0.5)
    assert result.model.touched.out_features == 4  # type: ignore[union-attr]
    assert not result.graph.unknown


@pytest.mark.parametrize(
    ("dims", "words"),
    [
        (lambda op: op.dims("x")[:1], r"the rule of secateur_test::linear_gelu gives the dims .* shape \[2, 8\]"),
        (lambda op: [op.dims("x"), op.dims("x")], "for an output of shape"),
        (lambda op: op.dims("weight"), "linear_gelu has no argument 'weight'; it has x, w, b"),
    ],
)
def test_a_rule_that_does_not_fit_is_refused(rules: dict[str, Any], dims: Any, words: str) -> None:
    sc.rule("secateur_test::linear_gelu")(dims)
    with pytest.raises(TraceError, match=words):
        sc.trace(Net(fused), X)
