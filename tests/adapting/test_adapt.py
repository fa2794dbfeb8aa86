"""A trained network learns another task, and loses what the new data does not need."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.adapting import choosing
from secateur.adapting.choosing import better
from secateur.data import Data
from secateur.data.batches import Batches, TensorSource
from secateur.errors import ArtifactError, DataError, ModelError
from secateur.examples import SimpleNet
from secateur.modules import named_tensors
from secateur.objectives import logits_of
from secateur.provenance import recall
from secateur.tuning import tune

Digits = dict[str, Batches]


def digits(classes: range) -> Digits:
    """Images (N, 1, 10, 10) of some digits, numbered from 0, in two halves to train on and to validate by."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    found: Any = load_digits()
    images = torch.nn.functional.pad(torch.tensor(found.images, dtype=torch.float32)[:, None] / 16, [1] * 4)
    labels = torch.tensor(found.target, dtype=torch.int64)
    kept = (labels >= classes.start) & (labels < classes.stop)
    source = TensorSource(images[kept], labels[kept] - classes.start)
    half = len(source) // 2
    return {
        "train": Batches(source, range(half), batch_size=64, shuffle=True),
        "validate": Batches(source, range(half, len(source)), batch_size=64),
    }


@pytest.fixture(scope="module")
def first_five() -> nn.Module:
    """The embedded network, with five outputs, trained on the digits 0 to 4."""
    torch.manual_seed(0)
    net = SimpleNet()
    net.fc3 = nn.Linear(84, 5)
    data = digits(range(5))
    tune(net, data["train"], epochs=6, lr=5e-3, optimizer="adamw", device="cpu")
    return net.eval()


@pytest.fixture(scope="module")
def last_five() -> Digits:
    return digits(range(5, 10))


@pytest.fixture(scope="module")
def adapted(first_five: nn.Module, last_five: Digits) -> sc.Adapted:
    """Adapted to the digits 5 to 9, and pruned to half of its parameters; its ``forward`` holds a literal size."""
    data = last_five
    return sc.adapt(
        first_five,
        data=data["train"],
        validate=data["validate"],
        classes=5,
        budget=sc.Budget(params=0.5),
        epochs=6,
        lr=3e-3,
    )


def test_it_learns_the_new_digits_at_half_the_size(adapted: sc.Adapted, last_five: Digits) -> None:
    report = adapted.report
    assert report["tuned"]["metrics"]["accuracy"] > 0.85
    assert report["pruned"]["params"] <= 0.5 * report["dense"]["params"]
    assert report["tuned"]["metrics"] == pytest.approx(sc.tuning.evaluate(adapted.model, last_five["validate"]))
    assert report["dense"]["metrics"] == pytest.approx(sc.tuning.evaluate(adapted.dense, last_five["validate"]))
    assert adapted.proof.status == "proved"
    assert adapted.head.layers == ("fc3",)
    assert (adapted.head.before, adapted.head.after) == (5, 5)


def test_labels_say_what_the_new_task_needs(adapted: sc.Adapted, first_five: nn.Module, last_five: Digits) -> None:
    assert recall(adapted.model, "history")[-1]["importance"] == "fisher"
    how: dict[str, Any] = {"data": last_five["train"], "train_only": "head"}
    asked = sc.adapt(first_five, importance="l1", keep=0.5, **how)
    assert recall(asked.model, "history")[-1]["importance"] == "l1"
    below = sc.adapt(first_five, threshold=0.1, **how)
    assert recall(below.model, "history")[-1]["importance"] != "fisher", "a threshold is for other scores"


def test_the_report_says_what_was_frozen_and_why(adapted: sc.Adapted) -> None:
    found = adapted.report["adapted"]
    assert found["measured_on"] == "validation"
    assert sum(found["samples"]) == len(digits(range(5, 10))["train"].positions)
    for name in ("dense", "tuned"):
        choice = found["choices"][name]
        assert choice["frozen"] == {"head": "everything but the head", "all": "nothing"}[choice["trained"]]
        assert "validation accuracy" in choice["why"]
        assert [row["trained"] for row in choice["candidates"]] == ["head", "all"]
    said = " ".join(str(adapted).split())
    assert "Adapted: 5 classes in place of 5, by a new fc3. Before pruning, " in said
    assert set(adapted.histories) == {"adapted", "tuned"}, "the head is fitted to features, in no epochs"


def test_the_model_given_is_untouched(first_five: nn.Module, last_five: Digits) -> None:
    before = {name: tensor.clone() for name, tensor in named_tensors(first_five).items()}
    state = torch.get_rng_state()
    result = sc.adapt(first_five, data=last_five["train"], train_only="head", keep=1.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in named_tensors(first_five).items())
    for name, tensor in named_tensors(result.model).items():
        assert torch.equal(tensor, before[name]) is not name.startswith("fc3."), "the head alone was trained"
    assert result.choices["dense"].why == "as asked for"
    assert result.plan.axes == {}


