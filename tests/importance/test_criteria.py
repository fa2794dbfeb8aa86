"""Scores by hand, and every input that a criterion claims to use changes them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import ModelError, ScoreError, UnknownImportance
from secateur.importance import BatchNormScale, Magnitude, Member, Random, check_importance
from support.networks import Cnn, Mlp, Tied, example


def member(weight: Tensor, module: type[nn.Module] = nn.Linear, role: str = "weight", name: str = "a.weight") -> Member:
    return Member(axis="a.weight:0", name=name, dim=0, tensor=weight, module=module, role=role)


ROWS = torch.tensor([[1.0, -2.0], [0.0, 0.5], [-3.0, 4.0]])


def test_magnitudes_by_hand() -> None:
    assert Magnitude(p=1.0)(member(ROWS)).tolist() == [3.0, 0.5, 7.0]
    assert Magnitude(p=2.0)(member(ROWS)).tolist() == [5.0, 0.25, 25.0]
    assert Magnitude(p=3.0)(member(ROWS)).tolist() == [9.0, 0.125, 91.0]


def test_half_precision_does_not_overflow() -> None:
    assert Magnitude()(member(torch.full((1, 2), 300.0, dtype=torch.float16))).tolist() == [180000.0]


def test_batch_norm_scale_by_hand() -> None:
    gamma = torch.tensor([[0.5], [-2.0]])
    assert BatchNormScale()(member(gamma, nn.BatchNorm2d)).tolist() == [0.5, 2.0]
    assert BatchNormScale()(member(gamma, nn.BatchNorm2d, "bias")).tolist() == [0.0, 0.0]
    assert BatchNormScale()(member(gamma, nn.LayerNorm)).tolist() == [0.0, 0.0]


def test_random_follows_its_seed_and_the_name() -> None:
    one = Random(seed=1)(member(ROWS))
    assert one.tolist() == Random(seed=1)(member(ROWS)).tolist() != Random(seed=2)(member(ROWS)).tolist()
    assert one.tolist() != Random(seed=1)(member(ROWS, name="b.weight")).tolist()
    assert bool(((one >= 0) & (one < 1)).all())


def test_random_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    Random()(member(ROWS))
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------------- of a whole axis


def filled_mlp() -> Mlp:
    """Hidden unit k has the incoming weights k, the bias k and the outgoing weights -k."""
    model, k = Mlp(hidden=3), torch.tensor([0.0, 1.0, 2.0])
    with torch.no_grad():
        model[0].weight.copy_(k[:, None].expand(3, 4))
        model[0].bias.copy_(k)
        model[2].weight.copy_(-k.expand(2, 3))
    return model


@pytest.mark.parametrize(("name", "wanted"), [("l1", [0.0, 7.0, 14.0]), ("l2", [0.0, 7.0, 28.0])])
def test_an_axis_adds_its_members(name: str, wanted: list[float]) -> None:
    model = filled_mlp()
    assert sc.score(model, sc.trace(model, torch.zeros(1, 4)), name)["0.weight:0"].tolist() == wanted


def test_auto_is_l2() -> None:
    model = filled_mlp()
    assert sc.score(model, sc.trace(model, torch.zeros(1, 4)))["0.weight:0"].tolist() == [0.0, 7.0, 28.0]


def test_batch_norm_scale_of_an_axis_and_its_fallback() -> None:
    model = Cnn()
    with torch.no_grad():
        model.bn1.weight.copy_(torch.arange(8.0))
    scores = sc.score(model, sc.trace(model, example(model)), "bn_scale")
    assert scores["conv1.weight:0"].tolist() == list(range(8))
    mlp = filled_mlp()
    assert sc.score(mlp, sc.trace(mlp, torch.zeros(1, 4)), "bn_scale")["0.weight:0"].tolist() == [0.0, 7.0, 28.0]


@pytest.mark.parametrize("name", ["l1", "l2", "bn_scale"])
def test_every_weight_that_a_criterion_claims_to_use_matters(name: str) -> None:
    """All parameters of the axis for a magnitude; for the scale the norm's weight, and nothing else."""
    model = Cnn()
    graph = sc.trace(model, example(model))
    axis, parameters = "conv1.weight:0", dict(model.named_parameters())
    seen = {m for m, _ in graph.axes[axis].members} & parameters.keys()
    assert seen == {"conv1.weight", "conv1.bias", "bn1.weight", "bn1.bias", "conv2.weight"}
    before = sc.score(model, graph, name)[axis]
    changed = set()
    for parameter in seen:
        backup = parameters[parameter].detach().clone()
        with torch.no_grad():
            parameters[parameter].add_(1.0)
        after = sc.score(model, graph, name)[axis]
        with torch.no_grad():
            parameters[parameter].copy_(backup)
        changed |= set() if torch.equal(before, after) else {parameter}
    assert changed == ({"bn1.weight"} if name == "bn_scale" else seen)


def test_the_seed_reaches_a_random_importance() -> None:
    model = Mlp()
    graph = sc.trace(model, torch.zeros(1, 4))
    first, again, other = (sc.score(model, graph, "random", seed=s)["0.weight:0"].tolist() for s in (3, 3, 4))
    assert first == again != other


