"""The picture of a check: a heat map of rank correlations by axis, and every hint's ranks against the true ones.

It is SVG, text that a browser draws by itself; colours are in a style sheet inside, so that the image stands alone.
"""

import math
from collections.abc import Sequence
from html import escape
from importlib.resources import files

import torch

from secateur.hints.ranks import ranks
from secateur.hints.result import HintCheck
from secateur.hints.tables import cells, facts, signed

_STYLE = (
    "svg.hints{background:#fbfaf7;color:#1d2420;font:12px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}"
    ".hints text{fill:currentColor}.hints .soft{opacity:.65}.hints .head{font-size:14px;font-weight:600}"
    ".hints .none{fill:#8d9991;opacity:.25}.hints .frame{fill:none;stroke:#8d9991;stroke-opacity:.5}"
    ".hints .equal{stroke:#8d9991;stroke-opacity:.6;stroke-dasharray:4 4}.hints .dots{fill:#1f7a4d;fill-opacity:.5}"
    ".hints .cell{font-size:10px;text-anchor:middle;fill:#1d2420}"
    "@media (prefers-color-scheme:dark){svg.hints{background:#141816;color:#e8ece8}.hints .dots{fill:#53c18a}}"
)
_WIDTH, _MARGIN, _NAMES = 960, 16, 130
_ROW, _PANEL, _GAP = 22, 166, 24
_ACROSS = (_WIDTH - 2 * _MARGIN + _GAP) // (_PANEL + _GAP)


def picture(check: HintCheck) -> str:
    """The image, self-contained."""
    heat, heat_height = _heat(check, 58)
    dots, dots_height = _panels(check, 58 + heat_height + 30)
    height = 58 + heat_height + 30 + dots_height
    title = f"{check.model}: hints against the truth"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="hints" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title><desc>{escape(check.sentence)}</desc>'
        f"<style>{_STYLE}</style>"
        f'<text class="head" x="{_MARGIN}" y="26">Rank correlation with the truth, axis by axis</text>'
        f'<text class="soft" x="{_MARGIN}" y="44">{escape(facts(check))}</text>{heat}{dots}</svg>\n'
    )


def _heat(check: HintCheck, top: int) -> tuple[str, int]:
    """A row for each hint, a column for each axis in the model's order, and the mean at the end."""
    columns = len(check.axes)
    slot = (_WIDTH - 2 * _MARGIN - _NAMES - 60) / max(columns, 1)
    parts: list[str] = []
    for row, name in enumerate(check.hints):
        y = top + row * _ROW
        found = check.agreement[name]
        parts.append(f'<text x="{_MARGIN}" y="{y + 15}">{escape(_short(name))}</text>')
        for k, (axis, value) in enumerate(zip(check.axes, found.axes, strict=True)):
            x = _MARGIN + _NAMES + k * slot
            fill = 'class="none"' if value is None else f'fill="{_color(value)}"'
            label = f"{name} on {axis.name}: {signed(value)}, {len(axis.units)} of {axis.size} units"
            number = (
                f'<text class="cell" x="{x + slot / 2:.1f}" y="{y + 14}">{round(value, 1) + 0.0:.1f}</text>'
                if value is not None and slot >= 26
                else ""
            )
            parts.append(
                f'<g><title>{escape(label)}</title><rect {fill} x="{x:.1f}" y="{y}" '
                f'width="{max(slot - 2, 0.5):.1f}" height="{_ROW - 2}"/>{number}</g>'
            )
        parts.append(f'<text x="{_WIDTH - _MARGIN}" y="{y + 15}" text-anchor="end">{signed(found.mean)}</text>')
    foot = top + len(check.hints) * _ROW + 14
    parts.append(
        f'<text class="soft" x="{_MARGIN + _NAMES}" y="{foot}">'
        f"axes, from the model's input to its output</text>"
        f'<text class="soft" x="{_WIDTH - _MARGIN}" y="{foot}" text-anchor="end">mean</text>'
    )
    return "".join(parts), foot - top


def _panels(check: HintCheck, top: int) -> tuple[str, int]:
    """For each hint, every sampled unit: its rank by the hint against its true rank, both among all units."""
    truth = ranks(torch.tensor([value for axis in check.axes for value in axis.truth], dtype=torch.float64))
    parts = [
        f'<text class="head" x="{_MARGIN}" y="{top}">Rank by the hint (across) against true rank (up), all units</text>'
    ]
    step = _PANEL + _GAP + 20
    for k, name in enumerate(check.hints):
        scores = ranks(torch.tensor([value for axis in check.axes for value in axis.scores[name]], dtype=torch.float64))
        x, y = _MARGIN + k % _ACROSS * (_PANEL + _GAP), top + 34 + k // _ACROSS * step
        parts.append(_panel(f"{_short(name)}  {signed(check.agreement[name].overall)}", scores, truth, x, y))
    return "".join(parts), 40 + math.ceil(len(check.hints) / _ACROSS) * step


def _panel(title: str, scores: torch.Tensor, truth: torch.Tensor, x: int, y: int) -> str:
    places = zip(_within(scores), _within(truth), strict=True)
    dots = "".join(f'<circle cx="{x + a:.1f}" cy="{y + _PANEL - b:.1f}" r="2.6"/>' for a, b in places)
    return (
        f'<text x="{x}" y="{y - 8}">{escape(title)}</text>'
        f'<rect class="frame" x="{x}" y="{y}" width="{_PANEL}" height="{_PANEL}"/>'
        f'<line class="equal" x1="{x}" y1="{y + _PANEL}" x2="{x + _PANEL}" y2="{y}"/><g class="dots">{dots}</g>'
    )


def _within(places: torch.Tensor) -> Sequence[float]:
    """Ranks as places on a panel."""
    return ((places - 0.5) / max(len(places), 1) * _PANEL).tolist()


def _color(correlation: float) -> str:
    """Green where the hint ranks as the truth does, brown where it ranks the other way round, pale at 0."""
    end = (83, 176, 129) if correlation >= 0 else (214, 140, 70)
    share = min(1.0, abs(correlation))
    return "#" + "".join(f"{round(236 + (target - 236) * share):02x}" for target in end)


def _short(name: str, most: int = 20) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def page(check: HintCheck) -> str:
    """The tables and the picture as one self-contained HTML page."""
    title = f"{check.model}: are the hints any good?"
    heads, rows = cells(check)
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(text)}</td>" for text in row[1:])}</tr>'
        for row in rows
    )
    said = "".join(f'<p class="note">{escape(note)}</p>' for note in check.remarks)
    style = files("secateur.reporting").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'img-src data:">\n<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f'<header><p class="eyebrow">secateur hints</p><h1>{escape(title)}</h1>'
        f'<p class="headline">{escape(check.sentence)}</p></header>\n<main>'
        f'<section><h2>Rank correlation, and what removal costs</h2><p class="lead">{escape(facts(check))}</p>'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{said}</section>"
        f"<section><h2>Picture</h2>{picture(check)}</section></main>\n</body>\n</html>\n"
    )
