"""Checking hints against the truth: what is found, printed, written, and refused."""

import json
import random
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.hints import HintCheck
from secateur.importance import Magnitude
from secateur.printing import as_text
from support.networks import Mlp, Residual


def batches(count: int = 3, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 3, 8, 8, generator=generator), torch.randint(0, 5, (size,), generator=generator))
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Residual().eval()


def check(model: nn.Module, hints: Any = ("l1", "l2"), data: Any = None, **options: Any) -> HintCheck:
    data = batches() if data is None else data
    return sc.check_hints(model, sc.trace(model, batches()[0][0]), hints, data, **options)


def true_scores(model: nn.Module) -> dict[str, Tensor]:
    """What every unit costs, as a hint that knows."""
    found = check(model, ["l2"], units_per_axis=None)
    return {axis.name: torch.tensor(axis.truth) for axis in found.axes}


def test_the_truth_correlates_with_itself(model: nn.Module) -> None:
    truth = true_scores(model)
    found = check(model, {"truth": truth, "wrong": {axis: -values for axis, values in truth.items()}, "l2": "l2"})
    assert found.agreement["truth"].axes == pytest.approx([1.0] * 3)
    assert found.agreement["truth"].overall == pytest.approx(1.0)
    assert found.agreement["wrong"].mean == pytest.approx(-1.0)
    assert found.cost("truth", 0.25) < found.cost("wrong", 0.25)  # type: ignore[operator]
    assert found.hints[0] == "truth"
    assert "Best here: truth, rank correlation +1.00 within an axis; a quarter of an axis" in found.sentence


def test_costs_are_those_of_a_run_by_hand(model: nn.Module) -> None:
    found = check(model, ["l2"], shares=(0.5,))
    plan = sc.plan(sc.trace(model, batches()[0][0]), true_scores(model), keep=0.5, only=["blocks.0.0.weight:0"])
    small = plan.apply(model)
    loss = nn.CrossEntropyLoss()
    with torch.no_grad():
        rise = sum(float(loss(small(x), y) - loss(model(x), y)) for x, y in batches()) / 3
        dense = sum(float(loss(model(x), y)) for x, y in batches()) / 3
    assert found.dense == pytest.approx(dense)
    by_truth = check(model, {"truth": true_scores(model)}, shares=(0.5,))
    axis = next(axis for axis in by_truth.axes if axis.name == "blocks.0.0.weight:0")
    assert axis.removed[0.5]["truth"] == pytest.approx(rise, abs=1e-6)


def test_the_sample_is_fixed_by_the_seed(model: nn.Module) -> None:
    first, again, other = check(model), check(model), check(model, seed=1)
    assert first.to_dict() == again.to_dict()
    assert [axis.units for axis in first.axes] != [axis.units for axis in other.axes]


def test_the_order_of_batches_does_not_matter(model: nn.Module) -> None:
    forwards, backwards = check(model), check(model, data=batches()[::-1])
    for a, b in zip(forwards.axes, backwards.axes, strict=True):
        assert a.truth == pytest.approx(b.truth)


def test_model_and_random_state_stay_as_they_were(model: nn.Module) -> None:
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate()
    check(model)
    assert model.training
    model.eval()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


def test_by_default_every_hint_that_can_be_computed(model: nn.Module) -> None:
    found = check(model, None, batches()[:1], shares=())
    assert set(found.hints) == set(sc.importance.names()) - {"random"}  # it has a line of its own


def test_hints_of_any_form(model: nn.Module) -> None:
    def first(member: Any) -> Tensor:
        return member.weight[:, 0].abs()

    assert set(check(model, first, shares=()).hints) == {"first"}
    assert set(check(model, "l1", shares=()).hints) == {"l1"}
    assert set(check(model, [first, Magnitude(p=3.0)], shares=()).hints) == {"first", "Magnitude(p=3.0)"}
    assert set(check(model, {"mine": Magnitude(p=3.0)}, shares=()).hints) == {"mine"}


def test_units_and_axes_that_are_sampled(model: nn.Module) -> None:
    assert [len(axis.units) for axis in check(model, "l2", units_per_axis=5, shares=()).axes] == [5, 5, 5]
    assert [len(axis.units) for axis in check(model, "l2", units_per_axis=None, shares=()).axes] == [8, 16, 12]
    assert [len(axis.units) for axis in check(model, "l2", max_units=12, shares=()).axes] == [4, 4, 4]
    assert [len(axis.units) for axis in check(model, "l2", max_units=7, shares=()).axes] == [3, 3]
    assert [axis.name for axis in check(model, "l2", only=["stem"], shares=()).axes] == ["stem.weight:0"]
    assert len(check(model, "l2", ignore=["stem"], shares=()).axes) == 2


