import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import secateur as sc
from secateur.errors import TrainingError
from secateur.inputs import run
from secateur.objectives import logits_of
from secateur.tuning.low_rank import LowRank
from secateur.tuning.trainable import trainable
from support.networks import Attention, Cnn, Grouped, LiteralNet, Mlp, Residual, Tied, Transposed, bert, example, llama


def shape_of(model: nn.Module):
    """All that must be as it was: modules, classes, keys, order, which parameters are which, requires_grad."""
    return (
        [(path, type(m), m) for path, m in model.named_modules()],
        list(model.state_dict()),
        [(n, id(p), p.requires_grad) for n, p in model.named_parameters(remove_duplicate=False)],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    )


def output(model: nn.Module, inputs):
    out = logits_of(run(model, inputs))
    return run(model, inputs)[0] if out is None else out


def steps(model: nn.Module, inputs, count: int = 3) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(count):
        optimizer.zero_grad()
        output(model, inputs).sin().mean().backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("all", {"conv1.weight", "conv1.bias", "bn1.weight", "bn1.bias", "conv2.weight", "conv2.bias", "bn2.weight",
                 "bn2.bias", "fc.weight", "fc.bias"}),
        ("norms", {"bn1.weight", "bn1.bias", "bn2.weight", "bn2.bias"}),
        ("biases", {"conv1.bias", "bn1.bias", "conv2.bias", "bn2.bias", "fc.bias"}),
        ("norms+biases", {"conv1.bias", "bn1.weight", "bn1.bias", "conv2.bias", "bn2.weight", "bn2.bias", "fc.bias"}),
        ("head", {"fc.weight", "fc.bias"}),
        ("conv2", {"conv2.weight", "conv2.bias"}),
        (["conv*.weight", "fc"], {"conv1.weight", "conv2.weight", "fc.weight", "fc.bias"}),
        (lambda name, p: p.dim() == 4, {"conv1.weight", "conv2.weight"}),
    ],
)  # fmt: skip
def test_what_trains_and_nothing_else(what, names):
    model = Cnn()
    before, values = shape_of(model), {n: p.detach().clone() for n, p in model.named_parameters()}
    with trainable(model, what) as chosen:
        assert set(chosen.parameters) == names
        assert chosen.count == sum(values[n].numel() for n in names)
        assert chosen.total == sum(v.numel() for v in values.values())
        steps(model, example(model))
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, values[n])}
    assert changed <= names
    assert {n for n in names if "bias" not in n} <= changed
    assert shape_of(model) == before


def test_requires_grad_is_put_back_after_an_exception():
    model = Cnn()
    model.conv1.weight.requires_grad_(False)
    before = shape_of(model)
    with pytest.raises(KeyboardInterrupt), trainable(model, "norms", freeze_statistics=True):
        raise KeyboardInterrupt
    assert shape_of(model) == before
    with trainable(model, "all") as chosen:
        assert "conv1.weight" not in chosen.parameters
    with trainable(model, ["conv1.weight"]) as chosen:
        assert list(chosen.parameters) == ["conv1.weight"]
    assert shape_of(model) == before


def test_norms_and_heads_of_other_packages():
    model = llama()
    with trainable(model, "norms") as chosen:
        assert set(chosen.parameters) == {n for n, _ in model.named_parameters() if "norm" in n}
    with trainable(model, "head") as chosen:
        assert set(chosen.parameters) == {"lm_head.weight"}
    with trainable(Tied(), "head") as chosen:
        assert set(chosen.parameters) == {"embed.weight"}


# statistics


def test_statistics_follow_unless_frozen():
    model = Cnn().train()
    x = example(model)
    before = model.bn1.running_mean.clone()
    with trainable(model, "biases", freeze_statistics=True):
        model.train()
        frozen = model(x)
        assert torch.equal(model.bn1.running_mean, before)
    assert model.bn1.training
    assert torch.allclose(frozen, copy.deepcopy(model).eval()(x))
    with trainable(model, "biases"):
        model(x)
    assert not torch.equal(model.bn1.running_mean, before)


# low rank


def test_the_change_by_hand():
    """weight + alpha / rank B A: 0 + 6 / 2 (1, 2)^T (3, 4); the second row of A is zero."""
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.zero_()
    with trainable(layer, LowRank(rank=2, alpha=6)) as chosen:
        a, b = chosen.parameters["weight/a"], chosen.parameters["weight/b"]
        with torch.no_grad():
            a.copy_(torch.tensor([[3.0, 4.0], [0.0, 0.0]])), b.copy_(torch.tensor([[1.0, 9.0], [2.0, 9.0]]))
        assert chosen.count == 8
    assert layer.weight.tolist() == [[9, 12], [18, 24]]


