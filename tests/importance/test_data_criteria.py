"""Criteria that look at data: numbers by hand on a net of two hidden units, and what they do on whole models."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import ScoreError, UnknownImportance
from secateur.importance import (
    ActivationMean,
    ActivationVariance,
    Apoz,
    AxisView,
    Combined,
    Fisher,
    Fpgm,
    Lamp,
    Magnitude,
    Member,
    Random,
    Reconstruction,
    Softmax,
    Taylor,
    TaylorGate,
    Wanda,
    check_importance,
    combine,
    on_axis,
)
from secateur.importance.elimination import Regression, eliminate
from secateur.importance.reconstruction import _narrow
from support.networks import Attention, Cnn, Grouped, Mlp, Residual, Tied, example

AXIS = "0.weight:0"


def net() -> nn.Sequential:
    """Two hidden units: h = relu(x), y = 2 h0 - 3 h1."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[2].weight.copy_(torch.tensor([[2.0, -3.0]]))
    return model


X = torch.tensor([[1.0, -2.0], [3.0, 4.0]])  # h: (1, 0), (3, 4); y: 2, -6
BATCH = (X, torch.tensor([[1.0], [0.0]]))  # errors: 1, -6


def half_square(output: Tensor, target: Tensor) -> Tensor:
    """The derivative of each sample's loss by its output is the error."""
    return (output - target).square().sum(1).mean() / 2


def rated(rate: Any, model: nn.Module | None = None, data: Any = (BATCH,)) -> list[float]:
    model = model or net()
    return sc.score(model, sc.trace(model, X), rate, list(data), half_square)[AXIS].tolist()


@pytest.mark.parametrize(
    ("rate", "wanted"),
    [
        (ActivationMean(), [2.0, 2.0]),  # (1 + 3) / 2, (0 + 4) / 2
        (Apoz(), [1.0, 0.5]),
        (ActivationVariance(), [2.0 * 4, 8.0 * 9]),  # deviations 1, 1 and 2, 2, over 2 - 1; w^2
        (Wanda(), [2 * math.sqrt(5), 3 * math.sqrt(8)]),  # |w| times the root of (1 + 9) / 2 and (0 + 16) / 2
        # gates w h e: 2 * 1 * 1, 2 * 3 * -6 and 0, -3 * 4 * -6
        (TaylorGate(), [(2 + 36) / 2, 72 / 2]),
        (Fisher(), [(4 + 1296) / 2 / 2, 72**2 / 2 / 2]),
        # w dL/dw in the first layer: mean of e w h: (2 - 36) / 2 and 72 / 2; in the second the same
        (Taylor(), [17.0 + 17.0, 36.0 + 36.0]),
        (Taylor(joint=False), [17.0 + 17.0, 36.0 + 36.0]),
        ("hessian", [(4 + 1296) / 2 / 2, 72**2 / 2 / 2]),
    ],
    ids=repr,
)
def test_by_hand(rate: Any, wanted: list[float]) -> None:
    assert rated(rate) == pytest.approx(wanted)
    assert rated(rate, data=[(X[:1], BATCH[1][:1]), (X[1:], BATCH[1][1:])]) == pytest.approx(wanted), "batch by batch"


def test_taylor_by_weight_sums_before_and_after_the_absolute_value() -> None:
    member = Member(
        axis="a", name="a.weight", dim=0, tensor=torch.tensor([[1.0, 2.0], [3.0, -1.0]]), module=nn.Linear,
        role="weight", slopes=torch.tensor([[4.0, -1.0], [1.0, 1.0]]),
    )  # fmt: skip
    assert Taylor()(member).tolist() == [2.0, 2.0]
    assert Taylor(joint=False)(member).tolist() == [6.0, 4.0]


def test_softmax_by_hand() -> None:
    e = math.e
    first = [e / (e + 1), 1 / (e + 1)]
    second = [1 / (1 + e), e / (1 + e)]  # 3 and 4
    assert rated(Softmax()) == pytest.approx([(a + b) / 2 for a, b in zip(first, second, strict=True)])


def test_softmax_sums_to_one_on_every_axis() -> None:
    model = Cnn()
    scores = sc.score(model, sc.trace(model, example(model)), "softmax", [example(model)])
    for values in scores.values():
        assert float(values.sum()) == pytest.approx(1, abs=1e-5)


