"""Zeros of single weights, and changes of the architecture, in either order; files, exports and the way back."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.sparsity import broken_patterns, sparse_weights, sparsity_of, zero_masks
from secateur.tuning import tune
from support.networks import Cnn, LiteralNet, Mlp, example


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 8)
        self.norm = nn.BatchNorm1d(32)

    def forward(self, x: Tensor) -> Tensor:
        return self.three(self.two(self.norm(self.one(x)).relu()).relu())


X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
DATA = list(X.split(16))
LOST = pytest.mark.filterwarnings("ignore:. weights lost the pattern")


ANY = sc.Unstructured()


def sparse(pattern: sc.sparsity.Pattern = ANY, **options: float) -> nn.Module:
    torch.manual_seed(0)
    return sc.sparsify(Net().eval(), pattern=pattern, **options).model


@pytest.mark.parametrize("compensate", [None, "mean", "merge", "lstsq"])
def test_units_after_weights_the_zeros_stay(compensate):
    model = sparse(sparsity=0.6)
    bare = sc.prune(model, X, keep=0.5, data=DATA, compensate=None)
    result = sc.prune(model, X, keep=0.5, data=DATA, compensate=compensate)
    assert result.proof.status == "proved"
    wanted = zero_masks(bare.model)
    for name, kept in bare.plan.kept.items():  # re-indexed with the plan
        if name in wanted:
            mask = zero_masks(model)[name]
            for dim, at in kept.items():
                mask = mask.index_select(dim, at)
            assert torch.equal(wanted[name], mask)
    found = zero_masks(result.model)
    assert all(torch.equal(found[name], mask) for name, mask in wanted.items())
    if result.compensation is not None:
        assert result.compensation.distance[1] < 0.97 * result.compensation.distance[0]


def test_refitting_on_the_places_that_stay_is_better_than_filling_and_emptying_them():
    model = sparse(sparsity=0.6)
    ours = sc.prune(model, X, keep=0.5, data=DATA, compensate="lstsq")
    forgetful = copy.deepcopy(model)
    forgetful.secateur_history = ()  # nobody knows that it is sparse: the zeros are filled
    filled = sc.prune(forgetful, X, keep=0.5, data=DATA, compensate="lstsq", importance=ours.hint)
    assert filled.plan.kept.keys() == ours.plan.kept.keys()
    assert filled.model.two.weight.ne(0).all()
    emptied = copy.deepcopy(filled.model)
    with torch.no_grad():
        for name, mask in zero_masks(ours.model).items():
            emptied.get_parameter(name).mul_(mask)
        bare = sc.prune(model, X, keep=0.5, data=DATA, compensate=None, importance=ours.hint).model
        errors = [float((m(X) - model(X)).square().mean()) for m in (ours.model, emptied, bare)]
    assert errors[0] < errors[1]
    assert errors[0] < errors[2]


@LOST
def test_weights_after_units():
    small = sc.prune(Net().eval(), X, keep=0.5).model
    result = sc.sparsify(small, pattern=sc.NM(2, 4))
    assert sparsity_of(result.model) == 0.5
    assert broken_patterns(result.model) == {}
    again = sc.prune(result.model, X, only=["one.weight:0"], keep=0.75, multiple_of=4, compensate=None)
    assert again.proof.status == "proved"


def test_n_of_m_breaks_along_inputs_that_go_and_that_is_said():
    model = sparse(sc.NM(2, 4))
    with pytest.warns(
        UserWarning, match=r"2 weights lost the pattern of their zeros, which stay: two.weight \(NM\(n=2"
    ):
        small = sc.prune(model, X, keep=0.5, multiple_of=4, compensate=None).model
    assert broken_patterns(small).keys() == {"two.weight", "three.weight"}  # outputs may go, inputs may not
    again = sc.sparsify(small, pattern=sc.NM(2, 4)).model
    assert broken_patterns(again) == {}
    assert sparsity_of(again) >= 0.5


def test_growing_keeps_zeros_and_the_function():
    model = sparse(sparsity=0.6)
    for noise in (0.0, 0.3):
        wide = sc.grow(model, X, {"one.weight:0": 64}, noise=noise)
        assert wide.proof.status == "proved"
        assert sparsity_of(wide.model) == pytest.approx(0.6, abs=0.02)
        zeros = wide.model.two.weight == 0
        assert torch.equal(zeros[:, ::2], model.two.weight == 0)
        assert torch.equal(zeros[:, ::2], zeros[:, 1::2])
    assert not torch.equal(wide.model.two.weight[:, ::2], wide.model.two.weight[:, 1::2])  # the noise does something
    back = sc.merge_copies(wide)
    assert torch.equal(back.two.weight == 0, model.two.weight == 0)


def test_a_plan_replayed_on_sparse_weights():
    torch.manual_seed(0)
    dense = Net().eval()
    plan = sc.prune(dense, X, keep=0.5).plan
    model = sc.sparsify(dense, sparsity=0.6).model
    small = plan.apply(model)
    assert torch.equal(small.two.weight, model.two.weight[plan.kept["two.weight"][0]][:, plan.kept["two.weight"][1]])
    replayed = sc.replay(model, plan, X, data=DATA)
    assert torch.equal(replayed.model.two.weight == 0, small.two.weight == 0)
    assert sparse_weights(replayed.model).keys() == {"one.weight", "two.weight", "three.weight"}


@pytest.mark.parametrize("kind", [Mlp, Cnn, LiteralNet], ids=lambda k: k.__name__)
def test_other_networks_and_rewritten_ones(kind):
    """Of a class that is replaced by its graph, too."""
    model = sc.sparsify(kind().eval(), sparsity=0.5).model
    small = sc.prune(model, example(model), keep=0.5).model
    assert sparse_weights(small) == sparse_weights(model)
    names = zero_masks(model)
    with sc.keep_masks(small) as kept:
        assert kept.masks.keys() == names.keys()


@LOST
def test_saved_and_loaded_it_is_still_sparse(tmp_path: Path):
    model = sparse(sc.NM(2, 4))
    small = sc.prune(model, X, keep=0.5, only=["two.weight:0"], compensate=None).model
    sc.save(small, tmp_path / "small")
    loaded = sc.load(tmp_path / "small", model=Net())
    assert sparse_weights(loaded) == sparse_weights(small)
    assert sparsity_of(loaded) == sparsity_of(small)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), small.parameters(), strict=True))
    masks = zero_masks(loaded)
    tune(loaded, [(X, torch.arange(64) % 8)], epochs=3, lr=0.05, keep="last", device="cpu")
    assert all(torch.equal(zero_masks(loaded)[name], mask) for name, mask in masks.items())


@LOST
def test_undone_it_is_what_it_was(tmp_path: Path):
    """Weights, then units, then units back: the sparse model. Units, then weights, then units back: the dense one."""
    model = sparse(sc.NM(2, 4))
    sc.save(sc.prune(model, X, keep=0.5), tmp_path / "small", keep_removed=True)
    back = sc.undo(tmp_path / "small", model=Net())
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), model.parameters(), strict=True))
    assert sparsity_of(back) == 0.5
    assert broken_patterns(back) == {}
    dense = Net().eval()
    small = sc.prune(dense, X, keep=0.5)
    result = sc.sparsify(small.model, sparsity=0.5)
    sc.save(result.model, tmp_path / "both", keep_removed=True, dense=dense)
    back = sc.undo(tmp_path / "both", model=Net())
    assert torch.equal(back.two.weight, dense.two.weight)
    assert zero_masks(back) == {}
    kept = sc.undo(tmp_path / "both", model=Net(), restore="trained")
    assert int((kept.two.weight == 0).sum()) == int((result.model.two.weight == 0).sum())


def test_exported(tmp_path: Path):
    model = sparse(sc.NM(2, 4))
    program = torch.export.export(model, (X,))
    assert torch.equal(program.state_dict["two.weight"] == 0, model.two.weight == 0)
    sc.export(model, tmp_path / "net.pt2", X)
    assert torch.allclose(torch.export.load(tmp_path / "net.pt2").module()(X), model(X), atol=1e-5)
