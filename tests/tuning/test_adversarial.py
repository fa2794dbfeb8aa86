"""Adversarial training: its steps against plain computations, and all that training has, together with it."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.errors import DataError, TrainingError
from secateur.safety.adversarial import Adversarial
from secateur.tuning import Callback, Distillation, evaluate, tune
from secateur.tuning.robust import Attacker

PLAIN = Adversarial(eps=0.1, bounds=(-4.0, 4.0), steps=3)


def net(*, norm: bool = True, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    middle = [nn.BatchNorm1d(8)] if norm else []
    return nn.Sequential(nn.Linear(2, 8), *middle, nn.ReLU(), nn.Linear(8, 2))


def batches(count: int = 2, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(16) % 2
    return [(0.5 * torch.randn(16, 2, generator=generator) + labels[:, None] - 0.5, labels) for _ in range(count)]


def state(model: nn.Module) -> Tensor:
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


def stepped(model: nn.Module, settings: Adversarial, batch: Any, **options: Any) -> dict[str, Tensor]:
    """The gradients of the first step."""
    found: dict[str, Tensor] = {}

    class Look(Callback):
        def before_step(self, run: Any) -> None:
            found.update({n: p.grad.clone() for n, p in run.model.named_parameters() if p.grad is not None})

    how: dict[str, Any] = {"epochs": 1, "lr": 1e-9, "optimizer": "sgd", "device": "cpu", **options}
    tune(model, [batch], adversarial=settings, callbacks=[Look()], **how)
    return found


def plain_pgd(model: nn.Module, x: Tensor, y: Tensor, start: Tensor) -> Tensor:
    """Madry et al.'s attack, in evaluation mode, in so many words: L-inf, eps 0.1, three steps of a quarter of it."""
    model.eval()
    points = start
    for _ in range(3):
        points = points.detach().requires_grad_()
        F.cross_entropy(model(points), y).backward()
        assert points.grad is not None
        points = torch.min(torch.max(points + 0.025 * points.grad.sign(), x - 0.1), x + 0.1).clamp(-4, 4)
    model.train()
    model.zero_grad()
    return points.detach()


def given_start(monkeypatch: pytest.MonkeyPatch, noise: Tensor) -> None:
    """Attacks start where we say."""
    monkeypatch.setattr("secateur.safety.threat.Threat.start", lambda self, around, generator=None: around + noise)


def test_a_step_of_pgd_training_is_the_plain_computation(monkeypatch):
    (x, y), noise = batches()[0], torch.rand(16, 2) * 0.1 - 0.05
    given_start(monkeypatch, noise)
    other = net()
    hard = plain_pgd(other, x, y, x + noise)
    F.cross_entropy(other(hard), y).backward()
    found = stepped(net(), PLAIN, (x, y))
    for name, parameter in other.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, msg=name)


def test_a_step_of_trades_is_the_plain_computation():
    (x, y), other = batches()[0], net(norm=False)
    settings = Adversarial("trades", eps=0.1, bounds=(-4.0, 4.0), steps=3, beta=2.5)
    hard: list[Tensor] = []
    model = net(norm=False)
    model.register_forward_pre_hook(lambda module, args: hard.append(args[0].detach().clone()))
    found = stepped(model, settings, (x, y))
    attacked = hard[4]  # one pass for the answers, three for the steps, then this
    assert len(hard) == 6
    assert torch.equal(hard[5], x)
    clean, p = other(x), other(x).softmax(1)
    divergence = (p * (p.log() - other(attacked).softmax(1).log())).sum(1).mean()
    (F.cross_entropy(clean, y) + 2.5 * divergence).backward()
    for name, parameter in other.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, msg=name)


def test_the_attack_of_trades_climbs_the_divergence_from_close_to_the_input():
    model, (x, y) = net().eval(), batches()[0]
    settings = Adversarial("trades", eps=0.1, bounds=(-4.0, 4.0), steps=3)

    def divergence(points: Tensor) -> Tensor:
        return F.kl_div(model(points).log_softmax(1), model(x).softmax(1), reduction="none").sum(1)

    with torch.random.fork_rng():
        torch.manual_seed(5)
        hard, _ = Attacker(settings, "cpu", None).apart(model, (x, y))
        torch.manual_seed(5)
        points = x + 8e-3 * torch.randn(x.shape)
    for _ in range(3):
        points = points.detach().requires_grad_()
        divergence(points).sum().backward()
        assert points.grad is not None
        points = torch.min(torch.max(points + 0.025 * points.grad.sign(), x - 0.1), x + 0.1)
    torch.testing.assert_close(hard, points.detach())
    assert divergence(hard).mean() > divergence(x + 0.1 * torch.sign(torch.randn(x.shape))).mean()


