"""The head as a change: where it is found, what is made anew, and what a file may say of it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.adapting.finding import find_head, with_head
from secateur.adapting.head import Head
from secateur.changes import change_from_dict
from secateur.errors import ArtifactError, ModelError, SurgeryError
from secateur.modules import named_tensors
from secateur.provenance import recall
from support.networks import Chunked, Cnn, Tied, bert, example

IMAGE = torch.zeros(2, 3, 8, 8)


class ConvHead(nn.Module):
    """Scores by a 1x1 convolution, then pooling, flattening, dropout and softmax; the head is not made last."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Conv2d(8, 5, 1)
        self.body = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.score(F.relu(self.body(x))), 1)
        return F.softmax(F.dropout(torch.flatten(x, 1), 0.1, self.training), 1)


class Recurrent(nn.Module):
    """A classifier of sequences of tokens by an LSTM's last state."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.num_classes = classes
        self.embed, self.lstm = nn.Embedding(20, 8), nn.LSTM(8, 12, batch_first=True)
        self.out = nn.Linear(12, classes)

    def forward(self, ids: Tensor) -> Tensor:
        states, _ = self.lstm(self.embed(ids))
        return self.out(states[:, -1]).view(-1, self.num_classes)


class Transformer(nn.Module):
    """A classifier of sequences of tokens by torch's encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.classify = nn.Linear(16, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.classify(self.encoder(self.embed(ids)).mean(1))


