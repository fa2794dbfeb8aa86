"""Sparsity that rises while a model trains."""

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import PatternError, SparsityError, TrainingError
from secateur.sparsity import GradualSparsity, sparse_weights, sparsity_of


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def go(
    model: nn.Module, gradual: GradualSparsity, steps: int, optimizer: torch.optim.Optimizer | None = None
) -> list[float]:
    """Sparsities after each step."""
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=0.01)
    seen: list[float] = []
    with gradual.on(model):
        for _ in range(steps):
            optimizer.zero_grad()
            (model(torch.randn(8, 8)) - 1).square().mean().backward()
            optimizer.step()
            gradual.step()
            seen.append(gradual.sparsity)
    return seen


def test_the_cubic_schedule_by_hand():
    """0.8 - 0.8 (1 - t / 4)^3 after two steps alone; then nothing changes."""
    gradual = GradualSparsity(0.8, begin=2, end=6, every=1)
    wanted = [0, 0, 0.8 * (1 - 27 / 64), 0.8 * (1 - 8 / 64), 0.8 * (1 - 1 / 64), 0.8, 0.8, 0.8]
    assert [gradual.sparsity_at(step) for step in range(1, 9)] == pytest.approx(wanted)
    model = nn.Linear(8, 125)
    assert go(model, gradual, 8) == pytest.approx(wanted, abs=6e-4)  # whole weights


def go_on(model: nn.Module, gradual: GradualSparsity, steps: int) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return go(nn.Sequential(model), gradual, steps, optimizer)


def test_it_begins_where_the_weights_are():
    """From 0.5: 0.75 - 0.25 (1 - t / 2)^3."""
    model = sc.sparsify(nn.Linear(8, 32), sparsity=0.5).model
    gradual = GradualSparsity(0.75, end=2, every=1)
    assert go_on(model, gradual, 2) == [round(256 * (0.75 - 0.25 / 8)) / 256, 0.75]
    assert gradual.start == 0.5
    given = GradualSparsity(0.75, end=2, every=1, start=0.25)
    assert given.sparsity_at(1) == pytest.approx(0.75 - 0.5 / 8)


def test_it_starts_anew_on_another_model():
    gradual = GradualSparsity(0.75, end=2, every=1)
    model = sc.sparsify(nn.Linear(8, 32), sparsity=0.5).model
    assert go_on(model, gradual, 3)[-1] == 0.75
    assert go_on(nn.Linear(8, 32), gradual, 2) == [round(256 * (0.75 - 0.75 / 8)) / 256, 0.75]
    assert gradual.start == 0
    given = GradualSparsity(0.75, end=2, every=1, start=0.25)
    for _ in range(2):
        assert go_on(nn.Linear(8, 32), given, 1) == [round(256 * (0.75 - 0.5 / 8)) / 256]


def test_it_goes_on_from_its_state_also_after_another_training():
    first = GradualSparsity(0.75, end=4, every=1)
    model = nn.Linear(8, 32)
    seen = go_on(model, first, 2)
    state = first.state_dict()
    used = GradualSparsity(0.75, end=4, every=1)
    go_on(sc.sparsify(nn.Linear(8, 32), sparsity=0.5).model, used, 4)
    used.load_state_dict(state)
    assert go_on(model, used, 2) == [round(256 * (0.75 - 0.75 / 64)) / 256, 0.75]
    assert seen[-1] < 0.75 - 0.75 / 64
    assert used.start == 0
    assert go_on(nn.Linear(8, 32), used, 2) == seen  # and then anew


def test_choices_are_made_every_so_many_steps():
    model = net()
    seen = go(model, GradualSparsity(0.5, end=10, every=4), 11)
    assert seen[2] == 0 < seen[3] == seen[6] < seen[7] == seen[8] < seen[9] == seen[10] == 0.5
    assert GradualSparsity(0.5, end=100).every == 4  # 25 of them


def test_the_least_go_and_none_comes_back():
    """The mask is by the weights as they are when it is chosen, not as they were; what went stays away."""
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    gradual = GradualSparsity(0.5, end=2, every=1, schedule="linear")
    with gradual.on(model):
        for slope in ([0.0, 0.0, 2.5, 0.0], [-9.0, 0.0, 0.0, 3.9]):
            optimizer.zero_grad()
            (model.weight * torch.tensor([slope])).sum().backward()
            optimizer.step()
            gradual.step()
    # after the first step: 1, 2, 0.5, 4 and a quarter goes; then 10, 2, -, 0.1
    assert model.weight.tolist() == [[10.0, 2.0, 0.0, 0.0]]