def test_a_head_for_known_classes_starts_from_theirs(first_five: nn.Module) -> None:
    """Ones and threes, of which the network tells ones, threes and other digits apart already."""
    images, labels = next(iter(Batches(digits(range(5))["train"].source, range(400), batch_size=400)))
    kept = (labels == 3) | (labels == 1)
    images, labels = images[kept], (labels[kept] == 1).long()
    train, validate = (images[:20], labels[:20]), (images[20:], labels[20:])
    result = sc.adapt(first_five, data=[train], validate=[validate], train_only="head", budget=sc.Budget(params=0.5))
    choice = result.choices["dense"]
    assert choice.head.startswith("logistic regression on the scores of known classes 3, 1")
    assert result.report["dense"]["metrics"]["accuracy"] > 0.95
    assert result.report["adapted"]["choices"]["dense"]["head"] == choice.head
    assert "The head began as logistic regression on the scores of known classes 3, 1" in " ".join(str(result).split())
    assert result.report["tuned"]["metrics"]["accuracy"] > 0.9


def test_saved_and_loaded_without_the_class(adapted: sc.Adapted, tmp_path: Path) -> None:
    sc.save(adapted, tmp_path)
    loaded = sc.load(tmp_path)
    images = torch.randn(3, 1, 10, 10)
    assert torch.equal(loaded(images), adapted.model(images))
    assert recall(loaded, "plans")[0] == adapted.head


def test_and_with_it(first_five: nn.Module, last_five: Digits, tmp_path: Path) -> None:
    result = sc.adapt(first_five, data=last_five["train"], train_only="head", keep_class=True, classes=6, keep=0.5)
    sc.save(result, tmp_path)
    loaded = sc.load(tmp_path, model=first_five)
    images = torch.randn(3, 1, 10, 10)
    assert isinstance(loaded, SimpleNet)
    assert loaded(images).shape == (3, 6)
    assert torch.equal(loaded(images), result.model(images))
    with pytest.raises(ArtifactError, match=r"does not fit.*new head was made for another architecture"):
        sc.load(tmp_path, model=SimpleNet())  # of ten classes


def test_an_adapted_network_learns_yet_another_task(adapted: sc.Adapted, tmp_path: Path) -> None:
    data = digits(range(3))
    again = sc.adapt(adapted.model, data=data["train"], train_only="head", budget=sc.Budget(params=0.5))
    assert [type(change).__name__ for change in recall(again.model, "plans")] == ["Head", "Plan", "Head", "Plan"]
    sc.save(again, tmp_path)
    images = torch.randn(3, 1, 10, 10)
    assert torch.equal(sc.load(tmp_path)(images), again.model(images))


def test_a_set_of_splits_is_data(first_five: nn.Module, last_five: Digits) -> None:
    data = Data(train=last_five["train"], validation=last_five["validate"], test=last_five["validate"])
    result = sc.adapt(first_five, data=data, epochs=0)
    assert result.report["adapted"]["measured_on"] == "test"
    assert result.choices["tuned"].why == "no epochs are left for more than the head"


def test_without_data_there_is_a_new_head_and_no_more(first_five: nn.Module) -> None:
    images = torch.randn(2, 1, 10, 10)
    result = sc.adapt(first_five, images, classes=3)
    assert result.model(images).shape == (2, 3)
    assert (result.choices, result.plan.axes, result.proof.status) == ({}, {}, "proved")
    smaller = sc.adapt(first_five, images, classes=3, keep=0.5)
    assert smaller.model(images).shape == (2, 3)
    assert smaller.report["pruned"]["params"] < result.report["pruned"]["params"]


