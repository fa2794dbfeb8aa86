"""Runs that wait for each other: order, changes of weights on the way, errors, ends, and what follows a use."""

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.calibration.batches import Batch, Batches
from secateur.calibration.lockstep import Run
from secateur.calibration.sites import Follows, find_followers
from secateur.calibration.watching import running
from secateur.compensation.company import Company, Pair
from secateur.compensation.matching import Match


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1)
        self.after, self.head = nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        x = x + self.after(self.down(F.relu(self.norm(self.up(x)))))
        return self.head(x.mean((2, 3)))


def block() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return running(Block()), torch.randn(3, 4, 5, 5)


def test_a_run_waits_at_every_use_and_sees_what_is_set_meanwhile() -> None:
    model, x = block()
    with torch.no_grad():
        want = model(x)
        outputs: list[Tensor] = []
        run = Run(model, lambda: outputs.append(model(x)), {}, before=True)
        keys: list[str] = []
        while (pause := run.advance()) is not None:
            assert pause.out is None
            keys.append(pause.key[0])
            if pause.key[0] == "head.weight":
                pause.use.put(torch.zeros_like(pause.use.matrix()))
    assert keys == ["up.weight", "down.weight", "head.weight"]
    assert not torch.equal(outputs[0], want)
    assert torch.equal(outputs[0], model.head.bias.expand(3, 2))  # type: ignore[union-attr, operator]


def test_errors_of_the_model_come_out_and_runs_can_be_stopped_anywhere() -> None:
    model, x = block()
    run = Run(model, lambda: model(x[:, :3]), {}, before=False)
    with pytest.raises(RuntimeError, match="size"):
        run.advance()
    before = threading.active_count()
    for steps in range(4):
        run = Run(model, lambda: model(x), {}, before=False)
        for _ in range(steps):
            run.advance()
        run.stop()
    assert threading.active_count() == before


def test_what_follows_a_use() -> None:
    model, x = block()
    found = find_followers(model, lambda m: m(x))
    up, down, head = (found.of[f"{name}.weight", 0] for name in ("up", "down", "head"))
    assert up.norm is not None
    assert (up.norm.mean, up.norm.weight, up.other, up.sum) == ("norm.running_mean", "norm.weight", None, None)
    assert down.norm is not None
    assert down.norm.mean == "after.running_mean"
    assert down.other is not None
    assert down.sum is not None
    assert head == Follows()
    assert not found.shared
    assert found.bytes["up.weight", 0] >= x.nbytes


def test_the_summand_is_known_at_the_use_in_every_run() -> None:
    model, x = block()
    follows = find_followers(model, lambda m: m(x)).of
    for before in (False, True):
        run = Run(model, lambda: model(x), follows, before=before)
        others = {}
        while (pause := run.advance()) is not None:
            others[pause.key[0]] = pause.other
        assert others["up.weight"] is None
        assert torch.equal(others["down.weight"], x * 2)


def test_moved_dims_are_followed_to_the_sum() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x.abs() + self.mix(x.transpose(0, 1)).transpose(0, 1)

    found = find_followers(Net(), lambda m: m(torch.randn(2, 3, 4))).of["mix.weight", 0]
    assert found.moves == ((1, 0, 2),)
    assert found.other is not None
    assert found.bias in (None, "mix.bias")


def company(model: nn.Module, sizes: list[int], held: int, memory: int) -> tuple[Company, list[str]]:
    batches = list(Batches(model, [torch.randn(n, 4, 5, 5) for n in sizes], None))
    started: list[str] = []

    def start(batch: Batch) -> Pair:
        started.append(f"{batch.number}")
        runs = [Run(model, lambda: batch.run(model), {}, before=before) for before in (False, True)]
        return Pair(batch, *runs, {key: Match(key=key) for key in order})

    order: dict[Any, int] = {("up.weight", 0): 3 * held, ("down.weight", 0): held, ("head.weight", 0): 1}
    return Company(batches, start, order, memory), started


def test_as_many_pairs_take_part_as_there_is_memory_for() -> None:
    model, _ = block()
    group, started = company(model, [2, 3, 4, 5], held=10, memory=30)
    with torch.no_grad():
        seen = [(key[0], [len(dense.use.x) for dense, _ in pairs]) for key, pairs in group]
    assert seen == [("up.weight", [2]), ("down.weight", [2, 3, 4]), ("head.weight", [2, 3, 4, 5])]
    assert started == ["0", "1", "2", "3"]
    assert group.samples == 14
    group.stop()


def test_pairs_leave_where_memory_runs_out_and_come_back() -> None:
    model, _ = block()
    group, started = company(model, [2, 3], held=1, memory=10**9)
    group.held = dict(zip(group.held, (1, 10**9, 1), strict=True))
    with torch.no_grad():
        seen = [(key[0], [len(dense.use.x) for dense, _ in pairs]) for key, pairs in group]
    assert seen == [("up.weight", [2, 3]), ("down.weight", [2]), ("head.weight", [2, 3])]
    assert started == ["0", "1", "1"]
    group.stop()


def test_runs_that_go_different_ways_are_met_where_they_agree() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.left, self.right, self.last = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.last(self.left(x) if len(x) == 2 else self.right(x))

    model = running(Fork())
    batches = list(Batches(model, [torch.randn(n, 4) for n in (2, 3, 2)], None))
    order: dict[Any, int] = {(f"{name}.weight", 0): 1 for name in ("first", "left", "right", "last")}

    def start(batch: Batch) -> Pair:
        runs = [Run(model, lambda: batch.run(model), {}, before=before) for before in (False, True)]
        return Pair(batch, *runs, {key: Match(key=key) for key in order})

    group = Company(batches, start, order)
    with torch.no_grad():
        seen = [(key[0], len(pairs)) for key, pairs in group]
    assert seen == [("first.weight", 3), ("left.weight", 2), ("right.weight", 1), ("last.weight", 3)]
    group.stop()


def test_a_run_makes_tensors_where_its_owner_does() -> None:
    model, _ = block()
    found: list[torch.device] = []
    with torch.device("meta"):
        run = Run(model, lambda: found.append(torch.ones(1).device), {}, before=True)
    assert run.advance() is None
    assert found == [torch.device("meta")]


def test_a_run_that_was_stopped_holds_no_activations() -> None:
    model, x = block()
    run = Run(model, lambda: model(x), find_followers(model, lambda m: m(x)).of, before=False)
    assert run.advance() is not None
    run.stop()
    assert run.pause is None
    assert not run.watch.known


def test_small_batches_do_not_take_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.compensation.company.PAIRS", 3)
    monkeypatch.setattr("secateur.compensation.company.THREADS", 0)
    model, _ = block()
    batches = list(Batches(model, [torch.randn(1, 4, 5, 5) for _ in range(8)], None))

    def start(batch: Batch) -> Pair:
        dense, small = (Run(model, lambda: batch.run(model), {}, before=before) for before in (False, True))
        return Pair(batch, dense, small, {key: Match(key=key) for key in order})

    order = dict.fromkeys([("up.weight", 0), ("down.weight", 0), ("head.weight", 0)], 1)
    company = Company(batches, start, order)
    assert [len(met) for _, met in company] == [3, 3, 3]
    company.stop()
