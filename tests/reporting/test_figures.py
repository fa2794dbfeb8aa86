"""How before and after compare, by hand."""

import pytest

from secateur.reporting.charts import Series, line_chart, nice_ticks
from secateur.reporting.figures import LATENCY, PARAMS, THROUGHPUT, figures, metric
from secateur.reporting.numbers import count, milliseconds, size
from secateur.reporting.widths import bars, silhouette


@pytest.mark.parametrize(
    ("figure", "before", "after", "words", "verdict"),
    [
        (PARAMS, 100, 50, "2.00× fewer", 1),
        (PARAMS, 50, 100, "2.00× more", -1),
        (PARAMS, 100, 100, "no change", 0),
        (PARAMS, 1000, 996, "0.4 % fewer", 1),
        (PARAMS, 1000, 1, "1,000× fewer", 1),
        (PARAMS, None, 1, "", 0),
        (PARAMS, 0, 1, "", 0),
        (LATENCY, 1.0, 1.02, "no change", 0),
        (LATENCY, 1.0, 0.5, "2.00× faster", 1),
        (LATENCY, 1.0, 1.5, "1.50× slower", -1),
        (THROUGHPUT, 10.0, 15.0, "1.50× faster", 1),
        (metric("accuracy"), 0.972, 0.969, "-0.3 points", -1),
        (metric("accuracy"), 0.5, 0.6, "+10.0 points", 1),
        (metric("accuracy"), 0.5, 0.5, "no change", 0),
        (metric("loss"), 1.0, 0.5, "2.00× lower", 1),
    ],
)
def test_change(figure, before, after, words, verdict) -> None:
    assert figure.change(before, after) == words
    assert figure.verdict(before, after) == verdict


def test_numbers() -> None:
    assert [count(value) for value in (0, 999, 99_999, 100_000, 999_600, None)] == [
        "0",
        "999",
        "99,999",
        "100 k",
        "1.00 M",
        "–",
    ]
    assert [size(value) for value in (0, 1000, 32_200_000)] == ["0 B", "1.00 kB", "32.2 MB"]
    assert [milliseconds(value) for value in (0, 0.00001, 81.2, 99.97)] == ["0 ms", "1.0e-05 ms", "81.2 ms", "100 ms"]


def test_accuracy_comes_first_and_what_nobody_measured_is_left_out() -> None:
    rows = figures({"dense": {"params": 3, "latency_ms": None, "metrics": {"a_loss": 1.0, "accuracy": 0.5}}})
    assert [row.label for row in rows] == ["Accuracy", "A loss", "Parameters"]


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (0.12, 2.31), (5.0, 5.0), (0.0, 0.0), (1e-7, 2e-7), (3.0, 40000.0), (-2.0, 1.0)]
)
def test_ticks_enclose_the_values_and_are_few(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 7
    assert ticks == sorted(set(ticks))


def test_chart_of_little() -> None:
    one = line_chart("Loss", [Series(name="training", style="train", values=[0.5])], identity="a")
    assert "<circle" in one
    assert "polyline" not in one
    assert "training: from 0.5 to 0.5, over 1 epoch." in one
    assert line_chart("Loss", [Series(name="training", style="train", values=[None])], identity="a") == ""


def test_gaps_break_the_line() -> None:
    chart = line_chart("Loss", [Series(name="t", style="train", values=[3.0, 2.0, None, 1.0, 0.5])], identity="a")
    assert chart.count("<polyline") == 2


def test_widths_of_an_axis_that_lost_everything_or_nothing() -> None:
    rows = [
        {"name": "a<b", "kind": "channels", "before": 4, "after": 0},
        {"name": "c", "kind": "", "before": 4, "after": 4},
    ]
    for picture in (silhouette(rows), bars(rows)):
        assert "a&lt;b: 0 of 4 units kept" in picture or "of 8 units" in picture
        assert "a<b" not in picture
