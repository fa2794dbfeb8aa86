"""What a report says of single weights that went."""

from collections.abc import Mapping
from html import escape
from typing import Any

from rich import box
from rich.table import Table

from secateur.reporting.numbers import percent

SHOWN = 60  # layers of the table


def sentence(report: Mapping[str, Any]) -> str | None:
    """How many weights went, how they were chosen, and what that does not do."""
    found: Mapping[str, Any] | None = report.get("sparsity")
    if not found:
        return None
    by = f" by {found['importance']}" if found.get("importance") else ""
    made_up = f", the others made up for it by {found['compensation']}" if found.get("compensation") else ""
    counts = (
        f"{found['zeros']:,} of {found['weights']:,} weights are zero ({percent(found['sparsity'])}; "
        f"{percent(found['of_all_parameters'])} of all parameters), {found['pattern']}, {found['allocation']}, "
        f"chosen{by}{made_up}."
    )
    said = [counts, "Zeros take as much time as other numbers unless a kernel leaves them out."]
    left: Mapping[str, str] = found.get("left") or {}
    said += [f"Left dense: {_reasons(left)}."] if left else []
    noted = [f"{row['name']}: {note}" for row in found["layers"] for note in row.get("notes") or ()]
    more = f"; and {len(noted) - 5} more" if len(noted) > 5 else ""
    said += [f"Note: {'; '.join(noted[:5])}{more}."] if noted else []
    return " ".join(said)


def _reasons(left: Mapping[str, str]) -> str:
    """Names by reason, the first few of each."""
    by: dict[str, list[str]] = {}
    for name, reason in left.items():
        by.setdefault(reason, []).append(name)
    return "; ".join(
        f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''} ({reason})"
        for reason, names in by.items()
    )


def layers(report: Mapping[str, Any]) -> Table | None:
    """Each layer's sparsity, and how far its outputs are from the dense layer's."""
    found: Mapping[str, Any] | None = report.get("sparsity")
    if not found:
        return None
    rows: list[Mapping[str, Any]] = found["layers"]
    grid = Table(box=box.SIMPLE_HEAD, title="Weights that went", title_justify="left")
    grid.add_column("weight", overflow="fold")
    for column in ("shape", "zeros", "sparsity", "error of outputs"):
        grid.add_column(column, justify="right")
    for row in rows[:SHOWN]:
        error = "" if row["error"] is None else percent(row["error"])
        shape = " x ".join(map(str, row["shape"]))
        grid.add_row(row["name"], shape, f"{row['zeros']:,}", percent(row["sparsity"]), error)
    if len(rows) > SHOWN:
        grid.add_row(f"... and {len(rows) - SHOWN} more", "", "", "", "")
    return grid


def html(report: Mapping[str, Any]) -> str:
    """The same for a page; empty where no single weights went."""
    said = sentence(report)
    if not said:
        return ""
    rows = "".join(
        f"<tr><td>{escape(row['name'])}</td><td>{row['zeros']:,} of {row['weights']:,}</td>"
        f"<td>{percent(row['sparsity'])}</td><td>{'' if row['error'] is None else percent(row['error'])}</td></tr>"
        for row in report["sparsity"]["layers"]
    )
    heads = "".join(f"<th>{name}</th>" for name in ("weight", "zeros", "sparsity", "error of outputs"))
    return (
        f'<p class="lead">{escape(said)}</p><details><summary>Each weight</summary>'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></details>"
    )
