"""Batches in an order that the seed and the epoch fix, and parts that are held out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.data.batches import Batches, TensorSource
from secateur.data.splitting import hold_out, stratified
from secateur.errors import DataError


def numbered(count: int, **options) -> Batches:
    """Batches whose inputs are the positions 0, 1, 2, ..."""
    source = TensorSource(torch.arange(count).float()[:, None], torch.arange(count) % 2)
    return Batches(source, range(count), **{"batch_size": 4} | options)


def seen(batches: Batches) -> list[int]:
    return [int(value) for inputs, _ in batches for value in inputs]


def test_batches_in_order_when_not_shuffled():
    batches = numbered(10)
    assert seen(batches) == list(range(10))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    assert len(batches) == 3


def test_shuffled_passes_differ_but_hold_every_sample():
    batches = numbered(50, shuffle=True)
    first, second = seen(batches), seen(batches)
    assert first != second
    assert sorted(first) == sorted(second) == list(range(50))


def test_the_epoch_and_the_seed_fix_the_order():
    batches = numbered(50, shuffle=True, seed=3)
    first, second = seen(batches), seen(batches)
    batches.set_epoch(1)
    assert seen(batches) == second
    assert seen(numbered(50, shuffle=True, seed=3)) == first
    assert seen(numbered(50, shuffle=True, seed=4)) != first


def test_batches_leave_the_global_random_state_alone():
    before = torch.get_rng_state()
    seen(numbered(50, shuffle=True))
    assert torch.equal(torch.get_rng_state(), before)


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=80),
    st.sampled_from([(0.5,), (0.7, 0.1), (0.2, 0.3, 0.4)]),
    st.integers(0, 5),
)
def test_stratified_parts_partition_and_share_every_class(labels, fractions, seed):
    parts = stratified(labels, fractions, seed)
    assert sorted(i for part in parts for i in part) == list(range(len(labels)))
    for label in set(labels):
        for part, fraction in zip(parts, fractions, strict=False):
            got = sum(labels[i] == label for i in part)
            assert abs(got - fraction * labels.count(label)) <= 1


# epochs and skipping


class Counting(TensorSource):
    """Notes which samples were fetched."""

    def __init__(self, count: int) -> None:
        super().__init__(torch.arange(count).float()[:, None], torch.zeros(count, dtype=torch.long), augment=self.noted)
        self.fetched: list[int] = []

    def fetch(self, positions, draws):
        self.fetched += positions
        return super().fetch(positions, draws)

    @staticmethod
    def noted(inputs, draws):
        return torch.cat([inputs, (draws % 1000).float()[:, None]], 1)


def rows(batches) -> dict[float, float]:
    """The augmentation of each sample."""
    return {row[0]: row[1] for inputs, _ in batches for row in inputs.tolist()}


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 3), st.data())
def test_skipping_gives_the_rest_of_the_epoch_and_reads_no_more(count, size, epoch, data):
    source = Counting(count)
    batches = Batches(source, range(count), batch_size=size, shuffle=True, seed=5)
    skipped = data.draw(st.integers(0, len(batches)))
    batches.set_epoch(epoch)
    whole = list(batches)
    source.fetched.clear()
    batches.set_epoch(epoch)
    rest = list(batches.skip(skipped))
    assert len(source.fetched) == max(0, count - skipped * size)
    assert len(rest) == len(batches) - skipped
    for (x, y), (other_x, other_y) in zip(whole[skipped:], rest, strict=True):
        assert torch.equal(x, other_x)
        assert torch.equal(y, other_y)


def test_skipping_counts_as_a_pass():
    batches = numbered(20, shuffle=True)
    list(batches.skip(3))
    assert batches.epoch == 1


@pytest.mark.parametrize("count", [-1, 4])
def test_skipping_more_than_there_is(count):
    with pytest.raises(DataError, match=f"can't skip {count} batches: an epoch has 3"):
        numbered(10).skip(count)


def test_augmentation_hangs_on_seed_epoch_and_position_alone():
    def batches(**options):
        return Batches(Counting(30), range(30), **{"batch_size": 4, "shuffle": True, "seed": 1} | options)

    first = rows(batches())
    assert rows(batches(batch_size=7)) == first
    again = batches()
    list(again)
    assert rows(again) != first
    again.set_epoch(0)
    assert rows(again) == first
    assert rows(batches(seed=2)) != first


def test_huge_and_negative_seeds_are_seeds():
    assert seen(numbered(9, shuffle=True, seed=2**60)) != seen(numbered(9, shuffle=True, seed=-5))


# parts that are held out


def test_splits_that_are_there_stay_whole():
    parts = hold_out({"train": [0, 1, 0], "validation": [1], "test": [0, 1]})
    assert {name: (part.split, list(part.positions)) for name, part in parts.items()} == {
        "train": ("train", [0, 1, 2]),
        "validation": ("validation", [0]),
        "test": ("test", [0, 1]),
    }


def test_half_of_validation_becomes_the_test_split():
    parts = hold_out({"train": [0, 1, 0], "validation": [0] * 8})
    assert [(part.split, len(part.positions)) for part in parts.values()] == [
        ("train", 3),
        ("validation", 4),
        ("validation", 4),
    ]
    assert not set(parts["validation"].positions) & set(parts["test"].positions)


def test_plain_batches_are_the_same_samples_in_the_same_order_without_augmentation() -> None:
    source = TensorSource(torch.arange(6.0), torch.arange(6), augment=lambda inputs, draws: inputs + 100)
    batches = Batches(source, range(6), batch_size=4, shuffle=True, seed=3)
    augmented = [inputs - 100 for inputs, _ in batches]
    batches.set_epoch(2)
    plain = batches.plain()
    assert [inputs.tolist() for inputs, _ in plain] == [inputs.tolist() for inputs in augmented]
    assert batches.epoch == 2
    assert next(iter(batches))[0].min() >= 100
