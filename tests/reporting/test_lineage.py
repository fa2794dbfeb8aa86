"""The lineage as a table."""

from secateur.printing import as_text
from secateur.reporting import lineage


def test_each_step_with_its_figures_and_parent() -> None:
    text = as_text(
        lineage.table(
            [
                {
                    "step": "prune",
                    "figures": {"params": 40, "metrics": {"accuracy": 0.5}},
                    "before": {"params": 81194, "metrics": {"accuracy": 0.9}},
                    "parent": "0123456789abcdef",
                    "importance": "l2",
                },
                {"step": "tune", "figures": None, "epochs": 3},
            ]
        )
    )
    lines = [line.split() for line in text.splitlines() if line.strip()]
    assert ["dense", "81,194", "90.0", "%"] in lines
    assert ["1", "prune", "40", "50.0", "%", "0123456789ab", "importance", "l2"] in lines
    assert ["2", "tune", "–", "–", "–", "epochs", "3"] in lines


def test_what_a_file_of_anyones_may_hold() -> None:
    odd = {
        "step": "[red]x\x1b[2J",
        "figures": {"params": "many", "metrics": 3},
        "before": 5,
        "parent": 7,
        "n": "y" * 99,
    }
    text = as_text(lineage.table([odd]))
    assert "\x1b" not in text
    assert "[red]x?[2J" in text
    assert "y" * 60 not in text
    assert as_text(lineage.table([]))
