"""Undoing: what a result keeps of its dense model, and what is restored of it."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.artifacts import read_tensors
from secateur.artifacts.removed import Removed, joined, positions, split
from secateur.artifacts.store import add_tensors
from secateur.errors import ArtifactError
from secateur.modules import named_tensors
from secateur.planning import make_plan
from secateur.provenance import history
from support.networks import Attention, Cnn, LiteralNet, Mlp, Residual, Tied, example


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in named_tensors(model).items()}


def same(model: nn.Module, wanted: dict[str, Tensor]) -> bool:
    got = named_tensors(model)
    return got.keys() == wanted.keys() and all(torch.equal(got[n], wanted[n]) for n in wanted)


@torch.no_grad()
def small() -> tuple[Mlp, sc.Result]:
    """Two inputs of four count; hidden unit k has weights k + 1, bias 10 k, and weighs 100 k in the output."""
    net = Mlp(hidden=4)
    net[0].weight.copy_(torch.arange(1.0, 5).reshape(4, 1).expand(4, 4))
    net[0].bias.copy_(torch.arange(0.0, 40, 10))
    net[2].weight.copy_(torch.arange(0.0, 400, 100).expand(2, 4))
    net[2].bias.copy_(torch.tensor([7.0, 8.0]))
    return net, sc.prune(net, torch.ones(1, 4), keep=0.5)


def test_the_entries_by_hand() -> None:
    """Units 2 and 3 stay, which have the largest weights; of the output's weights the first two columns go."""
    net, result = small()
    assert result.plan.units["0.weight:0"].tolist() == [2, 3]
    assert positions("2.weight", (2, 4), [result.plan]).tolist() == [2, 3, 6, 7]
    dense = bits(net)
    found = split(dense, bits(result.model), [result.plan], None)
    assert {name: tensor.tolist() for name, tensor in found.removed.items()} == {
        "0.weight": [1.0] * 4 + [2.0] * 4,
        "0.bias": [0.0, 10.0],
        "2.weight": [0.0, 100.0, 0.0, 100.0],
    }
    assert found.kept == {}
    with torch.no_grad():
        result.model[2].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        result.model[2].bias[0] = 9.0
    found = split(dense, bits(result.model), [result.plan], None)
    assert {name: tensor.tolist() for name, tensor in found.kept.items()} == {
        "2.weight": [200.0, 300.0, 200.0, 300.0],
        "2.bias": [7.0, 8.0],
    }
    whole = joined("2.weight", (2, 4), [result.plan], result.model[2].weight.detach(), found.removed["2.weight"])
    assert whole.tolist() == [[0.0, 100.0, 1.0, 2.0], [0.0, 100.0, 3.0, 4.0]]


@pytest.mark.parametrize("make", [Mlp, Cnn, Residual, Attention, Tied, LiteralNet])
@pytest.mark.parametrize("place", ["directory", "file.safetensors"])
def test_a_bare_pruning_is_undone_to_the_bit(make: type[nn.Module], place: str, tmp_path: Path) -> None:
    dense = make().eval()
    wanted = bits(dense)
    sc.save(sc.prune(dense, example(dense), keep=0.5), tmp_path / place, keep_removed=True)
    again = sc.undo(tmp_path / place, model=make())
    assert same(again, wanted)
    assert history(again)[-1]["restored"] == "dense"
    sc.save(again, tmp_path / "again")
    assert same(sc.load(tmp_path / "again", model=make()), wanted)


def test_refitted_and_trained_weights(tmp_path: Path) -> None:
    """All old values are kept, so the dense model comes back; or the present ones with the slices between them."""
    net, _ = small()
    wanted = bits(net)
    result = sc.prune(net, torch.ones(1, 4), keep=0.5, data=[torch.randn(64, 4)])
    with torch.no_grad():
        result.model[0].bias += 1.0
    sc.save(result, tmp_path / "all", keep_removed=True)
    assert same(sc.undo(tmp_path / "all", model=Mlp(4)), wanted)
    trained = sc.undo(tmp_path / "all", model=Mlp(4), restore="trained")
    assert trained[0].bias.tolist() == [0.0, 10.0, *result.model[0].bias.tolist()]  # type: ignore[index]
    assert torch.equal(trained[2].weight[:, 2:], result.model[2].weight)  # type: ignore[index]
    assert torch.equal(trained[2].weight[:, :2], wanted["2.weight"][:, :2])  # type: ignore[index]
    assert history(trained)[-1]["restored"] == "trained"


def test_slices_alone(tmp_path: Path) -> None:
    net, result = small()
    wanted = bits(net)
    sc.save(result, tmp_path / "bare", keep_removed="slices")
    assert same(sc.undo(tmp_path / "bare", model=Mlp(4), restore="dense"), wanted), "nothing has changed since"
    with torch.no_grad():
        result.model[2].bias += 1.0
    sc.save(result, tmp_path / "changed", keep_removed="slices")
    assert "kept/2.bias" not in read_tensors(tmp_path / "changed", "removed")
    with pytest.raises(ArtifactError, match="holds the removed slices alone, and the rest has changed since"):
        sc.undo(tmp_path / "changed", model=Mlp(4), restore="dense")
    trained = sc.undo(tmp_path / "changed", model=Mlp(4))
    assert trained[2].bias.tolist() == [8.0, 9.0]  # type: ignore[index]
    assert torch.equal(trained[2].weight, wanted["2.weight"])  # type: ignore[index]