class Fixed(nn.Module):
    """Its ``forward`` holds the number of classes as a literal."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x).view(-1, 6)


def sentence_classifier(labels: int = 3) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=16, num_labels=labels,
    )  # fmt: skip
    return BertForSequenceClassification(config).eval()


TOKENS = torch.randint(20, (2, 6), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("make", "inputs", "layers"),
    [
        (Cnn, IMAGE, ("fc",)),
        (ConvHead, IMAGE, ("score",)),
        (Recurrent, TOKENS, ("out",)),
        (Transformer, TOKENS, ("classify",)),
        (Chunked, torch.zeros(2, 4), ("left", "right")),
        (lambda: nn.Linear(4, 3), torch.zeros(2, 4), ("",)),
        (lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), torch.zeros(2, 4), ("0", "1")),
        (lambda: nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(1)), torch.zeros(2, 4), ("0",)),
    ],
)
def test_the_head_is_where_the_class_axis_runs(
    make: Callable[[], nn.Module], inputs: Tensor, layers: tuple[str, ...]
) -> None:
    model = make().eval()
    before = {name: tensor.clone() for name, tensor in named_tensors(model).items()}
    head = find_head(model, inputs, classes=7, seed=3)
    made = with_head(model, head, inputs)
    assert head.layers == layers
    assert made(inputs).shape == (2, 7)
    assert "7" in repr(made.get_submodule(layers[0])), "it says its new size"
    assert recall(made, "plans") == (head,)
    for name, tensor in named_tensors(made).items():
        if name not in head.names:
            assert torch.equal(tensor, before[name]), "everything else keeps its values"
    assert all(torch.equal(tensor, before[name]) for name, tensor in named_tensors(model).items())


def test_the_seed_says_the_weights_and_nothing_else_is_drawn() -> None:
    model = Cnn()
    state = torch.get_rng_state()
    first, again, other = (
        with_head(model, find_head(model, IMAGE, classes=7, seed=seed), IMAGE).fc.weight.detach() for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    bound = (12 * 9) ** -0.5  # of a fresh Linear: uniform within one by the root of its inputs
    assert 0.9 * bound < first.abs().max() <= bound


def test_a_new_head_trains_though_the_old_one_was_frozen() -> None:
    model = Cnn().requires_grad_(False)
    made = with_head(model, find_head(model, IMAGE, classes=7), IMAGE)
    assert [name for name, p in made.named_parameters() if p.requires_grad] == ["fc.weight", "fc.bias"]


def test_configs_of_hugging_face_learn_the_new_classes() -> None:
    model: Any = sentence_classifier()
    inputs = {"input_ids": TOKENS}
    head = find_head(model, inputs, classes=4, labels=("north", "east", "south", "west"))
    made: Any = with_head(model, head, inputs)
    assert (head.layers, head.settings) == (("classifier",), (("", "num_labels"),))
    assert made.num_labels == made.config.num_labels == 4
    assert made.config.id2label == {0: "north", 1: "east", 2: "south", 3: "west"}
    assert made.config.label2id["west"] == 3
    assert (model.config.num_labels, model.num_labels) == (3, 3), "the original's config is its own"
    assert made(**inputs, labels=torch.tensor([3, 0])).loss.isfinite()


@pytest.mark.parametrize(
    ("make", "inputs", "said"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)), torch.zeros(2, 4), "a single number"),
        (bert, None, "no class scores|runs on, through"),
        (Tied, None, "another layer shares"),
        (lambda: nn.Sequential(nn.Linear(4, 8), nn.Flatten(0)), torch.zeros(2, 4), r"has shape \[16\]"),
        (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten()), IMAGE, "not the output of one layer alone"),
        (lambda: nn.BatchNorm1d(4), torch.zeros(2, 4), "not the output|no linear or convolutional"),
    ],
)
def test_outputs_that_are_no_class_axis_are_refused(make: Callable[[], nn.Module], inputs: Any, said: str) -> None:
    model = make()
    with pytest.raises(ModelError, match=said):
        find_head(model, example(model) if inputs is None else inputs, classes=2)


def test_features_are_no_classes() -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU())

    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.more = network, nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.body(x)
            return x + self.more(x)

    with pytest.raises(ModelError, match=r"runs on, through more\.weight:1"):
        find_head(Again(), torch.zeros(2, 4), classes=2)


def test_a_literal_number_of_classes_is_named() -> None:
    model = Fixed()
    with pytest.raises(ModelError, match=r"[Ii]ts code holds the old number.*self\.num_classes"):
        with_head(model, find_head(model, torch.zeros(2, 4), classes=4), torch.zeros(2, 4))


def test_another_architecture_is_refused() -> None:
    head = find_head(Cnn(), IMAGE, classes=7)
    with pytest.raises(SurgeryError, match="fc.weight is missing"):
        head.apply(Recurrent())
    with pytest.raises(SurgeryError, match=r"fc.weight is \[7, 108\], and should have 5 classes"):
        head.apply(head.apply(Cnn()))


GOOD = find_head(Recurrent(), TOKENS, classes=2, labels=("no", "yes")).to_dict()


def test_json_and_back() -> None:
    head = change_from_dict(GOOD)
    assert isinstance(head, Head)
    assert head.to_dict() == GOOD
    assert head.apply(Recurrent())(TOKENS).shape == (2, 2)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"after": 1},
        {"after": True},
        {"after": 2**40},
        {"before": "3"},
        {"layers": "out"},
        {"layers": []},
        {"tensors": []},
        {"tensors": [{"name": "out.weight"}]},
        {"tensors": [{"name": "out.weight", "dim": -1}]},
        {"settings": [{"module": "", "attribute": "__class__"}]},
        {"settings": [{"module": "", "attribute": "config.num_labels"}]},
        {"labels": ["a"]},
        {"labels": ["a", "a"]},
        {"seed": None},
        {"model": 3},
    ],
)
def test_what_is_no_head_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match="head"):
        change_from_dict({**GOOD, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"layers": ["lstm"]},
        {"layers": ["out", "nothing"]},
        {"tensors": [{"name": "embed.weight", "dim": 0}]},
        {"settings": [{"module": "", "attribute": "training"}]},
        {"settings": [{"module": "lstm", "attribute": "hidden_size"}]},
    ],
)
def test_what_does_not_fit_the_model_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(SurgeryError, match="another architecture"):
        change_from_dict({**GOOD, **change}).apply(Recurrent())
