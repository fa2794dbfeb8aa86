"""Small networks with a planted backdoor, from the verdict to the smaller network."""

import copy
import sys
from typing import Any

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.disinfecting import Inversion, Mending, Perturbation, attack_success
from secateur.disinfecting.clean import Clean, accuracy
from secateur.disinfecting.verdict import Verdict
from secateur.errors import DataError, PlanError
from support.poisoned import TARGET, corner, samples, trained

QUICK = Inversion(steps=70, samples=12)


@pytest.fixture(scope="module")
def bad() -> nn.Module:
    return trained(0.1)


@pytest.fixture(scope="module")
def clean() -> Clean:
    x, y = samples("train")
    return Clean(x=x[:300], y=y[:300])


@pytest.fixture(scope="module")
def unseen() -> Clean:
    x, y = samples("test")
    return Clean(x=x, y=y)


@pytest.fixture(scope="module")
def verdict(bad: nn.Module, clean: Clean) -> Verdict:
    return sc.find_backdoor(bad, clean, how=QUICK)


def test_a_planted_backdoor_is_found_with_its_class(verdict: Verdict, bad: nn.Module, unseen: Clean) -> None:
    assert attack_success(bad, unseen, corner, TARGET) > 0.95
    assert verdict.found
    assert verdict.target == TARGET
    assert verdict.trigger is not None
    assert attack_success(bad, unseen, verdict.trigger, TARGET) > 0.7
    assert "backdoor suspected" in str(verdict)


def test_a_clean_network_is_not_accused_and_loses_nothing(clean: Clean, unseen: Clean) -> None:
    model = trained(0.0)
    result = sc.disinfect(model, data=[(clean.x, clean.y)], inversion=QUICK)
    assert result.verdict is not None
    assert not result.verdict.found
    assert result.method is None
    assert result.history is None
    assert not result.plan.axes
    assert torch.equal(result.model(unseen.x), model(unseen.x))
    assert result.report["disinfected"]["said"] == "no backdoor found: nothing was removed"
    assert "No backdoor found: nothing was removed" in str(result)


def test_samples_that_are_nearly_all_of_one_class(bad: nn.Module) -> None:
    x, y = samples("train")
    few = torch.cat([(y == k).nonzero()[:6, 0] for k in range(10)])
    many = (y == 0).nonzero()[:, 0].repeat(5)
    rows = torch.cat([few, many])
    found = sc.find_backdoor(bad, Clean(x=x[rows], y=y[rows]), how=QUICK)
    assert all(norms.isfinite().all() for norms in found.norms.values())
    assert all(trigger.mask.any() for triggers in found.triggers.values() for trigger in triggers)
    assert found.target == TARGET


def test_labels_from_one_on_are_refused(bad: nn.Module, clean: Clean) -> None:
    with pytest.raises(DataError, match="10"):
        sc.find_backdoor(bad, [(clean.x, clean.y + 1)], how=QUICK)


def test_a_network_that_always_says_the_same_is_not_accused(clean: Clean) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(100, 16), nn.ReLU(), nn.Linear(16, 10))
    with torch.no_grad():
        net[3].bias[7] = 20
    found = sc.find_backdoor(net, clean, how=QUICK)
    assert not found.found
    assert found.triggers["patch"][7].success == 0
    assert found.norms["patch"][7] == 100


def test_auto_removes_it_and_proves_what_is_left(verdict: Verdict, bad: nn.Module, clean: Clean, unseen: Clean) -> None:
    before = copy.deepcopy(bad.state_dict())
    result = sc.disinfect(
        bad,
        data=[(clean.x, clean.y)],
        find=verdict,
        max_drop=4.0,
        trigger=corner,
        target=TARGET,
        test=[(unseen.x, unseen.y)],
    )
    assert result.method in ("clp", "anp", "fine-pruning")
    assert result.proof.status == "proved"
    assert result.report["pruned"]["params"] < result.report["dense"]["params"]
    tuned = result.report["tuned"]["metrics"]
    assert tuned["attack_success"] < 0.05 < 0.95 < result.report["dense"]["metrics"]["attack_success"]
    assert tuned["accuracy"] > result.report["dense"]["metrics"]["accuracy"] - 0.03
    assert tuned["accuracy"] == accuracy(result.model, unseen)
    assert all(torch.equal(before[name], value) for name, value in bad.state_dict().items())


@pytest.mark.parametrize("method", ["clp", "fine-pruning", "random"])
def test_a_named_method_removes_within_the_bound(method: str, bad: nn.Module, clean: Clean) -> None:
    result = sc.disinfect(bad, data=[(clean.x, clean.y)], method=method, find=False, tune=False, max_drop=1.0)  # pyright: ignore[reportArgumentType]
    assert result.method == method
    assert result.verdict is None
    assert accuracy(result.model, clean) >= accuracy(bad, clean) - 0.01
    assert result.model is not bad
    assert {row["name"] for row in result.axes if row["after"] < row["before"]} == set(
        result.report["disinfected"]["removed"]
    )


