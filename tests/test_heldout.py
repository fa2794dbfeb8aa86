"""Metrics on held-out data by hand, and held-out data that is of no use."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.errors import DataError, PlanError
from secateur.heldout import Bound, bound
from support.networks import Mlp

X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 1, 0, 1])
BATCHES = [(X[:4], Y[:4]), (X[4:], Y[4:])]
NAN = torch.full((2, 4), float("nan"))


class Fixed(nn.Module):
    """Says the class that its input says."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def measured(batches: Any, setting: str = "max_drop", **settings: Any) -> float:
    return Bound(setting=setting, amount=1.0, batches=batches, **settings).measure(Fixed())


def test_accuracy_is_in_percentage_points_over_all_samples() -> None:
    hot = F.one_hot(torch.tensor([0, 1, 1]), 2).float()
    batches = [(hot, torch.tensor([0, 1, 0])), (hot[:1], torch.tensor([0]))]
    assert measured(batches) == 75.0
    assert measured([(hot, torch.tensor([0, -100, 0]))]) == 50.0  # labels below 0 are ignored
    assert math.isnan(measured([(torch.full((1, 2), float("nan")), torch.tensor([0]))]))


def test_the_loss_is_the_mean_over_samples() -> None:
    batches = [(torch.zeros(3, 2), torch.tensor([0, 1, 0])), (torch.zeros(1, 4), torch.tensor([0]))]
    assert measured(batches, "max_loss_increase") == pytest.approx((3 * math.log(2) + math.log(4)) / 4)
    squares = [(torch.full((2, 1), 3.0), torch.zeros(2, 1))]
    assert measured(squares, "max_loss_increase", loss=F.mse_loss) == 9.0
    assert measured([torch.ones(2, 3)], "max_loss_increase", loss=lambda out, _: out.sum()) == 6.0


def test_batches_of_another_form() -> None:
    def run(model: nn.Module, batch: Any) -> Tensor:
        return model(batch["pixels"] if isinstance(batch, dict) else batch[1])

    hot = F.one_hot(torch.tensor([0, 1]), 2).float()
    triples = [("name", hot, torch.tensor([0, 0])), {"pixels": hot, "labels": torch.tensor([0, 1])}]
    assert measured(triples, forward=run) == 75.0


def test_a_metric_of_ones_own_is_called_as_it_is() -> None:
    def largest(model: nn.Module, batches: Any) -> Tensor:
        assert not torch.is_grad_enabled()
        return model(batches[0]).max()

    limit = Bound(setting="max_drop", amount=0.1, batches=[X], metric=largest)  # type: ignore[arg-type]
    assert limit.measure(Fixed()) == float(X.max())
    assert (limit.name, limit.unit) == ("largest", "")


def test_better_and_worse() -> None:
    drop = Bound(setting="max_drop", amount=1.0, batches=[])
    rise = Bound(setting="max_loss_increase", amount=0.0, batches=[])
    assert (drop.worse(90.0, 89.5), rise.worse(0.5, 0.75)) == (0.5, 0.25)
    assert [drop.meets(90.0, value) for value in (95.0, 90.0, 89.0, 88.9, math.nan)] == [True, True, True, False, False]
    assert [rise.meets(0.5, value) for value in (0.4, 0.5, 0.51, math.nan)] == [True, True, False, False]


