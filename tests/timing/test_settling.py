"""Plans are measured, and made again where they are off; the measurements are made up."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

import secateur as sc
from secateur import pruning
from secateur.errors import UnreachableBudget
from secateur.measuring import count_macs
from secateur.timing import latency_table, settling
from secateur.timing.settling import Clock
from secateur.timing.whole import whole_seconds
from support.clocks import by_work, in_blocks
from support.networks import Residual, example

Seconds = Mapping[str, float]


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 16)).eval()


INPUT = torch.zeros(3, 16)


class Fixture:
    """A model whose time is that of its MACs and something constant, which no operation alone shows."""

    def __init__(self, budget: sc.Budget, constant: float = 0.0) -> None:
        self.model, self.constant = wide(), constant
        self.graph = sc.trace(self.model, INPUT)
        self.scores = sc.score(self.model, self.graph)
        self.measured: list[float] = []
        dense = self.seconds(self.model)
        table = latency_table(self.model, self.graph, INPUT, timer=by_work, whole=dense)
        self.clock = Clock(self.model, budget, table, self.measure)
        self.budget = budget

    def seconds(self, model: nn.Module) -> float:
        return 1e-9 * count_macs(model, INPUT) + self.constant

    def measure(self, models: Mapping[str, nn.Module]) -> Seconds:
        found = {name: self.seconds(model) for name, model in models.items()}
        self.measured.append(found["pruned"] / found["dense"])
        return found

    def settle(self) -> sc.Plan:
        return self.clock.settle(
            self.graph, lambda table: sc.plan(self.graph, self.scores, budget=self.budget, latency=table)
        )


@pytest.mark.parametrize("constant", [0.0, 1e-5, 5e-5])
def test_the_result_is_on_target_as_measured(constant: float) -> None:
    """The timer counts numbers, the clock MACs: the first plan is off, and corrected by what was measured."""
    setup = Fixture(sc.Budget(latency=0.6), constant)
    made = setup.settle()
    share = setup.seconds(made.apply(setup.model)) / setup.seconds(setup.model)
    assert share == pytest.approx(0.6, rel=0.03)
    assert 1 <= len(setup.measured) <= settling.ROUNDS
    found = setup.clock.found
    assert found is not None
    assert found.share == pytest.approx(share)
    assert found.plan is made


def test_an_absolute_latency() -> None:
    whole = Fixture(sc.Budget(latency=0.5)).seconds(wide())
    setup = Fixture(sc.Budget(latency=f"{whole * 0.5e6}us"))
    assert setup.seconds(setup.settle().apply(setup.model)) == pytest.approx(whole / 2, rel=0.03)


def test_what_cannot_become_so_fast() -> None:
    """Nine tenths of the time are none of the operations'."""
    setup = Fixture(sc.Budget(latency=0.3), constant=1e-3)
    with pytest.raises(UnreachableBudget, match="is below the smallest that Sequential can get"):
        setup.settle()
    assert setup.measured, "measured first, since the operations by themselves would become fast enough"


def test_a_result_that_is_no_faster_is_no_result() -> None:
    setup = Fixture(sc.Budget(latency=0.5))
    setup.clock.measure = lambda models: {"dense": 1e-3, "pruned": 1.02e-3}
    with pytest.raises(UnreachableBudget, match=r"latency=500us of 1ms is not met: .* measured at 1.02ms, while its"):
        setup.settle()


def test_another_budget_is_met_and_measured_once() -> None:
    setup = Fixture(sc.Budget(macs=0.5))
    made = setup.settle()
    assert len(setup.measured) == 1
    assert setup.graph.cost(made.sizes)["macs"] <= 0.5 * setup.graph.cost()["macs"]


def test_a_clock_only_where_one_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wide()
    graph = sc.trace(model, INPUT)

    def asked(**settings: Any) -> bool:
        return Clock.where_asked(model, graph, INPUT, None, **settings) is not None

    monkeypatch.setattr(settling, "latency_table", lambda *a, **k: latency_table(model, graph, INPUT, timer=by_work))
    assert not asked(budget=None)
    assert not asked(budget=sc.Budget(macs=0.5), multiple_of={"hidden": 4})
    assert asked(budget=sc.Budget(latency=0.5))
    assert asked(budget=None, multiple_of="auto")


def test_whole_models_are_left_as_they_were() -> None:
    models = {"one": Residual().train(), "two": Residual().eval()}
    found = whole_seconds(models, example(models["one"]))
    assert found.keys() == models.keys()
    assert all(value > 0 for value in found.values())
    assert models["one"].training
    assert not models["two"].training


# ---------------------------------------------------------------------- sc.prune


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """``sc.prune`` with clocks of ours: operations take time in blocks of 16 units, models by their MACs."""

    def measure(models: Mapping[str, nn.Module], args: Any, kwargs: Any = None) -> Seconds:
        return {name: 1e-9 * count_macs(model, args, kwargs) + 1e-6 for name, model in models.items()}

    def table(model: nn.Module, graph: sc.Graph, args: Any, kwargs: Any = None) -> Any:
        whole = measure({"model": model}, args, kwargs)["model"]
        return latency_table(model, graph, args, kwargs, timer=in_blocks(16), whole=whole)

    monkeypatch.setattr(settling, "latency_table", table)
    monkeypatch.setattr(settling, "whole_seconds", measure)


