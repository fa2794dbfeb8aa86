"""Settings: one definition for flags, YAML and Python."""

import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from secateur.cli.app import app
from secateur.cli.commands.prune import prune
from secateur.cli.flags import flag_values
from secateur.config import (
    HintSettings,
    ModelSettings,
    PlanSettings,
    PruneSettings,
    TuneOptions,
    TuneSettings,
    attack_of,
    parse_budget,
)
from secateur.errors import ConfigError
from secateur.plain import parse_scalar, read_yaml
from secateur.planning import Budget
from secateur.safety import Adversarial
from secateur.tuning import SCRATCH, TUNE, ranges

CHANGED = PruneSettings(
    model="torchvision.models:resnet18",
    model_args={"num_classes": 2, "norm_layer": None, "name": "2"},
    weights=Path("w.pt"),
    budget="macs=0.5,params=1000",
    ignore=("fc", "layer1.*"),
    min_units=2,
    lr=1e-4,
    out=Path("elsewhere"),
)


def test_yaml_round_trip(tmp_path: Path) -> None:
    for settings in (PruneSettings().resolved(), CHANGED, CHANGED.resolved()):
        (tmp_path / "c.yaml").write_text(settings.to_yaml(), encoding="utf-8")
        assert PruneSettings.from_mapping(read_yaml(tmp_path / "c.yaml")) == settings


def test_yaml_is_complete_and_plain() -> None:
    values = yaml.safe_load(PruneSettings().resolved().to_yaml())
    assert set(values) == set(PruneSettings().to_dict())
    assert (values["threshold"], values["epochs"], values["lr"]) == (0.8, TUNE.epochs, TUNE.lr)
    assert "overwrite" not in values


def test_the_example_is_trained_and_a_users_network_is_not() -> None:
    assert PruneSettings().resolved().train_epochs == SCRATCH.epochs
    assert PruneSettings(weights=Path("w.pt")).resolved().train_epochs == 0
    user = PruneSettings(model="a:b").resolved()
    assert (user.train_epochs, user.epochs, user.lr) == (0, 5, 3e-4)
    assert PruneSettings(model="a:b", train_epochs=3).resolved().train_epochs == 3


def test_resolving_twice_is_resolving_once() -> None:
    for settings in (PruneSettings(), CHANGED, PruneSettings(keep=0.5)):
        assert settings.resolved().resolved() == settings.resolved()
    assert PruneSettings(keep=0.5).resolved().threshold is None


@pytest.mark.parametrize("dash", ["min_unit", "min-unit"])
def test_unknown_settings_are_named_with_the_nearest(dash: str) -> None:
    with pytest.raises(ConfigError, match=f"c.yaml: unknown setting '{dash}' .did you mean 'min_units'"):
        PruneSettings.from_mapping({dash: 1}, "c.yaml")


