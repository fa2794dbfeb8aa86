"""The model card of a saved result: Markdown, with the metadata that the Hugging Face Hub reads as YAML in front."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, cast

from secateur.artifacts.about import About
from secateur.files import CARD_MARK
from secateur.reporting.numbers import size

COLUMNS = ("dense", "pruned", "tuned")
COSTS = {"params": "parameters", "macs": "MACs", "size_bytes": "size", "latency_ms": "latency"}


def card(record: Mapping[str, Any], load: str) -> str:
    """The card of a result.

    Args:
        record: its record.
        load: Python that loads it.
    """
    about = About.of(record["about"])
    title = about.name or f"{_plain(record['class'].rpartition(':')[2].rpartition('.')[2])}, pruned"
    parts = [
        f"---\n{_front(about, record, title)}---",
        f"# {title}",
        about.description
        or f"A neural network that [secateur](https://pypi.org/project/secateur/) made {_what(record)}.",
        f"```python\nimport secateur as sc\n\nmodel = {load}\n```",
        _figures(record["figures"]),
        "## How it was made\n\n" + "\n".join(f"- {line}" for line in _made(record)),
        f"## Data\n\n{about.data or record['data']}" if about.data or record["data"] else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _what(record: Mapping[str, Any]) -> str:
    """What became of the network."""
    said = {
        "structured-pruning": "smaller: units were removed, not masked",
        "sparsity": "sparse: single weights are zero",
    }
    return " and ".join(said[kind] for kind in _kinds(record))


def _kinds(record: Mapping[str, Any]) -> list[str]:
    """How it was pruned, in the Hub's words."""
    steps = {done["step"] for done in record["history"]}
    sparse = "sparsify" in steps
    return ["structured-pruning"] * (not sparse or "prune" in steps) + ["sparsity"] * sparse


def _front(about: About, record: Mapping[str, Any], title: str) -> str:
    """Metadata of the Hub's, as YAML: texts are written as JSON texts, which YAML reads as they are."""
    entries: dict[str, Any] = {
        "license": about.licence,
        "base_model": about.base_model,
        "pipeline_tag": about.task,
        "language": list(about.language),
        "datasets": list(about.datasets),
        "tags": list(dict.fromkeys(["pruning", *_kinds(record), "pytorch", *about.tags])),
        "metrics": sorted(_metrics(record["figures"])),
    }
    lines = [CARD_MARK]
    for name, value in entries.items():
        if isinstance(value, list):
            lines += [f"{name}:", *(f"- {json.dumps(item)}" for item in value)] if value else []
        elif value:
            lines.append(f"{name}: {json.dumps(value)}")
    lines += _index(about, record["figures"], title)
    return "\n".join(lines) + "\n"


def _index(about: About, figures: Mapping[str, Any], title: str) -> list[str]:
    """The results as the Hub lists them; it wants a task and a data set for each."""
    metrics = _metrics(figures)
    if not (metrics and about.task and about.datasets):
        return []
    lines = ["model-index:", f"- name: {json.dumps(title)}", "  results:", "  - task:"]
    lines += [f"      type: {json.dumps(about.task)}", "    dataset:", f"      name: {json.dumps(about.datasets[0])}"]
    lines += [f"      type: {json.dumps(about.datasets[0])}", "    metrics:"]
    for name, value in sorted(metrics.items()):
        lines += [f"    - type: {json.dumps(name)}", f"      value: {json.dumps(value)}"]
    return lines


def _metrics(figures: Mapping[str, Any]) -> dict[str, float]:
    """What was measured of the saved network: tuned, where it was."""
    last: Mapping[str, Any] = next((figures[name] for name in reversed(COLUMNS) if figures.get(name)), {})
    found = last.get("metrics") or {}
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


def _figures(figures: Mapping[str, Any]) -> str:
    """A table with a column for each network."""
    columns = [name for name in COLUMNS if figures.get(name)]
    rows = [(label, [_cost(figures[name].get(key), key) for name in columns]) for key, label in COSTS.items()]
    metrics = {column: figures[column].get("metrics") or {} for column in columns}
    rows += [
        (name, [_number(metrics[column].get(name)) for column in columns])
        for name in sorted({key for found in metrics.values() for key in found})
    ]
    rows = [row for row in rows if any(row[1])]
    if not rows:
        return ""
    lines = [f"| | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns)]
    return "\n".join([*lines, *(f"| {_plain(label)} | {' | '.join(cells)} |" for label, cells in rows)])


def _cost(value: Any, key: str) -> str:
    if not isinstance(value, int | float):
        return ""
    if key == "size_bytes":
        return size(value)
    return f"{value:.3g} ms" if key == "latency_ms" else f"{value:,}"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else ""


def _made(record: Mapping[str, Any]) -> Iterator[str]:
    for done in record["history"]:
        more = [f"{k} {done[k]}" for k in ("importance", "seed", "data") if isinstance(done.get(k), str | int)]
        if isinstance(zeros := done.get("sparsity"), Mapping):
            found = cast("Mapping[str, Any]", zeros)
            more += [f"{key} {found[key]}" for key in ("pattern", "compensation") if isinstance(found.get(key), str)]
            more += [f"{found[key]} {key}" for key in ("zeros", "weights") if isinstance(found.get(key), int)]
        yield _plain(done["step"]) + (f" ({_plain(', '.join(more))})" if more else "")
    yield f"the class: {_plain(record['class'])}" + (", replaced by its graph" if record["graph"] is not None else "")
    if record["parent"]:
        yield f"SHA-256 of the dense network's weights: `{_plain(record['parent'])}`"


def _plain(text: str) -> str:
    """A text of one line in which Markdown has no meaning."""
    return " ".join(text.replace("`", "'").replace("|", "/").replace("<", "(").replace(">", ")").split())
