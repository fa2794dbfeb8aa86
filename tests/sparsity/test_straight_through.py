"""SR-STE: sparse forward, dense weights, a decay on what is removed."""

import copy
import functools

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import secateur as sc
from secateur.errors import PatternError, SparsityError, TrainingError
from secateur.sparsity import StraightThrough, broken_patterns, sparse_weights, sparsity_of


def test_a_step_by_hand():
    """w = (3, 1, 2, -4) under 2:4 computes as (3, 0, 0, -4); w - 0.1 (g + 0.5 (0, 1, 2, 0)), g = x = (1, 2, 3, 4)."""
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 1.0, 2.0, -4.0]]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    with StraightThrough(sc.NM(2, 4), decay=0.5).on(model) as sparse:
        out = model(x)
        assert out.item() == 3 - 16
        out.sum().backward()
        optimizer.step()
        assert torch.allclose(sparse.dense["weight"], torch.tensor([[2.9, 0.75, 1.6, -4.4]]))
        assert torch.allclose(model.weight, torch.tensor([[2.9, 0.0, 0.0, -4.4]]))
    assert torch.allclose(model.weight, torch.tensor([[2.9, 0.0, 0.0, -4.4]]))
    assert sparse_weights(model) == {"weight": "NM(n=2, m=4)"}


class Masked(torch.autograd.Function):
    """The published way: autograd that masks forward, and adds the decay backward."""

    @staticmethod
    def forward(ctx, weight: Tensor, decay: float) -> Tensor:
        mask = sc.NM(2, 4).mask(weight.detach().abs())
        ctx.save_for_backward(weight, mask)
        ctx.decay = decay
        return weight * mask

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        weight, mask = ctx.saved_tensors
        return gradient + ctx.decay * weight * ~mask, None


class Parametrization(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return Masked.apply(weight, 0.01)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_it_is_what_the_published_autograd_function_does(make):
    ours = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    theirs = copy.deepcopy(ours)
    for k in (0, 2):
        parametrize.register_parametrization(theirs[k], "weight", Parametrization())
    batches = [(torch.randn(16, 8), torch.randint(4, (16,))) for _ in range(25)]
    with StraightThrough(decay=0.01).on(ours) as sparse:
        masks = [mask.clone() for mask in sparse.masks.values()]
        for model in (ours, theirs):
            optimizer = make(model.parameters())
            for x, y in batches:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
        moved = [bool((a != b).any()) for a, b in zip(masks, sparse.masks.values(), strict=True)]
    assert any(moved)  # otherwise a fixed mask would pass, too
    for k in (0, 2):
        assert torch.allclose(ours[k].weight, theirs[k].weight, atol=1e-5)
        assert torch.allclose(ours[k].bias, theirs[k].bias, atol=1e-5)


@pytest.mark.parametrize("by_name", [False, True], ids=["place", "name"])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_closure_sees_masked_weights_and_ends_where_a_plain_loop_does(make, by_name):
    batches = [(torch.randn(16, 8), torch.randint(4, (16,))) for _ in range(10)]
    plain, closed = (one := nn.Linear(8, 4)), copy.deepcopy(one)
    seen: list[int] = []

    def losses(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
        seen.append(int((model.weight == 0).sum()))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    optimizer = make(plain.parameters())
    with StraightThrough(decay=0.5).on(plain) as one:
        for x, y in batches:
            losses(plain, optimizer, x, y)
            optimizer.step()
        dense = one.dense["weight"]
    optimizer = make(closed.parameters())
    with StraightThrough(decay=0.5).on(closed) as other:
        for x, y in batches:
            closure = functools.partial(losses, closed, optimizer, x, y)
            loss = optimizer.step(closure=closure) if by_name else optimizer.step(closure)
            assert loss.requires_grad
        assert torch.equal(other.dense["weight"], dense)
    assert seen == [16] * 20


def test_an_optimizer_may_move_weights_before_it_calls_the_closure():
    """Then these are what is masked, and what the optimizer finds again."""

    class Ahead(torch.optim.Optimizer):
        def __init__(self, weights: list[nn.Parameter]) -> None:
            super().__init__(weights, {})

        def step(self, closure=None) -> None:
            (weight,) = self.param_groups[0]["params"]
            with torch.no_grad():
                weight += 1
            closure()
            closure()
            with torch.no_grad():
                weight -= 1 + weight.grad

    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 1.0, 2.0, -4.0]]))
    seen: list[list[float]] = []

    def closure() -> None:
        seen.append(model.weight.tolist()[0])
        model.zero_grad()
        model.weight.sum().backward()

    with StraightThrough(decay=0.5).on(model) as sparse:
        Ahead([model.weight]).step(closure)
        assert seen == [[4.0, 0.0, 0.0, -3.0]] * 2
        assert sparse.dense["weight"].tolist() == [[2.0, 1 - 1 - 0.5 * 2, 2 - 1 - 0.5 * 3, -5.0]]


