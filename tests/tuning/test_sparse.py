"""``sc.tune`` and masks: zeros stay, masks that are chosen in training, averages, best states, checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import TrainingError
from secateur.sparsity import GradualSparsity, StraightThrough, broken_patterns, sparsity_of, zero_masks
from secateur.tuning import Callback, tune


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 4))


def batches(count: int = 6) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, 16, 8, generator=generator)
    return [(one, one[:, :4].argmax(1)) for one in x]


def sparse(**options: Any) -> nn.Module:
    return sc.sparsify(net(), **options).model


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_zeros_stay_by_default(optimizer):
    result = sc.sparsify(net(), pattern=sc.NM(2, 4))
    model, masks = result.model, result.masks
    before = model[0].weight.detach().clone()
    tune(result, batches(), epochs=3, lr=0.05, optimizer=optimizer, weight_decay=0.1, device="cpu")
    assert all(torch.equal(zero_masks(model)[name], mask) for name, mask in masks.items())
    assert not torch.equal(before, model[0].weight)


def test_they_train_where_that_is_asked_for():
    model = sparse()
    tune(model, batches(), epochs=1, lr=0.05, keep_zeros=False, device="cpu")
    assert sparsity_of(model) == 0


@pytest.mark.parametrize(
    "options",
    [
        {"lr": "auto", "optimizer": "auto", "validate": batches(2)},
        {"ema": 0.9, "validate": batches(2)},
        {"train_only": "low-rank"},
        {"train_only": ["0"], "clip": 0.1, "accumulate": 2},
        {"precision": "bf16"},
    ],
    ids=["range test", "average", "low-rank", "some, clipped", "bf16"],
)
def test_with_whatever_else_is_asked_for(options):
    model = sparse(sparsity=0.75)
    masks, before = zero_masks(model), model[0].weight.detach().clone()
    tune(model, batches(), **{"epochs": 2, "lr": 0.02, "keep": "last", "device": "cpu", **options})
    assert all(torch.equal(zero_masks(model)[name], mask) for name, mask in masks.items())
    assert not torch.equal(before, model[0].weight)


def test_low_rank_changes_fill_zeros_only_where_asked():
    model = sparse()
    tune(model, batches(), epochs=1, lr=0.1, train_only="low-rank", keep_zeros=False, device="cpu")
    assert sparsity_of(model) == 0


class Sparsities(Callback):
    """The zeros that validation and the best state see."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def before_validation(self, run: Any) -> None:
        self.seen.append(sum(float((m.weight == 0).sum()) for m in run.model if isinstance(m, nn.Linear)) / 192)


@pytest.mark.parametrize("ema", [None, 0.9], ids=["", "average"])
def test_gradual(ema):
    """4 epochs of 6 steps, sparse from step 15 on: the best state is of epoch 3 or 4, and validation saw it sparse."""
    model, seen = net(), Sparsities()
    history = tune(
        model, batches(), batches(2), epochs=4, lr=0.05, ema=ema, patience=1, device="cpu",
        callbacks=[GradualSparsity(0.75, end=15, every=1), seen],
    )  # fmt: skip
    assert sparsity_of(model) == 0.75
    assert history.best_epoch >= 3
    assert len(history.epochs) == 4
    assert seen.seen[0] == 0 < seen.seen[1] < seen.seen[2] < seen.seen[3] == seen.seen[4] == 0.75


@pytest.mark.parametrize("ema", [None, 0.9], ids=["", "average"])
def test_straight_through(ema):
    model, seen = net(), Sparsities()
    history = tune(
        model, batches(), batches(2), epochs=3, lr=0.05, ema=ema, device="cpu", callbacks=[StraightThrough(), seen]
    )
    assert sparsity_of(model) == 0.5
    assert broken_patterns(model) == {}
    assert history.best_epoch >= 1  # the dense state that it came with is no candidate
    assert seen.seen == [0, 0.5, 0.5, 0.5]


def test_straight_through_from_a_sparse_model_may_choose_others():
    model = sparse(pattern=sc.NM(2, 4), importance="random")
    before = zero_masks(model)["0.weight"]
    tune(model, batches(), epochs=3, lr=0.05, keep="last", device="cpu", callbacks=[StraightThrough()])
    assert not torch.equal(before, zero_masks(model)["0.weight"])
    assert broken_patterns(model) == {}


