"""A run as one self-contained HTML page: no script, no network, nothing beside the file."""

import html
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from secateur.reporting import charts, sentences, sparse, widths
from secateur.reporting.charts import Series
from secateur.reporting.deeds import in_words, title, wider
from secateur.reporting.figures import (
    LATENCY,
    MACS,
    MEMORY,
    PARAMS,
    SIZE,
    TRAINING,
    Figure,
    before_and_after,
    columns,
    figures,
    metric,
)
from secateur.reporting.numbers import scientific


def escape(text: str) -> str:
    """Text for a page; a number and its unit stay on one line."""
    return html.escape(text).replace(" %", "\u00a0%")


_CARDS = (metric("accuracy"), PARAMS, MACS, SIZE, LATENCY, TRAINING, MEMORY)
_MOODS = {1: "good", 0: "even", -1: "bad"}
_COLUMN_NOTES = {
    "dense": "the network as it was",
    "pruned": "units removed",
    "shorter": "blocks removed",
    "sparse": "single weights zero",
    "deeper": "blocks added",
    "before": "the network as it was",
    "grown": "units repeated",
    "reallocated": "units moved to other axes",
    "tuned": "then trained on",
}
_HISTORY_TITLES = {
    "dense": "Training of the dense network",
    "gradual": "Training between the steps of pruning",
    "masked": "Training while units went",
    "adapted-head": "Training of the new head",
    "adapted": "Training of the adapted network",
    "tuned-head": "Training of the {which} network's head",
    "tuned": "Fine-tuning of the {which} network",
}
_SENTENCES = (
    sentences.adapted,
    sentences.replay,
    sentences.held_out,
    sentences.gradual,
    sentences.trial,
    sentences.compensation,
    sentences.dead,
)


def render_page(
    report: Mapping[str, Any],
    *,
    histories: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    load: str | None = None,
    settings: str | None = None,
) -> str:
    """The whole page as text.

    Args:
        report: in the form of ``report.json``.
        histories: training curves, ``{"dense" | "gradual" | "masked" | "tuned": rows}``, a row an epoch, with
            ``train_loss``, ``train_accuracy``, ``validation_loss`` and ``validation_accuracy`` where there are any.
        load: Python code that loads the result.
        settings: the complete settings, as YAML.
    """
    sections = [
        ("figures", "Before and after", _cards(report) + _table(report)),
        ("proof", "Proof", _proof(report)),
        ("depth", "Blocks", _depth(report)),
        ("sparsity", "Single weights", sparse.html(report)),
        ("training", "Training curves", _curves(histories or {}, title(report, "pruned"))),
        ("widths", "Width of each axis", _widths(report)),
        ("repeat", "Repeat it, use it", _repeat(report, load, settings)),
        ("environment", "Environment", _environment(report)),
    ]
    shown = [(identity, title, body) for identity, title, body in sections if body]
    links = "".join(f'<a href="#{identity}">{escape(title)}</a>' for identity, title, _ in shown)
    body = "".join(
        f'<section id="{identity}" aria-labelledby="{identity}-heading"><h2 '
        f'id="{identity}-heading">{escape(title)}</h2>{body}</section>'
        for identity, title, body in shown
    )
    done = in_words(report)
    heading = f"{report.get('model') or 'Model'}: {f'{done} with secateur' if done else 'report of secateur'}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'img-src data:">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(heading)}</title>\n<style>\n{_style()}</style>\n</head>\n<body>\n"
        f'{_header(report)}<nav aria-label="Sections">{links}</nav>\n<main>{body}</main>\n'
        f"<footer>{escape(_writer(report))}</footer>\n</body>\n</html>\n"
    )


def _writer(report: Mapping[str, Any]) -> str:
    version = (report.get("environment") or {}).get("secateur")
    return f"Written by secateur {version}" if version else "Written by secateur"


def _style() -> str:
    return files("secateur.reporting").joinpath("page.css").read_text(encoding="utf-8")


