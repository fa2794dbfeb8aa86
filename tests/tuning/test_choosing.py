"""The learning rate and the optimizer by evidence: range tests, searches, and that a choice is made once."""

import builtins
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from secateur.data.batches import Batches, TensorSource
from secateur.errors import MissingExtra, OutputError, SecateurError, TrainingError
from secateur.tuning import Callback, Distillation, History, LowRank, Search, tune
from secateur.tuning.choosing import better
from secateur.tuning.ranging import noise, read, smoothed, steps_for
from secateur.tuning.searching import pick

Any_ = dict[str, Any]


class CutOff(Exception):
    """Stands for a power cut."""


class Bowl(nn.Module):
    """A weight w whose loss is curvature / 2 * w^2."""

    def __init__(self, curvature: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(1))
        self.curvature = curvature

    def forward(self, x: Tensor) -> Tensor:
        return self.curvature / 2 * self.w**2 + 0 * x


def bowl_loss(output: Tensor, target: Any) -> Tensor:
    return output.mean()


def plain_sgd(parameters: Any, *, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr)


def blobs(count: int = 64, seed: int = 0, apart: float = 1.0) -> Batches:
    """Two classes in the plane."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    points = torch.randn(count, 2, generator=generator) + apart * (labels[:, None] * 2 - 1)
    return Batches(TensorSource(points, labels), range(count), batch_size=16, shuffle=True)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))


def state(model: nn.Module) -> Tensor:
    return torch.cat([value.detach().flatten().double() for value in model.state_dict().values()])


def fast(**settings: Any) -> Any_:
    return {"epochs": 2, "device": "cpu", **settings}


def small(**settings: Any) -> Search:
    """A search that only its number of trials ends."""
    return Search(**{"seconds": None, "trials": 6, "epochs": 2, "rates": (1e-4, 1e-1), **settings})


def choice_of(history: History) -> Any_:
    assert history.choice is not None
    return history.choice


# the rule


@pytest.mark.parametrize("curvature", [0.5, 5.0, 500.0])
def test_on_a_quadratic_the_rate_is_near_the_best_one(curvature: float) -> None:
    """Gradient descent on curvature / 2 * w^2 is fastest at 1 / curvature, and unstable above 2 / curvature."""
    batches = [torch.zeros(2, 1)] * 4
    history = tune(Bowl(curvature), batches, lr="auto", optimizer=plain_sgd, loss=bowl_loss, **fast())
    assert 0.5 / curvature <= choice_of(history)["lr"] <= 1.5 / curvature


def test_a_noisy_flat_curve_is_read_to_its_end() -> None:
    """Near an optimum the loss is noise until it explodes: neither its minimum nor its slope says anything."""
    generator = torch.Generator().manual_seed(0)
    rates = [10 ** (-6 + 7 * k / 99) for k in range(100)]
    for _ in range(20):
        losses = (0.2 + 0.05 * torch.randn(100, generator=generator)).tolist()
        curve = [
            (rate, loss if rate < 1e-2 else loss * (rate / 1e-2) ** 2) for rate, loss in zip(rates, losses, strict=True)
        ]
        reading = read(curve, 100)
        assert 5e-3 < reading.stable < 5e-2
        assert reading.lr == pytest.approx(reading.stable / 4, rel=0.05)
        assert reading.risen


def test_a_valley_is_read_at_its_bottom() -> None:
    rates = [10 ** (-6 + 7 * k / 99) for k in range(100)]
    losses = [abs(math.log10(rate) + 2) for rate in rates]  # lowest at 0.01
    assert read(list(zip(rates, losses, strict=True)), 100).stable == pytest.approx(1e-2, rel=0.5)


def test_parts_of_the_rule_by_hand() -> None:
    assert smoothed([1.0, 9.0, 2.0, 3.0], 1) == [5.0, 2.0, 3.0, 2.5]
    assert noise([0.0, 1.0, 0.0, 1.0]) == pytest.approx(2 / (0.6745 * math.sqrt(6)))
    generator = torch.Generator().manual_seed(0)
    drawn = (torch.arange(2000) * 0.1 + 3 * torch.randn(2000, generator=generator)).tolist()
    assert noise(drawn) == pytest.approx(3, rel=0.1)
    assert [steps_for(total) for total in (3, 70, 5000)] == [50, 70, 100]


def test_a_loss_that_diverges_from_the_start_is_an_error() -> None:
    batches = [(torch.full((4, 2), math.nan), torch.arange(4) % 2)] * 4
    with pytest.raises(TrainingError, match=r"no learning rate can be chosen: after 0 steps.*Look for NaN.*give lr="):
        tune(net(), batches, optimizer="sgd", **fast())
    with pytest.raises(TrainingError, match=r"adamw: no learning rate.*; sgd: no learning rate"):
        tune(net(), batches, **fast())


def test_a_loss_that_rises_with_any_rate_is_an_error() -> None:
    with pytest.raises(TrainingError, match=r"the loss rises from lr=1e-06 on|had exploded"):
        batches = [torch.zeros(2, 1)] * 4
        tune(Bowl(1e12), batches, lr="auto", optimizer=plain_sgd, loss=bowl_loss, **fast())


def test_errors_of_the_loader_are_no_divergence() -> None:
    class Broken:
        def __len__(self) -> int:
            return 4

        def __iter__(self) -> Iterator[Any]:
            yield from list(blobs())[:2]
            raise OSError("the disk is gone")

    with pytest.raises(TrainingError, match="the data loader raised at step 3 of 50.*the disk is gone"):
        tune(net(), Broken(), **fast())


# the optimizer


def test_ties_go_to_the_first() -> None:
    assert better([0.9, 1.9], [1.0, 2.0])
    assert not better([1.0, 2.0], [1.0, 2.0])
    assert not better([0.8, 2.1], [1.0, 2.0])
    assert better([1.0], [math.inf])
    assert not better([math.inf], [math.inf])


def test_where_optimizers_can_not_be_told_apart_it_is_adamw() -> None:
    """Without a gradient that matters, both end with the same losses."""

    class Constant(Bowl):
        def forward(self, x: Tensor) -> Tensor:
            return 1 + 0 * self.w + 0 * x

    history = tune(Constant(1.0), [torch.zeros(2, 1)] * 4, loss=bowl_loss, weight_decay=0.0, **fast())
    assert choice_of(history)["optimizer"] == "adamw"
    first, second = (row["final_loss"] for row in choice_of(history)["candidates"])
    assert first == second


def test_the_optimizer_with_the_lower_loss_is_taken() -> None:
    """Steps of Adam are as long as its rate, so that it hardly moves where weights of equal gradients lie far apart."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([1e4, 1e-3]))

        def forward(self, x: Tensor) -> Tensor:
            return 1e-4 * (self.w[:1] ** 2 + 1e8 * self.w[1:] ** 2) + 0 * x

    history = tune(Wide(), [torch.zeros(2, 1)] * 4, loss=bowl_loss, weight_decay=0.0, **fast())
    rows = {row["optimizer"]: row for row in choice_of(history)["candidates"]}
    ends = {name: row["final_loss"] for name, row in rows.items()}
    assert choice_of(history)["optimizer"] == min(ends, key=ends.__getitem__)
    assert choice_of(history)["lr"] == rows[choice_of(history)["optimizer"]]["lr"]