def test_lamp_by_hand() -> None:
    """Squares of the units: 1 + 4, 1 + 9: 5 of 15, 10 of 10."""
    assert rated(Lamp(), data=()) == pytest.approx([5 / 15, 1.0])
    model = net()
    with torch.no_grad():
        model[2].weight.fill_(2.0)
    assert rated(Lamp(), model, data=()) == pytest.approx([0.5, 0.5]), "equal units count each other in"


def test_fpgm_by_hand() -> None:
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    member = Member(axis="a", name="a.weight", dim=0, tensor=rows, module=nn.Linear, role="weight")
    assert Fpgm()(member).tolist() == pytest.approx([5 + 1, 5 + math.sqrt(18), 1 + math.sqrt(18)], rel=1e-5)


# ---------------------------------------------------------------------- reconstruction


def use_of(x: Tensor, matrix: Tensor, places: int = 1) -> Regression:
    units = x.shape[1] // places
    return Regression(
        gram=x.T @ x / len(x),
        matrix=matrix,
        blocks=torch.arange(units * places).reshape(units, places),
        units=torch.arange(units),
    )


def error_without(x: Tensor, matrix: Tensor, gone: list[int]) -> float:
    kept = [k for k in range(x.shape[1]) if k not in gone]
    fit = torch.linalg.lstsq(x[:, kept], x @ matrix).solution
    return float((x @ matrix - x[:, kept] @ fit).square().sum() / len(x))


def test_the_first_price_is_the_error_of_least_squares() -> None:
    x = torch.randn(50, 5, generator=torch.Generator().manual_seed(0)).double()
    matrix = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).double()
    costs = eliminate([use_of(x, matrix)], 5, ridge=1e-12)
    order = costs.argsort().tolist()
    assert order[0] == min(range(5), key=lambda k: error_without(x, matrix, [k]))
    for gone in range(1, 5):  # the running sum is the error so far
        assert float(costs[order[:gone]].sum()) == pytest.approx(error_without(x, matrix, order[:gone]), rel=1e-6)


def test_features_that_hardly_move_around_a_large_mean_keep_finite_prices() -> None:
    """Their covariances are smaller than what rounding leaves of the mean: no matrix of squares any more."""
    torch.manual_seed(0)
    x = 1 + 1e-5 * torch.randn(12, 40)
    gram = (x.T @ x).double() / 12 - torch.outer(x.double().mean(0), x.double().mean(0))
    assert float(torch.linalg.eigvalsh(gram).min()) < -1e-3 * float(gram.diagonal().mean())
    units = torch.arange(40)
    use = Regression(gram=gram, matrix=torch.randn(40, 3).double(), blocks=units[:, None], units=units)
    assert float(eliminate([use], 40).max()) < 1


def test_units_of_several_features_and_several_uses() -> None:
    x, y = (torch.randn(60, 6, generator=torch.Generator().manual_seed(s)).double() for s in (0, 1))
    a, b = (torch.randn(6, 2, generator=torch.Generator().manual_seed(s)).double() for s in (2, 3))
    costs = eliminate([use_of(x, a, 2), use_of(y, b, 2)], 3, ridge=1e-12)
    first = int(costs.argmin())
    gone = [2 * first, 2 * first + 1]
    assert float(costs[first]) == pytest.approx(error_without(x, a, gone) + error_without(y, b, gone), rel=1e-6)


def test_a_unit_that_others_make_up_for_is_free() -> None:
    """Unit 1 is twice unit 0; unit 2 is nothing at all."""
    h = torch.rand(40, 1)
    x = torch.cat([h, 2 * h, 0 * h, torch.rand(40, 1)], 1).double()
    costs = eliminate([use_of(x, torch.ones(4, 2).double())], 4, ridge=1e-9)
    assert costs[2] == 0
    assert min(float(costs[0]), float(costs[1])) < 1e-6
    assert min(max(float(costs[0]), float(costs[1])), float(costs[3])) > 1e-2


def test_without_a_gram_matrix_nothing_is_refitted() -> None:
    use = Regression(
        gram=torch.tensor([5.0, 8.0]).double(),
        matrix=torch.tensor([[2.0], [-3.0]]).double(),
        blocks=torch.tensor([[0], [1]]),
        units=torch.arange(2),
    )
    assert eliminate([use], 2).tolist() == [20.0, 72.0]


