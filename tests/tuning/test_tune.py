import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.data import load_data
from secateur.data.batches import Batches, TensorSource
from secateur.errors import TrainingError
from secateur.examples import SimpleNet
from secateur.objectives import Totals, imitation, loss_of
from secateur.tuning import SCRATCH, TUNE, evaluate
from secateur.tuning import tune as train


def blobs(count: int = 64, seed: int = 0) -> Batches:
    """Two well separated classes in the plane."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    points = torch.randn(count, 2, generator=generator) + 4 * (labels[:, None] * 2 - 1)
    return Batches(TensorSource(points, labels), range(count), batch_size=16, shuffle=True)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))


def state(model: nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten().clone() for value in model.state_dict().values()])


class Flawed:
    """Batches, but something happens at a certain one."""

    def __init__(self, batches: Batches, at: int, happen) -> None:
        self.batches, self.at, self.happen, self.count = batches, at, happen, 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        for batch in self.batches:
            self.count += 1
            yield self.happen(batch) if self.count == self.at else batch


def interrupt(batch):
    raise KeyboardInterrupt


def poison(batch):
    return batch[0] * math.nan, batch[1]


# train


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", torch.optim.Adam])
def test_training_learns(optimizer):
    model = net()
    history = train(model, blobs(), validate=blobs(seed=1), epochs=8, lr=0.02, optimizer=optimizer)
    assert [row.epoch for row in history.epochs] == list(range(1, 9))
    assert history.epochs[-1].train_loss < history.epochs[0].train_loss
    assert evaluate(model, blobs(seed=2))["accuracy"] == 1
    assert not history.interrupted


def test_training_is_deterministic_whatever_came_before():
    def trained(seed: int) -> torch.Tensor:
        model, loader = net(), blobs()
        list(loader)
        torch.rand(7)
        train(model, loader, epochs=2, lr=0.02, seed=seed)
        return state(model)

    assert torch.equal(trained(0), trained(0))
    assert not torch.equal(trained(0), trained(1))


def test_training_leaves_modes_gradients_and_randomness_as_found():
    model, teacher = net(), net(1)
    model.eval()
    model[2].train()
    teacher.train()
    taught = state(teacher)
    before = torch.get_rng_state()
    train(model, blobs(), validate=blobs(), epochs=1, lr=0.02, teacher=teacher)
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in model] == [False, False, True, False]
    assert all(p.grad is None for p in (*model.parameters(), *teacher.parameters()))
    assert teacher.training
    assert torch.equal(state(teacher), taught)


class Scripted(nn.Module):
    """A model whose answers on the validation batches hit a given number of labels, one number after the other."""

    def __init__(self, hits: list[int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.hits = iter(hits)

    def forward(self, x):
        if self.training:
            return x + self.weight
        scores = torch.tensor([[1.0, 0.0]]).repeat(len(x), 1)
        scores[next(self.hits) :] = torch.tensor([0.0, 1.0])
        return scores + 0 * self.weight


@pytest.mark.parametrize(
    ("hits", "best"),
    [
        ([10, 50, 90, 89, 60], 3),  # 89 of 100 can't be told from 90: the standard error is 3
        ([10, 50, 90, 86, 60], 2),
        ([95, 50, 91, 70, 60], 0),  # the state that the model came with
        ([10, 100, 99, 98, 98], 2),  # with all hit, one miss does not decide, but two do
    ],
)
def test_the_latest_state_that_validation_cannot_tell_from_the_best_is_kept(hits, best):
    validation = [(torch.zeros(100, 2), torch.zeros(100, dtype=torch.long))]
    states = []
    model = Scripted(hits)
    states.append(state(model))
    history = train(
        model, blobs(), validate=validation, epochs=4, lr=0.02, on_epoch=lambda _: states.append(state(model))
    )
    assert [row.validation_accuracy for row in history.epochs] == [count / 100 for count in hits[1:]]
    assert history.best_epoch == best
    assert torch.equal(state(model), states[best])
    assert len({float(value) for value in states}) == 5


def test_without_classes_the_state_of_lowest_loss_is_kept():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)
    batches = [(torch.ones(4, 1), torch.full((4, 1), 3.0))] * 4
    elsewhere = [(torch.ones(4, 1), torch.full((4, 1), 2.0))]
    history = train(model, batches, validate=elsewhere, epochs=3, lr=0.05, loss=F.mse_loss)
    assert history.best_epoch == 0
    assert model.weight.item() == 2.0
    assert history.epochs[0].validation_accuracy is None


def test_a_state_that_training_only_spoils_is_kept():
    model = net()
    train(model, blobs(), validate=blobs(seed=1), epochs=8, lr=0.02)
    before = state(model)
    spoilt = Flawed(blobs(), at=-1, happen=None)
    history = train(
        model, spoilt, validate=blobs(seed=1), epochs=1, lr=1.0, loss=lambda out, y: -F.cross_entropy(out, y)
    )
    assert history.best_epoch == 0
    assert torch.equal(state(model), before)


def test_without_validation_the_last_state_stays():
    history = train(net(), blobs(), epochs=3, lr=0.02)
    assert history.best_epoch == 3
    assert history.epochs[-1].validation_loss is None


def test_learning_rate_rises_then_falls_to_zero():
    rates = []

    class Watched(torch.optim.SGD):
        def step(self, *args, **kwargs):
            rates.append(self.param_groups[0]["lr"])
            return super().step(*args, **kwargs)

    train(net(), blobs(), epochs=5, lr=0.1, warmup=0.2, optimizer=Watched)
    assert len(rates) == 20
    assert rates[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    assert rates[12] == pytest.approx(0.05)
    assert sorted(rates[4:], reverse=True) == rates[4:]
    assert rates[-1] < 0.002


def test_rows_and_progress_are_handed_out():
    rows, steps = [], []
    history = train(
        net(),
        blobs(),
        epochs=2,
        lr=0.02,
        on_epoch=rows.append,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert rows == history.epochs
    assert steps == [(i, 8) for i in range(1, 9)]
    assert json.loads(json.dumps(history.to_dict()))["epochs"][1]["epoch"] == 2
    assert "kept epoch 2" in str(history)


def test_ctrl_c_keeps_the_best_state_so_far():
    model, states = net(), []
    history = train(
        model,
        Flawed(blobs(), at=10, happen=interrupt),
        validate=blobs(seed=1),
        epochs=5,
        lr=0.02,
        on_epoch=lambda _: states.append(state(model)),
    )
    assert history.interrupted
    assert len(history.epochs) == 2
    assert torch.equal(state(model), states[history.best_epoch - 1])
    assert "interrupted after 2 epochs" in str(history)


def test_ctrl_c_in_the_first_epoch_gives_the_model_back_as_it_came():
    model = net()
    before = state(model)
    history = train(model, Flawed(blobs(), at=3, happen=interrupt), epochs=5, lr=0.02)
    assert history.interrupted
    assert torch.equal(state(model), before)


def test_nan_loss_names_step_and_rate_and_keeps_the_best_state():
    model, states = net(), []
    with pytest.raises(
        TrainingError,
        match=r"the loss became nan at step 6 of 20 \(epoch 2\), with lr=0.0\d+\. The model keeps the best state",
    ):
        train(
            model,
            Flawed(blobs(), at=6, happen=poison),
            epochs=5,
            lr=0.02,
            on_epoch=lambda _: states.append(state(model)),
        )
    assert torch.equal(state(model), states[-1])


def test_a_teacher_is_imitated():
    """A teacher that knows other labels than the data moves the model towards its own."""
    wrong = [(points, 1 - labels) for points, labels in blobs()]
    teacher = net(1)
    train(teacher, wrong, epochs=20, lr=0.02)
    model = net()
    train(model, blobs(), epochs=20, lr=0.02, teacher=teacher, distill=1.0)
    assert evaluate(model, blobs())["accuracy"] < 0.1


def test_without_weight_a_teacher_changes_nothing():
    one, other = net(), net()
    train(one, blobs(), epochs=1, lr=0.02, teacher=net(1), distill=0.0)
    train(other, blobs(), epochs=1, lr=0.02)
    assert torch.equal(state(one), state(other))


def test_settings_out_of_range_are_named_together():
    with pytest.raises(
        TrainingError, match=r"epochs=0 must be at least 1; lr=-1 must be above 0; warmup=1.0 must be in"
    ):
        train(net(), blobs(), epochs=0, lr=-1, warmup=1.0)
    with pytest.raises(TrainingError, match="unknown optimizer 'adamm'"):
        train(net(), blobs(), epochs=1, lr=0.1, optimizer="adamm")


def test_nothing_to_train_on_or_with():
    with pytest.raises(TrainingError, match="the loader holds no batch"):
        train(net(), [], epochs=1, lr=0.1)
    with pytest.raises(TrainingError, match="no parameter of Sequential is of what='all'.*requires_grad=True"):
        train(net().requires_grad_(False), blobs(), epochs=1, lr=0.1)
    with pytest.raises(TrainingError, match="nothing to evaluate on"):
        evaluate(net(), [])


# evaluate and its parts


def test_evaluate_by_hand():
    model = nn.Identity()
    model.train()
    batches = [
        (torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]]), torch.tensor([0, 1, 1])),
        (torch.tensor([[0.0, 2.0]]), torch.tensor([1])),
    ]
    hit, miss = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    got = evaluate(model, batches)
    assert got == pytest.approx({"loss": (3 * hit + miss) / 4, "accuracy": 0.75})
    assert model.training


def test_evaluate_without_classes_has_no_accuracy():
    batches = [(torch.ones(3, 1), torch.zeros(3, 1))]
    assert evaluate(nn.Identity(), batches, loss=F.mse_loss) == {"loss": 1.0}


def test_evaluate_a_model_that_computes_its_own_loss():
    class Own(nn.Module):
        def forward(self, x, labels=None):
            from transformers.modeling_outputs import SequenceClassifierOutput

            return SequenceClassifierOutput(loss=F.cross_entropy(x, labels), logits=x)

    batch = {"x": torch.tensor([[2.0, 0.0], [0.0, 2.0]]), "labels": torch.tensor([0, 0])}
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(2))) / 2
    assert evaluate(Own(), [batch]) == pytest.approx({"loss": expected, "accuracy": 0.5})


def test_labels_below_zero_do_not_count():
    totals = Totals()
    totals.add(1.0, torch.eye(3), torch.tensor([0, -100, 0]))
    assert totals.accuracy == 0.5


def test_accuracy_of_a_label_for_each_pixel():
    totals = Totals()
    scores = torch.zeros(1, 2, 2, 2)
    scores[0, 1, 0] = 1
    totals.add(1.0, scores, torch.tensor([[[1, 1], [1, 0]]]))
    assert totals.accuracy == 0.75


def test_imitation_by_hand():
    """KL(p || q) of softened scores, times temperature squared; p = (1/2, 1/2), q = (1/4, 3/4)."""
    student = 2.0 * torch.log(torch.tensor([[0.25, 0.75]]))
    teacher = torch.zeros(1, 2)
    by_hand = 4 * (0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert imitation(student, teacher, temperature=2.0).item() == pytest.approx(by_hand)
    with pytest.raises(TrainingError, match="class scores of one shape"):
        imitation(student, torch.zeros(1, 3), temperature=2.0)


def test_a_batch_without_target_needs_a_loss():
    with pytest.raises(TrainingError, match="the batch has no target"):
        loss_of(torch.zeros(1, 2), None, None)


# the embedded example


def test_recipes_keep_temperature_and_warmup_in_common():
    """Callers that pass only rates and epochs on get the rest from `train`, so it must be the same."""
    assert (SCRATCH.temperature, SCRATCH.warmup) == (TUNE.temperature, TUNE.warmup)


@pytest.mark.slow
def test_simplenet_learns_the_digits():
    data = load_data("digits")
    torch.manual_seed(0)
    model = SimpleNet()
    train(model, data.train, validate=data.validation, epochs=SCRATCH.epochs, lr=SCRATCH.lr)
    assert evaluate(model, data.test)["accuracy"] >= 0.97