def test_a_rate_that_is_given_is_for_adamw_and_nothing_is_chosen() -> None:
    one, other = net(), net()
    history = tune(one, blobs(), lr=0.01, **fast())
    tune(other, blobs(), lr=0.01, optimizer="adamw", **fast())
    assert history.choice is None
    assert torch.equal(state(one), state(other))


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(TrainingError, match="lr='fast' must be a number, 'auto', or a Search"):
        tune(net(), blobs(), lr="fast", **fast())  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="unknown optimizer 'adamm'"):
        tune(net(), blobs(), optimizer="adamm", **fast())


# what it leaves


@pytest.mark.parametrize("what", ["all", "norms", LowRank(rank=1)])
def test_a_choice_is_deterministic_and_leaves_everything_as_found(what: Any) -> None:
    """Training with what was chosen gives the bits that it gives when the same is given."""

    def loader() -> Any:
        points, labels = next(iter(Batches(blobs().source, range(64), batch_size=64)))
        generator = torch.Generator().manual_seed(3)
        return DataLoader(TensorDataset(points, labels), batch_size=16, shuffle=True, generator=generator)

    one, other, third = net(), net(), net()
    settings = fast(train_only=what, teacher=net(1).eval())
    before = torch.get_rng_state()
    found = tune(one, loader(), blobs(seed=1), **settings)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    again = tune(other, loader(), blobs(seed=1), **settings)
    given = {name: choice_of(found)[name] for name in ("lr", "optimizer")}
    tune(third, loader(), blobs(seed=1), **settings, **given)
    timeless = [{**choice_of(history), "seconds": 0} for history in (found, again)]
    assert timeless[0] == timeless[1]
    assert torch.equal(state(one), state(other))
    assert torch.equal(state(one), state(third))