def test_all_problems_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        PruneSettings.from_mapping(
            {"tresh": 1, "seed": "many", "scope": "here", "ignore": [1], "model_args": 3, "epochs": True}
        )
    for text in (
        "'tresh'",
        "seed is 'many', but must be a whole number",
        "one of global, local",
        "a list of texts",
        "names with values",
        "epochs is True",
    ):
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"threshold": 0.8, "budget": "macs=0.5"}, "threshold=0.8 and budget=macs=0.5 given together"),
        ({"threshold": 0.8, "keep": 0.5}, "threshold=0.8 and keep=0.5 given together"),
        (
            {"max_drop": 1, "keep": 0.5},
            "keep=0.5 and max_drop=1.0 given together: .* give one of threshold, budget, keep",
        ),
        ({"max_drop": 1, "max_loss_increase": 0.1}, "max_drop=1.0 and max_loss_increase=0.1 given together"),
        ({"max_drop": -1}, "max_drop=-1.0 must be at least 0"),
        ({"max_loss_increase": float("nan")}, "max_loss_increase=nan must be at least 0"),
        ({"reduce": "latency"}, "reduce is 'latency', but must be one of macs, params, bytes"),
        ({"max_share": 0}, r"max_share=0.0 must be a share in \(0, 1\]"),
        ({"max_share": 1.5, "min_units": 0}, "min_units=0 must be a whole number from 1; max_share=1.5 must be"),
        ({"keep": 1.5}, r"keep=1.5 must be in \(0, 1\]"),
        ({"threshold": float("nan")}, "threshold=nan"),
        ({"epochs": -1, "lr": 0}, "epochs=-1 must be at least 0; lr=0.0 must be above 0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"budget": "mac=0.5"}, "'mac=0.5' should be one of params, macs, bytes"),
        ({"budget": "macs=2.5"}, "budget macs=2.5: give a fraction"),
        ({"budget": "macs=much"}, "budget macs='much': give a fraction"),
        ({"budget": "macs"}, "'macs' should be"),
        ({"budget": "latency=5"}, 'budget latency=5: give a time with its unit, such as "5ms"'),
        ({"budget": "macs=1,macs=2"}, "should be"),
        ({"distill": 2, "weight_decay": -1}, "distill=2.0 must be in.*weight_decay=-1.0"),
    ],
)
def test_values_out_of_range(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PruneSettings.from_mapping(values)


@pytest.mark.parametrize("name", sorted({item.name for item in fields(TuneOptions)} & set(ranges.RANGES)))
def test_settings_have_the_ranges_of_training(name: str) -> None:
    (told,) = ranges.problems({name: -1}, ranges.OF_RUNS)
    for settings in (PruneSettings, TuneSettings):
        with pytest.raises(ConfigError) as caught:
            settings(**{name: -1})
        assert str(caught.value) == told


def test_no_epochs_are_for_a_command_alone() -> None:
    assert PruneSettings(epochs=0).epochs == 0
    assert list(ranges.problems({"epochs": 0})) == ["epochs=0 must be at least 1"]
    with pytest.raises(ConfigError, match="epochs=0 leaves nothing to do"):
        TuneSettings(epochs=0)


def test_forms_that_people_write() -> None:
    assert PlanSettings.from_mapping({"budget": {"macs": 0.5, "params": 100}}).budget == "macs=0.5,params=100"
    assert PlanSettings.from_mapping({"ignore": "fc"}).ignore == ("fc",)
    assert PruneSettings.from_mapping({"lr": "3e-4"}).lr == 3e-4  # YAML 1.1 reads 3e-4 as text
    assert ModelSettings.from_mapping({"model_args": {"num-classes": "2"}}).model_args == {"num_classes": "2"}
    assert parse_budget("macs=50%, params=2.1M") == Budget(macs=0.5, params="2.1M")
    assert parse_budget("latency=5ms") == Budget(latency="5ms")
    assert parse_budget("latency=0.5") == parse_budget("latency=50%") == Budget(latency=0.5)
    assert [parse_scalar(text) for text in ("2", "0.5", "true", "None", "x", '"2"', "[1, 2]")] == [
        2,
        0.5,
        True,
        None,
        "x",
        "2",
        [1, 2],
    ]


@pytest.mark.parametrize(
    "settings",
    [PruneSettings(), CHANGED, PruneSettings(keep=0.5, model_args={"a": [1, 2]}), PruneSettings(threshold=0.5)],
)
def test_the_command_repeats_the_settings(settings: PruneSettings) -> None:
    words = shlex.split(settings.resolved().to_command())[1:]
    command, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    assert command is prune
    assert PruneSettings(**flag_values(*bound.arguments.values())).resolved() == settings.resolved()


# ---------------------------------------------------------------------- multiples and uniform widths


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (8, 8),
        ("auto", "auto"),
        ("hidden=64,layer1.*=8", {"hidden": 64, "layer1.*": 8}),
        ({"heads": 2, "stem": 16}, {"heads": 2, "stem": 16}),
    ],
)
def test_multiples_from_a_number_text_or_a_mapping(given: object, wanted: object) -> None:
    settings = PruneSettings.from_mapping({"multiple_of": given})
    assert settings.limits()["multiple_of"] == wanted
    assert PruneSettings.from_mapping(settings.to_dict()).limits()["multiple_of"] == wanted


@pytest.mark.parametrize("text", ["hidden", "hidden=", "=4", "hidden=0", "hidden=1.5", "hidden=4,,"])
def test_multiples_that_make_no_sense(text: str) -> None:
    with pytest.raises(
        ConfigError, match=r"multiple_of .* should be a pattern, = and a whole number from 1: hidden=64"
    ):
        PruneSettings(multiple_of=text)


def test_a_command_repeats_multiples_and_uniform_widths() -> None:
    command = PruneSettings(uniform=True, multiple_of="heads=2", scope="isomorphic").to_command()
    assert command == "secateur prune --scope isomorphic --multiple-of heads=2 --uniform"
    assert PruneSettings(budget="latency=5ms", multiple_of="auto").to_command() == (
        "secateur prune --budget latency=5ms --multiple-of auto"
    )
    assert PruneSettings(uniform=False, multiple_of=4).to_command() == "secateur prune --multiple-of 4"


# ---------------------------------------------------------------------- limits, and bounds on held-out data


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (0.5, 0.5),
        ("0.5", 0.5),
        (1, 1.0),
        ("hidden=0.75, heads=1", {"hidden": 0.75, "heads": 1}),
        ({"hidden": 0.75}, {"hidden": 0.75}),
    ],
)
def test_shares_from_a_number_text_or_a_mapping(given: object, wanted: object) -> None:
    settings = PruneSettings.from_mapping({"max_share": given})
    assert settings.limits()["max_share"] == wanted
    assert PruneSettings.from_mapping(settings.to_dict()).limits()["max_share"] == wanted


@pytest.mark.parametrize("text", ["hidden", "hidden=", "=0.4", "hidden=0", "hidden=1.5", "hidden=half", "a=0.4,,"])
def test_shares_that_make_no_sense(text: str) -> None:
    with pytest.raises(ConfigError, match=r"max_share .* should be a pattern, = and a share in \(0, 1\]: hidden=0.75"):
        PruneSettings(max_share=text)


