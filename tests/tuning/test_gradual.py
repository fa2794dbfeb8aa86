"""Pruning and training in turns: budgets, proofs, replay, resuming, and what Ctrl-C leaves."""

import io
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import secateur as sc
from secateur import pruning
from secateur.errors import PlanError, ProofFailed, TrainingError
from secateur.inputs import as_call
from secateur.proof import Proof, silenced
from secateur.timing import LatencyTable, latency_table, settling
from secateur.tuning import Callback, Distillation, Gradual, Rewind, course, cutting, gradual, prune_gradually, tune
from secateur.tuning.scheduled import Fading, Growing
from support.clocks import by_work
from support.networks import Cnn, LiteralNet, Mlp, Tied, example, llama
from support.runs import Running, still


class CutOff(Exception):
    """Stands for a power cut."""


class Cut(Callback):
    """Cuts a training off at one of all steps of the optimizer."""

    def __init__(self, at: int, error: type[BaseException] = CutOff) -> None:
        self.left, self.error = at, error

    def after_step(self, run: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.error


def batches(model: nn.Module, count: int = 3, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    """Random inputs of the example's form, with random labels."""
    generator = torch.Generator().manual_seed(1)
    shape, classes = example(model).shape[1:], model(example(model)).shape[-1]
    return [
        (torch.randn(size, *shape, generator=generator), torch.randint(classes, (size,), generator=generator))
        for _ in range(count)
    ]


def gradually(model: nn.Module, **settings: Any) -> Gradual:
    """Three steps down to 40 % of the parameters."""
    data = batches(model)
    given = {"budget": sc.Budget(params=0.4), "steps": 3, "final_epochs": 1, "lr": 0.01, "device": "cpu", **settings}
    return prune_gradually(model, example(model), given.pop("train", data), given.pop("validate", data), **given)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def same(a: nn.Module, b: nn.Module) -> bool:
    states = a.state_dict(), b.state_dict()
    return states[0].keys() == states[1].keys() and all(torch.equal(t, states[1][n]) for n, t in states[0].items())


@pytest.fixture(scope="module")
def whole() -> Gradual:
    """A small convolutional network, pruned in three steps."""
    torch.manual_seed(0)
    return gradually(Cnn())


def test_the_budgets_of_the_steps_by_hand(whole: Gradual) -> None:
    """Cubic towards 0.4: 0.4 + 0.6 (2/3)^3, 0.4 + 0.6 (1/3)^3 and 0.4; each met to within one unit."""
    asked = [step.budget["params"] for step in whole.steps]
    assert asked == pytest.approx([0.4 + 0.6 * 8 / 27, 0.4 + 0.6 / 27, 0.4])
    largest = 8 * (3 * 9 + 12 * 9) / parameters(Cnn())  # a unit is less than all of one axis
    for step, target in zip(whole.steps, asked, strict=True):
        assert target - largest < step.cost["params"] <= target
    assert parameters(whole.model) == round(whole.steps[-1].cost["params"] * parameters(Cnn()))
    assert parameters(whole.model) <= 0.4 * parameters(Cnn())


def test_every_step_is_proved_and_told(whole: Gradual) -> None:
    assert [step.proof.status for step in whole.steps] == ["proved"] * 3
    assert whole.proof is whole.steps[-1].proof
    assert [len(step.history.epochs) for step in whole.steps if step.history] == [1, 1, 1]
    assert all(set(step.cut) == {"loss", "accuracy"} for step in whole.steps)
    assert "% of the params, validation accuracy" in whole.steps[0].describe()
    found = whole.report["gradual"]
    assert [row["step"] for row in found["steps"]] == [1, 2, 3]
    assert found["steps"][1]["training"]["epochs"][0]["train_loss"] > 0
    assert "Pruned bit by bit by a cubic schedule: in 3 steps" in str(whole.report)
    assert sc.Report(whole.report.to_dict()) == whole.report


def test_each_step_takes_from_what_the_last_one_left() -> None:
    kept: list[sc.Plan] = []
    model = Cnn()

    class Look(Callback):
        def on_start(self, run: Any) -> None:
            kept.append(run.model.secateur_plans[-1])

    gradually(model, callbacks=[Look()])
    assert len(kept) == 3
    for larger, smaller in pairwise(kept):
        for name, units in smaller.units.items():
            before = larger.units.get(name, torch.arange(smaller.axes[name].before))
            assert set(units.tolist()) <= set(before.tolist())


@pytest.mark.parametrize("kind", [Cnn, LiteralNet, Tied], ids=lambda kind: kind.__name__)
def test_each_cut_is_its_predecessor_silenced(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the proof compares is the trained network right before the surgery, and what comes out right after it."""
    befores: list[nn.Module] = []
    prove = cutting.prove

    def look(before: nn.Module, small: nn.Module, graph: sc.Graph, plan: sc.Plan, *args: Any) -> Proof:
        befores.append(before)
        inputs = as_call(example(before))
        [wanted], _ = silenced(before, graph, plan, *inputs, dtype=torch.float32)
        with torch.no_grad():
            assert torch.allclose(small(*inputs[0]), wanted, atol=1e-5)
        return prove(before, small, graph, plan, *args)

    monkeypatch.setattr(cutting, "prove", look)
    model = kind().eval()
    tied = kind is Tied
    data = [(example(model), torch.zeros(2))] * 2 if tied else batches(model)
    loss = (lambda output, _: output.square().mean()) if tied else None
    given: dict[str, Any] = {"budget": sc.Budget(params=0.6), "steps": 2, "final_epochs": 0, "lr": 0.01, "loss": loss}
    result = prune_gradually(model, example(model), data, device="cpu", **given)
    assert befores[0] is model
    assert [parameters(before) / parameters(model) for before in befores[1:]] == [result.steps[0].cost["params"]]


@pytest.mark.parametrize("kind", [Cnn, LiteralNet], ids=lambda kind: kind.__name__)
def test_the_plan_is_replayed_on_other_weights(kind: Any, tmp_path: Path) -> None:
    model = kind()
    result = gradually(model, data=batches(model), compensate="mean", importance="l2")
    result.plan.save(tmp_path / "plan.json")
    other = kind()
    again = sc.Plan.load(tmp_path / "plan.json").apply(other)
    shapes = {name: tensor.shape for name, tensor in result.model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in again.state_dict().items()} == shapes
    proof = cutting.prove(other, result.plan.apply(other), sc.trace(other, example(other)), result.plan,
                                    example(other))  # fmt: skip
    assert proof.status == "proved"
    sc.save(result, tmp_path / "saved")
    assert same(sc.load(tmp_path / "saved", model=other), result.model)


def test_the_model_given_is_untouched() -> None:
    model = Cnn().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for mode in ("cut", "soft", "regularised"):
        result = gradually(model, mode=mode, steps=2, teacher="dense")
        assert not any(module.training for module in result.model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_compensation_goes_with_every_surgery() -> None:
    model = Cnn()
    result = gradually(model, data=batches(model), steps=2)
    found = [step.compensation for step in result.steps]
    assert all(step is not None and step["how"] == "lstsq" for step in found)
    assert all(step["distance"] <= step["distance_before"] for step in found if step)


def test_equal_widths_that_a_config_says() -> None:
    model = llama().train()
    inputs = example(model)
    result = prune_gradually(
        model, inputs, [(inputs, torch.zeros(1))], budget=sc.Budget(params=0.75), steps=2, final_epochs=0, lr=1e-3,
        uniform=True, loss=lambda output, _: output.logits.square().mean(), device="cpu",
    )  # fmt: skip
    built = type(model)(result.model.config)
    assert {n: t.shape for n, t in built.state_dict().items()} == {
        n: t.shape for n, t in result.model.state_dict().items()
    }


def test_features_are_compared_by_the_plan_of_each_step() -> None:
    model = Mlp()
    result = gradually(model, teacher=Distillation(model, features=["1"]), budget=sc.Budget(params=0.6), steps=2)
    assert [len(step.history.epochs) for step in result.steps if step.history] == [1, 1]


# ---------------------------------------------------------------------- one surgery at the end


@pytest.mark.parametrize("kind", [Cnn, LiteralNet], ids=lambda kind: kind.__name__)
def test_soft_masks_end_where_surgery_changes_nothing(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[nn.Module] = []
    whole = course.Surgeon.whole
    monkeypatch.setattr(
        course.Surgeon, "whole", lambda self, before, *rest: (ends.append(before), whole(self, before, *rest))[1]
    )
    model = kind().eval()
    result = gradually(model, mode="soft", final_epochs=0)
    inputs = torch.randn(4, *example(model).shape[1:])
    with torch.no_grad():
        assert torch.allclose(ends[0].eval()(inputs), result.model(inputs), atol=1e-5)
    assert result.masked is not None
    assert len(result.masked.epochs) == 3
    assert all(row.validation_accuracy is not None for row in result.masked.epochs)
    assert result.masked.best_epoch == 3, "only the last state is silenced"
    assert parameters(result.model) <= 0.4 * parameters(model)
    assert len(result.steps) == 1


def test_a_growing_penalty_ends_close_to_surgery(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[nn.Module] = []
    whole = course.Surgeon.whole
    monkeypatch.setattr(
        course.Surgeon, "whole", lambda self, before, *rest: (ends.append(before), whole(self, before, *rest))[1]
    )
    torch.manual_seed(0)
    model = Mlp(16).eval()
    data = batches(model, count=20)
    result = gradually(model, mode="regularised", final_epochs=0, train=data, strength=12.0)
    inputs = torch.randn(4, 4)
    with torch.no_grad():
        drawn, cut, at_once = ends[0].eval()(inputs), result.model(inputs), result.plan.apply(model)(inputs)
        assert (drawn - cut).norm() < 0.02 * (model(inputs) - at_once).norm()
    assert parameters(result.model) <= 0.4 * parameters(model)


def test_masks_choose_anew_in_each_step() -> None:
    """Six steps of training, three of the schedule: choices after steps 1, 3 and 5, zero after the last."""
    model = Mlp()
    graph = sc.trace(model, torch.zeros(1, 4))
    asked: list[int] = []

    def choose(now: nn.Module, number: int) -> sc.Plan:
        asked.append(number)
        return sc.plan(graph, sc.score(now, graph, "l2"), keep=(0.75, 0.5, 0.25)[number])

    masks = Fading(choose, 3)
    running = Running(model, torch.optim.SGD(model.parameters(), lr=0.1), 6).go([masks], still)
    assert asked == [0, 1, 2]
    assert running.step == masks.hard_from == 6
    kept = masks.plan.axes["0.weight:0"].kept
    assert len(kept) == 2
    assert not model[0].weight[[k for k in range(8) if k not in kept]].any()


def test_the_penalty_by_hand() -> None:
    """Two steps of training in each of two of the schedule, strength 4: factors 1 / (1 + 2 / 2) and 1 / (1 + 4 / 2)."""
    model = Mlp()
    graph = sc.trace(model, torch.zeros(1, 4))
    plan = sc.plan(graph, sc.score(model, graph, "l2"), keep=0.5)
    before = model[0].weight.detach().clone()
    gone = [k for k in range(8) if k not in plan.axes["0.weight:0"].kept]
    growing = Growing(graph, lambda now, number: plan, 2, 4.0)
    Running(model, torch.optim.SGD(model.parameters(), lr=0.1), 4).go([growing], still, decay=0.5)
    assert torch.allclose(model[0].weight[gone], before[gone] / 2 / 2 / 3 / 3)
    assert torch.equal(model[0].weight[list(plan.axes["0.weight:0"].kept)],
                       before[list(plan.axes["0.weight:0"].kept)])  # fmt: skip


# ---------------------------------------------------------------------- rewinding


def test_each_step_begins_again_with_early_weights() -> None:
    model = Cnn()
    ticket = Rewind(2)
    tune(model, batches(model), epochs=2, lr=0.05, device="cpu", callbacks=[ticket])
    starts: list[tuple[dict[str, Tensor], float]] = []

    class Look(Callback):
        def before_step(self, run: Any) -> None:
            if run.step == 0:
                starts.append(({n: t.clone() for n, t in run.model.named_parameters()}, run.lr))

    result = gradually(model, rewind="weights", ticket=ticket, steps=2, callbacks=[Look()])
    early = dict(result.plan.apply(ticket.rewound(model)).named_parameters())
    assert all(torch.equal(tensor, early[name]) for name, tensor in starts[-1][0].items())
    assert starts[-1][1] == pytest.approx(ticket.rates[0])

    starts.clear()
    result = gradually(model, rewind="rates", ticket=ticket, steps=2, callbacks=[Look()], final_epochs=2)
    late = dict(result.plan.apply(model).named_parameters())
    assert not all(torch.equal(tensor, late[name]) for name, tensor in starts[-1][0].items())
    assert [rate for _, rate in starts] == pytest.approx([ticket.rates[0]] * 2)


def test_without_a_ticket_weights_are_those_of_the_model_given() -> None:
    model = Cnn()
    result = gradually(model, rewind="weights", steps=2, final_epochs=0)
    assert same(result.model, result.plan.apply(model))


# ---------------------------------------------------------------------- resuming, and Ctrl-C


def shuffled(model: nn.Module) -> DataLoader[Any]:
    """Batches from a loader with a generator of its own, which goes on from training to training."""
    inputs, labels = (torch.cat(parts) for parts in zip(*batches(model), strict=True))
    return DataLoader(
        TensorDataset(inputs, labels), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(5)
    )


@pytest.mark.parametrize(
    ("mode", "cuts"), [("cut", (2, 5, 8)), ("soft", (5, 10)), ("regularised", (5, 10))], ids=lambda v: str(v)
)
def test_resumed_bit_for_bit(mode: Any, cuts: tuple[int, ...], tmp_path: Path) -> None:
    """Cut off in the training of a step, and again in that of a later one."""

    def run(folder: Path | None, cut: int | None) -> Gradual:
        torch.manual_seed(0)
        model = Cnn()
        return gradually(
            model,
            train=shuffled(model),
            mode=mode,
            checkpoints=folder,
            every=1,
            teacher="dense",
            callbacks=[Cut(10**6 if cut is None else cut)],
        )

    wanted = run(None, None)
    for cut in cuts:
        with pytest.raises(CutOff):
            run(tmp_path / str(cut), cut)
        resumed = run(tmp_path / str(cut), None)
        assert same(resumed.model, wanted.model), cut
        assert resumed.plan == wanted.plan
        rows = [[step.to_dict() for step in result.steps] for result in (resumed, wanted)]
        for row in (row for part in rows for row in part):
            row["training"] = [(e["train_loss"], e["validation_accuracy"]) for e in row["training"]["epochs"]]
        assert rows[0] == rows[1]


def test_cut_off_between_two_trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut in a surgery, right after it, and right after a training was kept."""

    def run(folder: Path | None) -> Gradual:
        torch.manual_seed(0)
        return gradually(Cnn(), checkpoints=folder)

    wanted = run(None)
    for number, (kind, name) in enumerate([(course.Surgeon, "further"), (course.Course, "_validated")]):
        seen = 0
        original = getattr(kind, name)

        def broken(*args: Any, original: Any = original) -> Any:
            nonlocal seen
            seen += 1
            if seen == 2:
                raise CutOff
            return original(*args)

        with monkeypatch.context() as patch:
            patch.setattr(kind, name, broken)
            with pytest.raises(CutOff):
                run(tmp_path / str(number))
        assert same(run(tmp_path / str(number)).model, wanted.model)


def test_a_finished_run_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = gradually(Mlp(), checkpoints=tmp_path)
    monkeypatch.setattr(course, "tune", lambda *_, **__: pytest.fail("trained"))
    monkeypatch.setattr(course.Surgeon, "cut", lambda *_, **__: pytest.fail("cut"))
    torch.manual_seed(0)
    again = gradually(Mlp(), checkpoints=tmp_path)
    assert again.plan == first.plan
    with pytest.raises(TrainingError, match=r"a gradual pruning with other settings \(steps\)"):
        gradually(Mlp(), checkpoints=tmp_path, steps=4)


@pytest.mark.parametrize(("at", "steps"), [(5, 1), (8, 3)])
def test_ctrl_c_leaves_the_last_complete_step(at: int, steps: int, tmp_path: Path) -> None:
    """Three batches an epoch: the fifth step is in the second training, the eighth in the last one."""

    def run(**settings: Any) -> Gradual:
        torch.manual_seed(0)
        return gradually(Cnn(), **settings)

    stopped = run(callbacks=[Cut(at, KeyboardInterrupt)], checkpoints=tmp_path, every=1)
    assert len(stopped.steps) == steps
    words = {
        1: "the gradual pruning was stopped at step 2 of 3; kept is the network after step 1",
        3: "the training after the last step of the gradual pruning was stopped; kept is its best state so far",
    }
    assert stopped.interrupted == stopped.report["gradual"]["interrupted"] == words[steps]
    cost = stopped.steps[-1].cost["params"]
    assert parameters(stopped.model) == round(cost * parameters(Cnn()))
    assert stopped.model(example(Cnn())).shape == (2, 5)
    resumed = run(callbacks=[Cut(10**6)], checkpoints=tmp_path, every=1)
    assert not resumed.interrupted
    assert same(resumed.model, run().model)


def test_ctrl_c_before_the_first_step_is_complete() -> None:
    with pytest.raises(KeyboardInterrupt):
        gradually(Cnn(), callbacks=[Cut(2, KeyboardInterrupt)])


def test_ctrl_c_under_masks_cuts_what_is_going() -> None:
    model = Cnn()
    stopped = gradually(model, mode="soft", callbacks=[Cut(5, KeyboardInterrupt)])
    assert "what was going by then is cut" in stopped.interrupted
    assert stopped.proof.status == "proved"
    assert stopped.steps[0].number >= 2
    assert parameters(stopped.model) <= (0.4 + 0.6 / 27) * parameters(model)
    with pytest.raises(KeyboardInterrupt):
        gradually(model, mode="soft", callbacks=[Cut(2, KeyboardInterrupt)])


# ---------------------------------------------------------------------- the rest


def test_epochs_are_counted_on() -> None:
    """Batches whose order hangs on the epoch see another one in every training."""

    class Ordered:
        seen: list[int] = []  # noqa: RUF012

        def __init__(self, data: list[Any]) -> None:
            self.data = data

        def set_epoch(self, epoch: int) -> None:
            self.seen.append(epoch)

        def __len__(self) -> int:
            return len(self.data)

        def __iter__(self) -> Iterator[Any]:
            return iter(self.data)

    gradually(Mlp(), train=Ordered(batches(Mlp())), steps=2, epochs=2)
    assert Ordered.seen == [0, 1, 2]


def test_progress_runs_over_all_trainings() -> None:
    seen: list[tuple[int, int]] = []
    told: list[int] = []
    gradually(
        Mlp(), steps=2, progress=lambda done, total: seen.append((done, total)), on_step=lambda s: told.append(s.number)
    )
    assert seen == [(done, 6) for done in range(1, 7)]
    assert told == [1, 2]


def test_an_axis_that_fails_its_proof_later_keeps_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second step on the proof of one axis fails: it stays as narrow as it is, and the others go on."""
    prove, name = cutting.prove, "conv2.weight:0"

    def failing(model: nn.Module, small: nn.Module, graph: sc.Graph, plan: sc.Plan, *args: Any) -> Proof:
        if graph.axes[name].size < 12 and name in plan.axes:
            raise ProofFailed("by order")
        return prove(model, small, graph, plan, *args)

    monkeypatch.setattr(cutting, "prove", failing)
    monkeypatch.setattr(pruning, "prove", failing)
    result = gradually(Cnn(), schedule="linear", steps=2)
    assert len(result.plan.axes[name].kept) == result.graph.axes[name].least < 12
    assert parameters(result.model) <= 0.4 * parameters(Cnn())


def test_errors_say_what_to_do() -> None:
    model = Mlp()
    with pytest.raises(PlanError, match="threshold and keep: a schedule leads to a budget"):
        gradually(model, threshold=0.5, keep=0.5)
    with pytest.raises(PlanError, match=r"write budget=sc.Budget\(macs=0.5\)"):
        gradually(model, budget=0.5)
    with pytest.raises(TypeError, match="no setting 'optimiser'. Did you mean 'optimizer'?"):
        gradually(model, optimiser="sgd")
    with pytest.raises(TrainingError, match="steps=0 must be at least 1; epochs=0 between steps must be at least 1"):
        gradually(model, steps=0, epochs=0)
    with pytest.raises(TrainingError, match='begins again after each surgery, so it goes with mode="cut"'):
        gradually(model, mode="soft", rewind="weights")
    with pytest.raises(TrainingError, match="pass its Rewind as ticket="):
        gradually(model, rewind="rates")
    with pytest.raises(TrainingError, match="compensate='mean' has nothing to make up for with mode=\"soft\""):
        gradually(model, mode="soft", compensate="mean", data=batches(model))
    with pytest.raises(PlanError, match="no schedule is called 'cubik'"):
        gradually(model, schedule="cubik")


def test_the_documentation_prints_what_it_says() -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    section = page.partition("## Gradual pruning")[2].partition("\n## ")[0]
    found = re.search(r"```python\n(.*?)```\n+```text\n(.*?)```", section, re.DOTALL)
    assert found is not None
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(found[1], "training.md", "exec"), {"__name__": "training"})
    assert printed.getvalue() == found[2]


def test_data_that_are_shuffled_anew_and_resumed(tmp_path: Path) -> None:
    """Calibration data draw from a stream of their own at every step."""

    inputs, labels = (torch.cat(parts) for parts in zip(*batches(Cnn()), strict=True))
    data = DataLoader(TensorDataset(inputs, labels), batch_size=8, shuffle=True)

    def run(folder: Path | None, cut: int | None) -> Gradual:
        torch.manual_seed(0)
        model = Cnn().eval()
        torch.manual_seed(1 if cut is None else 2)  # of another process
        callbacks = [Cut(10**6 if cut is None else cut)]
        return gradually(model, data=data, importance="taylor", steps=2, checkpoints=folder, callbacks=callbacks)

    wanted = run(None, None)
    with pytest.raises(CutOff):
        run(tmp_path, 4)
    assert same(run(tmp_path, None).model, wanted.model)


# ---------------------------------------------------------------------- latency


def by_parameters(models: Any, *_: Any) -> dict[str, float]:
    """A microsecond for each parameter."""
    return {name: 1e-6 * parameters(model) for name, model in models.items()}


@pytest.mark.parametrize("mode", ["cut", "soft"])
@pytest.mark.parametrize("absolute", [False, True])
def test_a_schedule_leads_to_a_latency(mode: Any, absolute: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the time in the end, and each step on its way there; a clock that never looks at the time."""

    def table(model: nn.Module, graph: sc.Graph, args: Any, kwargs: Any = None) -> LatencyTable:
        return latency_table(model, graph, args, kwargs, timer=by_work, whole=1e-6 * parameters(model))

    monkeypatch.setattr(settling, "latency_table", table)
    monkeypatch.setattr(settling, "whole_seconds", by_parameters)
    monkeypatch.setattr(gradual, "whole_seconds", by_parameters)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 4))
    images = [(torch.randn(8, 8), torch.arange(8) % 4) for _ in range(3)]
    half = f"{parameters(model) / 2:.0f}us" if absolute else 0.5
    result = prune_gradually(
        model,
        torch.randn(2, 8),
        images,
        budget=sc.Budget(latency=half),
        schedule="linear",
        steps=2,
        final_epochs=1,
        lr=0.01,
        mode=mode,
        compensate=None,
        device="cpu",
    )
    assert parameters(result.model) == pytest.approx(parameters(model) / 2, rel=0.1)
    shares = [parameters(result.plan.apply(model)) / parameters(model)]
    if mode == "cut":
        assert [step.number for step in result.steps] == [1, 2]
        assert result.steps[0].cost["params"] == pytest.approx(0.75, rel=0.1)
        assert result.steps[1].cost["params"] == pytest.approx(shares[0], abs=1e-3)
    report = result.report
    assert report["pruned"]["latency_ms"] / report["dense"]["latency_ms"] == pytest.approx(0.5, rel=0.1)