def test_output_needs_no_labels(model: nn.Module) -> None:
    found = check(model, data=[x for x, _ in batches()], truth="output")
    assert found.dense == 0.0
    assert all(value >= 0 for axis in found.axes for value in axis.truth)
    assert "how far the outputs move" in str(found)
    by_name = check(model, data=[(x,) for x, _ in batches()], truth="output")
    assert by_name.axes == found.axes


def test_a_loss_and_a_forward_of_ones_own(model: nn.Module) -> None:
    found = check(
        model,
        ["l2"],
        [{"image": x, "label": y} for x, y in batches()],
        loss=lambda output, target: output.square().mean(),
        forward=lambda model, batch: model(batch["image"]),
    )
    with torch.no_grad():
        assert found.dense == pytest.approx(sum(float(model(x).square().mean()) for x, _ in batches()) / 3)


def test_after_ctrl_c_what_was_measured(model: nn.Module) -> None:
    def loader(stop: int) -> Any:
        class Loader:
            def __iter__(self) -> Any:
                for number, batch in enumerate(batches()):
                    if number == stop:
                        raise KeyboardInterrupt
                    yield batch

            def __len__(self) -> int:
                return 3

        return Loader()

    found = check(model, ["l2"], loader(2))
    assert found.interrupted == "2 of 3 batches were measured"
    assert found.samples == 32
    assert found.axes == check(model, ["l2"], batches()[:2]).axes
    assert "Cut short by Ctrl-C: 2 of 3 batches were measured" in str(found)
    with pytest.raises(KeyboardInterrupt):
        check(model, ["l2"], loader(0))


def test_progress_is_told(model: nn.Module) -> None:
    told: list[tuple[int, int]] = []
    check(model, ["l2"], shares=(), progress=lambda done, total: told.append((done, total)))
    assert told == [(k + 1, 72) for k in range(72)]


def test_it_prints_as_tables(model: nn.Module) -> None:
    found = check(model, ["l1", "l2"])
    text = str(found)
    for part in (
        "Residual: rank correlation of each hint with the truth, ± standard error",
        "within an axis",
        "all units, as shares",
        "loss without a quarter of an axis",
        "loss without half of an axis",
        "at random",
        "blocks.1.0.weight:0",
        "8 of 12",
        "24 units of 3 axes against what each costs when it is silenced",
        "the truth agrees with itself to",
        "on 48 samples",
        "seed 0",
        "Best here: ",
    ):
        assert part in text
    assert found.markdown().splitlines()[1] == "| --- | ---: | ---: | ---: | ---: | ---: |"


def test_the_second_table_fits_the_console(model: nn.Module) -> None:
    found = check(model, {f"hint-{k}": "l2" for k in range(12)}, batches()[:1], shares=())
    assert "hint-11" in as_text(found, 160)
    narrow = as_text(found, 80).partition("within each axis")[2]
    assert "and 7 hints that this is too narrow for; the picture has all" in narrow
    assert "hint-4" in narrow
    assert "hint-5" not in narrow
    assert max(map(len, narrow.splitlines())) <= 80


def test_it_is_saved_as_json(model: nn.Module, tmp_path: Path) -> None:
    found = check(model, ["l1", "l2"])
    found.save(tmp_path / "hints.json")
    data = json.loads((tmp_path / "hints.json").read_text())
    assert data == found.to_dict()
    assert {row["name"] for row in data["hints"]} == {"l1", "l2"}
    assert set(data["hints"][0]) >= {"mean", "mean_error", "overall", "shares", "axes", "removed"}
    assert list(data["axes"][0]["truth"]) == list(found.axes[0].truth)


def test_the_picture_has_every_axis_hint_and_unit(model: nn.Module, tmp_path: Path) -> None:
    found = check(model, {"l1": "l1", "<b>": "l2"})
    found.save_picture(tmp_path / "hints.svg")
    root = ET.fromstring((tmp_path / "hints.svg").read_text())
    texts = [node.text or "" for node in root.iter() if node.text]
    assert any(text.startswith("<b> on stem.weight:0: ") for text in texts)
    assert sum(" on blocks.0.0.weight:0: " in text for text in texts) == 2
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 2 * 24


def test_the_page_is_self_contained(model: nn.Module, tmp_path: Path) -> None:
    found = check(model, {"l1": "l1", "<b>": "l2"})
    found.save_picture(tmp_path / "hints.html")
    page = (tmp_path / "hints.html").read_text()
    assert page == found.page()
    assert "<script" not in page
    assert "<b>" not in page
    assert "&lt;b&gt;" in page
    assert "src=" not in page
    assert "Residual: are the hints any good?" in page
    with pytest.raises(sc.SecateurError, match="picture is an .svg image or an .html page: .*'hints.png' ends in"):
        found.save_picture("hints.png")