def test_a_command_repeats_bounds_and_limits() -> None:
    settings = PruneSettings(max_drop=0.5, reduce="params", max_share="hidden=0.5", min_units="heads=2")
    command = settings.to_command()
    wanted = "--max-drop 0.5 --reduce params --min-units heads=2 --max-share hidden=0.5"
    assert command == f"secateur prune {wanted}"
    _, bound, _ = app.parse_args(shlex.split(command)[1:], exit_on_error=False, print_error=False)
    assert PruneSettings(**flag_values(*bound.arguments.values())) == settings
    assert settings.limits() == {"min_units": {"heads": 2}, "multiple_of": 1, "max_share": {"hidden": 0.5}}
    _, bound, _ = app.parse_args(["prune", "--max-share", "0.5", "--min-units", "3"], exit_on_error=False)
    assert PruneSettings(**flag_values(*bound.arguments.values())).limits()["max_share"] == 0.5


def test_a_bound_takes_the_place_of_the_threshold() -> None:
    assert PruneSettings(max_drop=0.5).resolved().threshold is None
    assert PruneSettings(max_loss_increase=0.02).bounded == {"max_loss_increase": 0.02}
    assert PruneSettings(max_robust_drop=1).resolved().threshold is None
    assert PruneSettings(max_robust_drop=1, budget="macs=0.5").bounded == {"max_robust_drop": 1}
    assert PruneSettings().bounded == {}


def test_an_attack_from_text() -> None:
    settings = PruneSettings(
        adversarial="trades", eps="l2=1/2", normalise="0.5:0.25", bounds="0:2", attack_step="1/8", beta=3.0
    )
    wanted = Adversarial("trades", eps=0.5, norm="l2", bounds=(0, 2), normalise=(0.5, 0.25), step_size=0.125, beta=3.0)
    assert attack_of(settings, settings, None) == wanted
    assert attack_of(PruneSettings(max_robust_drop=1), PruneSettings(), ((0.5,), (0.2,))) == Adversarial(
        eps=8 / 255, normalise=((0.5,), (0.2,))
    )
    command = settings.to_command()
    _, bound, _ = app.parse_args(shlex.split(command)[1:], exit_on_error=False, print_error=False)
    assert PruneSettings(**flag_values(*bound.arguments.values())) == settings
    assert PruneSettings.from_mapping({"adversarial": "pgd", "eps": 0.1, "attack_step": 1}).eps == "0.1"
    assert PruneSettings.from_mapping({"eps": "8/255"}).eps == "8/255"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"max_robust_drop": 1.0, "keep": 0.5},
            "keep=0.5 says by itself what goes: max_robust_drop goes with",
        ),
        ({"max_robust_drop": -1.0}, "max_robust_drop=-1.0 must be at least 0"),
        ({"max_robust_drop": 1.0, "schedule": "cubic", "budget": "macs=0.5"}, "leave max_robust_drop out"),
        ({"max_robust_drop": 1.0, "budget": "latency=5ms"}, "one of macs, params or bytes"),
        ({"adversarial": "pgd", "eps": "linf=0.1,l2=0.5"}, "one norm"),
        ({"adversarial": "pgd", "attack_steps": 0}, "steps=0 must be a whole number from 1"),
        ({"adversarial": "pgd", "attack_step": "-1/255"}, "a radius must be above 0"),
    ],
)
def test_attacks_that_make_no_sense(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PruneSettings(**values)  # type: ignore[arg-type]


def test_augmentation_is_a_setting_of_every_run() -> None:
    settings = HintSettings(data="imagefolder:photos", augment="standard").training()
    assert (settings.data, settings.augment) == ("imagefolder:photos", "standard")
    assert "--augment standard" in settings.to_command()
    assert PruneSettings.from_mapping(settings.to_dict()) == settings
    with pytest.raises(ConfigError, match="augment is 'colour', but must be one of standard, flip, none or nothing"):
        PruneSettings.from_mapping({"augment": "colour"})


@pytest.mark.parametrize("augment", ["standard", "flip", "none", None])
def test_a_command_repeats_the_augmentation(augment: Any) -> None:
    settings = PruneSettings(augment=augment)
    _, bound, _ = app.parse_args(shlex.split(settings.to_command())[1:], exit_on_error=False)
    assert PruneSettings(**flag_values(*bound.arguments.values())).augment == augment
    assert PruneSettings.from_mapping(yaml.safe_load(settings.to_yaml())).augment == augment


@pytest.mark.parametrize(("text", "value"), [("auto", "auto"), ("search", "search"), ("3e-4", 3e-4), (0.1, 0.1)])
def test_the_learning_rate_is_a_number_or_left_to_evidence(text: object, value: object) -> None:
    assert PruneSettings.from_mapping({"lr": text}).lr == value


def test_other_words_are_no_learning_rate() -> None:
    with pytest.raises(ConfigError, match="lr is 'fast', but must be"):
        PruneSettings.from_mapping({"lr": "fast"})
