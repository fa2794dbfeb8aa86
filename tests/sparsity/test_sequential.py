"""A model block by block is what it is as a whole; sums of two processes are those of one."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import DataError
from secateur.sparsity import sequential
from secateur.sparsity.layers import find_layers
from secateur.sparsity.passing import find_uses
from secateur.sparsity.pruning import How
from secateur.sparsity.sequential import Work, prune_along
from secateur.sparsity.statistics import Statistics


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).relu())


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block(), Block())


@dataclass
class Given:
    """What a block is run on."""

    number: int
    given: Tensor

    def run(self, model: nn.Module) -> Any:
        return model(self.given)


def batches() -> list[Tensor]:
    return list(torch.randn(3, 20, 8, generator=torch.Generator().manual_seed(1)))


HOW = How(pattern=sc.Unstructured(), rate=None, compensate="sparsegpt")


def pruned(block: nn.Module, calls: list[Given], **more: Any) -> list[Tensor]:
    """Prune a block in place by a half; its outputs."""
    layers = find_layers(block).chosen
    work = Work(layers=layers, how=HOW, remove={n: x.parameter.numel() // 2 for n, x in layers.items()}, **more)
    return prune_along(block, calls, work, find_uses(block, layers, calls))


def test_block_by_block_gives_the_same_bits():
    whole = sc.sparsify(net(), data=batches(), compensate="sparsegpt").model
    parts, states = net(), batches()
    for block in parts:
        states = pruned(block, [Given(k, x) for k, x in enumerate(states)])
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))
    assert all(torch.equal(x, whole(batch).detach()) for x, batch in zip(states, batches(), strict=True))


def test_sums_can_be_shared():
    """Each of two processes has a part of the data, and adds what the other has seen."""
    x = batches()
    whole, part, seen = Block(), Block(), list[Statistics]()
    part.load_state_dict(whole.state_dict())
    other = Block()
    other.load_state_dict(whole.state_dict())

    def note(found: Statistics) -> None:
        rest = Statistics()
        rest.add((torch.cat(x[1:]) if not seen else other.up(torch.cat(x[1:])).relu().detach())[:, None], gram=True)
        seen.append(rest)
        found.merge(rest)
        assert found.rows == 60

    pruned(whole, [Given(k, batch) for k, batch in enumerate(x)])
    other.up.load_state_dict(whole.up.state_dict())
    pruned(part, [Given(0, x[0])], share=note)
    for a, b in zip(whole.parameters(), part.parameters(), strict=True):
        assert torch.equal(a != 0, b != 0)
        assert torch.allclose(a, b, atol=1e-5)


def test_more_batches_than_threads_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sequential, "THREADS", 2)
    with pytest.raises(DataError, match="3 batches are more than 2, which can run side by side"):
        sc.sparsify(net(), data=batches(), importance="wanda")


def test_a_failure_in_a_run_is_told_and_ends_all_of_them():
    class Odd(Block):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[0] == 5:
                self.up(x)
                raise ValueError("no fives")
            return super().forward(x)

    with pytest.raises(DataError, match="fails on batch 1 of the calibration data.*no fives"):
        sc.sparsify(Odd(), data=[torch.randn(4, 8), torch.randn(5, 8)], importance="wanda")
    import threading

    assert threading.active_count() < 5


def test_experts_that_only_some_batches_reach():
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.first(x) if float(x[0, 0]) > 0 else self.second(x))

    x = batches()
    for k, batch in enumerate(x):
        batch[0, 0] = 1.0 if k == 1 else -1.0
    result = sc.sparsify(Experts(), data=x, compensate="sparsegpt")
    rows = {row["name"]: row["rows"] for row in result.report["sparsity"]["layers"]}
    assert rows == {"first.weight": 20, "second.weight": 40, "out.weight": 60}