def test_no_method_removes_nothing_and_still_tunes(verdict: Verdict, bad: nn.Module, clean: Clean) -> None:
    result = sc.disinfect(bad, data=[(clean.x, clean.y)], method="none", find=verdict, tune=Mending(epochs=1))
    assert not result.plan.axes
    assert result.history is not None


def test_the_same_seed_gives_the_same_network(verdict: Verdict, bad: nn.Module, clean: Clean) -> None:
    one, other = (
        sc.disinfect(bad, data=[(clean.x, clean.y)], method="clp", find=verdict, tune=Mending(epochs=1)).model
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_training_mode_gradients_and_draws_are_left_as_they_were(bad: nn.Module, clean: Clean) -> None:
    model = copy.deepcopy(bad).train()
    draws = torch.get_rng_state()
    sc.disinfect(model, data=[(clean.x, clean.y)], method="clp", inversion=Inversion(steps=2), tune=Mending(epochs=1))
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert torch.equal(draws, torch.get_rng_state())


def test_inference_mode_changes_nothing(bad: nn.Module, clean: Clean) -> None:
    def found() -> tuple[Verdict, dict[str, torch.Tensor]]:
        data = [(clean.x.clone(), clean.y.clone())]
        verdict = sc.find_backdoor(bad, data, how=Inversion(steps=2))
        how = {"perturbation": Perturbation(steps=2), "tune": Mending(epochs=1)}
        return verdict, sc.disinfect(bad, data=data, method="anp", find=False, **how).model.state_dict()  # pyright: ignore[reportArgumentType]

    (wanted, kept) = found()
    with torch.inference_mode():
        verdict, state = found()
    assert all(torch.equal(norms, wanted.norms[form]) for form, norms in verdict.norms.items())
    assert all(torch.equal(value, kept[name]) and not value.is_inference() for name, value in state.items())


def test_arguments_that_contradict_each_other_are_refused(bad: nn.Module, clean: Clean) -> None:
    with pytest.raises(PlanError, match="method='cpl' is none of.*trigger and target go together"):
        sc.disinfect(bad, data=[(clean.x, clean.y)], method="cpl", trigger=corner)  # pyright: ignore[reportArgumentType]
    for find in (1, 0, "yes", None):
        with pytest.raises(PlanError, match=f"find={find!r}: give True, False, or what sc.find_backdoor gave"):
            sc.disinfect(bad, data=[(clean.x, clean.y)], method="clp", find=find)  # pyright: ignore[reportArgumentType]
    with pytest.raises(PlanError, match="leaves method='auto' nothing to choose by"):
        sc.disinfect(bad, data=[(clean.x, clean.y)], find=False)
    with pytest.raises(PlanError, match=r"forms=\['sticker'\]"):
        sc.find_backdoor(bad, clean, forms=["sticker"])
    with pytest.raises(DataError, match="the clean data is empty"):
        sc.find_backdoor(bad, [])
    with pytest.raises(DataError, match="has labels NoneType"):
        sc.find_backdoor(bad, [clean.x])
    with pytest.raises(DataError, match="does not run on clean samples"):
        sc.find_backdoor(bad, [(clean.x[:, :, :4], clean.y)])
    with pytest.raises(DataError, match="2 classes"):
        sc.find_backdoor(nn.Linear(3, 2), [(torch.rand(20, 3), torch.arange(2).repeat(10))])


@pytest.mark.parametrize("target", [99, 10, -1, "5", 1.5, True])
def test_a_target_that_is_no_class_is_refused_before_any_work(
    target: Any, bad: nn.Module, clean: Clean, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["secateur.disinfecting.disinfect"]  # the package's attribute of that name is the function
    monkeypatch.setattr(module, "find_backdoor", lambda *_, **__: pytest.fail("it searched"))
    with pytest.raises(PlanError, match=f"target={target!r} is no class of the model: give a whole number from 0 to 9"):
        sc.disinfect(bad, data=[(clean.x, clean.y)], trigger=corner, target=target)
    with pytest.raises(PlanError, match=f"target={target!r} is no class of the model: give a whole number from 0 to 9"):
        attack_success(bad, clean, corner, target)


def test_a_target_may_be_a_label(bad: nn.Module, clean: Clean) -> None:
    label = clean.y[clean.y == TARGET][0]
    wanted = attack_success(bad, clean, corner, TARGET)
    assert attack_success(bad, clean, corner, label) == wanted  # pyright: ignore[reportArgumentType]
    result = sc.disinfect(
        bad,
        data=[(clean.x, clean.y)],
        method="none",
        find=False,
        tune=False,
        trigger=corner,
        target=label,  # pyright: ignore[reportArgumentType]
    )
    assert result.report["dense"]["metrics"]["attack_success"] > 0.95