def _header(report: Mapping[str, Any]) -> str:
    status = (report.get("proof") or {}).get("status")
    unproved = ("good", "Sparse") if not sentences.proof(report) else ("bad", "Not proved")
    badge = {"proved": ("good", "Proved"), "shape-checked": ("bad", "Shape-checked")}.get(str(status), unproved)
    return (
        f'<header><p class="eyebrow">secateur report <span class="badge {badge[0]}">{badge[1]}</span></p>'
        f"<h1>{widths.breakable(str(report.get('model') or 'Model'))}</h1>"
        f'<p class="headline">{escape(sentences.headline(report))}</p></header>'
    )


def _cards(report: Mapping[str, Any]) -> str:
    dense, final, last = before_and_after(report)
    if dense is None or final is None:
        return ""
    cards = "".join(_card(figure, dense, final) for figure in _CARDS if figure.of(final) is not None)
    latency = sentences.latency(report) or sentences.latency_per_mac(report)
    note = f'<p class="note">{escape(latency)}</p>' if latency else ""
    first = "The network as it was" if wider(report) else "The dense network"
    lead = f"{first} beside the {escape(title(report, last))} one."
    return f'<p class="lead">{lead}</p><ul class="cards">{cards}</ul>{note}'


def _card(figure: Figure, dense: Mapping[str, Any], final: Mapping[str, Any]) -> str:
    before, after = figure.of(dense), figure.of(final)
    mood = _MOODS[figure.verdict(before, after)]
    return (
        f'<li class="card{" wide" if figure.points else ""}"><h3>{escape(figure.label)}</h3><p '
        f'class="value">{escape(figure.show(after))}</p>'
        f'<p class="was">was {escape(figure.show(before))}</p>{_card_bar(figure, before, after)}'
        f'<p class="change {mood}">{escape(figure.change(before, after))}</p></li>'
    )


def _card_bar(figure: Figure, before: float | None, after: float | None) -> str:
    if before is None or after is None or min(before, after) < 0 or max(before, after) == 0:
        return ""
    whole = 1.0 if figure.points else max(before, after)
    return (
        '<svg class="pair" viewBox="0 0 100 14" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="track" width="100" height="6"/><rect class="before" width="{100 * before / whole:.2f}" '
        f'height="6"/>'
        f'<rect class="track" y="8" width="100" height="6"/><rect class="after" y="8" '
        f'width="{100 * after / whole:.2f}" height="6"/></svg>'
    )


def _table(report: Mapping[str, Any]) -> str:
    shown = columns(report)
    if not shown:
        return ""
    dense, final, _ = before_and_after(report)
    heads = "".join(
        f'<th role="columnheader" scope="col">{title(report, name)}<small>'
        f"{_COLUMN_NOTES[title(report, name)]}</small></th>"
        for name in shown
    )
    change = (
        f'<th role="columnheader" scope="col">change<small>{title(report, "dense")} to last</small></th>'
        if final is not None
        else ""
    )
    rows: list[str] = []
    for figure in figures(report):
        cells = "".join(
            f'<td role="cell" data-name="{name}">{escape(figure.show(figure.of(report[name])))}</td>' for name in shown
        )
        if final is not None:
            before, after = figure.of(dense), figure.of(final)
            text = escape(figure.change(before, after))
            cells += f'<td role="cell" data-name="change" class="{_MOODS[figure.verdict(before, after)]}">{text}</td>'
        rows.append(f'<tr role="row"><th role="rowheader" scope="row">{escape(figure.label)}</th>{cells}</tr>')
    return (
        '<table class="figures" role="table"><caption class="unseen">Figures before and after</caption>'
        f'<thead role="rowgroup"><tr role="row"><td role="cell"></td>{heads}{change}</tr></thead>'
        f'<tbody role="rowgroup">{"".join(rows)}</tbody></table>'
    )


