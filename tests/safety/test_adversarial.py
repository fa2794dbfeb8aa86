"""The settings of attacks, which part of a batch they change, and calibration data under attack."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.errors import DataError, PlanError
from secateur.safety.adversarial import Adversarial, attack
from secateur.safety.batches import alternating, attacked
from secateur.safety.inputs import opened
from secateur.safety.threat import Threat

WIDE = Adversarial(eps=0.2, bounds=(-4.0, 4.0), steps=4)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


def data(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(16, 3, generator=generator).clamp(-3, 3), torch.arange(16) % 3) for _ in range(count)]


def test_all_settings_out_of_their_range_are_listed() -> None:
    with pytest.raises(ValueError, match=r"method=.*steps=0.*validation_steps=1\.5.*step_size=-1.*beta=nan.*eps=0"):
        Adversarial("free", steps=0, validation_steps=1.5, step_size=-1, beta=math.nan, eps=0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"step_size": math.nan}, "step_size=nan must be a number above 0"),
        ({"step_size": math.inf}, "step_size=inf must be a number above 0"),
        ({"beta": math.inf}, "beta=inf must be a number from 0"),
        ({"eps": "8/255"}, "eps='8/255': the radius must be a number above 0"),
        ({"bounds": None}, "bounds=None: give two numbers"),
        ({"bounds": (0, 1, 2)}, r"bounds=\(0, 1, 2\): give two numbers"),
        ({"bounds": (0, math.inf)}, r"bounds=\(0, inf\): give two numbers"),
        ({"normalise": 0.5}, r"normalise=0.5: give a pair \(mean, std\)"),
        ({"normalise": ("a", "b")}, r"give a pair \(mean, std\)"),
        ({"normalise": ((), ())}, r"give a pair \(mean, std\)"),
        ({"normalise": (0, 0)}, r"normalise=\(0, 0\): deviations must be above 0"),
        ({"normalise": (0.5, (0.1, -0.1))}, "deviations must be above 0"),
        ({"normalise": (0.5, math.nan)}, "means and deviations must be finite"),
        ({"normalise": (math.inf, 1)}, "means and deviations must be finite"),
        ({"normalise": ((0.5, 0.5), (1, 1, 1))}, "2 means, but 3 deviations"),
    ],
)
def test_settings_that_no_attack_can_work_with(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Adversarial(**settings)


def test_scales_may_be_tensors_and_arrays() -> None:
    import numpy as np

    pixels = torch.rand(2, 3, 4, 4)
    mean, std = [0.1, 0.2, 0.3], [1.0, 2.0, 4.0]
    wanted = Threat(normalise=(mean, std)).inputs(pixels)
    for kind in (np.array, torch.tensor, lambda side: torch.tensor(side)[:, None, None]):
        assert torch.equal(Threat(normalise=(kind(mean), kind(std))).inputs(pixels), wanted)


def test_a_scale_for_other_channels_is_refused() -> None:
    grey = [(torch.rand(4, 1, 6, 6), torch.arange(4) % 2)]
    settings = Adversarial(normalise=((0.5,) * 3, (0.2,) * 3), bounds=(-5.0, 5.0))
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 2))
    match = r"normalise=.* is for 3 channels, but inputs \(4, 1, 6, 6\) have 1"
    for run in (
        lambda: attacked(model, grey, settings),
        lambda: sc.tune(model, grey, epochs=1, adversarial=settings, device="cpu"),
        lambda: sc.robustness(model, grey, bounds=settings.bounds, normalise=settings.normalise),
    ):
        with pytest.raises(DataError, match=match):
            run()


def test_a_step_is_a_quarter_of_the_radius_unless_said() -> None:
    assert Adversarial(eps=8 / 255).size == 2 / 255
    assert Adversarial(eps=8 / 255, step_size=0.5).size == 0.5


@pytest.mark.parametrize(
    ("batch", "path"),
    [
        (torch.zeros(2, 3), lambda b: b),
        ((torch.zeros(2, 3), torch.tensor([0, 1])), lambda b: b[0]),
        ([torch.zeros(2, 3), torch.ones(2, 3)], lambda b: b[0]),
        ([torch.zeros(2, 3)], lambda b: b[0]),
        (((torch.tensor([1, 2]), torch.zeros(2, 3)), torch.tensor([0, 1])), lambda b: b[0][1]),
        (
            {"labels": torch.ones(2, 3), "mask": torch.ones(2).long(), "pixels": torch.zeros(2, 3)},
            lambda b: b["pixels"],
        ),
        (({"pixels": torch.zeros(2, 3)}, torch.tensor([0, 1])), lambda b: b[0]["pixels"]),
    ],
)
def test_the_first_numbers_that_are_no_target_are_attacked(batch: Any, path: Any) -> None:
    inputs, put = opened(batch)
    assert not inputs.any()
    changed = put(inputs + 5)
    assert torch.equal(path(changed), torch.full((2, 3), 5.0))
    assert not path(batch).any()


def test_batches_without_such_inputs_are_refused() -> None:
    with pytest.raises(DataError, match="tokens"):
        opened({"input_ids": torch.tensor([[1, 2]]), "labels": torch.zeros(1, 2)})


def test_pixels_outside_the_bounds_are_refused() -> None:
    with pytest.raises(DataError, match=r"between -2.25 and .* bounds=\(0.0, 1.0\): if they were scaled"):
        attack(net(), data()[0], lambda model, batch: model(batch[0]).sum(), Adversarial())


def test_attacked_batches_have_a_greater_loss_and_lie_in_the_ball() -> None:
    model = net().eval()
    hard = attacked(model, data(), WIDE)
    assert len(hard) == 3
    for (x, y), (moved, target) in zip(data(), hard, strict=True):
        assert torch.equal(y, target)
        assert 0.15 < float((moved - x).abs().max()) <= 0.2 + 1e-6
        assert F.cross_entropy(model(moved), y) > F.cross_entropy(model(x), y)


def test_they_hang_on_the_seed_and_leave_everything_as_it_was() -> None:
    model, state = net(), torch.get_rng_state()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, again, other = (attacked(model, data(), WIDE, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a[0], b[0]) for a, b in zip(first, other, strict=True))
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_without_labels_the_class_that_the_model_names_is_attacked() -> None:
    model = net().eval()
    named = [(x, model(x).argmax(1)) for x, _ in data()]
    bare = attacked(model, [x for x, _ in data()], WIDE)
    assert all(torch.equal(a, b) for a, (b, _) in zip(bare, attacked(model, named, WIDE), strict=True))
    assert not all(torch.equal(a, b) for a, (b, _) in zip(bare, attacked(model, data(), WIDE), strict=True))


def test_a_loss_and_a_forward_of_ones_own_are_climbed() -> None:
    """By hand: the answer is x times (1, -1), the loss its distance below 3: x goes up, then down the bounds' way."""
    model = nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([[1.0, -1.0]])
    batch = {"a": torch.tensor([[0.0, 0.0]]), "labels": torch.tensor([[3.0]])}
    found = attacked(model, [batch], WIDE, loss=lambda output, target: (target - output).mean(),
                     forward=lambda model, batch: model(batch["a"]))  # fmt: skip
    torch.testing.assert_close(found[0]["a"], torch.tensor([[-0.2, 0.2]]))