def test_reconstruction_as_a_share_by_hand() -> None:
    """Without unit 0, y = 2, -6 is fitted by -1.5 h1, which leaves 4 of the 40 squared; then goes all the rest."""
    scores = rated(Reconstruction(weighted=False, ridge=1e-9))
    assert scores == pytest.approx([4 / 40, 36 / 40], rel=1e-4)


def test_weighed_reconstruction_is_in_units_of_the_loss() -> None:
    """Outputs that are no classes count with half their square: 4 / 2 / 2 and 36 / 2 / 2."""
    torch.manual_seed(0)
    many = (X.repeat(2000, 1), BATCH[1].repeat(2000, 1))
    assert rated(Reconstruction(weighted=True, ridge=1e-9), data=[many]) == pytest.approx([1.0, 9.0], rel=0.1)


def test_reconstruction_needs_no_labels_and_is_what_auto_takes_with_data() -> None:
    model = Mlp()
    graph = sc.trace(model, torch.zeros(1, 4))
    data = [torch.randn(30, 4)]
    auto, own = sc.score(model, graph, data=data), sc.score(model, graph, Reconstruction(), data)
    assert auto.comparable
    assert not sc.score(model, graph).comparable
    assert torch.equal(auto[AXIS], own[AXIS])


def test_reconstruction_beats_magnitude_at_its_own_aim() -> None:
    """The units that it leaves out can be made up for better than those of least weight."""
    torch.manual_seed(0)
    model, x = Mlp(hidden=24), torch.randn(300, 4)
    graph = sc.trace(model, x[:1])
    with torch.no_grad():
        hidden = model[1](model[0](x)).double()
    wanted = model[2].weight.detach().double().T

    def left(rate: Any) -> float:
        order = sc.score(model, graph, rate, [x])[AXIS].argsort().tolist()
        return error_without(hidden, wanted, order[:16])

    assert left(Reconstruction(weighted=False)) < 0.5 * min(left("l2"), left("random"))


@pytest.mark.parametrize("kind", [Residual, Grouped, Attention, Tied])
def test_shares_of_an_axis_add_up_to_the_number_of_its_uses(kind: type[nn.Module]) -> None:
    """All units gone, all of the output is gone: the whole share, once for each use."""
    torch.manual_seed(0)
    model = kind()
    graph = sc.trace(model, example(model))
    data = [torch.cat([example(model) for _ in range(8)])]
    scores = sc.score(model, graph, Reconstruction(weighted=False, ridge=1e-6), data)
    uses = {
        "Residual": {"stem.weight:0": 3},
        "Grouped": {"conv.weight:0": 1, "mix.weight:0/groups": 1, "mix.weight:0/channels": 1},
        "Attention": {"embed.weight:0": 2},
        "Tied": {"embed.weight:1": 2, "hidden.weight:0": 1},
    }[kind.__name__]
    for axis, count in uses.items():
        assert float(scores[axis].sum()) == pytest.approx(count, rel=1e-2), axis


def test_what_is_added_to_a_stream_counts_by_its_share_of_the_stream() -> None:
    """x + 0.1 x: without the unit of the branch, the sum lacks 0.1 of 1.1, by its square."""

    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside, self.outside = nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.outside(self.inside(x))

    model = Branch()
    with torch.no_grad():
        model.inside.weight.copy_(torch.tensor([[1.0], [0.0]]))
        model.outside.weight.copy_(torch.tensor([[0.1, 1.0]]))
    x = torch.tensor([[-1.0], [1.0]])
    scores = sc.score(model, sc.trace(model, x), Reconstruction(ridge=1e-9), [x])
    assert scores["inside.weight:0"].tolist() == pytest.approx([0.1**2 / 1.1**2, 0.0], rel=1e-4)


def test_many_outputs_are_brought_down_to_the_products_that_matter() -> None:
    torch.manual_seed(0)
    x, matrix = torch.randn(50, 5).double(), torch.randn(5, 40).double()
    narrow = _narrow(matrix)
    assert narrow.shape == (5, 5)
    torch.testing.assert_close(eliminate([use_of(x, narrow)], 5), eliminate([use_of(x, matrix)], 5))


def test_wide_uses_fall_back_to_their_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.calibration.statistics.WIDEST", 1)
    scores = rated(Reconstruction(weighted=False))
    total = 4 * 5 + 9 * 8
    assert scores == pytest.approx([20 / total, 72 / total])


