"""The picture of each axis's width before and after, as inline SVG and a list of names and numbers."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_HEIGHT = 160


def silhouette(rows: Sequence[Mapping[str, Any]]) -> str:
    """The network's shape: one column for each axis in the model's order, its height the number of units.

    The picture stretches to any width; so it holds no text but tooltips.
    """
    widest = max(max(row["before"], row["after"]) for row in rows)
    slot = 1000 / len(rows)
    gap = min(6.0, slot * 0.18)

    def column(index: int, units: int, style: str) -> str:
        height = max(2.0, units / widest * _HEIGHT)
        return (
            f'<rect class="{style}" x="{index * slot + gap / 2:.2f}" width="{slot - gap:.2f}" '
            f'y="{(_HEIGHT - height) / 2:.1f}" height="{height:.1f}"/>'
        )

    columns = [
        f"<g><title>{escape(_words(row))}</title>{''.join(column(n, row[which], which) for which in _behind(row))}</g>"
        for n, row in enumerate(rows)
    ]
    before, after = sum(row["before"] for row in rows), sum(row["after"] for row in rows)
    grown = any(row["after"] > row["before"] for row in rows)
    total = f"{after:,} units where there were {before:,}" if grown else f"{after:,} of {before:,} units are kept"
    return (
        f'<svg class="silhouette" viewBox="0 0 1000 {_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="Widths of {len(rows)} axes in the order of the model: {total}. '
        f'The list below has each one.">{"".join(columns)}</svg>'
    )


def bars(rows: Sequence[Mapping[str, Any]]) -> str:
    """A list with a bar for each axis: the whole is its width before, the filled part what is left; of an axis that has
    become wider, the whole is its width now.
    """
    return f'<ul class="axes">{"".join(_bar(row) for row in rows)}</ul>'


def _bar(row: Mapping[str, Any]) -> str:
    share = row["after"] / row["before"] if row["before"] else 1.0
    widest = max(row["before"], row["after"], 1)
    parts = "".join(
        f'<rect class="{which}" width="{100 * row[which] / widest:.2f}" height="10"/>' for which in _behind(row)
    )
    worth = f", importance of a unit {row['importance']:.3g}" if row.get("importance") is not None else ""
    untouched = row["after"] == row["before"]
    kind = f'<span class="kind">{escape(str(row["kind"]) + worth)}</span>' if row.get("kind") else ""
    number = f"<b>{row['after']:,}</b>" if untouched else f"{row['before']:,} → <b>{row['after']:,}</b>"
    return (
        f'<li{" class=whole" if untouched else ""}><span class="axis">{breakable(str(row["name"]))}</span>'
        f'<span class="units">{number}</span>'
        f'<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(_words(row))}">'
        f"{parts}</svg>"
        f'{kind}<span class="kept">{100 * share:.0f} %</span></li>'
    )


def _behind(row: Mapping[str, Any]) -> tuple[str, str]:
    """The larger width of an axis first, so that it does not hide the other."""
    return ("after", "before") if row["after"] > row["before"] else ("before", "after")


def breakable(name: str) -> str:
    """A dotted name that may break after its dots."""
    return escape(name).replace(".", ".<wbr>").replace("/", "/<wbr>")


def _words(row: Mapping[str, Any]) -> str:
    if row["after"] > row["before"]:
        return f"{row['name']}: {row['after']:,} units where there were {row['before']:,}"
    return f"{row['name']}: {row['after']:,} of {row['before']:,} units kept"