class Sequences(nn.Module):
    """A classifier of sequences of tokens by an LSTM, with dropout behind its head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Embedding(12, 8), nn.LSTM(8, 12, batch_first=True)
        self.out = nn.Linear(12, 6)

    def forward(self, ids: Tensor) -> Tensor:
        states, _ = self.lstm(self.embed(ids))
        return torch.log_softmax(nn.functional.dropout(self.out(states.mean(1)), 0.1, self.training), 1)


def counted(tokens: int = 12) -> tuple[Tensor, Tensor]:
    """Sequences of tokens (N, 9), and which third of the vocabulary they have most of."""
    ids = torch.randint(tokens, (256, 9), generator=torch.Generator().manual_seed(0))
    return ids, torch.stack([(ids // (tokens // 3) == k).sum(1) for k in range(3)], 1).argmax(1)


def test_sequences_by_an_lstm_whose_head_is_not_the_last_layer() -> None:
    torch.manual_seed(0)
    batch = counted()
    result = sc.adapt(
        Sequences(), data=[batch], validate=[batch], epochs=60, head_epochs=5, lr=0.02, budget=sc.Budget(params=0.6)
    )
    assert set(result.histories) == {"adapted-head", "adapted", "tuned-head", "tuned"}
    assert result.report["tuned"]["metrics"]["accuracy"] > 0.8
    assert result.report["pruned"]["params"] <= 0.6 * result.report["dense"]["params"]
    assert result.choices["dense"].trained == "all"


@pytest.mark.slow
def test_sentences_by_bert(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=12, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=16, num_labels=5,
    )  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    ids, labels = counted()
    batch = {"input_ids": ids, "labels": labels}
    result = sc.adapt(
        model, data=[batch] * 2, validate=[batch], epochs=30, lr=0.01, labels=("low", "middle", "high"), keep=0.75
    )
    small = cast("Any", result.model)
    assert small.config.id2label == {0: "low", 1: "middle", 2: "high"}
    assert (small.num_labels, model.num_labels) == (3, 5)
    assert result.report["tuned"]["metrics"]["accuracy"] > 0.7
    sc.save(result, tmp_path)
    loaded = sc.load(tmp_path, model=model)
    assert cast("Any", loaded).config.num_labels == 3
    first, second = (logits_of(m(input_ids=ids)) for m in (loaded, small))
    assert first is not None
    assert second is not None
    assert torch.equal(first, second)


IMAGES = torch.randn(8, 1, 10, 10)


@pytest.mark.parametrize(
    ("labels", "classes", "said"),
    [
        (torch.tensor([0, 1, 2, 3] * 2), 2, "classes=2, but the training data has 4 classes, with labels from 0 to 3"),
        (torch.tensor([1, 2] * 4), 2, "subtract 1 from them"),
        (torch.tensor([0, -1] * 4), 2, "go from -1 to 0, but classes are numbered from 0"),
        (torch.zeros(8, dtype=torch.int64), 2, "all 8 training samples are of class 0"),
        (torch.tensor([0.0, 1.0] * 4), 2, r"are float32, but classes are whole numbers.*labels\.long"),
        (torch.full((8,), -100), None, "holds no label"),
        (torch.tensor([0, 1] * 4), 1, "at least 2 classes"),
        (None, None, "has no labels"),
    ],
)
def test_labels_that_will_not_do(labels: Tensor | None, classes: int | None, said: str) -> None:
    batch: Any = IMAGES if labels is None else (IMAGES, labels)
    with pytest.raises(DataError, match=said):
        sc.adapt(SimpleNet(), data=[batch], classes=classes)


def test_other_bad_input() -> None:
    good = IMAGES, torch.tensor([0, 1] * 4)
    with pytest.raises(DataError, match="how many classes.*give classes="):
        sc.adapt(SimpleNet(), IMAGES)
    with pytest.raises(DataError, match="no example inputs"):
        sc.adapt(SimpleNet(), classes=2)
    with pytest.raises(DataError, match="holds no batch"):
        sc.adapt(SimpleNet(), data=[])
    with pytest.raises(DataError, match=r"does not run on the first sample.*takes batches of 1 channels|channels"):
        sc.adapt(SimpleNet(), data=[(torch.randn(8, 3, 10, 10), good[1])])
    with pytest.raises(DataError, match="validation data has 3 classes"):
        sc.adapt(SimpleNet(), data=[good], validate=[(IMAGES, torch.tensor([0, 1, 2, 0] * 2))])
    with pytest.raises(DataError, match="3 different names for 2 classes"):
        sc.adapt(SimpleNet(), data=[good], labels=("a", "b", "c"))
    with pytest.raises(ModelError, match="a single number"):
        sc.adapt(nn.Sequential(nn.Flatten(), nn.Linear(100, 1)), data=[good])


def test_without_validation_the_amount_of_data_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 4))
    inputs = torch.randn(40, 2)
    batch = inputs, (inputs[:, 0] > 0).long()
    few = sc.adapt(net, data=[batch], epochs=1, keep=1.0).choices["dense"]
    assert few.trained == "head"
    assert "fewer than 50" in few.why
    monkeypatch.setattr(choosing, "FEW", 10)
    enough = sc.adapt(net, data=[batch], epochs=1, keep=1.0).choices["dense"]
    assert enough.trained == "all"
    assert "at least 10 samples" in enough.why


def test_the_more_accurate_training_is_kept_unless_the_samples_cannot_tell() -> None:
    """With 100 samples and 90 % hits, the standard error is sqrt(92/104 * 12/104 / 100) = 3.19 percentage points."""

    def row(name: str, accuracy: float, loss: float) -> dict[str, Any]:
        return {"trained": name, "accuracy": accuracy, "loss": loss}

    assert better(row("head", 0.90, 0.5), row("all", 0.86, 0.1), 100)[0] == "head"
    assert better(row("head", 0.90, 0.5), row("all", 0.87, 0.1), 100)[0] == "all", "the same, so the loss decides"
    assert better(row("head", 0.87, 0.1), row("all", 0.90, 0.5), 100)[0] == "head"
    assert better(row("head", 0.86, 0.1), row("all", 0.90, 0.5), 100)[0] == "all"
    assert better(row("head", 0.9, 0.2), row("all", 0.9, 0.2), 100)[0] == "head", "and nothing is trained for nothing"