@pytest.mark.parametrize("allocation", ["uniform", "global", "erk"])
@pytest.mark.parametrize("pattern", [sc.Unstructured(), sc.Block(2, 2)], ids=repr)
def test_the_end_is_exact(pattern, allocation):
    model = net()
    gradual = GradualSparsity(0.75, end=5, every=2, pattern=pattern, allocation=allocation)
    go(model, gradual, 7)
    assert sparsity_of(model) == 0.75
    assert sparse_weights(model) == dict.fromkeys(("0.weight", "2.weight"), repr(pattern))
    assert sc.sparsity.broken_patterns(model) == {}
    each = [float((layer.weight == 0).float().mean()) for layer in (model[0], model[2])]
    assert (each == [0.75, 0.75]) == (allocation == "uniform")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(8, 8)).sum().backward()
    optimizer.step()  # it is over: nothing holds zeros any more
    assert sparsity_of(model) < 0.75


def test_a_loop_with_closures():
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    seen: list[float] = []

    def closure() -> torch.Tensor:
        seen.append(sum(int((model[k].weight == 0).sum()) for k in (0, 2)) / 192)
        optimizer.zero_grad()
        loss = (model(torch.randn(8, 8)) - 1).square().mean()
        loss.backward()
        return loss

    with GradualSparsity(0.75, end=2, every=1, schedule="linear").on(model) as gradual:
        for _ in range(4):
            optimizer.step(closure)
            gradual.step()
    assert seen == [0, 0.375, 0.75, 0.75]


def test_another_criterion():
    go(one := net(), GradualSparsity(0.5, end=2, importance="random", seed=1), 2)
    torch.manual_seed(0)
    go(two := net(), GradualSparsity(0.5, end=2, importance=lambda view: -view.weight.abs()), 2)
    assert sparsity_of(one) == sparsity_of(two) == 0.5
    kept = two[0].weight[two[0].weight != 0].abs()
    assert kept.max() < 0.3  # the largest went: uniform up to 1 / sqrt(8) = 0.35


def test_only_and_ignore():
    model = net()
    go(model, GradualSparsity(0.5, end=1, ignore=["2"]), 1)
    assert sparse_weights(model).keys() == {"0.weight"}
    with pytest.raises(SparsityError, match="'9' name no weight"):
        GradualSparsity(0.5, end=1, only=["9"]).attach(net())


def test_wrong_settings_all_at_once():
    with pytest.raises(
        TrainingError, match=r"sparsity=1.5.*begin=5 and end=5.*every=0.*allocation='owl'.*NM\(n=2, m=4\)"
    ):
        GradualSparsity(1.5, begin=5, end=5, every=0, allocation="owl", pattern=sc.NM(2, 4))
    with pytest.raises(TrainingError, match="start=0.6 must be in"):
        GradualSparsity(0.5, end=1, start=0.6)
    with pytest.raises(TrainingError, match=r"sparsity='0.5' must be in \(0, 1\); begin=0 and end='9': give"):
        GradualSparsity("0.5", end="9")
    with pytest.raises(SparsityError, match=r"pattern='2:4' is no pattern: write sc.Unstructured\(\)"):
        GradualSparsity(0.5, end=1, pattern="2:4")
    with pytest.raises(TrainingError, match="needs inputs.*again and again.*'magnitude'"):
        GradualSparsity(0.5, end=1, importance="wanda")
    with pytest.raises(TrainingError, match=r"step\(\) before attach"):
        GradualSparsity(0.5, end=1).step()
    with pytest.raises(PatternError, match=r"Block\(rows=5, cols=5\) fits no weight: 0.weight: 16 outputs"):
        GradualSparsity(0.5, end=1, pattern=sc.Block(5, 5)).attach(net())
    with GradualSparsity(0.5, end=1).on(net()) as gradual, pytest.raises(TrainingError, match="already: make another"):
        gradual.attach(net())
