"""A report in a notebook: the table alone, styled by the notebook."""

from collections.abc import Mapping
from html import escape
from typing import Any

from secateur.reporting import sentences, sparse
from secateur.reporting.deeds import title
from secateur.reporting.figures import before_and_after, columns, figures


def render(report: Mapping[str, Any]) -> str:
    """The figures as an HTML table with the sentences under it."""
    shown = columns(report)
    dense, final, last = before_and_after(report)
    heads = [
        "",
        *(title(report, name) for name in shown),
        *([f"{title(report, 'dense')} → {title(report, last)}"] if final is not None else []),
    ]
    rows = [
        [
            figure.label,
            *(figure.show(figure.of(report[name])) for name in shown),
            *([figure.change(figure.of(dense), figure.of(final))] if final is not None else []),
        ]
        for figure in figures(report)
    ]
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    say = (
        sentences.proof,
        sentences.axes,
        sentences.adapted,
        sentences.trial,
        sentences.compensation,
        sentences.dead,
        sentences.held_out,
        sentences.gradual,
        sparse.sentence,
        sentences.rewrite,
        sentences.latency_per_mac,
        sentences.latency,
    )
    words = "".join(f"<p>{escape(line)}</p>" for line in (sentence(report) for sentence in say) if line)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{words}"
