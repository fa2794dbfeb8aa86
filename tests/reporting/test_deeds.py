"""What a report says was done: to the word in its title."""

import re
from typing import Any

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.reporting import Report, render_page
from secateur.reporting.deeds import deeds, in_words


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 3), nn.ReLU(), nn.Linear(3, 60), nn.ReLU(), nn.Linear(60, 9)).eval()


def made(what: str) -> Report:
    """The report of one change for real."""
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
    if what == "pruned":
        return sc.prune(mlp(), x, keep=0.5).report
    if what == "grown":
        return sc.grow(mlp(), x, {"0.weight:0": 6}).report
    if what == "reallocated":
        return sc.reallocate(mlp(), x, data=[x]).report
    if what == "deepened":
        return sc.deepen(mlp(), "0", x).report
    return sc.prune(mlp(), x, keep=1.0).report


def heading(page: str) -> str:
    return page.partition("<title>")[2].partition("</title>")[0]


@pytest.mark.parametrize("what", ["pruned", "grown", "reallocated", "deepened"])
def test_the_title_says_what_was_done(what: str) -> None:
    report = made(what)
    assert deeds(report) == [what]
    assert heading(render_page(report)) == f"Sequential: {what} with secateur"
    tuned = report.replace(tuned=report["pruned"])
    assert heading(render_page(tuned)) == f"Sequential: {what} and tuned with secateur"
    if what != "pruned":
        page = render_page(tuned, histories={"tuned": [{"epoch": 1, "train_loss": 1.0}]})
        assert "pruned" not in re.sub("<[^>]*>", "", page.partition("</style>")[2]).lower()


def test_nothing_done_is_not_called_pruning() -> None:
    report = made("nothing")
    assert deeds(report) == []
    assert heading(render_page(report)) == "Sequential: report of secateur"


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"adapted": {"after": 3}}, "adapted"),
        ({"adapted": {"after": 3}, "axes": [{"name": "a", "before": 2, "after": 1}]}, "adapted and pruned"),
        (
            {"adapted": {"after": 3}, "axes": [{"name": "a", "before": 2, "after": 1}], "tuned": {"params": 1}},
            "adapted, pruned and tuned",
        ),
        ({"depth": {"dropped": ["1"], "inserted": []}, "pruned": {"params": 1}}, "shortened"),
        ({"pruned": {"params": 1}}, "pruned"),
    ],
)
def test_words(parts: dict[str, Any], words: str) -> None:
    assert in_words(Report(parts)) == words


def test_wider_axes_fit_into_their_picture() -> None:
    page = render_page(made("grown")).replace("\u00a0", " ")
    assert "0.weight:0: 6 units where there were 3" in page
    assert "200 %" in page
    widths = [float(part.partition('"')[0]) for part in page.partition('class="axes"')[2].split('width="')[1:]]
    assert max(widths) <= 100
    assert "kept</li>" not in page


def test_a_reallocation_says_why() -> None:
    page = render_page(made("reallocated"))
    assert page.count("importance of a unit") == 2
    assert "the new model computes what the original computes with the removed units silenced" in page