def test_a_loader_of_ours_goes_on_with_the_epoch_that_it_was_at() -> None:
    train = blobs()
    train.set_epoch(7)
    from secateur.tuning.ranging import loader_as_found

    with loader_as_found(train):
        list(train), list(train)
    assert train.epoch == 7


def test_a_choice_is_plain_data_and_prints_in_one_line() -> None:
    history = tune(net(), blobs(), teacher=Distillation(net(1)), **fast())
    record = choice_of(history)
    assert json.loads(json.dumps(history.to_dict(), allow_nan=False))["choice"] == record
    assert {row["optimizer"] for row in record["candidates"]} == {"adamw", "sgd"}
    curve = record["candidates"][0]["curve"]
    assert all(len(row) == 3 for row in curve)
    assert curve[0][0] == pytest.approx(1e-6)
    line = str(history).splitlines()[-1]
    assert line.startswith(f"chose {record['optimizer']} with lr=")
    assert "against a loss of" in line


# a choice is made once


class Cut(Callback):
    """Cuts a run off at a step."""

    def __init__(self, at: int | None) -> None:
        self.at = at

    def after_step(self, run: Any) -> None:
        if run.step == self.at:
            raise CutOff


def no_more(*args: Any, **more: Any) -> Any:
    raise AssertionError("a choice was made again")


@pytest.mark.parametrize("cut", [1, 6])
def test_a_run_that_is_taken_up_again_keeps_its_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    """Cut off before its first checkpoint, or after it."""
    whole = net()
    record = choice_of(tune(whole, blobs(), optimizer="sgd", callbacks=[Cut(None)], **fast()))
    settings = fast(optimizer="sgd", checkpoints=tmp_path, every=2)
    with pytest.raises(CutOff):
        tune(net(), blobs(), callbacks=[Cut(cut)], **settings)
    monkeypatch.setattr("secateur.tuning.choosing.by_range", no_more)
    model = net()
    history = tune(model, blobs(), callbacks=[Cut(None)], **settings)
    assert {**choice_of(history), "seconds": 0} == {**record, "seconds": 0}
    assert torch.equal(state(model), state(whole))


def test_a_lost_or_damaged_choice_comes_from_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = fast(optimizer="sgd", checkpoints=tmp_path, every=2)
    first = tune(net(), blobs(), **settings)
    monkeypatch.setattr("secateur.tuning.choosing.by_range", no_more)
    (tmp_path / "choice.json").write_text("{")
    with pytest.warns(UserWarning, match="choice.json can't be read"):
        again = tune(net(), blobs(), **settings)
    assert again.choice == first.choice


def test_checkpoints_of_a_run_that_was_asked_for_otherwise_are_refused(tmp_path: Path) -> None:
    tune(net(), blobs(), lr=0.01, checkpoints=tmp_path, every=2, **fast())
    with pytest.raises(TrainingError, match="learning rate and optimizer were given: give the same"):
        tune(net(), blobs(), checkpoints=tmp_path, **fast())
    other = tmp_path / "other"
    tune(net(), blobs(), optimizer="sgd", checkpoints=other, every=2, **fast())
    with pytest.raises(TrainingError, match="were asked for otherwise, or of another model"):
        tune(net(), blobs(), optimizer="adamw", checkpoints=other, **fast())


def test_without_checkpoints_another_question_is_answered_anew(tmp_path: Path) -> None:
    with pytest.raises(CutOff):
        tune(net(), blobs(), optimizer="adamw", checkpoints=tmp_path, callbacks=[Cut(1)], **fast())
    history = tune(net(), blobs(), optimizer="sgd", checkpoints=tmp_path, **fast())
    assert choice_of(history)["optimizer"] == "sgd"


# the search