def test_trades_moves_answers_away_from_those_at_the_inputs() -> None:
    model = net().eval()
    settings = Adversarial("trades", eps=0.2, bounds=(-4.0, 4.0), steps=4)
    (x, y), (moved, _) = data(1)[0], attacked(model, data(1), settings)[0]

    def apart(points: Tensor) -> Tensor:
        return F.kl_div(model(points).log_softmax(1), model(x).softmax(1), reduction="batchmean")

    assert apart(moved) > apart(attacked(model, data(1), WIDE)[0][0]) * 0.9
    assert apart(moved) > 2 * apart(
        x + 0.2 * torch.sign(torch.randn(x.shape, generator=torch.Generator().manual_seed(2)))
    )
    assert y.shape == (16,)


def test_a_batch_that_fails_is_named() -> None:
    with pytest.raises(DataError, match="batch 1 of the data: inputs lie between"):
        attacked(net(), [data()[0], (data()[0][0] * 100, data()[0][1])], WIDE)


@pytest.mark.parametrize("method", ["pgd", "trades"])
def test_inference_mode_changes_nothing(method: Any) -> None:
    model, settings = net(), replace(WIDE, method=method)
    wanted = attacked(model, data(), settings)
    with torch.inference_mode():
        found = attacked(model, data(), settings)
    for (points, labels), (others, _) in zip(found, wanted, strict=True):
        assert torch.equal(points, others)
        assert not points.is_inference()
        assert not labels.is_inference()