def test_what_straight_through_does_not_choose_is_kept():
    model = sparse(sparsity=0.75)
    before = zero_masks(model)
    tune(model, batches(), epochs=2, lr=0.05, keep="last", device="cpu", callbacks=[StraightThrough(only=["4"])])
    after = zero_masks(model)
    assert torch.equal(before["0.weight"], after["0.weight"])
    assert int(after["4.weight"].sum()) == 32 > int(before["4.weight"].sum())


def test_gradual_from_a_sparse_model_goes_on_from_there():
    model = sparse(sparsity=0.5)
    before = zero_masks(model)["0.weight"]
    tune(model, batches(), epochs=2, lr=0.05, device="cpu", callbacks=[GradualSparsity(0.75, end=8)])
    after = zero_masks(model)["0.weight"]
    assert sparsity_of(model) == 0.75
    assert not (after & ~before).any()


def test_too_short_a_training():
    model = net()
    with pytest.raises(TrainingError, match="after end=99 steps, but training has 6"):
        tune(model, batches(), epochs=1, lr=0.05, device="cpu", callbacks=[GradualSparsity(0.5, end=99)])
    assert zero_masks(model) == {}


class CutOff(Exception):
    pass


class Cut(Callback):
    def __init__(self, at: int | None) -> None:
        self.at = at

    def after_step(self, run: Any) -> None:
        if run.step == self.at:
            raise CutOff


def run(kind: str, folder: Path | None, cut: int | None, ema: float | None) -> dict[str, Tensor]:
    model = sparse() if kind == "kept" else net()
    added = {
        "kept": list,
        "gradual": lambda: [GradualSparsity(0.75, end=15, every=2, importance="random")],
        "straight-through": lambda: [StraightThrough(decay=0.01)],
    }[kind]
    options = {"epochs": 4, "lr": 0.05, "ema": ema, "checkpoints": folder, "every": 5, "device": "cpu"}
    try:
        tune(model, batches(), batches(2), callbacks=[*added(), Cut(cut)], **options)
    except CutOff:
        model = sparse() if kind == "kept" else net()
        tune(model, batches(), batches(2), callbacks=[*added(), Cut(None)], **options)
    return model.state_dict()


@pytest.mark.parametrize(("kind", "ema"), [("kept", 0.9), ("gradual", 0.9), ("straight-through", None)])
def test_resumed_runs_end_with_the_same_bits(kind, ema, tmp_path):
    whole = run(kind, None, None, ema)
    for cut in (8, 18):
        resumed = run(kind, tmp_path / str(cut), cut, ema)
        assert all(torch.equal(resumed[name], value) for name, value in whole.items()), cut


@pytest.mark.parametrize("make", [lambda: GradualSparsity(0.75, end=15, every=2), StraightThrough])
def test_one_callback_for_two_trainings(make):
    callback = make()
    again, fresh = net(), net()
    tune(sparse(sparsity=0.25), batches(), epochs=3, lr=0.05, device="cpu", callbacks=[callback])
    for model, used in ((again, callback), (fresh, make())):
        tune(model, batches(), batches(2), epochs=3, lr=0.05, device="cpu", callbacks=[used])
    assert sparsity_of(again) == (0.5 if isinstance(callback, StraightThrough) else 0.75)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in fresh.state_dict().items())


def test_stopped_before_the_end_it_says_how_far_it_came():
    class Stop(Callback):
        def after_step(self, run: Any) -> None:
            if run.step == 8:
                raise KeyboardInterrupt

    model = net()
    history = tune(
        model, batches(), batches(2), epochs=4, lr=0.05, device="cpu",
        callbacks=[GradualSparsity(0.75, end=15, every=1), Stop()],
    )  # fmt: skip
    assert history.interrupted
    assert history.best_epoch == 0
    # the callback before has made its step, so 8 of 15 count
    assert sparsity_of(model) == pytest.approx(0.75 - 0.75 * (1 - 8 / 15) ** 3, abs=3e-3)