def test_a_search_takes_the_best_trial_and_trains_with_it() -> None:
    record = choice_of(tune(net(), blobs(), blobs(seed=1), lr=small(), **fast()))
    rows = record["trials"]
    assert len(rows) == 6
    assert [(row["optimizer"], row["lr"]) for row in rows[:2]] == [("adamw", 3e-4), ("sgd", 1e-2)]
    best = pick(rows, 64)
    assert (record["lr"], record["optimizer"]) == (best["lr"], best["optimizer"])
    assert record["objective"] == "validation accuracy"
    assert all(1e-4 <= row["lr"] <= 1e-1 for row in rows)


def test_a_search_is_deterministic_and_leaves_the_model_as_found() -> None:
    one, other = net(), net()
    found = choice_of(tune(one, blobs(), blobs(seed=1), lr=small(), **fast()))
    given = {name: found[name] for name in ("lr", "optimizer")}
    tune(other, blobs(), blobs(seed=1), **given, **fast())
    again = choice_of(tune(net(), blobs(), blobs(seed=1), lr=small(), **fast()))
    assert torch.equal(state(one), state(other))
    assert rows_of(found) == rows_of(again)


def rows_of(record: Any_) -> list[Any_]:
    """Trials, without what differs from time to time."""
    return [
        {name: value for name, value in row.items() if name not in ("seconds", "number")} for row in record["trials"]
    ]


class Dying(Batches):
    """Batches during which the process dies once."""

    left = 10**9

    def __iter__(self) -> Iterator[Any]:
        for batch in super().__iter__():
            Dying.left -= 1
            if Dying.left == 0:
                raise KeyboardInterrupt
            yield batch


@pytest.mark.parametrize("file", ["study.log", "study.db"])
def test_a_search_that_was_cut_off_goes_on(tmp_path: Path, file: str) -> None:
    """Cut off within its third trial, it makes the trials that it would have made."""
    whole = choice_of(tune(net(), blobs(), blobs(seed=1), lr=small(trials=4), **fast()))
    data = blobs()
    train = Dying(data.source, data.positions, batch_size=16, shuffle=True)
    search = small(trials=4, storage=tmp_path / "deep" / file)
    Dying.left = 24  # the last batch of the third trial: 8 batches a trial, if it is not ended early
    with pytest.raises(KeyboardInterrupt):
        tune(net(), train, blobs(seed=1), lr=search, **fast())
    resumed = choice_of(tune(net(), train, blobs(seed=1), lr=search, **fast()))
    assert rows_of(resumed) == rows_of(whole)
    assert (resumed["lr"], resumed["optimizer"]) == (whole["lr"], whole["optimizer"])
    done = Dying.left
    tune(net(), train, blobs(seed=1), lr=search, **fast())
    assert done - Dying.left == 8  # the run itself: the search is done


def test_a_journal_holds_json_only(tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    tune(net(), blobs(), blobs(seed=1), lr=small(trials=2, storage=path), **fast())
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) > 5
    assert all(isinstance(json.loads(line), dict) for line in lines)
    assert [entry.name for entry in tmp_path.iterdir()] == ["study.log"]


def test_other_weights_and_settings_have_studies_of_their_own(tmp_path: Path) -> None:
    search = small(trials=2, storage=tmp_path / "study.log")

    def study(seed: int = 0, **more: Any) -> str:
        lr = replace(search, **more.pop("search", {}))
        return choice_of(tune(net(seed), blobs(), blobs(seed=1), lr=lr, **fast(**more)))["study"]

    names = [study(), study(1), study(weight_decay=0.1), study(search={"epochs": 1}), study(train_only="norms")]
    assert len(set(names)) == 5
    assert study(search={"trials": 3}) == names[0]


def test_trials_that_end_early_are_recorded() -> None:
    """With rates up to a thousand some diverge, and some are worse than the median after an epoch."""
    data = blobs(apart=0.7)

    class Fragile(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.inner = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.exp(self.inner(x))

    search = small(trials=12, epochs=3, rates=(1e-3, 1e3), optimizers=("sgd",))
    record = choice_of(tune(Fragile(), data, blobs(seed=1), lr=search, **fast()))
    ended = [row["ended"] for row in record["trials"]]
    assert len(ended) == 12
    assert "diverged" in ended
    early = [row for row in record["trials"] if row["ended"] == "below the median"]
    assert all(1 <= len(row["scores"]) < 3 for row in early)
    assert early
    assert next(row for row in record["trials"] if row["lr"] == record["lr"])["ended"] == ""


def test_a_search_of_which_all_trials_diverge_is_an_error() -> None:
    batches = [(torch.full((4, 2), math.nan), torch.arange(4) % 2)] * 4
    with pytest.raises(TrainingError, match="no trial of 3 came to the end of an epoch"):
        tune(net(), batches, blobs(seed=1), lr=small(trials=3), **fast())


def test_time_ends_a_search_but_one_epoch_is_made() -> None:
    record = choice_of(tune(net(), blobs(), blobs(seed=1), lr=Search(seconds=1e-6, epochs=4), **fast()))
    (row,) = record["trials"]
    assert row["ended"] == "out of time"
    assert len(row["scores"]) == 1


def test_a_search_needs_validation_and_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainingError, match=r"needs validate=.*or lr='auto'"):
        tune(net(), blobs(), lr=small(), **fast())
    real = builtins.__import__

    def without(name: str, *args: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "optuna":
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=r"needs optuna, which is not installed: pip install 'secateur\[tune\]'"):
        tune(net(), blobs(), blobs(seed=1), lr=small(), **fast())