def test_pruning_by_attacks_runs_under_inference_mode() -> None:
    model = net()
    how: dict[str, Any] = {"budget": sc.Budget(macs=0.5), "importance": "taylor", "adversarial": WIDE}
    wanted = sc.prune(model, data()[0][0], data=data(), validate=data(), max_robust_drop=50.0, **how)
    with torch.inference_mode():
        found = sc.prune(model, data()[0][0], data=data(), validate=data(), max_robust_drop=50.0, **how)
    for name, value in found.model.state_dict().items():
        torch.testing.assert_close(value, wanted.model.state_dict()[name])


def test_scores_are_those_at_attacked_inputs() -> None:
    model = net()
    hard = attacked(model, data(), WIDE)
    graph = sc.trace(model, data()[0][0])
    result = sc.prune(model, data()[0][0], keep=0.5, data=data(), importance="taylor", adversarial=WIDE)
    wanted, plain = (sc.score(model, graph, "taylor", given) for given in (hard, data()))
    for axis, scores in result.scores.items():
        torch.testing.assert_close(scores, wanted[axis])
        assert not torch.allclose(scores, plain[axis])


def test_weights_are_refitted_to_both() -> None:
    """What `prune` gives is what compensation by the batches and the attacked ones in turns gives."""
    from secateur.compensation import compensate_

    model = net().eval()
    result = sc.prune(model, data()[0][0], keep=0.5, data=data(), importance="l2", adversarial=WIDE)
    small = result.plan.apply(model)
    compensate_(model, small, result.graph, result.plan, alternating(data(), attacked(model, data(), WIDE)))
    for name, value in small.state_dict().items():
        torch.testing.assert_close(value, result.model.state_dict()[name])
    other = sc.prune(model, data()[0][0], keep=0.5, data=data(), importance="l2").model.state_dict()
    assert not all(torch.allclose(value, other[name]) for name, value in result.model.state_dict().items())


def test_hints_are_tried_at_attacked_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    from secateur import pruning

    given: list[Any] = []
    tried = pruning.try_hints
    monkeypatch.setattr(pruning, "try_hints", lambda *args: given.extend(args[4:6]) or tried(*args))
    model = net().eval()
    result = sc.prune(model, data()[0][0], budget=sc.Budget(macs=0.5), data=data(4), adversarial=WIDE)
    hard = attacked(model, data(4), WIDE)
    fitted, judged = given
    assert [len(fitted), len(judged)] == [4, 2]  # two batches and the same attacked; two attacked ones
    assert torch.equal(fitted[0][0], data(4)[0][0])
    assert torch.equal(fitted[1][0], hard[0][0])
    assert torch.equal(judged[0][0], hard[2][0])
    assert result.trial is not None


def test_attacks_need_data() -> None:
    with pytest.raises(PlanError, match="give data="):
        sc.prune(net(), data()[0][0], keep=0.5, adversarial=WIDE)
