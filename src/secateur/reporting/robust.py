"""The section of a report's page on attacks."""

import html
from collections.abc import Iterator, Mapping
from typing import Any

from secateur.reporting.numbers import percent
from secateur.reporting.wording import ATTACKS, BALLS

Networks = Mapping[str, Mapping[str, Any]]


def section(report: Mapping[str, Any]) -> str:
    """The accuracies of all networks in a table, and what they mean; empty where nothing was attacked."""
    found: Mapping[str, Any] | None = report.get("robustness")
    if not found:
        return ""
    networks: Networks = found["networks"]
    said = "".join(f'<p class="lead">{html.escape(line)}</p>' for line in found["said"])
    heads = "".join(f'<th role="columnheader" scope="col">{html.escape(name)}</th>' for name in networks)
    body = "".join(_row(label, list(networks), values) for label, values in rows(networks))
    return (
        f'{said}<table class="figures" role="table"><caption class="unseen">Accuracy under attack</caption>'
        f'<thead role="rowgroup"><tr role="row"><td role="cell"></td>{heads}</tr></thead>'
        f'<tbody role="rowgroup">{body}</tbody></table>'
    )


def _row(label: str, names: list[str], values: list[float]) -> str:
    cells = "".join(
        f'<td role="cell" data-name="{html.escape(name)}">{percent(value)}</td>'
        for name, value in zip(names, values, strict=True)
    )
    return f'<tr role="row"><th role="rowheader" scope="row">{html.escape(label)}</th>{cells}</tr>'


def rows(networks: Networks) -> Iterator[tuple[str, list[float]]]:
    """What stands in the table: a label, and a share for each network."""
    first = next(iter(networks.values()))
    yield "clean", [figures["clean"] for figures in networks.values()]
    for norm, attacked in first["attacked"].items():
        sides = [figures["attacked"][norm] for figures in networks.values()]
        within = f"{BALLS[norm]} within {attacked['eps']:.3g}"
        for name in attacked["accuracy"]:
            yield f"{ATTACKS[name]}, {within}", [side["accuracy"][name] for side in sides]
        yield f"strongest, {within}", [side["strongest"] for side in sides]
    if first["mean_corrupted"] is not None:
        yield "corruptions, mean", [figures["mean_corrupted"] for figures in networks.values()]
    yield "calibration error", [figures["calibration"]["error"] for figures in networks.values()]
