import copy

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import SparsityError
from secateur.provenance import history
from secateur.sparsity.remembering import broken_patterns, pattern_of, zero_masks
from secateur.zeros import rename_sparse, sparse_weights, sparsity_of


def test_a_model_remembers_what_was_pruned_in_it():
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    assert sparse_weights(net) == {}
    assert sparsity_of(net) is None
    assert zero_masks(net) == {}
    first = sc.sparsify(net, pattern=sc.NM(2, 4), only=["0"])
    both = sc.sparsify(first.model, sparsity=0.25, only=["2"])
    for model in (both.model, copy.deepcopy(both.model)):
        assert sparse_weights(model) == {"0.weight": "NM(n=2, m=4)", "2.weight": "Unstructured()"}
        assert sparsity_of(model) == (32 + 8) / (64 + 32)
        masks = zero_masks(model)
        assert torch.equal(masks["0.weight"], first.masks["0.weight"])
        assert torch.equal(masks["2.weight"], both.masks["2.weight"])
    assert list(zero_masks(both.model, ignore=["2.weight"])) == ["0.weight"]


def test_names_that_are_asked_for():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head, self.norm = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4), nn.LayerNorm(4)
            self.b.weight = self.a.weight

    for model in (known := sc.sparsify(Tied()).model, unknown := Tied()):
        if model is unknown:
            model.load_state_dict(known.state_dict())  # zeros without a history
        assert list(zero_masks(model)) == ["a.weight", "head.weight"]
        assert list(zero_masks(model, only="head")) == ["head.weight"]
        assert list(zero_masks(model, ignore="head.weight")) == ["a.weight"]
        assert list(zero_masks(model, only=["b"])) == ["a.weight"]  # by either of its names
        assert list(zero_masks(model, only=iter(["head"]))) == ["head.weight"]
        assert list(sc.keep_masks(model, only="head").masks) == ["head.weight"]
        for names in ({"only": "haed"}, {"ignore": ["haed"]}):
            with pytest.raises(SparsityError, match=r"'haed' name no weight.* Did you mean 'head'"):
                zero_masks(model, **names)
        with pytest.raises(SparsityError, match="'norm' name no weight"):
            sc.keep_masks(model, ignore="norm")


def test_masks_on_other_weights_are_remembered_too():
    result = sc.sparsify(nn.Linear(8, 4), pattern=sc.NM(2, 4))
    other = result.apply(nn.Linear(8, 4))
    assert sparse_weights(other) == {"weight": "NM(n=2, m=4)"}
    assert torch.equal(zero_masks(other)["weight"], result.masks["weight"])


def test_no_zeros_no_mask():
    model = sc.sparsify(nn.Linear(8, 4)).model
    nn.init.ones_(model.weight)
    assert zero_masks(model) == {}
    assert sparsity_of(model) == 0.0


@pytest.mark.parametrize("pattern", [sc.Unstructured(), sc.NM(2, 4), sc.Block(4, 2)], ids=repr)
def test_patterns_are_recognised(pattern):
    conv = nn.Sequential(nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 4, 1))
    model = sc.sparsify(conv, pattern=pattern).model
    assert pattern_of(repr(pattern)) == pattern
    assert broken_patterns(model) == {}
    with torch.no_grad():
        model[0].weight += 1  # no zero is left: neither half of a block nor more than n of m
    broken = {"0.weight": repr(pattern)} if isinstance(pattern, sc.NM) else {}
    assert broken_patterns(model) == broken
    with torch.no_grad():
        model[2].weight[0, 0] = 0.0
        model[2].weight[1:] = 1.0
        model[2].weight[0, 1] = 0.0
    assert ("2.weight" in broken_patterns(model)) == (not isinstance(pattern, sc.Unstructured))


@pytest.mark.parametrize(
    "text", ["NM()", "Unstructured(n=1, m=2)", "Block(rows=1)", "__import__('os')", "NM(n=a, m=b)"]
)
def test_other_texts_are_no_patterns(text):
    assert pattern_of(text) is None


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.linear(x).relu()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Residual() for _ in range(4)))
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(x))


def test_names_follow_changes_of_depth():
    x = torch.randn(4, 8)
    model = sc.sparsify(Net(), sparsity=0.5, only=["blocks.3", "head"]).model
    shorter = sc.shorten(model, x, importance=["blocks.1"]).model
    assert sparse_weights(shorter) == {"blocks.2.linear.weight": "Unstructured()", "head.weight": "Unstructured()"}
    assert torch.equal(shorter.blocks[2].linear.weight, model.blocks[3].linear.weight)
    assert sparse_weights(model).keys() == {"blocks.3.linear.weight", "head.weight"}
    assert sparsity_of(shorter) == 0.5


def test_renaming_keeps_the_rest_of_the_history():
    model = sc.sparsify(nn.Linear(8, 4)).model
    before = history(model)[-1]
    rename_sparse(model, {"weight": "a.weight"})
    assert history(model)[-1] == {**before, "masked": {"a.weight": "Unstructured()"}}
    assert sparse_weights(model) == {}  # there is no a.weight here