def test_tied_parameters_count_once() -> None:
    model = Tied()
    scores = sc.score(model, sc.trace(model, example(model)), "l1")["embed.weight:1"]
    wanted = model.embed.weight.abs().sum(0) + model.hidden.weight.abs().sum(0)
    wanted += model.back.weight.abs().sum(1) + model.back.bias.abs()
    torch.testing.assert_close(scores, wanted.detach())


def test_a_plain_function_and_an_object_are_criteria() -> None:
    model = filled_mlp()
    graph = sc.trace(model, torch.zeros(1, 4))

    def largest(member: Member) -> Tensor:
        return member.weight.amax(1)

    assert sc.score(model, graph, largest)["0.weight:0"].tolist() == [0.0, 1.0, 2.0]  # k + k - k
    assert sc.score(model, graph, Magnitude(p=1.0))["0.weight:0"].tolist() == [0.0, 7.0, 14.0]


def test_scoring_leaves_the_model_as_it_was() -> None:
    model = filled_mlp()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    data = [(torch.randn(6, 4), torch.randint(2, (6,)))]
    for name in sc.importance.names():
        sc.score(model, sc.trace(model, torch.zeros(1, 4)), name, data)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


# ---------------------------------------------------------------------- what is refused


def test_the_names() -> None:
    assert sc.importance.names() == [
        "l1", "l2", "lamp", "fpgm", "bn_scale", "taylor", "taylor_gate", "fisher", "activation", "flap", "apoz",
        "softmax", "wanda", "reconstruction", "random",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("importance", "message"),
    [
        ("l3", r"no importance is called 'l3'; known are auto, l1, l2, lamp, .*, random, or any callable"),
        ("bnscale", r"Did you mean 'bn_scale'\?"),
        ("qqqq", r"any callable\.$"),
        (7, r"importance=7 is neither a name \(l1, l2, .*, random\) nor a callable"),
    ],
)
def test_an_unknown_importance(importance: object, message: str) -> None:
    model = Mlp()
    with pytest.raises(UnknownImportance, match=message) as caught:
        sc.score(model, sc.trace(model, torch.zeros(1, 4)), importance)  # type: ignore[arg-type]
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        (lambda m: 3.0, r"gave float for 0.weight:0 on axis 0.weight:0; a score is a float tensor of shape \(8,\)"),
        (lambda m: m.weight, r"gave torch.float32 of shape \(8, 4\)"),
        (lambda m: m.weight.sum(1).long(), r"gave torch.int64 of shape \(8,\)"),
        (lambda m: m.weight.sum(1) / 0, "not finite on 1 axes, 0.weight:0 first"),
    ],
)
def test_what_is_no_score(rate: Callable[[Member], Tensor], message: str) -> None:
    model = Mlp()
    with pytest.raises(ScoreError, match=message):
        sc.score(model, sc.trace(model, torch.zeros(1, 4)), rate)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_weights_are_named(value: float) -> None:
    model = Cnn()
    with torch.no_grad():
        model.bn1.bias[2] = value
        model.conv2.weight[1, 0, 0, 0] = value
    graph = sc.trace(model, example(model))
    with pytest.raises(ModelError, match=r"NaN or infinite weights in bn1.bias, conv2.weight: "):
        sc.score(model, graph)


def test_a_graph_of_another_model() -> None:
    graph = sc.trace(Mlp(), torch.zeros(1, 4))
    with pytest.raises(
        ModelError, match=r"another architecture \(Mlp\) than this Cnn: 4 .*0\.weight is missing, traced as"
    ):
        sc.score(Cnn(), graph)
    with pytest.raises(ModelError, match=r"3 parameters differ; 0\.weight is \(9, 4\), traced as \(8, 4\)"):
        sc.score(Mlp(hidden=9), graph)


# ---------------------------------------------------------------------- the public suite


@pytest.mark.parametrize("rate", [Magnitude(p=1.0), Magnitude(p=2.0), Magnitude(p=0.5), BatchNormScale()])
def test_our_criteria_pass_the_suite(rate: Callable[[Member], Tensor]) -> None:
    check_importance(rate)


def test_a_score_that_is_a_view_of_the_weights_passes() -> None:
    check_importance(lambda m: m.weight[:, 0])


def test_the_random_control_passes_without_weights() -> None:
    check_importance(Random(seed=3), uses_weight=False)
    with pytest.raises(ScoreError, match="does not see a unit's weights"):
        check_importance(Random(seed=3))


def changing(member: Member) -> Tensor:
    member.weight.mul_(2)
    return member.weight.sum(1)


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        (lambda m: m.weight.abs().sum(0), "gave no vector of 5 scores"),
        (lambda m: 1.0, "gave no vector of 5 scores"),
        (lambda m: m.weight.abs().sum(1).int(), "not finite floats"),
        (lambda m: m.weight.abs().sum(1) / 0, "not finite floats"),
        (lambda m: m.weight.std(1), "not finite floats"),
        (lambda m: m.weight.abs().sum(1) + torch.rand(()), "is not deterministic"),
        (changing, "changed the weights that it was shown"),
        (lambda m: torch.ones(len(m.weight)), "tripling them left its score"),
        (lambda m: m.weight.abs().sum(1) / m.weight.abs().sum(1), "tripling them left its score"),
    ],
)
@pytest.mark.filterwarnings("ignore:std")
def test_bad_criteria_fail_the_suite(rate: Callable[[Member], Tensor], message: str) -> None:
    with pytest.raises(ScoreError, match=message):
        check_importance(rate)
