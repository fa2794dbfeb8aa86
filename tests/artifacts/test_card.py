"""Model cards: Markdown for people, and metadata that the Hub reads."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import secateur as sc
from secateur.errors import ArtifactError
from support.networks import Mlp

FIGURES = {
    "dense": {"params": 58, "macs": 96, "size_bytes": 232, "latency_ms": 0.25, "metrics": {"accuracy": 0.5}},
    "tuned": {"params": 30, "macs": 48, "size_bytes": 120, "latency_ms": None, "metrics": {"accuracy": 0.4375}},
}


def saved(folder: Path, **given: Any) -> tuple[dict[str, Any], str]:
    """Metadata and text of a card."""
    sc.save(sc.prune(Mlp(), torch.ones(2, 4), keep=0.5), folder, **given)
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_what_is_known_stands_in_it(tmp_path: Path) -> None:
    about = sc.About(
        name="Half: of #1", licence="apache-2.0", base_model="me/net", datasets=("mnist",), task="image-classification",
        data="Digits, by hand.", language=("no",), tags=("tiny",),
    )  # fmt: skip
    front, text = saved(tmp_path / "net", about=about, figures=FIGURES)
    assert front == {
        "library_name": "secateur",
        "license": "apache-2.0",
        "base_model": "me/net",
        "pipeline_tag": "image-classification",
        "language": ["no"],
        "datasets": ["mnist"],
        "tags": ["pruning", "structured-pruning", "pytorch", "tiny"],
        "metrics": ["accuracy"],
        "model-index": [
            {
                "name": "Half: of #1",
                "results": [
                    {
                        "task": {"type": "image-classification"},
                        "dataset": {"name": "mnist", "type": "mnist"},
                        "metrics": [{"type": "accuracy", "value": 0.4375}],
                    }
                ],
            }
        ],
    }
    assert "# Half: of #1\n" in text
    assert "| parameters | 58 | 30 |\n| MACs | 96 | 48 |\n| size | 232 B | 120 B |\n| latency | 0.25 ms |  |" in text
    assert "| accuracy | 0.5 | 0.4375 |" in text
    assert "- prune (importance l2, seed 0)" in text
    assert 'sc.load("net", model=...)' in text
    assert "Digits, by hand." in text


def test_what_is_unknown_is_left_out(tmp_path: Path) -> None:
    front, text = saved(tmp_path / "net")
    assert front == {"library_name": "secateur", "tags": ["pruning", "structured-pruning", "pytorch"]}
    assert "# Mlp, pruned" in text
    assert "## Data" not in text


def test_the_hub_reads_it(tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    about = {"licence": "mit", "datasets": "mnist", "task": "image-classification"}
    saved(tmp_path / "net", about=about, figures=FIGURES)
    data = hub.ModelCard.load(tmp_path / "net" / "README.md").data
    assert (data.library_name, data.license) == ("secateur", "mit")
    assert data.eval_results[0].metric_value == 0.4375


def test_texts_of_anyone_do_no_harm(tmp_path: Path) -> None:
    about = {"name": 'a"\nlicense: gpl\n---\n', "tags": ["- x: [1", "\u2028---"]}
    front, _ = saved(tmp_path / "net", about=about)
    assert "license" not in front
    assert front["tags"][-2:] == about["tags"]


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"license": "mit"}, "license is unknown.*Known are name, description, data, licence"),
        ({"licence": 3}, "licence is 3, but must be text"),
        ({"tags": [1]}, r"tags is \[1\], but must be a list of texts"),
    ],
)
def test_what_nobody_can_say(about: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=message):
        saved(tmp_path / "net", about=about)
    assert not (tmp_path / "net").exists()


def test_a_readme_of_the_users_own_stays(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    sc.save(sc.prune(Mlp(), torch.ones(2, 4), keep=0.5), tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    (tmp_path / "README.md").unlink()
    for name in ("first", "second"):
        sc.save(sc.prune(Mlp(), torch.ones(2, 4), keep=0.5), tmp_path, about={"name": name}, overwrite=True)
    assert "# second" in (tmp_path / "README.md").read_text()
