"""Removed weights stay exactly zero, in any loop."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_post_hooks, register_optimizer_step_post_hook

import secateur as sc
from secateur.errors import SparsityError
from secateur.sparsity.living import _KEPT


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


ANY = sc.Unstructured()


def sparse(pattern: sc.sparsity.Pattern = ANY) -> nn.Module:
    return sc.sparsify(net(), pattern=pattern).model


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05, weight_decay=0.1, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.05, fused=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 30) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x, y = torch.randn(16, 8, generator=generator), torch.randint(4, (16,), generator=generator)

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)


def zeros(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() == 0 for name, p in model.named_parameters() if p.dim() > 1}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_zeros_stay_zero(make):
    model = sparse()
    before = zeros(model)
    values = model[0].weight.detach().clone()
    optimizer = make(model.parameters())
    with sc.keep_masks(model):
        train(model, optimizer)
    for name, was in before.items():
        assert torch.equal(zeros(model)[name], was), name
    assert not torch.equal(model[0].weight, values)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_without_it_a_plain_loop_revives_them(make):
    model = sparse()
    before = zeros(model)
    train(model, make(model.parameters()))
    assert (zeros(model)["0.weight"] & before["0.weight"]).sum() < before["0.weight"].sum() / 10


def test_momenta_from_before_move_nothing_and_are_gone():
    """The optimizer has trained the dense model: its momenta would move what the masks remove from then on."""
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    train(model, optimizer, steps=3)
    mask = torch.rand(16, 8) > 0.5
    with sc.keep_masks(model, {"0.weight": mask}) as kept:
        assert not model[0].weight[~mask].any()
        train(model, optimizer, steps=1)
    state = optimizer.state[model[0].weight]
    assert not model[0].weight[~mask].any()
    assert not state["exp_avg"][~mask].any()
    assert not state["exp_avg_sq"][~mask].any()
    assert state["exp_avg"][mask].all()
    assert state["exp_avg_sq"][mask].all()
    assert kept.sparsity == pytest.approx(float((~mask).float().mean()))
    assert torch.equal(kept.masks["0.weight"], mask)


def test_gradients_are_masked_before_anything_looks_at_them():
    """So that clipping by the norm counts what can move, and nothing else; NaN there does no harm."""
    model = nn.Linear(2, 1, bias=False)
    mask = torch.tensor([[True, False]])
    with sc.keep_masks(model, {"weight": mask}):
        (model.weight * torch.tensor([[3.0, float("nan")]])).sum().backward()
        assert model.weight.grad.tolist() == [[3.0, 0.0]]
        assert nn.utils.clip_grad_norm_(model.parameters(), 1.0).item() == 3.0


def test_it_is_over_when_it_is_over():
    model = sparse()
    with sc.keep_masks(model) as kept:
        pass
    assert not _KEPT[model]
    train(model, OPTIMIZERS["adam"](model.parameters()))
    assert int((model[0].weight == 0).sum()) == 0
    assert kept.sparsity == 0.5


def test_without_with_it_lasts_as_long_as_the_model():
    model = sparse()
    sc.keep_masks(model)  # nobody holds what it gives
    gc.collect()
    train(model, OPTIMIZERS["momentum"](model.parameters()))
    assert int((model[0].weight == 0).sum()) == 64
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_after_a_model_has_died_others_train():
    """Torch goes through its hooks at every step: none may be taken away meanwhile."""
    train(first := sparse(), OPTIMIZERS["sgd"](first.parameters()), steps=1)
    hooks = _global_optimizer_post_hooks
    for _ in range(3):
        model = sparse()
        sc.keep_masks(model)
        train(model, OPTIMIZERS["momentum"](model.parameters()), steps=2)
        assert sc.sparsity.sparsity_of(model) == 0.5
        count = len(hooks)
        del model
        gc.collect()
    with sc.keep_masks(first), sc.sparsity.StraightThrough().on(other := net()):
        train(other, OPTIMIZERS["sgd"](other.parameters()), steps=1)
        assert len(hooks) == count  # as many for any number of models
    assert sc.sparsity.sparsity_of(other) == 0.5


def test_a_model_may_die_while_another_makes_its_step():
    """Garbage is collected at any time."""
    models = [sparse()]
    sc.keep_masks(models[0])

    def drop(*_: object) -> None:
        models.clear()
        gc.collect()

    handle = register_optimizer_step_post_hook(drop)
    with sc.keep_masks(other := sparse()):
        train(other, OPTIMIZERS["sgd"](other.parameters()), steps=2)
    handle.remove()
    assert not models
    assert sc.sparsity.sparsity_of(other) == 0.5


def test_two_models_and_two_optimizers():
    one, two = sparse(), sparse(sc.NM(2, 4))
    dense = net()
    with sc.keep_masks(one), sc.keep_masks(two):
        for model in (one, two, dense):
            halves = [OPTIMIZERS["adam"](part.parameters()) for part in (model[:2], model[2:])]
            for optimizer in halves:
                train(model, optimizer, steps=5)
    assert sc.sparsity.sparsity_of(one) == sc.sparsity.sparsity_of(two) == 0.5
    assert sc.sparsity.broken_patterns(two) == {}
    assert zeros(dense)["0.weight"].sum() == 0


def test_nothing_of_it_is_to_be_seen():
    model = sparse()
    keys, classes = list(model.state_dict()), [type(m) for m in model.modules()]
    with sc.keep_masks(model):
        assert list(model.state_dict()) == keys
        assert [type(m) for m in model.modules()] == classes
        twin = copy.deepcopy(model)
        again = pickle.loads(pickle.dumps(model))
        train(twin, OPTIMIZERS["adam"](twin.parameters()), steps=3)
        assert not zeros(twin)["0.weight"].any()  # a copy is kept by itself or not at all
        with sc.keep_masks(again):
            train(again, OPTIMIZERS["adam"](again.parameters()), steps=3)
        assert torch.equal(zeros(again)["0.weight"], zeros(model)["0.weight"])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            train(model, OPTIMIZERS["adam"](model.parameters()), steps=2)
    assert sc.sparsity.sparsity_of(model) == 0.5


def test_an_average_of_the_weights_has_the_zeros():
    model = sparse()
    was = zeros(model)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    with sc.keep_masks(model):
        for _ in range(4):
            train(model, optimizer, steps=2)
            average.update_parameters(model)
    assert torch.equal(zeros(average.module)["0.weight"], was["0.weight"])


def test_compiled_models():
    model = sparse()
    with sc.keep_masks(model):
        compiled = torch.compile(model, backend="aot_eager")
        train(compiled, OPTIMIZERS["momentum"](compiled.parameters()), steps=3)
    assert sc.sparsity.sparsity_of(model) == 0.5


def test_tied_and_frozen_weights():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))[:, :4]

    model = sc.sparsify(Tied()).model
    with sc.keep_masks(model) as kept:
        train(model, OPTIMIZERS["adam"](model.parameters()), steps=5)
    assert list(kept.masks) == ["a.weight"]
    assert int((model.b.weight == 0).sum()) == 32
    model.requires_grad_(False)
    with sc.keep_masks(model):  # trains later on
        model.requires_grad_(True)
        train(model, OPTIMIZERS["adam"](model.parameters()), steps=5)
    assert int((model.b.weight == 0).sum()) == 32


def test_masks_given_or_found():
    model = net()
    with pytest.raises(SparsityError, match=r"Sequential has no weight with zeros to keep.*sc\.sparsify"):
        sc.keep_masks(model)
    wrong = {"0.weight": torch.ones(2, 2, dtype=torch.bool), "9.weight": torch.ones(1), "3.weight": torch.ones(4, 16)}
    with pytest.raises(
        SparsityError, match=r"0.weight \(2, 2\) bool for \(16, 8\); 9.weight .* does not have; 3.weight"
    ):
        sc.keep_masks(model, wrong)
    with torch.no_grad():
        model[0].weight[0] = 0
        model[3].weight.zero_()  # a layer that begins at zero, as many do, is no sparse one
    with sc.keep_masks(model) as kept:
        assert list(kept.masks) == ["0.weight"]
    with pytest.raises(SparsityError, match="no weight with zeros"):
        sc.keep_masks(model, ignore=["0"])
    other = sparse()
    with sc.keep_masks(other, only=["3"]) as kept:
        assert list(kept.masks) == ["3.weight"]
