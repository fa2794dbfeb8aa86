"""Line charts as inline SVG: text that a browser draws by itself, coloured by the page's style sheet."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

# One unit is about one pixel: charts are shown 340 to 540 pixels wide.
_WIDTH, _HEIGHT = 420, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 12, 12, 36


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart.

    Args:
        name: for the legend.
        style: the CSS class that colours it.
        values: one for each epoch; None leaves a gap.
    """

    name: str
    style: str
    values: Sequence[float | None]


def line_chart(title: str, series: Sequence[Series], *, identity: str, percent: bool = False) -> str:
    """A chart of values over epochs, with its legend, as an HTML ``figure``; empty where there is nothing to draw.

    Args:
        title: what the values are.
        series: the lines.
        identity: a name that is unique on the page.
        percent: the values are shares in [0, 1], shown as percentages.
    """
    drawn = [line for line in series if any(value is not None for value in line.values)]
    if not drawn:
        return ""
    values = [value for line in drawn for value in line.values if value is not None]
    epochs = max(len(line.values) for line in drawn)
    ticks = nice_ticks(min(values), max(values), top=1.0 if percent else math.inf)
    frame = _Frame(epochs=epochs, low=min(ticks[0], *values), high=max(ticks[-1], *values))
    legend = "".join(
        f'<li class="{line.style}"><span class="key" aria-hidden="true"></span>{escape(line.name)}</li>'
        for line in drawn
    )
    return (
        f'<figure class="chart"><figcaption>{escape(title)}<ul class="legend">{legend}</ul></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-labelledby="{identity}-title {identity}-text">'
        f'<title id="{identity}-title">{escape(title)}</title>'
        f'<desc id="{identity}-text">{escape(_description(drawn, epochs, percent))}</desc>'
        f"{_grid(frame, ticks, percent)}{''.join(_line(frame, line) for line in drawn)}</svg></figure>"
    )


def nice_ticks(low: float, high: float, *, top: float = math.inf) -> list[float]:
    """Three to seven round numbers around a range of values, none above ``top``.

    >>> nice_ticks(0.12, 2.31)
    [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    >>> nice_ticks(0.91, 0.987, top=1.0)
    [0.9, 0.92, 0.94, 0.96, 0.98, 1.0]
    """
    spread = max(high - low, abs(high) * 1e-3, 1e-6)
    magnitude = 10.0 ** math.floor(math.log10(spread / 4))
    step = next(magnitude * factor for factor in (1, 2, 2.5, 5, 10) if spread / (magnitude * factor) <= 5)
    first, last = math.floor(low / step), math.ceil(high / step)
    if first == last:
        last += 1
    return [tick for tick in (round(step * n, 10) for n in range(first, last + 1)) if tick <= top + 1e-9]


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """Where values lie on the picture."""

    epochs: int
    low: float
    high: float

    def x(self, epoch: int) -> float:
        """Of an epoch, counted from 1."""
        share = (epoch - 1) / (self.epochs - 1) if self.epochs > 1 else 0.5
        return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return round(_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM), 1)


def _grid(frame: _Frame, ticks: Sequence[float], percent: bool) -> str:
    lines = [
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{frame.y(tick)}" y2="{frame.y(tick)}"/>'
        f'<text x="{_LEFT - 8}" y="{frame.y(tick) + 4}" text-anchor="end">{_tick(tick, ticks, percent)}</text>'
        for tick in ticks
    ]
    marks = [
        f'<text x="{frame.x(epoch)}" y="{_HEIGHT - _BOTTOM + 17}" text-anchor="middle">{epoch}</text>'
        for epoch in _epoch_marks(frame.epochs)
    ]
    name = f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 3}" text-anchor="middle">epoch</text>'
    return "".join(lines + marks) + name


def _line(frame: _Frame, series: Series) -> str:
    """One polyline for each run of values without a gap, and a dot at the end (the only mark of a single epoch)."""
    runs: list[list[str]] = [[]]
    for epoch, value in enumerate(series.values, 1):
        if value is None:
            runs.append([])
        else:
            runs[-1].append(f"{frame.x(epoch)},{frame.y(value)}")
    drawn = [run for run in runs if run]
    lines = "".join(f'<polyline points="{" ".join(run)}"/>' for run in drawn if len(run) > 1)
    x, y = drawn[-1][-1].split(",")
    return f'<g class="{series.style}">{lines}<circle cx="{x}" cy="{y}" r="3.2"/></g>'


def _epoch_marks(epochs: int) -> list[int]:
    step = max(1, math.ceil(epochs / 6))
    step = next(size for size in (1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000, step) if size >= step)
    marks = sorted({1, *range(step, epochs + 1, step)})
    return [mark for mark in marks if mark in (1, marks[-1]) or mark - 1 >= step / 2]


def _tick(value: float, ticks: Sequence[float], percent: bool) -> str:
    step = (ticks[1] - ticks[0] if len(ticks) > 1 else 1.0) * (100 if percent else 1)
    digits = max(
        0,
        min(
            6,
            -math.floor(math.log10(step) + 1e-9)
            + (1 if round(step / 10 ** math.floor(math.log10(step)), 3) == 2.5 else 0),
        ),
    )
    return f"{value * (100 if percent else 1):.{digits}f}{' %' if percent else ''}"


def _description(series: Sequence[Series], epochs: int, percent: bool) -> str:
    """The lines in words, for those who can't see them."""

    def show(value: float) -> str:
        return f"{100 * value:.1f} %" if percent else f"{value:.3g}"

    parts: list[str] = []
    for line in series:
        known = [value for value in line.values if value is not None]
        parts.append(f"{line.name}: from {show(known[0])} to {show(known[-1])}")
    return f"{'; '.join(parts)}, over {epochs} epoch{'s' if epochs != 1 else ''}."