# ---------------------------------------------------------------------- axes that no weight takes in


def test_the_head_size_of_queries_falls_back() -> None:
    torch.manual_seed(0)
    model = Attention()
    graph = sc.trace(model, example(model))
    data = [example(model)]
    names = ["l2", "wanda", "flap", "apoz", "activation", "softmax", "reconstruction"]
    scores = sc.importance.score_all(model, graph, {n: n for n in names}, data)
    axis = "qkv.weight:0/head_dim1"
    for name in names[1:-1]:
        assert torch.equal(scores[name][axis], scores["l2"][axis])
    comparable = scores["reconstruction"]
    others = torch.cat([v for a, v in comparable.items() if a != axis])
    assert float(comparable[axis].mean()) == pytest.approx(float(others.mean()), rel=1e-5)


# ---------------------------------------------------------------------- combination


@pytest.mark.parametrize(
    ("rate", "wanted"),
    [
        (0.5 * ActivationMean(), [0.5, 0.5]),
        (0.5 * ActivationMean() + Magnitude(), [0.5 + 5 / 7.5, 0.5 + 10 / 7.5]),
        (Magnitude() + (lambda m: m.weight.abs().sum(1)), [5 / 7.5 + 3 / 3.5, 10 / 7.5 + 4 / 3.5]),
        ((lambda m: m.weight.abs().sum(1)) + Magnitude(), [5 / 7.5 + 3 / 3.5, 10 / 7.5 + 4 / 3.5]),
        (2 * (Apoz() + Magnitude() * 3), [2 * (1 / 0.75) + 6 * 5 / 7.5, 2 * (0.5 / 0.75) + 6 * 10 / 7.5]),
        (combine(Apoz(), 3 * Magnitude(), normalise="rank"), [1 + 3 * 0.5, 0.5 + 3 * 1]),
        ((ActivationMean() + Magnitude()).ranked(), [0.75 + 0.5, 0.75 + 1]),
    ],
)
def test_combinations_by_hand(rate: Combined, wanted: list[float]) -> None:
    assert rated(rate) == pytest.approx(wanted)


def test_what_can_not_be_combined() -> None:
    with pytest.raises(TypeError, match="criteria can be added to criteria and to functions of a member; got 3"):
        Magnitude() + 3
    with pytest.raises(ValueError, match=r"weights above 0; got \[-1.0\]"):
        -1.0 * Magnitude()
    with pytest.raises(ValueError, match="normalise='max'; it is one of mean, rank"):
        combine(Magnitude(), normalise="max")  # type: ignore[arg-type]


# ---------------------------------------------------------------------- one pass, any form


def test_all_criteria_take_one_pass() -> None:
    model, passes = net(), []
    model[0].register_forward_hook(lambda *_: passes.append(1))
    graph = sc.trace(model, X)
    passes.clear()
    scores = sc.importance.score_all(
        model, graph, {n: n for n in sc.importance.names()}, [(X, BATCH[1])] * 3, half_square
    )
    assert list(scores) == sc.importance.names()
    assert len(passes) == 3 + 2, "and two to find the uses of weights and what follows them"
    for name, table in scores.items():
        assert torch.equal(table[AXIS], sc.score(model, graph, name, [(X, BATCH[1])] * 3, half_square)[AXIS])


def test_a_function_of_the_axis() -> None:
    @on_axis("inputs")
    def energy(axis: AxisView) -> Tensor | None:
        return axis.sum(use.square.sum(1) for use in axis.uses)

    check_importance(energy)
    assert rated(energy) == [5.0, 8.0]