@pytest.mark.usefixtures("made_up")
def test_prune_to_a_latency() -> None:
    result = sc.prune(wide(), INPUT, budget=sc.Budget(latency=0.5))
    dense, pruned = result.report["dense"], result.report["pruned"]
    assert pruned["latency_ms"] / dense["latency_ms"] == pytest.approx(0.5, abs=0.06), "within a step of 16 units"
    assert dense["predicted_latency_ms"] == dense["latency_ms"]
    assert 0 < pruned["predicted_latency_ms"] < dense["predicted_latency_ms"]
    assert result.proof.status == "proved"
    assert all(row["after"] % 16 == 0 for row in result.axes), "other widths save no time here"
    cut = 1 - pruned["latency_ms"] / dense["latency_ms"], 1 - pruned["macs"] / dense["macs"]
    assert result.report["latency_cut_per_mac_cut"] == pytest.approx(cut[0] / cut[1], abs=1e-3)
    assert "Latency, predicted" in str(result)
    assert "of the cut in MACs." in str(result)


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize("settings", [{"budget": sc.Budget(macs=0.6)}, {"keep": 0.4}, {"threshold": 0.99}])
def test_prune_at_fast_widths(settings: dict[str, Any]) -> None:
    result = sc.prune(wide(), INPUT, multiple_of="auto", **settings)
    assert all(row["after"] % 16 == 0 for row in result.axes)
    assert any(row["after"] < row["before"] for row in result.axes)
    assert result.report["pruned"]["latency_ms"] < result.report["dense"]["latency_ms"]


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize("importance", ["l2", "reconstruction"])
@pytest.mark.parametrize("how", ["lstsq", "mean"])
def test_the_model_that_is_returned_is_the_one_measured(
    how: str, importance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compensation comes after the plan was settled on, and may add biases."""
    torch.manual_seed(0)
    model = wide()
    seen: list[nn.Module] = []
    measure = settling.whole_seconds

    def watched(models: Mapping[str, nn.Module], args: Any, kwargs: Any = None) -> Seconds:
        seen.append(models["pruned"])
        return measure(models, args, kwargs)

    monkeypatch.setattr(settling, "whole_seconds", watched)
    data = [torch.randn(64, 16)]
    result = sc.prune(model, INPUT, importance=importance, budget=sc.Budget(latency=0.5), data=data, compensate=how)
    assert seen[-1] is result.model
    assert result.compensation is not None
    report = result.report
    assert report["compensation"]["how"] == how
    assert report["pruned"]["latency_ms"] / report["dense"]["latency_ms"] == pytest.approx(0.5, abs=0.06)
    assert report["pruned"]["predicted_latency_ms"] < report["dense"]["predicted_latency_ms"]
    assert "latency_cut_per_mac_cut" in report


@pytest.mark.usefixtures("made_up")
def test_a_model_that_compensation_made_slow_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {"dense": 1e-3, "pruned": 0.5e-3}
    monkeypatch.setattr(settling, "whole_seconds", lambda *_: dict(whole))

    def slower(*_: Any, **__: Any) -> Any:
        whole["pruned"] = 0.6e-3

    compensate_ = pruning.compensate_
    monkeypatch.setattr(pruning, "compensate_", lambda *a, **k: (slower(), compensate_(*a, **k))[1])
    with pytest.raises(UnreachableBudget, match=r"latency=500us of 1ms is not met: the plan was measured at 600us"):
        sc.prune(wide(), INPUT, budget=sc.Budget(latency=0.5), data=[torch.randn(64, 16)])


@pytest.mark.usefixtures("made_up")
def test_a_bound_at_fast_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rounds of the search are planned by times; what is measured, once, is the model that is returned."""
    torch.manual_seed(0)
    seen: list[nn.Module] = []
    measure = settling.whole_seconds

    def watched(models: Mapping[str, nn.Module], args: Any, kwargs: Any = None) -> Seconds:
        seen.append(models["pruned"])
        return measure(models, args, kwargs)

    monkeypatch.setattr(settling, "whole_seconds", watched)
    model = wide()
    x = torch.randn(64, 16)
    validate = [(x, model(x).argmax(1).detach())]
    result = sc.prune(model, INPUT, max_drop=20, validate=validate, data=[x], multiple_of="auto")
    assert seen == [result.model]
    report = result.report
    assert 0 <= report["held_out"]["worse"] <= 20
    assert report["compensation"]["how"] == "lstsq"
    assert 0 < report["pruned"]["latency_ms"] < report["dense"]["latency_ms"]
    assert any(row["after"] < row["before"] for row in result.axes)
    assert all(row["after"] % 16 == 0 for row in result.axes)


class InDisguise(nn.Module):
    """Its first width is held where no trace sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(16, 64), nn.Linear(64, 64), nn.Linear(64, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x).relu()
        if str(hidden.shape[1]) != "64":
            raise ValueError("a width that is not mine")
        return self.third(self.second(hidden).relu())


@pytest.mark.usefixtures("made_up")
def test_what_does_not_even_run_is_frozen_and_the_rest_is_measured() -> None:
    result = sc.prune(InDisguise().eval(), INPUT, budget=sc.Budget(latency=0.8))
    assert result.plan.sizes.keys() == {"second.weight:0"}
    report = result.report
    assert report["pruned"]["latency_ms"] / report["dense"]["latency_ms"] < 0.85


def test_without_latency_nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "latency_table", None)
    report = sc.prune(wide(), INPUT, keep=0.5).report
    assert "latency_ms" not in report["pruned"]
    assert "latency_cut_per_mac_cut" not in report