@pytest.mark.parametrize("closed", [False, True])
def test_an_optimizer_that_calls_its_parents_step_makes_one_step(closed):
    """Torch runs the hooks of both, once the parent's class has been used."""

    class Child(torch.optim.SGD):
        def step(self, closure=None) -> Tensor | None:
            return super().step(closure)

    def trained(kind: type[torch.optim.SGD]) -> Tensor:
        torch.manual_seed(0)
        model = nn.Linear(8, 4)
        torch.optim.SGD(model.parameters())
        optimizer = kind(model.parameters(), lr=0.1)
        with StraightThrough(decay=0.5).on(model) as sparse:
            for _ in range(3):
                optimizer.zero_grad()
                if not closed:
                    model(torch.ones(1, 8)).sum().backward()
                optimizer.step((lambda: model(torch.ones(1, 8)).sum().backward()) if closed else None)
            return sparse.dense["weight"]

    assert torch.equal(trained(Child), trained(torch.optim.SGD))


def test_an_error_in_a_closure_leaves_it_sparse_and_the_dense_weights_as_they_were():
    def closure() -> None:
        raise RuntimeError("out of memory")

    model = nn.Linear(8, 4)
    with StraightThrough().on(model) as sparse:
        dense = sparse.dense["weight"].clone()
        with pytest.raises(RuntimeError, match="out of memory"):
            torch.optim.SGD(model.parameters(), lr=0.1).step(closure)
        assert int((model.weight == 0).sum()) == 16
        assert torch.equal(sparse.dense["weight"], dense)


def test_the_decay_counts():
    def trained(decay: float) -> Tensor:
        torch.manual_seed(0)
        model = nn.Linear(8, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with StraightThrough(decay=decay).on(model) as sparse:
            for _ in range(20):
                optimizer.zero_grad()
                (0 * model(torch.zeros(1, 8))).sum().backward()
                optimizer.step()
            return sparse.dense["weight"]

    free, drawn = trained(0.0), trained(1.0)
    gone = sc.NM(2, 4).mask(free.abs()).logical_not()
    assert torch.equal(free[~gone], drawn[~gone])
    assert torch.allclose(drawn[gone], free[gone] * 0.9**20, atol=1e-6)


def test_the_model_is_sparse_between_steps_and_nothing_is_left_in_the_end():
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    keys = list(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    x = torch.randn(2, 4, 6, 6)
    with StraightThrough().on(model) as sparse:
        for _ in range(10):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            twin = copy.deepcopy(model)
            assert int((twin[0].weight == 0).sum()) == 144
            assert list(model.state_dict()) == keys
        assert sparse.sparsity == 0.5
    assert sparsity_of(model) == 0.5
    assert broken_patterns(model) == {}
    assert sparse.dense == {}
    traced = torch.export.export(model.eval(), (x,)).module()
    assert torch.allclose(traced(x), model(x))
    with sc.keep_masks(model):  # and on it goes with fixed masks
        before = model[0].weight == 0
        model(x).square().mean().backward()
        optimizer.step()
        assert torch.equal(model[0].weight == 0, before)


def test_it_starts_anew_on_another_model():
    sparse = StraightThrough()
    for model in (nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4)), nn.Sequential(nn.Linear(8, 4))):
        with sparse.on(model):
            assert sparse.masks.keys() == {name for name, p in model.named_parameters() if p.dim() > 1}
            assert sparse.sparsity == 0.5


def test_other_patterns():
    model = nn.Linear(8, 8)
    with StraightThrough(sc.Block(2, 2), sparsity=0.75).on(model):
        pass
    assert sparsity_of(model) == 0.75


def test_an_error_within_the_step_leaves_it_sparse():
    class Failing(torch.optim.SGD):
        def step(self, closure=None) -> None:
            raise RuntimeError("out of memory")

    model = nn.Linear(8, 4)
    optimizer = Failing(model.parameters(), lr=0.1)
    model(torch.ones(1, 8)).sum().backward()
    with pytest.raises(RuntimeError, match="out of memory"), StraightThrough().on(model):
        optimizer.step()
    assert sparsity_of(model) == 0.5


def test_what_it_refuses():
    with pytest.raises(PatternError, match="has a sparsity of 0.5, not of 0.7"):
        StraightThrough(sparsity=0.7)
    with pytest.raises(PatternError, match=r"Unstructured\(\) needs the share"):
        StraightThrough(sc.Unstructured())
    with pytest.raises(PatternError, match=r"has a sparsity of 0.5, not of '0.5'"):
        StraightThrough(sparsity="0.5")
    with pytest.raises(PatternError, match=r"sparsity='0.5': Unstructured\(\) needs the share"):
        StraightThrough(sc.Unstructured(), sparsity="0.5")
    with pytest.raises(SparsityError, match=r"NM'> is no pattern: write"):
        StraightThrough(sc.NM)
    with pytest.raises(TrainingError, match="decay='1' must be"):
        StraightThrough(decay="1")
    with pytest.raises(TrainingError, match="decay=-1"):
        StraightThrough(decay=-1)
    model = nn.Linear(8, 4)
    optimizer = torch.optim.LBFGS(model.parameters())
    with StraightThrough().on(model), pytest.raises(TrainingError, match="L-BFGS searches along a line.*SGD or Adam"):
        optimizer.step(lambda: model(torch.ones(1, 8)).sum())
