"""``sc.robustness``: figures, comparisons, signs of masking, words and errors."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import ConfigError, DataError
from secateur.reporting.report import Report
from secateur.safety import examining
from secateur.safety.comparing import of_shares

LIGHT: dict[str, Any] = {"restarts": 2, "steps": 8, "apgd_steps": 10, "queries": 30}
SHAPE = (3, 6, 6)


def patterns() -> Tensor:
    """Where each of five classes has its mean, in pixels."""
    drawn = torch.randint(0, 2, (5, *SHAPE), generator=torch.Generator().manual_seed(5))
    return 0.4 + 0.2 * drawn.float()


def pictures(count: int = 60, noise: float = 0.08) -> tuple[Tensor, Tensor]:
    labels = torch.arange(count) % 5
    drawn = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))
    return (patterns()[labels] + noise * drawn).clamp(0, 1), labels


class Nearest(nn.Module):
    """The class whose mean is nearest: right on `pictures`, by a margin that is known.

    Args:
        scale: of the scores.
        lame: a class that is never given.
    """

    def __init__(self, scale: float = 1.0, lame: int | None = None) -> None:
        super().__init__()
        self.means = nn.Parameter(patterns().flatten(1))
        self.scale, self.lame = scale, lame

    def forward(self, inputs: Tensor) -> Tensor:
        scores = -self.scale * (inputs.view(len(inputs), 1, -1) - self.means).square().sum(2)
        if self.lame is not None:
            scores = scores - 1e3 * nn.functional.one_hot(torch.tensor(self.lame), 5)
        return scores


def test_figures_of_one_network() -> None:
    model, (inputs, labels) = Nearest().train(), pictures()
    found = sc.robustness(model, [(inputs, labels)], eps=0.1, **LIGHT)
    assert found.clean == 1.0
    assert found.strongest <= min(found.pgd, found.apgd_ce, found.apgd_dlr, found.square) < 1.0
    assert found.pgd <= found.fgsm
    radii = list(found.attacked.radii.values())
    assert radii == sorted(radii, reverse=True)
    assert radii[0] > 0.9
    assert found.corrupted == pytest.approx(sum(sum(row) for row in found.figures.corrupted.values()) / 20)
    assert found.calibration_error == found.figures.calibration.error
    assert not found.signs
    assert found.left_out == {}
    assert found.comparison is None
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert "withstand every attack (L-inf within 0.1)" in found.sentences[0]
    assert "clean" in str(found)


def test_known_margin_is_found() -> None:
    """Two classes, one input: the point flips at 0.1 exactly."""
    model = nn.Linear(1, 2)
    model.weight.data, model.bias.data = torch.tensor([[1.0], [0.0]]), torch.tensor([0.0, 0.5])
    inputs, labels = torch.tensor([[0.55], [0.58], [0.62], [0.7]]), torch.zeros(4, dtype=torch.long)
    found = sc.robustness(model, [(inputs, labels)], eps=0.1, corruptions=False, **LIGHT)
    assert found.pgd == found.apgd_ce == found.fgsm == found.strongest == 0.5
    assert list(found.attacked.radii.items()) == [(pytest.approx(0.1 * s), v) for s, v in
            ((1 / 16, 1.0), (1 / 8, 1.0), (1 / 4, 1.0), (1 / 2, 1.0))]  # fmt: skip
    assert "2 classes" in found.left_out["apgd_dlr"]
    assert "images" in found.left_out["square"]


def test_it_is_a_mapping_for_reports() -> None:
    inputs, labels = pictures(20)
    found = sc.robustness(Nearest(), [(inputs, labels)], eps=0.1, dense=Nearest(), **LIGHT)
    plain = json.loads(json.dumps(dict(found)))
    assert plain == found.to_dict()
    assert plain["networks"]["pruned"]["attacked"]["linf"]["accuracy"]["pgd"] == found.pgd
    assert plain["comparisons"]["pruned"]["clean"]["verdict"] == "within noise"
    assert Report({"robustness": found}).to_dict()["robustness"]["samples"] == 20


def test_same_seed_same_answers_and_nothing_left_behind() -> None:
    inputs, labels = pictures(30, noise=0.4)
    state = torch.get_rng_state()
    first, second, other = (
        sc.robustness(Nearest(), [(inputs, labels)], eps=0.1, seed=seed, batch_size=8, **LIGHT) for seed in (0, 0, 3)
    )
    assert torch.equal(state, torch.get_rng_state())
    assert first.to_dict() == second.to_dict()
    for key, values in first.records["network"].items():
        torch.testing.assert_close(values, second.records["network"][key], equal_nan=True)
    assert other.figures.corrupted != first.figures.corrupted or other.square != first.square


def test_normalise_changes_nothing_but_the_scale() -> None:
    inputs, labels = pictures(30)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.5)
    shape = (3, 1, 1)
    scaled = (inputs - torch.tensor(mean).reshape(shape)) / torch.tensor(std).reshape(shape)

    class Scaled(Nearest):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs * torch.tensor(std).reshape(shape) + torch.tensor(mean).reshape(shape))

    plain = sc.robustness(Nearest(), [(inputs, labels)], eps=0.1, **LIGHT)
    found = sc.robustness(Scaled(), [(scaled, labels)], eps=0.1, normalise=(mean, std), **LIGHT)
    assert found.figures.attacked["linf"].accuracy == plain.figures.attacked["linf"].accuracy
    assert found.figures.corrupted == plain.figures.corrupted
    with pytest.raises(DataError, match=r"lie between -.*give normalise=\(mean, std\)"):
        sc.robustness(Scaled(), [(scaled, labels)], eps=0.1)
    with pytest.raises(DataError, match="really scaled with"):
        sc.robustness(Scaled(), [(scaled, labels)], eps=0.1, normalise=(0.5, 2.0))


def test_two_norms() -> None:
    inputs, labels = pictures(20)
    found = sc.robustness(
        Nearest(), [(inputs, labels)], norm=("linf", "l2"), eps={"linf": 0.1, "l2": 0.8}, corruptions=False, **LIGHT
    )
    assert found.linf is not None
    assert found.l2 is not None
    assert found.pgd == found.linf.accuracy["pgd"]
    assert found.strongest <= min(found.linf.strongest, found.l2.strongest)
    with pytest.raises(ConfigError, match="one for each"):
        sc.robustness(Nearest(), [(inputs, labels)], norm=("linf", "l2"), eps=0.1)
    with pytest.raises(ConfigError, match="nothing of l2"):
        sc.robustness(Nearest(), [(inputs, labels)], norm="l2", eps={"linf": 0.1})


def test_pruning_that_hurts_is_said_to_and_who_pays_is_named() -> None:
    inputs, labels = pictures(100)
    names = ["ant", "bee", "cat", "dog", "elk"]
    found = sc.robustness(Nearest(lame=2), [(inputs, labels)], eps=0.05, dense=Nearest(), classes=names, **LIGHT)
    comparison = found.comparison
    assert comparison is not None
    assert comparison.agreement == pytest.approx(0.8)
    assert (comparison.clean.before, comparison.clean.after, comparison.clean.lost) == (1.0, pytest.approx(0.8), 20)
    assert [group.name for group in comparison.paying] == ["cat"]
    text = " ".join(found.sentences)
    assert "Without attacks: accuracy 100.0 % before, 80.0 % after, -20.0 points" in text
    assert "Pruning hurt" in text
    assert "These pay more for it than the average: cat (100.0 % before, 0.0 % after, 20 samples" in text


def test_a_network_beside_itself_is_within_noise() -> None:
    inputs, labels = pictures(40)
    found = sc.robustness(Nearest(), [(inputs, labels)], eps=0.1, dense=Nearest(), **LIGHT)
    comparison = found.comparison
    assert comparison is not None
    assert comparison.agreement == 1
    assert not comparison.paying
    verdicts = {comparison.clean.verdict, comparison.strongest["linf"].verdict, comparison.endurance["linf"].verdict}
    assert verdicts == {"within noise"}
    assert not comparison.broken("linf")
    assert found.sentences[0].count("made no difference that can be told from noise") == 2
    assert "Over radii from" in found.sentences[0]


def test_where_both_are_broken_smaller_radii_tell() -> None:
    """Everything is broken at 0.5, whatever the network; a network whose margin is smaller is worse before that."""
    model, narrow = nn.Linear(1, 2), nn.Linear(1, 2)
    for each, bias in ((model, 0.3), (narrow, 0.55)):
        each.weight.data, each.bias.data = torch.tensor([[1.0], [0.0]]), torch.tensor([0.0, bias])
    inputs, labels = torch.linspace(0.6, 0.75, 50)[:, None], torch.zeros(50, dtype=torch.long)
    found = sc.robustness(narrow, [(inputs, labels)], eps=0.5, dense=model, corruptions=False, **LIGHT)
    comparison = found.comparison
    assert comparison is not None
    assert comparison.broken("linf")
    assert comparison.endurance["linf"].verdict == "worse"
    assert "both networks are broken: 0.0 % and 0.0 % of 50 samples" in found.sentences[0]
    assert found.sentences[0].endswith("Pruning hurt.")


def test_verdict_by_hand() -> None:
    before, after = torch.ones(100).bool(), torch.ones(100).bool()
    after[:5] = False
    five = of_shares(before, after)  # 5 of 5 lost: p = 2 / 32
    assert (five.lost, five.won, five.p, five.verdict) == (5, 0, 2 / 32, "within noise")
    after[:6] = False
    assert of_shares(before, after).verdict == "worse"
    assert of_shares(after, before).verdict == "better"


def test_groups_in_place_of_classes() -> None:
    inputs, labels = pictures(40)
    region = ["north"] * 30 + ["south"] * 10
    half = {"first": torch.arange(40) < 20}
    by_value, by_mask = (
        sc.robustness(Nearest(), [(inputs, labels)], dense=Nearest(), groups=groups, corruptions=False,
                      attacks=["fgsm"], samples=35, **LIGHT).comparison
        for groups in (region, half)
    )  # fmt: skip
    assert by_value is not None
    assert by_mask is not None
    assert {group.name: group.samples for group in by_value.groups} == {"north": 30, "south": 5}
    assert {group.name: group.samples for group in by_mask.groups} == {"first": 20}
    with pytest.raises(DataError, match="first 40 samples"):
        sc.robustness(Nearest(), [(inputs, labels)], dense=Nearest(), groups=region[:12], attacks=["fgsm"], **LIGHT)


def quantised(inputs: Tensor) -> Tensor:
    """Scores in steps, through which no gradient comes."""
    return Nearest()(inputs).mul(20).round()


def saturated(inputs: Tensor) -> Tensor:
    """Probabilities that are 0 and 1 as far as floating-point numbers go."""
    return Nearest(scale=1e4)(inputs)


class Of(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(inputs)


@pytest.mark.parametrize("function", [quantised, saturated, lambda x: Nearest()(x).detach()])
def test_masked_gradients_are_reported(function: Callable[[Tensor], Tensor]) -> None:
    inputs, labels = pictures(50)
    how = {**LIGHT, "queries": 200}
    found = sc.robustness(
        Of(function),
        [(inputs, labels)],
        eps=0.15,
        corruptions=False,
        attacks=["fgsm", "pgd", "apgd_ce", "square"],
        **how,
    )
    signs = " ".join(found.signs)
    assert "the gradient is 0 at" in signs
    assert "make the loss greater for only" in signs
    assert "sees no gradient" in signs
    assert "ought to leave none" in signs
    assert "not to be trusted" in str(found)
    honest = sc.robustness(Nearest(), [(inputs, labels)], eps=0.15, corruptions=False, **how)
    assert not honest.signs
    assert "No signs of masked gradients." in honest.sentences


def test_one_step_better_than_many_is_a_sign() -> None:
    """A network whose gradient is gone once it was asked for."""

    class Once(Nearest):
        seen = 0

        def forward(self, inputs: Tensor) -> Tensor:
            near = (inputs - inputs.detach()).flatten(1).sum(1, keepdim=True)
            scores = super().forward(inputs)
            self.seen += inputs.requires_grad
            return scores if self.seen <= 1 else scores.detach() + 0 * near

    inputs, labels = pictures(40)
    found = sc.robustness(Once(), [(inputs, labels)], eps=0.15, corruptions=False, attacks=["fgsm", "pgd"], restarts=1)
    assert any(sign.startswith("one step along the gradient leaves") for sign in found.signs)


def test_inference_mode_changes_no_figure() -> None:
    wanted = sc.robustness(Nearest(), [pictures(40)], eps=0.1, **LIGHT)
    assert wanted.fgsm is not None
    assert wanted.fgsm < 1
    with torch.inference_mode():
        found = sc.robustness(Nearest(), [pictures(40)], eps=0.1, **LIGHT)
    assert found.figures == wanted.figures


def test_mappings_in_and_out() -> None:
    class Vision(Nearest):
        def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:  # pyright: ignore
            return {"logits": super().forward(pixel_values)}

    inputs, labels = pictures(20)
    by_name = sc.robustness(Vision(), [{"pixel_values": inputs, "labels": labels}], eps=0.1, **LIGHT)
    plain = sc.robustness(Nearest(), [(inputs, labels)], eps=0.1, **LIGHT)
    assert by_name.figures == plain.figures
    by_hand = sc.robustness(
        Vision(), [(inputs, labels)], eps=0.1, forward=lambda model, x: model(pixel_values=x), **LIGHT
    )
    assert by_hand.figures == plain.figures


def test_radii_of_both_norms_ask_for_both() -> None:
    how: dict[str, Any] = {"eps": {"l2": 0.5, "linf": 0.1}, "attacks": ["fgsm"], "corruptions": False, **LIGHT}
    found = sc.robustness(Nearest(), [pictures(20)], **how)
    assert {norm: attacked.threat.eps for norm, attacked in found.figures.attacked.items()} == how["eps"]


def test_unlabelled_samples_are_left_out() -> None:
    inputs, labels = pictures(20)
    labels[::2] = -100
    found = sc.robustness(Nearest(), [(inputs, labels)], attacks=["fgsm"], samples=7, **LIGHT)
    assert found.samples == 7


def test_ctrl_c_leaves_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, labels = pictures(40)
    told: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        told.append((done, total))
        if done > 0.6 * total:
            raise KeyboardInterrupt

    def asked(limit: Callable[[int, int], None]) -> sc.Robustness:
        return sc.robustness(Nearest(), [(inputs, labels)], eps=0.1, dense=Nearest(), batch_size=20, progress=limit,
                             **LIGHT)  # fmt: skip

    found = asked(stop)
    assert found.samples == 20
    assert found.interrupted == "1 of 2 batches of samples were attacked"
    assert found.sentences[-1] == "Stopped by Ctrl-C: 1 of 2 batches of samples were attacked."
    told.clear()
    whole = asked(lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] == len(told)
    assert whole.samples == 40

    def at_once(*args: Any) -> Iterator[Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(examining, "_clean", at_once)
    with pytest.raises(KeyboardInterrupt):
        asked(lambda done, total: None)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ([], "no sample with a label"),
        ([(torch.rand(4, 2).long(), torch.zeros(4).long())], "int64"),
        ([((torch.rand(4, 2), torch.rand(4, 2)), torch.zeros(4).long())], "forward=lambda model, inputs"),
        ([torch.rand(4, *SHAPE)], "has nothing for labels"),
        ([(torch.rand(4, *SHAPE), torch.rand(4))], "float32 \\(4,\\) for labels"),
        ([(torch.rand(4, *SHAPE), torch.tensor([0, 1, 2, 9]))], "5 classes apart, but the labels go up to 9"),
        ([(torch.rand(4, 7), torch.zeros(4).long())], "does not run on inputs"),
        ([(torch.full((4, *SHAPE), torch.nan), torch.zeros(4).long())], "NaN"),
    ],
)
def test_bad_data(data: Any, match: str) -> None:
    with pytest.raises(DataError, match=match):
        sc.robustness(Nearest(), data)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"attacks": ["pgd", "cw"]}, "attacks=cw: choose among fgsm"),
        ({"samples": 0}, "samples=0"),
        ({"restarts": 0, "queries": 0}, "restarts=0, queries=0"),
        ({"eps": -1.0}, "eps=-1"),
        ({"eps": "8/255"}, "eps='8/255': the radius must be a number"),
        ({"eps": {}}, "eps={} holds no radius"),
        ({"norm": ()}, r"norm=\(\) asks for nothing: 'linf', 'l2' or both"),
        ({"eps": {}, "norm": ()}, "asks for nothing"),
        ({"eps": 0.1, "norm": ("linf", "l2")}, "give one for each"),
        ({"eps": {"linf": 0.1}, "norm": "l2"}, "says nothing of l2"),
        ({"eps": {"linf": 0.1, "l2": 0.5}, "norm": "linf"}, "l2, which norm='linf' does not ask for"),
        ({"eps": {"l1": 0.1}}, "norm='l1'"),
        ({"normalise": (0.5, 0.0)}, "deviations must be above 0"),
        ({"bounds": (1, 0), "eps": 0}, "eps=0.0: the radius.*bounds=.*the first must be below"),
    ],
)
def test_bad_settings(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        sc.robustness(Nearest(), [pictures(5)], **settings)
    assert isinstance(caught.value, sc.SecateurError)


def test_scores_of_another_shape() -> None:
    with pytest.raises(DataError, match=r"class scores \(N, C\)"):
        sc.robustness(nn.Conv2d(3, 5, 1), [pictures(5)])
