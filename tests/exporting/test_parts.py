"""The parts of an export, by hand."""

from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import ExportError
from secateur.exporting.calls import call_of, plain, reference
from secateur.exporting.checking import compare, difference
from secateur.exporting.latency import Latency, in_turns, latency
from secateur.exporting.sizes import captured_at, checked_at, ladder, names

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("expected", "got", "share"),
    [
        ([1.0, -4.0], [1.0, -4.0], 0.0),
        ([1.0, -4.0], [1.5, -4.0], 0.125),  # 0.5 of 4
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([NAN, 2.0], [NAN, 1.0], 0.5),  # 1 of 2
        ([-INF, 2.0], [-INF, 2.0], 0.0),
        ([-INF, 2.0], [INF, 2.0], INF),
        ([NAN, 2.0], [INF, 2.0], INF),
        ([1.0, 2.0], [NAN, 2.0], INF),
    ],
)
def test_the_share_of_a_difference(expected: list[float], got: list[float], share: float) -> None:
    assert difference("y", torch.tensor(expected), torch.tensor(got)).share == share


def test_the_worst_output_beside_what_is_allowed() -> None:
    one, two = torch.tensor([10.0]), torch.tensor([2.0])
    found = compare([("one", one), ("two", two)], [one + 0.0001, two + 0.0001], "it")
    assert found.name == "two"
    assert found.share == pytest.approx(5e-5, rel=1e-2)
    with pytest.raises(ExportError, match=r"it computes something else .*: one by 1 at a scale of 10, where 0.0001 of"):
        compare([("one", one), ("two", two)], [one + 1, two], "it")


def test_whole_numbers_agree_exactly() -> None:
    numbers = torch.tensor([1000, 2000])
    assert difference("n", numbers, numbers).fits
    assert not difference("n", numbers, numbers + 1).fits


def test_other_shapes_and_types_are_told() -> None:
    with pytest.raises(ExportError, match=r"float32\[2, 1\] instead of float32\[2\]"):
        compare([("y", torch.zeros(2))], [torch.zeros(2, 1)], "it")
    with pytest.raises(ExportError, match=r"float64\[2\] instead of float32\[2\]"):
        compare([("y", torch.zeros(2))], [torch.zeros(2).double()], "it")


# ---------------------------------------------------------------------- inputs and outputs


class Echo(nn.Module):
    def forward(self, output: Any) -> Any:
        return output


Pair = namedtuple("Pair", "left right")


class DynamicCache:
    def __init__(self) -> None:
        self.keys = torch.zeros(1)


@pytest.mark.parametrize(
    ("output", "named"),
    [
        (torch.zeros(1), ["output"]),
        ((torch.zeros(1),), ["output"]),
        ((torch.zeros(1), None, torch.zeros(1)), ["output_0", "output_1"]),
        ({"logits": torch.zeros(1), "cache": DynamicCache(), "all": [torch.zeros(1)]}, ["logits", "all_0"]),
        (Pair(torch.zeros(1), torch.zeros(1)), ["left", "right"]),
        ({"a.b c": torch.zeros(1)}, ["a_b_c"]),
        ([{"boxes": torch.zeros(1)}, {"boxes": torch.zeros(1)}], ["output_0_boxes", "output_1_boxes"]),
    ],
)
def test_outputs_have_names(output: Any, named: list[str]) -> None:
    assert [name for name, _ in reference(Echo(), call_of(Echo(), (output,), {}))] == named


def test_what_holds_no_tensor_is_no_output() -> None:
    assert plain({"a": None, "b": 3, "c": "text", "d": ()}) is None
    with pytest.raises(ExportError, match="Echo gives no tensor"):
        reference(Echo(), call_of(Echo(), (3,), {}))


class Cached(nn.Module):
    def forward(self, ids: Tensor, mask: Tensor | None = None, use_cache: bool = True) -> Tensor:
        return ids


def test_inputs_are_sorted_as_the_signature_has_them() -> None:
    call = call_of(Cached(), (), {"mask": torch.ones(1), "ids": torch.zeros(1)})
    assert list(call.kwargs) == ["ids", "mask"]
    assert call.bound == {"use_cache": False}
    assert call_of(Cached(), (torch.zeros(1),), {"use_cache": True}).bound == {"use_cache": True}


# ---------------------------------------------------------------------- sizes


def sizes(*tensors: Tensor) -> list[tuple[tuple[str, ...], dict[str, int], list[dict[str, int]]]]:
    call = call_of(Echo(), (list(tensors),), {})
    return [(names(marks), captured_at(call, marks), checked_at(call, marks)) for marks in ladder(call)]


def test_images_have_a_free_batch() -> None:
    assert sizes(torch.zeros(4, 3, 8, 8)) == [
        (("batch",), {"batch": 4}, [{"batch": 1}, {"batch": 5}]),
        ((), {}, []),
    ]


def test_a_batch_is_captured_at_a_size_that_no_other_dim_has() -> None:
    assert sizes(torch.zeros(1, 3, 8, 8))[0] == (("batch",), {"batch": 2}, [{"batch": 3}])
    assert sizes(torch.zeros(3, 3, 4, 4))[0][1] == {"batch": 5}


def test_tokens_have_a_free_length_too() -> None:
    ids = torch.zeros(2, 7, dtype=torch.int64)
    assert sizes(ids, ids.bool()) == [
        (("batch", "sequence"), {"batch": 2}, [{"batch": 1, "sequence": 6}, {"batch": 3, "sequence": 7}]),
        (("batch",), {"batch": 2}, [{"batch": 1}, {"batch": 3}]),
        ((), {}, []),
    ]


def test_a_number_alone_has_no_free_size() -> None:
    assert sizes(torch.tensor(3.0)) == [((), {}, [])]


def test_inputs_are_repeated_or_cut_to_a_size() -> None:
    call = call_of(Echo(), ([torch.tensor([1, 2, 3])],), {})
    marks = next(ladder(call))
    assert call.of_sizes(marks, {"batch": 5}).leaves[0].tolist() == [1, 2, 3, 1, 2]
    assert call.of_sizes(marks, {"batch": 1}).leaves[0].tolist() == [1]


# ---------------------------------------------------------------------- timing


class Clocked:
    """A session that takes as long as it says, on a clock of its own."""

    now = 0.0

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def run(self, outputs: None, inputs: Any) -> None:
        Clocked.now += self.seconds


def test_sessions_take_turns_and_are_compared_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.thread_time", lambda: Clocked.now)
    monkeypatch.setattr("time.perf_counter", lambda: Clocked.now)
    dense, pruned = (Clocked(0.010), {}), (Clocked(0.004), {})
    rounds = in_turns({"dense": dense, "pruned": pruned}, threads=1, seconds=0.0)
    assert [len(found) for found in rounds.values()] == [7, 7], "so many at least"
    assert rounds["dense"] == pytest.approx([0.010] * 7)
    assert latency(dense, pruned, threads=1, seconds=0.0, batch=2) == Latency(
        dense_ms=pytest.approx(10), pruned_ms=pytest.approx(4), left=pytest.approx(0.4), threads=1, rounds=7, batch=2
    )


def test_threads_are_one_or_more() -> None:
    with pytest.raises(ExportError, match="threads=0: give 1 or more"):
        latency((Clocked(1), {}), (Clocked(1), {}), threads=0, seconds=0.0, batch=1)