def test_a_storage_that_can_not_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"the search can't be kept in .*file/study.db"):
        tune(net(), blobs(), blobs(seed=1), lr=small(storage=tmp_path / "file" / "study.db"), **fast())


def test_metrics_and_losses_are_judged_as_they_are_meant() -> None:
    """Where smaller is better, the smallest wins; without classes, the lowest loss does."""
    calls: list[float] = []

    def metric(model: nn.Module, batches: Any) -> float:
        calls.append(float(state(model).abs().sum()))
        return calls[-1]

    record = choice_of(tune(net(), blobs(), blobs(seed=1), lr=small(), metric=metric, larger=False, **fast()))
    assert record["objective"] == "metric"
    whole = [row for row in record["trials"] if not row["ended"]]
    assert record["score"] == max(max(row["scores"]) for row in whole) < 0
    batches = [(torch.ones(4, 2), torch.full((4, 2), 3.0))] * 4
    record = choice_of(tune(nn.Linear(2, 2), batches, batches, lr=small(), loss=F.mse_loss, **fast()))
    assert record["objective"] == "validation loss"


def test_accuracies_that_can_not_be_told_apart_are_decided_by_the_loss() -> None:
    def row(number: int, accuracy: float, loss: float, ended: str = "") -> Any_:
        told = {"objective": "validation accuracy", "scores": [accuracy], "loss": loss, "ended": ended}
        return {"number": number, **told}

    rows = [row(0, 0.90, 0.5), row(1, 0.89, 0.3), row(2, 0.80, 0.1), row(3, 0.99, 0.1, "out of time")]
    assert pick(rows, 100)["number"] == 1  # the standard error is 0.03
    assert pick(rows, 1_000_000)["number"] == 0
    assert pick([rows[3]], 100)["number"] == 3


def test_settings_of_a_search_are_checked_together() -> None:
    with pytest.raises(TrainingError, match=r"trials=0 must be at least 1; rates=.*; optimizer 'adm' is none of"):
        Search(trials=0, rates=(1.0, 0.1), optimizers=("adm",))
    with pytest.raises(TrainingError, match="would never end"):
        Search(seconds=None)


def test_the_test_split_is_never_looked_at() -> None:
    """`tune` is not even given one; of what it is given, only training batches are trained on."""
    train, held_out = blobs(), blobs(seed=1)

    class Trained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()
            self.learnt: set[int] = set()

        def __deepcopy__(self, memo: Any) -> "Trained":
            new = Trained()
            new.inner.load_state_dict(self.inner.state_dict())
            new.learnt = self.learnt
            return new

        def forward(self, x: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                self.learnt.update(x[:, 0].double().mul(1e6).round().long().tolist())
            return self.inner(x)

    def firsts(batches: Batches) -> set[int]:
        return {int(v) for inputs, _ in batches for v in inputs[:, 0].double().mul(1e6).round().long()}

    for lr in ("auto", small(trials=3)):
        model = Trained()
        tune(model, train, held_out, lr=lr, **fast())  # type: ignore[arg-type]
        assert model.learnt == firsts(train)
        assert not model.learnt & firsts(held_out)


def test_a_model_that_can_not_be_copied_says_so() -> None:
    class Stuck(Bowl):
        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("no copies")

    with pytest.raises(SecateurError, match="Stuck can't be copied.*Give lr= and optimizer="):
        tune(Stuck(1.0), [torch.zeros(2, 1)] * 4, loss=bowl_loss, **fast())
