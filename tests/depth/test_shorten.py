"""Whole blocks go, and the rest computes what it did with these skipped."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import NothingToPrune, PlanError, UnreachableBudget
from support.blocks import Keyed, Mixing, PostNorm, SmallResNet, Stack

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def without(model: Stack, gone: set[int]) -> Tensor:
    """What the model computes without some blocks, by hand."""
    x = model.embed(X)
    for k, block in enumerate(model.blocks):
        x = x if k in gone else block(x)
    return model.head(x)


def test_the_rest_computes_what_it_did() -> None:
    model = Stack()
    result = sc.shorten(model, X, importance=["blocks.1", "blocks.2"])
    assert torch.equal(result.model(X), without(model, {1, 2}))
    assert result.proof.status == "proved"
    assert result.proof.dtype == "float64"
    assert result.dropped == ("blocks.1", "blocks.2")


def test_what_counts_the_blocks_follows_and_what_happens_to_be_as_many_does_not() -> None:
    class Four(Stack):
        def __init__(self) -> None:
            super().__init__()
            self.classes = 4  # as many as there are blocks

    result = sc.shorten(Four(), X, blocks=1, importance="random")
    assert (result.model.depth, result.model.classes) == (3, 4)
    assert [block.index for block in result.model.blocks] == [0, 1, 2]


def test_the_model_given_is_untouched() -> None:
    model = Stack().train()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    result = sc.shorten(model, X, blocks=2, data=[X])
    assert result.model.training
    assert model.training
    assert len(model.blocks) == model.depth == 4
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert result.model.blocks[0].inner.weight.data_ptr() not in {p.data_ptr() for p in model.parameters()}


def test_random_states_stay() -> None:
    before = torch.get_rng_state()
    model = nn.Sequential(Mixing(), Mixing(), nn.Linear(8, 2))
    nn.init.zeros_(model[2].weight)  # a head of zeros: the comparison takes other weights
    nn.init.zeros_(model[2].bias)
    torch.set_rng_state(before)
    x = torch.ones(2, 8)
    assert sc.shorten(model, x, blocks=1, importance="random").proof.scale > 0
    sc.deepen(model, "0", x)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_least_influential_goes() -> None:
    model = Stack()
    for k, scale in enumerate((1.0, 0.001, 1.0, 0.1)):
        with torch.no_grad():
            model.blocks[k].outer.weight *= scale
            model.blocks[k].outer.bias *= scale
    result = sc.shorten(model, X, blocks=2, data=[X])
    assert result.dropped == ("blocks.1", "blocks.3")
    assert result.scores["blocks.1"] < result.scores["blocks.3"] < result.scores["blocks.0"]
    assert result.report["depth"]["importance"] == "influence"
    assert "2 blocks of 4 that could go went by their influence: blocks.1, blocks.3." in " ".join(str(result).split())
    assert "with the blocks that went skipped" in " ".join(str(result).split())


def test_by_the_loss() -> None:
    model = Stack()
    target = without(model, {2}).detach()
    result = sc.shorten(
        model, X, blocks=1, importance="loss", data=[(X, target)], loss=lambda out, y: (out - y).square().mean()
    )
    assert result.dropped == ("blocks.2",)
    assert result.scores["blocks.2"] < 0


def test_scoring_again() -> None:
    model = Stack()
    with torch.no_grad():  # two blocks that cancel each other: neither may go alone, nor the second after the first
        for block in model.blocks:
            block.outer.weight *= 0.01
            block.outer.bias.fill_(0)
        model.blocks[0].outer.bias.fill_(0.3)
        model.blocks[1].outer.bias.fill_(0.2)
    target = without(model, {0}).detach()
    data = [(X, target)]

    def squares(out: Tensor, y: Tensor) -> Tensor:
        return (out - y).square().mean()

    once = sc.shorten(model, X, blocks=2, importance="loss", data=data, loss=squares)
    again = sc.shorten(model, X, blocks=2, importance="loss", data=data, loss=squares, rescore=True)
    assert once.dropped == ("blocks.0", "blocks.1")
    assert "blocks.0" in again.dropped
    assert "blocks.1" not in again.dropped


@pytest.mark.parametrize(("keep", "left"), [(0.75, 3), (0.5, 2), (0.3, 1)])
def test_a_share_of_the_blocks(keep: float, left: int) -> None:
    assert len(sc.shorten(Stack(), X, keep=keep, importance="random").model.blocks) == left


def test_a_budget_is_met_by_as_few_blocks_as_it_takes() -> None:
    # embed 40, head 27, each of the four blocks 8 * 12 + 12 + 12 * 8 + 8 = 212: 915, without two 491
    result = sc.shorten(Stack(), X, budget=sc.Budget(params=491), importance="random")
    assert sum(p.numel() for p in result.model.parameters()) == 491
    assert len(sc.shorten(Stack(), X, budget=sc.Budget(params=490), importance="random").model.blocks) == 1
    assert len(sc.shorten(Stack(), X, budget=sc.Budget(macs=0.99, bytes=0.99), importance="random").model.blocks) == 3


def test_a_budget_of_latency() -> None:
    result = sc.shorten(Stack(24), X, budget=sc.Budget(latency=0.9), importance="random")
    assert 1 <= len(result.model.blocks) < 24


def test_an_unreachable_budget() -> None:
    with pytest.raises(UnreachableBudget, match="without all 3 blocks that can go the model still costs params"):
        sc.shorten(Stack(), X, budget=sc.Budget(params=100), importance="random")


def test_convolutions() -> None:
    model = SmallResNet().eval()
    x = torch.randn(2, 3, 8, 8)
    result = sc.shorten(model, x, blocks=1, data=[x], compensate=None)
    assert len(result.model.stage) == 2
    assert list(result.scores) == ["stage.0", "stage.1", "stage.2"]
    kept = [block for k, block in enumerate(model.stage) if f"stage.{k}" not in result.dropped]
    wanted = model.head(nn.Sequential(*kept)(model.stem(x)).mean((2, 3)))
    assert torch.allclose(result.model(x), wanted, atol=1e-6)


def test_a_stream_by_keyword_and_outputs_besides() -> None:
    model = Keyed()
    result = sc.shorten(model, X, blocks=1, importance="random")
    kept = [k for k in range(3) if f"layers.{k}" not in result.dropped]
    x = model.embed(X)
    for k in kept:
        x = model.layers[k](scale=0.5, stream=x)[0]
    assert torch.equal(result.model(X), x)


def test_blocks_that_normalise_their_sum_can_go() -> None:
    result = sc.shorten(nn.Sequential(PostNorm(), PostNorm()), torch.randn(3, 8), blocks=1, importance="random")
    assert len(result.model) == 1


@pytest.mark.parametrize(
    ("model", "x", "why"),
    [
        (nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), torch.randn(2, 8), "0: it is not residual"),
        (nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2)), torch.randn(2, 8), "nothing of the shape of an input"),
        (nn.Linear(8, 8), torch.randn(2, 8), "no nn.Sequential or nn.ModuleList"),
    ],
)
def test_what_is_no_block(model: nn.Module, x: Tensor, why: str) -> None:
    with pytest.raises(NothingToPrune, match=why):
        sc.shorten(model, x, blocks=1, importance="random")


class Repeating(nn.Module):
    """Runs its second block twice, and never its last one."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Mixing() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks[2](self.blocks[1](self.blocks[1](self.blocks[0](x))))