def _depth(report: Mapping[str, Any]) -> str:
    said = sentences.depth(report)
    return f"<p>{escape(said)}</p>" if said else ""


def _widths(report: Mapping[str, Any]) -> str:
    rows: list[Mapping[str, Any]] = list(report.get("axes") or ())
    if not rows:
        return ""
    now, once = ("after", "before") if wider(report) else ("kept", "removed")
    legend = (
        f'<ul class="legend"><li class="after"><span class="key" aria-hidden="true"></span>{now}</li>'
        f'<li class="before"><span class="key" aria-hidden="true"></span>{once}</li></ul>'
    )
    before = tuple(say(report) for say in _SENTENCES)
    return "".join(f'<p class="lead">{escape(line)}</p>' for line in before if line) + (
        f'<p class="lead">{escape(sentences.axes(report))} An axis is one independent direction of width; the '
        f"picture has them "
        f"in the order of the model, its height the number of units.</p>{legend}{widths.silhouette(rows)}"
        f"<details open><summary>Each axis: {len(rows)}</summary>{widths.bars(rows)}</details>"
    )


def _curves(histories: Mapping[str, Sequence[Mapping[str, Any]]], which: str) -> str:
    """The training curves; ``which`` says what the network is after its change."""
    headings = {name: _HISTORY_TITLES.get(name, name).replace("{which}", which) for name in histories}
    return "".join(
        f'<h3>{escape(headings[name])}</h3><div class="charts">{_history_charts(name, rows)}</div>'
        for name, rows in histories.items()
        if rows
    )


def _history_charts(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    def chart(title: str, what: str, percent: bool) -> str:
        lines = [
            Series(name=label, style=style, values=[row.get(f"{part}_{what}") for row in rows])
            for part, label, style in (("train", "training", "train"), ("validation", "validation", "validation"))
        ]
        return charts.line_chart(title, lines, identity=f"chart-{name}-{what}", percent=percent)

    return chart("Loss", "loss", percent=False) + chart("Accuracy", "accuracy", percent=True)


def _proof(report: Mapping[str, Any]) -> str:
    proof: Mapping[str, Any] = report.get("proof") or {}
    named = {
        "max_difference": "Largest difference",
        "scale": "Scale of the outputs",
        "tolerance": "Allowed difference, as a share of the scale",
    }
    rows = "".join(
        f"<div><dt>{label}</dt><dd>{scientific(proof[key]) if key != 'scale' else f'{proof[key]:.4g}'}</dd></div>"
        for key, label in named.items()
        if isinstance(proof.get(key), int | float)
    )
    if not sentences.proof(report):
        return ""
    mood = "good" if proof.get("status") == "proved" else "bad"
    return f'<p class="lead verdict {mood}">{escape(sentences.proof(report))}</p>' + (
        f'<dl class="facts">{rows}</dl>' if rows else ""
    )


def _repeat(report: Mapping[str, Any], load: str | None, settings: str | None) -> str:
    rewrite = sentences.rewrite(report)
    parts = [f'<p class="lead">{escape(rewrite)}</p>'] if rewrite else []
    if report.get("command"):
        parts.append(f"<h3>The command that repeats it</h3><pre><code>{escape(str(report['command']))}</code></pre>")
    if load:
        parts.append(f"<h3>The result in Python</h3><pre><code>{escape(load)}</code></pre>")
    if settings:
        parts.append(
            f"<details><summary>All settings "
            f"(config.yaml)</summary><pre><code>{escape(settings)}</code></pre></details>"
        )
    return "".join(parts)


def _environment(report: Mapping[str, Any]) -> str:
    facts = dict(report.get("environment") or {})
    if report.get("seed") is not None:
        facts["seed"] = report["seed"]
    rows = "".join(
        f"<div><dt>{escape(str(key))}</dt><dd>{escape(str(value))}</dd></div>" for key, value in facts.items()
    )
    return f'<dl class="facts">{rows}</dl>' if rows else ""
