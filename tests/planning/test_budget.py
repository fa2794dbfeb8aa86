"""What a budget may be."""

from typing import Any

import pytest

from secateur.errors import PlanError
from secateur.planning import Budget

DENSE = {"params": 1000, "macs": 4_000_000_000, "bytes": 4000}


@pytest.mark.parametrize(
    ("amount", "wanted"),
    [
        (0.5, 2e9),
        (1.0, 4e9),
        ("0.5", 2e9),
        (" .25 ", 1e9),
        ("2.1G", 2.1e9),
        ("2.1g", 2.1e9),
        ("300M", 3e8),
        ("5k", 5e3),
        ("1T", 1e12),
        ("7", 7.0),
        ("0.5M", 5e5),
        ("1.5e9", 1.5e9),
        (7, 7.0),
        (1, 1.0),
    ],
)
def test_amounts(amount: float | int | str, wanted: float) -> None:
    assert Budget(macs=amount).targets(DENSE) == {"macs": pytest.approx(wanted)}


@pytest.mark.parametrize(
    ("amount", "wanted"),
    [
        ("5ms", 5e6),
        (" 300 us ", 3e5),
        ("300µs", 3e5),
        ("0.01s", 1e7),
        ("1.5e-3s", 1.5e6),
        ("800ns", 800.0),
        (0.5, 4e6),
        ("0.5", 4e6),
        (1.0, 8e6),
    ],
)
def test_latencies(amount: float | str, wanted: float) -> None:
    assert Budget(latency=amount).targets({"latency": 8_000_000}) == {"latency": pytest.approx(wanted)}


@pytest.mark.parametrize(
    ("amount", "meant"),
    [(5, "5ms"), (1, "1ms"), (2.5, "2.5ms"), ("5", "5ms"), ("5 m", "5ms"), ("0ms", "5ms"), (0, "5ms"), (True, "5ms")],
)
def test_a_latency_without_a_unit(amount: Any, meant: str) -> None:
    with pytest.raises(PlanError, match=f'budget latency=.*: give a time with its unit, such as "5ms", .*{meant}'):
        Budget(latency=amount)


def test_several_amounts() -> None:
    budget = Budget(params=0.1, bytes="2kB")
    assert budget.given == {"params": 0.1, "bytes": "2kB"}
    assert budget.targets(DENSE) == {"params": 100.0, "bytes": 2000.0}


@pytest.mark.parametrize(
    "amount",
    [0, 0.0, -1, -0.5, 1.5, "", "half", "-3", "2.1X", "50%", "nan", float("nan"), float("inf"), True, [1], "0"],
)
def test_what_is_no_amount(amount: Any) -> None:
    with pytest.raises(PlanError, match=r"budget macs=.*: give a fraction of the original in \(0, 1\], an int, or a"):
        Budget(macs=amount)


def test_an_empty_budget() -> None:
    with pytest.raises(PlanError, match=r"an empty budget: give params=, macs=, bytes= or latency="):
        Budget()