def test_a_loaded_result_keeps_on_keeping(tmp_path: Path) -> None:
    """Old values that were not stored, since nothing had changed, are not lost by training after loading."""
    net, result = small()
    wanted = bits(net)
    sc.save(result, tmp_path / "first", keep_removed=True)
    loaded = sc.load(tmp_path / "first", model=Mlp(4))
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.mul_(3.0)
    sc.save(copy.deepcopy(loaded), tmp_path / "second", keep_removed=True)
    assert same(sc.undo(tmp_path / "second", model=Mlp(4)), wanted)
    sc.save(loaded, tmp_path / "third")
    with pytest.raises(ArtifactError, match=r"does not hold what was removed: save results with keep_removed=True"):
        sc.undo(tmp_path / "third", model=Mlp(4))


def test_two_prunings_and_new_biases(tmp_path: Path) -> None:
    class Plain(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(4, 8, bias=False), nn.Sigmoid(), nn.Linear(8, 3, bias=False))

    dense = Plain().eval()
    wanted = bits(dense)
    first = sc.prune(dense, torch.randn(1, 4), keep=0.75, data=[torch.randn(64, 4)], compensate="mean")
    second = sc.prune(first.model, torch.randn(1, 4), keep=0.5)
    assert first.plan.biases == ("2.bias",)
    with pytest.raises(ArtifactError, match="has not the weights that were pruned"):
        sc.save(second, tmp_path / "twice", keep_removed=True)
    sc.save(second, tmp_path / "twice", keep_removed=True, dense=dense)
    assert same(sc.undo(tmp_path / "twice", model=Plain()), wanted)
    trained = sc.undo(tmp_path / "twice", model=Plain(), restore="trained")
    assert torch.equal(trained[2].bias, second.model[2].bias)  # type: ignore[index]
    sc.save(trained, tmp_path / "again")
    x = torch.randn(5, 4)
    assert torch.equal(sc.load(tmp_path / "again", model=Plain())(x), trained(x))


def test_weights_of_queries_lose_their_factor(tmp_path: Path) -> None:
    """Head size 4 of 8 stays: queries carry the root of a half, which undoing takes away again."""

    class Plainly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(6, 8) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (part(x)[:, None] for part in (self.q, self.k, self.v))
            return nn.functional.scaled_dot_product_attention(q, k, v)[:, 0].sum(-1)

    dense = Plainly().eval()
    x = torch.randn(2, 5, 6)
    graph = sc.trace(dense, x)
    name = next(n for n in graph.axes if n.startswith("q.weight"))
    plan = make_plan(graph, {name: torch.tensor([0, 2, 5, 7])})
    assert [scale.tensor.partition(".")[0] for scale in plan.scales] == ["q", "q"]
    model = plan.apply(dense)
    sc.save(model, tmp_path / "half", args=x, keep_removed="slices", dense=dense)
    trained = sc.undo(tmp_path / "half", model=Plainly(), restore="trained")
    torch.testing.assert_close(trained.q.weight, dense.q.weight)
    assert torch.equal(trained.k.weight, dense.k.weight)
    assert same(sc.undo(tmp_path / "half", model=Plainly(), restore="auto"), bits(trained))


def test_what_was_removed_is_gone(tmp_path: Path) -> None:
    result = small()[1]
    with pytest.raises(ArtifactError, match=r"what was removed is not known any more\. Pass dense="):
        sc.save(result.model, tmp_path / "model", keep_removed=True)
    net, result = small()
    with torch.no_grad():
        net[0].bias[0] = 5.0
    with pytest.raises(ArtifactError, match="has not the weights that were pruned"):
        sc.save(result, tmp_path / "changed", keep_removed=True)
    assert not (tmp_path / "changed").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("removed/0.bias"), "not those of a tensor of shape"),
        (lambda t: t.update({"removed/0.bias": torch.zeros(3)}), "not those of a tensor of shape"),
        (lambda t: t.update({"removed/0.bias": torch.zeros(2, dtype=torch.float64)}), "torch.float64, the rest not"),
        (lambda t: t.update({"removed/0.bias": torch.ones(2)}), "does not give the weights that were pruned"),
        (lambda t: t.update({"other": torch.zeros(2)}), "is not called removed/NAME or kept/NAME"),
        (lambda t: t.pop("complete"), "nothing says whether they are complete"),
    ],
)
def test_damaged_slices(change: object, message: str, tmp_path: Path) -> None:
    """With hashes that fit, as an attacker would make them."""
    place = tmp_path / "half"
    _dense, result = small()
    sc.save(result, place, keep_removed=True)
    tensors = read_tensors(place, "removed")
    change(tensors)  # type: ignore[operator]
    add_tensors(place, "removed", tensors)
    with pytest.raises(ArtifactError, match=message):
        sc.undo(place, model=Mlp(4))


def test_another_architecture_and_a_wrong_word(tmp_path: Path) -> None:
    _dense, result = small()
    sc.save(result, tmp_path / "half", keep_removed=True)
    with pytest.raises(ArtifactError, match="another architecture"):
        sc.undo(tmp_path / "half", model=Mlp(5))
    with pytest.raises(ArtifactError, match="restore='never'"):
        sc.undo(tmp_path / "half", model=Mlp(4), restore="never")  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match="does not say how .* is built"):
        sc.undo(tmp_path / "half")


def test_what_is_kept_reads_back() -> None:
    found = Removed(removed={"a": torch.ones(2)}, kept={"b.c": torch.zeros(1)}, complete=True)
    again = Removed.from_tensors(found.to_tensors())
    assert again.complete
    assert again.removed["a"].tolist() == [1.0, 1.0]
    assert again.kept["b.c"].tolist() == [0.0]