def test_the_whole_model_is_pruned_as_each_hint_chooses(model: nn.Module) -> None:
    data = batches()
    found = check(model, ["l2", "reconstruction"], data, budget=sc.Budget(macs=0.5))
    assert set(found.whole) == {"l2", "reconstruction", "at random"}
    graph = sc.trace(model, data[0][0])
    small = sc.plan(graph, sc.score(model, graph, "l2"), budget=sc.Budget(macs=0.5)).apply(model)
    loss = nn.CrossEntropyLoss()
    with torch.no_grad():
        rises = [float(loss(small(x), y) - loss(model(x), y)) for x, y in data]
    assert found.whole["l2"].cut == pytest.approx(sum(rises) / 3, rel=1e-4)
    assert list(found.hints) == sorted(found.hints, key=lambda name: found.whole[name].refitted)
    printed = as_text(found, width=200)
    assert "loss at macs=0.5, as cut" in printed
    assert f"Best here: {found.hints[0]}, which costs" in printed
    assert found.to_dict()["whole"]["l2"]["cut"] == found.whole["l2"].cut
    moved = check(model, ["l2"], data, budget=sc.Budget(macs=0.5), truth="output").whole["l2"]
    assert moved.refitted < moved.cut
    assert not check(model, ["l2"]).whole


def test_hints_that_can_not_be_computed_are_named(model: nn.Module) -> None:
    unlabelled = [x for x, _ in batches()]
    found = check(model, None, unlabelled, truth="output", shares=())
    assert {"taylor", "fisher"} <= set(found.skipped)
    assert {"l2", "wanda"} <= set(found.hints)
    assert "taylor could not be computed: no loss for " in str(found)
    assert "taylor could not be computed: no loss for " in found.page()
    with pytest.raises(sc.SecateurError, match="no loss for Taylor"):
        check(model, ["taylor", "l2"], unlabelled, truth="output")


def test_hints_that_look_at_data_are_shown_the_calibration(model: nn.Module) -> None:
    (found,) = check(model, ["wanda"], shares=(), units_per_axis=None, calibration=batches()[:1]).axes[:1]
    (other,) = check(model, ["wanda"], shares=(), units_per_axis=None).axes[:1]
    want = sc.score(model, sc.trace(model, batches()[0][0]), "wanda", batches()[:1])[found.name]
    assert found.scores["wanda"] == pytest.approx(want.tolist())
    assert found.scores["wanda"] != other.scores["wanda"]
    assert found.truth == other.truth


@pytest.mark.parametrize(
    ("hints", "data", "options", "message"),
    [
        (None, [], {}, "data holds no batch"),
        (None, torch.ones(2, 3, 8, 8), {}, "data is an iterable of batches, and got a tensor"),
        (None, iter(batches()), {}, "can be iterated only once: pass a list"),
        (None, [x for x, _ in batches()], {}, "batch 0 has no target.*truth='output', which needs no labels"),
        (["l2", "randm"], None, {}, "no importance is called 'randm'.*Did you mean 'random'"),
        (["l2", "l2"], None, {}, "several hints are called l2: give a mapping"),
        ([], None, {}, "there is no hint to check"),
        (None, None, {"units_per_axis": 2}, "units_per_axis=2 must be at least 3"),
        (None, None, {"shares": (0.0, 0.5)}, r"shares=\(0.0, 0.5\) must be in \(0, 1\)"),
        (None, None, {"truth": "accuracy"}, "truth='accuracy' must be 'loss' or 'output'"),
        (None, None, {"only": ["stam"]}, "'stam' name no axis.*Did you mean 'stem'"),
        ({"mine": {}}, None, {}, "3 axes have no score for each unit"),
        (None, None, {"calibration": []}, "calibration holds no batch"),
    ],
)
def test_what_is_refused(model: nn.Module, hints: Any, data: Any, options: Any, message: str) -> None:
    with pytest.raises(sc.SecateurError, match=message):
        check(model, hints, data, **options)


def test_data_is_asked_for(model: nn.Module) -> None:
    with pytest.raises(sc.SecateurError, match="data is an iterable of batches, and got a NoneType"):
        sc.check_hints(model, sc.trace(model, batches()[0][0]))


def test_a_dense_model_without_a_loss_is_refused(model: nn.Module) -> None:
    data = [(x, float("nan") if k else 1.0) for k, (x, _) in enumerate(batches())]
    with pytest.raises(sc.SecateurError, match="the dense model's loss is nan on batch 1.*Look for NaN"):
        check(model, "l2", data, loss=lambda output, target: output.mean() * target)


def test_a_single_axis() -> None:
    net, x = Mlp(), torch.randn(32, 4)
    found = sc.check_hints(net, sc.trace(net, x), data=[(x, torch.arange(32) % 2)])
    assert found.reliability is None  # one batch can't be halved
    assert "agrees with itself" not in str(found)
    assert len(found.axes) == 1