def test_a_function_of_a_member_that_declares_gradients() -> None:
    class Slope:
        needs = frozenset({"gradients"})

        def __call__(self, member: Member) -> Tensor:
            return member.gradient.abs().sum(1)

    check_importance(Slope())
    # first layer: mean of e w x where h > 0: (2 - 36, -4 - 48) / 2 and (54, 72) / 2; second: mean of e h
    assert rated(Slope()) == pytest.approx([17 + 26 + 8.5, 27 + 36 + 12])


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        (lambda member: member.gradient.sum(1), r"member.gradient .* needs = frozenset\(\{'gradients'\}\)"),
        (
            on_axis()(lambda axis: axis.sum(use.mean.sum(1) for use in axis.uses)),
            "axis.uses is there for criteria that need",
        ),
        (on_axis("inputs")(lambda axis: axis.gate), r"axis.gate .* needs = frozenset\(\{'gates'\}\)"),
        (on_axis("activations")(lambda axis: None), "needs activations; what data can give is inputs, softmax, gates"),
        (on_axis("inputs")(lambda axis: 3.0), r"gave float for axis 0.weight:0; a score is a float tensor"),
    ],
)
def test_needs_that_are_not_declared(rate: Any, message: str) -> None:
    with pytest.raises(ScoreError, match=message):
        rated(rate)


def test_a_class_in_place_of_a_criterion() -> None:
    with pytest.raises(UnknownImportance, match=r"importance=Wanda is a class: pass an instance, Wanda\(\)"):
        rated(Wanda)


# ---------------------------------------------------------------------- the public suite


@pytest.mark.parametrize("name", [n for n in sc.importance.names() if n != "random"])
def test_every_criterion_passes_the_suite(name: str) -> None:
    check_importance(sc.importance.criterion(name))


@pytest.mark.parametrize(
    "rate",
    [
        Reconstruction(weighted=False),
        Taylor(joint=False),
        0.5 * Taylor() + Magnitude(),
        combine(Fisher(), Wanda(), Softmax(), normalise="rank"),
    ],
    ids=repr,
)
def test_more_that_passes_the_suite(rate: Any) -> None:
    check_importance(rate)


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        (on_axis("inputs", "gram")(lambda a: a.sum(u.square.sum(1) for u in a.uses)), "that it needs: other gram left"),
        (on_axis("softmax")(lambda a: torch.ones(a.size)), "that it needs: other softmax left its scores as they were"),
        (on_axis("gates")(lambda a: a.gate.mul_(2)), "changed the weights that it was shown, or the statistics"),
        (on_axis("inputs")(lambda a: None), "gave no vector of 5 scores"),
        (on_axis("speed")(lambda a: None), "needs speed; what data can give is"),
        (Random(), "does not see a unit's weights"),
    ],
)
def test_criteria_of_data_that_fail_the_suite(rate: Any, message: str) -> None:
    with pytest.raises(ScoreError, match=message):
        check_importance(rate)


@pytest.mark.parametrize("name", ["wanda", "flap", "reconstruction", "taylor", "taylor_gate", "fisher"])
def test_weights_and_data_matter_in_a_whole_model(name: str) -> None:
    """Both the weights that take a unit in and the data change the scores of criteria that claim to use both."""
    torch.manual_seed(0)
    model = Cnn()
    graph = sc.trace(model, example(model))
    batch = (torch.randn(4, 3, 8, 8), torch.randint(5, (4,)))
    before = sc.score(model, graph, name, [batch])["conv1.weight:0"]
    other = sc.score(model, graph, name, [(batch[0] + 1, batch[1])])["conv1.weight:0"]
    with torch.no_grad():
        model.conv2.weight[:, 0] *= 3
    after = sc.score(model, graph, name, [batch])["conv1.weight:0"]
    assert not torch.equal(before, other)
    assert before[0] != after[0]


# ---------------------------------------------------------------------- in sc.prune


@pytest.mark.parametrize("name", ["wanda", "fisher", "reconstruction"])
def test_prune_hands_on_data_and_loss(name: str) -> None:
    torch.manual_seed(0)
    model = Cnn()
    batches = [(torch.randn(4, 3, 8, 8), torch.randint(5, (4,))) for _ in range(2)]
    graph = sc.trace(model, batches[0][0])

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, target, label_smoothing=0.1)

    wanted = sc.score(model, graph, name, batches, loss)
    result = sc.prune(model, batches[0][0], importance=name, keep=0.5, data=iter(batches), loss=loss)
    for axis, scores in result.scores.items():
        assert torch.equal(scores, wanted[axis])
        assert set(result.plan.units[axis].tolist()) == set(wanted[axis].topk(len(scores) // 2).indices.tolist())


def test_prune_says_what_a_criterion_lacks() -> None:
    with pytest.raises(ScoreError, match=r"Wanda\(\) can't be computed without data"):
        sc.prune(Mlp(), torch.zeros(2, 4), importance="wanda", keep=0.5)