@pytest.mark.parametrize("method", ["pgd", "trades"])
def test_statistics_modes_and_random_numbers_are_those_of_training_alone(method):
    """Running statistics come of the passes that are trained on, as many as there are."""
    settings, model, (x, y) = Adversarial(method, eps=1e-9, bounds=(-4.0, 4.0)), net(), batches()[0]
    model[0].eval()
    before = torch.get_rng_state()
    stepped(model, settings, (x, y), keep="last")
    assert torch.equal(before, torch.get_rng_state())
    assert not model[0].training
    assert model[1].training
    other = net()
    for _ in range(2 if method == "trades" else 1):
        other(x)
    torch.testing.assert_close(model[1].running_mean, other[1].running_mean)
    assert int(model[1].num_batches_tracked) == (2 if method == "trades" else 1)


def test_the_best_epoch_is_the_one_that_holds_under_attack():
    model = net()
    history = tune(model, batches(4), batches(2, seed=1), epochs=4, lr=0.05, device="cpu", adversarial=PLAIN)
    row = history.epochs[-1]
    assert row.robust_accuracy is not None
    assert row.validation_accuracy is not None
    assert row.robust_accuracy < row.validation_accuracy
    assert row.robust_loss is not None
    assert row.validation_loss is not None
    assert row.robust_loss > row.validation_loss
    kept = history.epochs[history.best_epoch - 1]
    assert evaluate(model, batches(2, seed=1))["accuracy"] == kept.validation_accuracy


def test_the_latest_state_within_a_standard_error_under_attack_is_kept(monkeypatch):
    """By hand: accuracy without attacks falls from epoch to epoch, under attack it rises; kept is the last."""
    from secateur.objectives import Totals
    from secateur.tuning.session import Judge, Verdict

    calls: list[int] = []

    def judged(self: Judge) -> Verdict:
        at = len(calls)
        calls.append(at)
        clean, robust = Totals(1.0, 1000, 1000 - 200 * at, 1000), Totals(1.0, 1000, 200 * at, 1000)
        return Verdict(totals=clean, metric=None, robust=(robust, None))

    monkeypatch.setattr(Judge, "__call__", judged)
    history = tune(net(), batches(), batches(), epochs=3, lr=0.01, device="cpu", adversarial=PLAIN)
    assert history.best_epoch == 3
    assert [row.robust_accuracy for row in history.epochs] == [0.2, 0.4, 0.6]
    assert [row.validation_accuracy for row in history.epochs] == [0.8, 0.6, 0.4]


def test_a_metric_is_taken_under_attack_too():
    def hits(model: nn.Module, given: Any) -> float:
        return float(sum((model(x).argmax(1) == y).sum() for x, y in given))

    options: dict[str, Any] = {"epochs": 2, "lr": 0.01, "device": "cpu", "metric": hits}
    history = tune(net(), batches(), batches(2, seed=1), adversarial=PLAIN, **options)
    row = history.epochs[-1]
    assert row.metric is not None
    assert row.robust_metric is not None
    assert row.robust_accuracy is not None
    assert row.robust_metric <= row.metric
    assert row.robust_metric == 32 * row.robust_accuracy


class CutOff(Exception):
    """Stands for a power cut."""


class Cut(Callback):
    def __init__(self, at: int) -> None:
        self.at = at

    def after_step(self, run: Any) -> None:
        if run.step == self.at:
            raise CutOff


@pytest.mark.parametrize("method", ["pgd", "trades"])
def test_a_run_that_is_taken_up_again_ends_with_the_same_bits(tmp_path, method):
    settings = Adversarial(method, eps=0.1, bounds=(-4.0, 4.0), steps=2)

    def run(folder: Path, cut: int | None) -> tuple[Tensor, Any]:
        how: dict[str, Any] = {"epochs": 3, "lr": 0.05, "device": "cpu", "accumulate": 2, "every": 1}
        how |= {"checkpoints": folder, "adversarial": settings}
        if cut is not None:
            with pytest.raises(CutOff):
                tune(net(), batches(4), batches(1, seed=1), callbacks=[Cut(cut)], **how)
        model = net()
        history = tune(model, batches(4), batches(1, seed=1), callbacks=[Cut(-1)], **how)
        return state(model), [(row.train_loss, row.robust_loss) for row in history.epochs]

    whole, again = run(tmp_path / "whole", None), run(tmp_path / "cut", 3)
    assert torch.equal(whole[0], again[0])
    assert whole[1] == again[1]
    with pytest.raises(TrainingError, match="adversarial="):
        tune(net(), batches(4), epochs=3, lr=0.05, device="cpu", accumulate=2, checkpoints=tmp_path / "cut",
             adversarial=Adversarial(eps=0.2, bounds=(-4.0, 4.0)), callbacks=[Cut(-1)])  # fmt: skip


