"""Timings are kept on disk, and a cache that is damaged or can't be written loses nothing."""

import json
from collections.abc import Sequence
from math import isnan, nan
from pathlib import Path
from typing import Any

import pytest
import torch

import secateur as sc
from secateur.timing import latency_table, stopwatch
from secateur.timing.operations import Operation
from secateur.timing.store import Store, cache_folder, conditions
from support.clocks import by_work
from support.networks import Cnn, example

UNDER = {"device": "cpu", "threads": 1}
OPERATION = Operation("aten::mm", (), (), (8, 4))


def test_round_trip(tmp_path: Path) -> None:
    store = Store(UNDER, tmp_path / "new" / "folder")
    assert store.get(OPERATION, (8, 4)) is None
    store.put(OPERATION, (8, 4), 0.5)
    store.put(OPERATION, (4, 4), nan)
    store.save()
    again = Store(UNDER, tmp_path / "new" / "folder")
    assert again.get(OPERATION, (8, 4)) == 0.5
    failed = again.get(OPERATION, (4, 4))
    assert failed is not None
    assert isnan(failed), "that it does not run is known, too"
    assert Store(UNDER | {"threads": 2}, tmp_path / "new" / "folder").get(OPERATION, (8, 4)) is None


def test_what_others_wrote_meanwhile_stays(tmp_path: Path) -> None:
    one, other = Store(UNDER, tmp_path), Store(UNDER, tmp_path)
    one.put(OPERATION, (1, 1), 1.0)
    other.put(OPERATION, (2, 2), 2.0)
    one.save()
    other.save()
    both = Store(UNDER, tmp_path)
    assert (both.get(OPERATION, (1, 1)), both.get(OPERATION, (2, 2))) == (1.0, 2.0)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"version": 1}', '{"version": 1, "under": UNDER, "seconds": {"a": {"1": -1}}}',
     '{"version": 1, "under": UNDER, "seconds": {"a": {"1": "soon"}}}', '{"version": 1, "under": UNDER, "seconds": 3}'],
)  # fmt: skip
def test_a_damaged_file_is_taken_anew(text: str, tmp_path: Path) -> None:
    store = Store(UNDER, tmp_path)
    store.put(OPERATION, (8, 4), 0.5)
    store.save()
    assert store.path is not None
    store.path.write_text(text.replace("UNDER", json.dumps(UNDER)))
    with pytest.warns(UserWarning, match="can't be read, and are taken anew"):
        anew = Store(UNDER, tmp_path)
    assert anew.get(OPERATION, (8, 4)) is None
    anew.put(OPERATION, (8, 4), 0.25)
    with pytest.warns(UserWarning, match="can't be read"):
        anew.save()
    assert Store(UNDER, tmp_path).get(OPERATION, (8, 4)) == 0.25


def test_another_version_is_not_read(tmp_path: Path) -> None:
    store = Store(UNDER, tmp_path)
    store.put(OPERATION, (8, 4), 0.5)
    store.save()
    assert store.path is not None
    store.path.write_text(store.path.read_text().replace('"version": 1', '"version": 2'))
    assert Store(UNDER, tmp_path).seconds == {}


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(UNDER, tmp_path / "file" / "folder")
    store.put(OPERATION, (8, 4), 0.5)
    with pytest.warns(UserWarning, match="timings are not kept for the next time: .* Set SECATEUR_CACHE to a folder"):
        store.save()
    assert store.get(OPERATION, (8, 4)) == 0.5


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_CACHE", "/somewhere/own")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere/else")
    assert cache_folder() == Path("/somewhere/own")
    monkeypatch.delenv("SECATEUR_CACHE")
    assert cache_folder() == Path("/somewhere/else/secateur")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    assert cache_folder() == Path.home() / ".cache" / "secateur"


def test_conditions_tell_devices_and_threads_apart() -> None:
    found = conditions(torch.device("cpu"))
    assert found["torch"] == torch.__version__
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert conditions(torch.device("cpu")) != found
    finally:
        torch.set_num_threads(threads)


def test_an_operation_is_timed_once(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[Any] = []

    def count(operation: Operation, sizes: Sequence[int]) -> float:
        timed.append((operation.key, tuple(sizes)))
        return by_work(operation, sizes)

    monkeypatch.setattr(stopwatch, "seconds", count)
    model = Cnn().eval()
    graph = sc.trace(model, example(model))
    first = latency_table(model, graph, example(model), whole=1.0)
    assert timed
    assert max(map(timed.count, timed)) == 2, "two sweeps, as the times agree"
    assert len(list(own_cache.iterdir())) == 1
    timed.clear()
    again = latency_table(model, graph, example(model), whole=1.0)
    assert not timed
    costs = graph.costs
    values = [table.compiled(costs.order, costs.dense).value(costs.dense * 0.5).item() for table in (first, again)]
    assert values[0] == values[1]