@pytest.mark.parametrize(
    "kind",
    [Mlp, Cnn, Residual, Grouped, Transposed, LiteralNet, Attention, Tied, llama, bert],
    ids=lambda k: k.__name__,
)
def test_low_rank_changes_become_part_of_the_weights_of_pruned_models(kind):
    dense = kind().eval()
    inputs = example(dense)
    model = sc.prune(dense, inputs, keep=0.5).model.eval()
    shape, values = shape_of(model), {n: p.detach().clone() for n, p in model.named_parameters()}
    plain = output(model, inputs)
    with trainable(model, LowRank(rank=2)) as chosen:
        assert torch.allclose(output(model, inputs), plain, atol=1e-6)
        steps(model, inputs)
        trained = output(model, inputs)
        assert not chosen.left_out
    assert not torch.allclose(trained, plain, atol=1e-5)
    assert shape_of(model) == shape
    assert torch.allclose(output(model, inputs), trained, atol=1e-6)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, values[n])}
    assert changed
    assert all(values[n].dim() > 1 for n in changed)


def test_a_tied_weight_has_one_change():
    model = Tied()
    with trainable(model, LowRank(rank=2, only=("head",))) as chosen:
        assert set(chosen.parameters) == {"embed.weight/a", "embed.weight/b"}
        steps(model, example(model))
        assert torch.equal(model.head.weight, model.embed.weight)
    assert model.head.weight is model.embed.weight


def test_changes_are_kept_after_an_exception():
    model, before = Mlp(), None
    with pytest.raises(KeyboardInterrupt), trainable(model, "low-rank"):
        steps(model, torch.randn(4, 4))
        before = model(torch.ones(1, 4))
        raise KeyboardInterrupt
    assert torch.allclose(model(torch.ones(1, 4)), before, atol=1e-6)


def test_weights_that_are_computed_are_left_out_and_said_so():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 8)), nn.Linear(8, 2))
    before = shape_of(model)
    with trainable(model, "low-rank") as chosen:
        assert set(chosen.parameters) == {"1.weight/a", "1.weight/b"}
        assert list(chosen.left_out.values()) == ["a parametrization computes it"] * 2
        assert "left out" in str(chosen)
    assert shape_of(model) == before


def test_the_random_state_is_left_alone_and_the_seed_counts():
    def drawn(seed: int) -> torch.Tensor:
        model = Mlp()
        state = torch.get_rng_state()
        with trainable(model, LowRank(seed=seed)) as chosen:
            assert torch.equal(torch.get_rng_state(), state)
            return chosen.parameters["0.weight/a"].detach().clone()

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))


def test_half_precision_weights_have_exact_factors():
    model = Mlp().to(torch.bfloat16)
    with trainable(model, LowRank(rank=2)) as chosen:
        assert chosen.parameters["0.weight/a"].dtype == torch.float32
        F.mse_loss(model(torch.ones(1, 4, dtype=torch.bfloat16)), torch.ones(1, 2, dtype=torch.bfloat16)).backward()
    assert model[0].weight.dtype == torch.bfloat16


def test_errors_say_what_to_do():
    with pytest.raises(TrainingError, match=r"what=\['convs'\] fit no parameter"), trainable(Cnn(), "convs"):
        pass
    with pytest.raises(TrainingError, match="no parameter of Mlp is of what='norms'"), trainable(Mlp(), "norms"):
        pass
    with pytest.raises(TrainingError, match="rank=0 must be at least 1; alpha=0 must be above 0"):
        LowRank(rank=0, alpha=0)
    with pytest.raises(TrainingError, match="only"), trainable(Mlp(), LowRank(only=("x",))):
        pass


def test_low_rank_changes_and_distillation_go_together():
    from secateur.tuning.distilling import Distillation

    dense, x = Cnn().eval(), torch.randn(2, 3, 8, 8)
    result = sc.prune(dense, x, keep=0.5)
    labels = torch.tensor([0, 1])
    with (
        trainable(result.model, LowRank(rank=2)) as chosen,
        Distillation(dense, result.plan, features="auto").on(result.model) as lesson,
    ):
        out = result.model(x)
        lesson(F.cross_entropy(out, labels), out, (x, labels)).backward()
        assert all(p.grad is not None for p in chosen.parameters.values())
    assert lesson.matched == ("bn1", "bn2")