def test_halves_of_a_batch_that_does_not_fit_are_attacked_each(monkeypatch):
    """The first attack on the whole batch runs out of memory; halves have its gradient: the start is at the input."""
    given_start(monkeypatch, torch.zeros(()))
    (x, y), calls = batches()[0], list[int]()
    model = net(norm=False)

    def short(module: nn.Module, args: Any) -> None:
        calls.append(len(args[0]))
        if len(args[0]) > 8:
            raise torch.OutOfMemoryError("out of memory")

    model.register_forward_pre_hook(short)
    with pytest.warns(UserWarning, match="2 pieces"):
        found = stepped(model, PLAIN, (x, y), halve=True)
    assert calls == [16] + [8] * 8
    for name, gradient in stepped(net(norm=False), PLAIN, (x, y)).items():
        torch.testing.assert_close(found[name], gradient, msg=name)


@pytest.mark.parametrize("method", ["pgd", "trades"])
def test_a_teacher_sees_what_the_labels_are_compared_at(method):
    settings, (x, y) = Adversarial(method, eps=0.1, bounds=(-4.0, 4.0), steps=2), batches()[0]
    teacher, seen = net(seed=1), list[Tensor]()
    teacher.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    student = net()
    stepped(student, settings, (x, y), teacher=Distillation(teacher, features=["0"]))
    assert len(seen) == 1  # and the student's features were those of one pass, else the lesson would complain
    assert torch.equal(seen[0], x) == (method == "trades")
    assert float((seen[0] - x).abs().max()) <= 0.1 + 1e-6


@pytest.mark.usefixtures("accelerate_anew")
def test_half_precision():
    model = net()
    options: dict[str, Any] = {"epochs": 3, "lr": 0.05, "device": "cpu", "precision": "bf16"}
    for method in ("pgd", "trades"):
        settings = Adversarial(method, eps=0.1, bounds=(-4.0, 4.0), steps=2)
        history = tune(model, batches(4), batches(2, seed=1), adversarial=settings, **options)
        assert history.epochs[-1].train_loss < history.epochs[0].train_loss
        assert history.epochs[-1].robust_accuracy is not None


def test_training_makes_the_model_resist():
    hard, plain = net(seed=3), net(seed=3)
    settings = Adversarial(eps=0.3, bounds=(-4.0, 4.0), steps=4)
    data, held = wide(8, 0), wide(8, 1)
    options: dict[str, Any] = {"epochs": 8, "lr": 0.05, "device": "cpu"}
    tune(plain, data, held, **options)
    history = tune(hard, data, held, adversarial=settings, **options)
    attacked = Attacker(settings, "cpu", None)

    def holds(model: nn.Module) -> float:
        return evaluate(model, [attacked(model.eval(), batch, 10) for batch in held])["accuracy"]

    assert holds(hard) > holds(plain) + 0.1
    assert history.epochs[history.best_epoch - 1].robust_accuracy == pytest.approx(holds(hard), abs=0.05)


def wide(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """One coordinate with a wide margin that is wrong at times, and one with a narrow margin that never is."""
    generator = torch.Generator().manual_seed(seed)
    found: list[tuple[Tensor, Tensor]] = []
    for _ in range(count):
        labels = torch.arange(32) % 2
        sign = 2.0 * labels - 1
        wrong = torch.where(torch.rand(32, generator=generator) < 0.1, -1.0, 1.0)
        found.append((torch.stack([sign * wrong, 0.1 * sign], 1), labels))
    return found


def test_the_learning_rate_is_chosen_under_attack():
    history = tune(net(), batches(4), batches(1), epochs=1, optimizer="sgd", device="cpu", adversarial=PLAIN)
    assert history.choice is not None
    assert history.choice["lr"] > 0


def test_errors_say_what_to_do():
    with pytest.raises(DataError, match=r"normalise=\(mean, std\)"):
        tune(net(), batches(), epochs=1, lr=0.1, device="cpu", adversarial=Adversarial())
    with pytest.raises(DataError, match="tokens"):
        tune(nn.Embedding(4, 2), [(torch.zeros(4).long(), torch.zeros(4).long())], epochs=1, lr=0.1, device="cpu",
             adversarial=PLAIN)  # fmt: skip


def test_an_attack_leaves_the_model_alone():
    """No gradients, and the buffers are as they were."""
    model, (x, y) = net(), batches()[0]
    before = copy.deepcopy(model)
    Attacker(PLAIN, "cpu", None)(model, (x, y))
    assert torch.equal(state(before), state(model))
    assert all(p.grad is None for p in model.parameters())