def test_blocks_in_odd_use_are_refused_with_reasons() -> None:
    with pytest.raises(NothingToPrune) as caught:
        sc.shorten(Repeating(), torch.randn(2, 8), blocks=1, importance="random")
    assert "blocks.1: it is called 2 times" in str(caught.value)
    assert "blocks.0: the" in str(caught.value)  # the others would move up to its place


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({}, "exactly one of"),
        ({"blocks": 1, "keep": 0.5}, "blocks and keep given"),
        ({"blocks": 0}, "from 1"),
        ({"blocks": True}, "from 1"),
        ({"keep": 1.0}, "in \\(0, 1\\)"),
        ({"keep": 0.99, "importance": "random"}, "of 4 blocks is all of them"),
        ({"blocks": 4, "importance": "random"}, "only 3 of this Stack can"),
        ({"blocks": 1}, "pass data="),
        ({"blocks": 1, "importance": "size"}, "influence, loss, random"),
        ({"importance": []}, "at least one block"),
        ({"importance": ["blocks.0", "blocks.0"]}, "each once"),
        ({"importance": ["blocks.0"], "blocks": 1}, "leave it out"),
        ({"importance": [f"blocks.{k}" for k in range(4)]}, "nothing would be left of blocks"),
        ({"importance": ["blocks.9"]}, "there is no module blocks.9"),
        ({"importance": ["head"]}, "head: it is in no nn.Sequential"),
    ],
)
def test_misuse(how: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        sc.shorten(Stack(), X, **how)