def test_every_measurement_sees_the_same_and_leaves_the_random_state() -> None:
    class Noisy:
        def __iter__(self) -> Any:
            return iter([torch.rand(4)])

    limit = Bound(
        setting="max_drop", amount=0.1, batches=Noisy(), metric=lambda model, batches: float(next(iter(batches)).sum())
    )
    before = torch.get_rng_state()
    assert limit.measure(Fixed()) == limit.measure(Fixed())
    assert torch.equal(before, torch.get_rng_state())


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_drop": 0.5}, r"max_drop needs held-out data to measure on: validate=\[\(inputs, labels\), ...\]"),
        ({"max_loss_increase": 0.5}, "max_loss_increase needs held-out data"),
        ({"max_drop": -1, "validate": BATCHES}, "max_drop=-1: give a number from 0, such as 0.5"),
        ({"max_drop": float("nan"), "validate": BATCHES}, "max_drop=nan: give a number"),
        ({"max_drop": "1", "validate": BATCHES}, "max_drop='1': give a number"),
        ({"max_drop": True, "validate": BATCHES}, "max_drop=True: give a number"),
        ({"max_loss_increase": math.inf, "validate": BATCHES}, "max_loss_increase=inf: give .* such as 0.02"),
        (
            {"max_drop": 1, "budget": sc.Budget(macs=0.5), "validate": BATCHES},
            "exactly one of budget, threshold, keep, max_drop, max_loss_increase; got budget and max_drop",
        ),
        ({"max_drop": 1, "max_loss_increase": 1, "validate": BATCHES}, "got max_drop and max_loss_increase"),
        ({"keep": 0.5, "max_drop": 0.0}, "got keep and max_drop"),
        ({"keep": 0.5, "validate": BATCHES}, "validate only mean something with max_drop= or max_loss_increase="),
        ({"validate": BATCHES, "metric": len}, "validate and metric only mean"),
        ({"max_loss_increase": 1, "metric": len, "validate": BATCHES}, "give loss= instead of metric="),
        ({"max_drop": 1, "reduce": "time", "validate": BATCHES}, "reduce='time': give macs, params or bytes"),
        ({"max_drop": 1, "metric": "f1", "validate": BATCHES}, "metric='f1': give a callable"),
        (
            {"max_drop": 1, "metric": lambda m, b: [1, 2], "validate": BATCHES},
            "the metric <lambda> gave a list, but must",
        ),
    ],
)
def test_arguments_that_contradict_each_other(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        sc.prune(Mlp(), X, **settings)


@pytest.mark.parametrize(
    ("validate", "message"),
    [
        ([], "the held-out data is empty: validate= holds no batch with a sample in it"),
        ([(X[:0], Y[:0])], "the held-out data is empty"),
        (X, r"validate= is a Tensor: give batches, such as \[\(inputs, labels\)\] or a DataLoader"),
        ({"x": X}, "validate= is a dict: give batches"),
        (7, "validate= is a int: give batches"),
        (iter(BATCHES), "validate= is a list_iterator, which can be iterated only once"),
        ((pair for pair in BATCHES), "validate= is a generator, which can be iterated only once"),
        ((X, Y), "batch 0 of validate= has no labels: give batches .inputs, labels., as in"),
        ([X], "max_drop counts right answers, but batch 0 of validate= has no labels.*or give metric="),
        ([BATCHES[0], X], "batch 1 of validate= has no labels"),
        ([(X, Y.float())], r"outputs are float32 \(6, 2\) and the labels float32 \(6,\): .* need whole numbers \(N,\)"),
        ([(X, Y[:, None])], r"the labels int64 \(6, 1\)"),
        ([(X, Y[:5])], r"the labels int64 \(5,\)"),
        ([(X, "cat")], "the labels a str"),
        ([(X, Y - 10)], "no sample of the held-out data has a label"),
        (
            [(X[:, :3], Y)],
            r"Mlp does not run on batch 0 of validate=, \(float32\[6, 3\]\): RuntimeError: mat1 and mat2",
        ),
        ([(X, Y, Y)], "does not run on batch 0 of validate=, a tuple: TypeError: a batch is a tensor"),
        (
            [(NAN, Y[:2])],
            "the accuracy of Mlp on the held-out data is nan, so there is no bound to keep to. Look for NaN",
        ),
    ],
)
def test_held_out_data_that_is_of_no_use(validate: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        sc.prune(Mlp(), X, max_drop=1.0, validate=validate)


@pytest.mark.parametrize(
    ("validate", "message"),
    [
        ([], "the held-out data is empty"),
        (
            [X],
            "max_loss_increase needs a loss, but on batch 0 of validate= no loss can be computed: the batch has no",
        ),
        (
            [(X, Y + 5)],
            r"on batch 0 of validate= no loss .* does not fit scores \(6, 2\) and targets \(6,\) of torch\.int64",
        ),
        ([(X, Y[:3])], r"no loss can be computed: .* targets \(3,\) of torch\.int64 \(Expected input batch_size"),
        ([(NAN, Y[:2])], "the loss of Mlp on the held-out data is nan"),
    ],
)
def test_a_loss_that_can_not_be_taken(validate: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        sc.prune(Mlp(), X, max_loss_increase=0.1, validate=validate)


def test_no_bound_without_being_asked() -> None:
    assert bound({"budget": None, "max_drop": None}, validate=None, metric=None, loss=None, seed=0) is None
