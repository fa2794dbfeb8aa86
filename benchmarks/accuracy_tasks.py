"""The tasks of accuracy.py: trained networks, what they are calibrated on, and what they are tested on.

Calibration batches carry labels; methods that need none get them without (`unlabelled`). They are drawn by the seed
from what is never evaluated on.
"""

import copy
import fnmatch
import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.config import PruneSettings
from secateur.data import Data
from secateur.runs.prune import prepare, train_dense

SHARED = Path(__file__).parents[2] / "shared/data"
CIFAR_IMAGES, CIFAR_BATCH = 2048, 128
IMAGENET_BATCH = 100  # half of the sample is 500 images
STORIES, STORY_TOKENS, STORY_BATCH, HELD_OUT = 128, 256, 16, 300


@dataclass(frozen=True, kw_only=True)
class Task:
    """A trained network and its data.

    Attributes:
        name, title: for the command line, and for people.
        metric: "accuracy", in per cent, or "perplexity".
        cost: what budgets are a fraction of: "macs" or "params".
        budgets: the fractions that are tried unless others are asked for.
        example: inputs to trace and to count MACs with: a tensor or a mapping.
        timed: inputs to measure latency with.
        dense: the trained network, by seed.
        calibration: labelled batches, by seed.
        evaluate: the metric of a model, by seed, on at most so many samples.
        layout: of the images while batch norms are estimated again; channels last is quicker on a CPU.
        norms: whether the network has batch norms.
        splits: whether what is evaluated on depends on the seed.
        apart: patterns of parameters that a budget of parameters does not count.
        planning: further settings of `sc.prune`.
        peer_ignores: patterns of the modules that torch-pruning is told to ignore, and why in ``peer_note``.
        note: what else a reader must know.
    """

    name: str
    title: str
    metric: str
    cost: str
    budgets: tuple[float, ...]
    example: Any
    timed: Any
    dense: Callable[[int], nn.Module]
    calibration: Callable[[int], list[Any]]
    evaluate: Callable[[nn.Module, int, int | None], float]
    layout: torch.memory_format = torch.contiguous_format
    norms: bool = False
    splits: bool = False
    apart: tuple[str, ...] = ()
    peer_ignores: tuple[str, ...] = ()
    peer_note: str = ""
    note: str = ""
    planning: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def budget(self, dense: nn.Module, fraction: float) -> sc.Budget:
        """The fraction as `sc.prune` takes it."""
        if self.cost == "macs":
            return sc.Budget(macs=fraction)
        apart = self._apart(dense)
        return sc.Budget(params=apart + math.floor(fraction * (self.costs(dense)["params"] - apart)))

    def costs(self, model: nn.Module) -> dict[str, int]:
        """MACs and parameters, of any tool's result, by one counter."""
        found = sc.trace(model, self.example).cost()
        return {"macs": found["macs"], "params": found["params"], "counted": self._counted(model, found)}

    def _counted(self, model: nn.Module, found: Mapping[str, int]) -> int:
        return found["macs"] if self.cost == "macs" else found["params"] - self._apart(model)

    def _apart(self, model: nn.Module) -> int:
        """Parameters that the budget does not count; tied ones once."""
        return sum(p.numel() for n, p in model.named_parameters() if any(fnmatch.fnmatch(n, a) for a in self.apart))


def unlabelled(batch: Any) -> Any:
    """The inputs alone: of a pair its first, of a mapping all but the labels."""
    if isinstance(batch, Mapping):
        return {k: v for k, v in cast("Mapping[str, Any]", batch).items() if k != "labels"}
    return batch[0]


def tasks() -> dict[str, Task]:
    """All tasks, by name."""
    made = [
        cifar(56, (0.75, 0.5, 0.33)),
        cifar(20, (0.75, 0.5)),
        mobilenet(),
        llama(),
        digits(),
    ]
    return {task.name: task for task in made}


@cache
def shared() -> Any:
    """The loaders beside the data.

    Raises:
        SystemExit: there is no such folder.
    """
    path = SHARED / "load.py"
    spec = importlib.util.spec_from_file_location("load", path)
    if spec is None or spec.loader is None or not path.exists():
        raise SystemExit(f"no {path}: the trained networks are in the folder shared/ beside the checkout")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def chosen(count: int, of: int, seed: int) -> Tensor:
    """So many positions, drawn by the seed."""
    return torch.randperm(of, generator=torch.Generator().manual_seed(seed))[:count]


def accuracy(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    prepare: Callable[[Tensor], Tensor],
    layout: torch.memory_format = torch.contiguous_format,
    size: int = 64,
) -> float:
    """Share of the images that are classed right, in per cent."""
    model = copy.deepcopy(model).to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    with torch.inference_mode():
        hits = [
            (model(prepare(images[i : i + size]).contiguous(memory_format=layout)).argmax(1) == labels[i : i + size])
            .sum()
            .item()
            for i in range(0, len(images), size)
        ]
    return 100 * sum(hits) / len(images)


# ---------------------------------------------------------------------- CIFAR-10


@cache
def cifar_split(split: str) -> tuple[Tensor, Tensor]:
    return shared().cifar10(split)


def cifar(depth: int, budgets: tuple[float, ...]) -> Task:
    """A ResNet of He et al. 2015 with parameter-free shortcuts."""

    def calibration(seed: int) -> list[Any]:
        images, labels = cifar_split("train")
        rows = chosen(CIFAR_IMAGES, len(images), seed)
        return list(zip(shared().normalise(images[rows]).split(CIFAR_BATCH), labels[rows].split(CIFAR_BATCH)))  # noqa: B905

    def evaluate(model: nn.Module, seed: int, limit: int | None) -> float:
        images, labels = cifar_split("test")
        return accuracy(model, images[:limit], labels[:limit], shared().normalise, torch.channels_last)

    return Task(
        name=f"resnet{depth}",
        title=f"ResNet-{depth} on CIFAR-10",
        metric="accuracy",
        cost="macs",
        budgets=budgets,
        example=torch.zeros(2, 3, 32, 32),
        timed=torch.zeros(32, 3, 32, 32),
        dense=lambda seed: shared().cifar_resnet(depth),
        calibration=calibration,
        evaluate=evaluate,
        layout=torch.channels_last,
        norms=True,
        peer_ignores=("linear", "conv1", "layer*.conv2"),
        peer_note="torch-pruning can't follow the padding in the shortcuts (with only the classifier ignored it raises "
        "IndexError), so the layers on the residual streams are ignored too, and only the widths inside the blocks are "
        "pruned",
        note=f"Calibration: {CIFAR_IMAGES:,} images of the training split, drawn by the seed. Evaluation: the test "
        "split",
    )


# ---------------------------------------------------------------------- ImageNet


@cache
def imagenet() -> Tensor:
    return shared().imagenet_sample()


def symmetric(images: Tensor) -> Tensor:
    """Bytes to [-1, 1], as the MobileNet expects."""
    return images.float() / 127.5 - 1


def mobilenet() -> Task:
    """MobileNetV1 on the sample, one image a class: a half to calibrate, the other half to evaluate, by seed."""

    def half(seed: int, which: int) -> Tensor:
        return chosen(1000, 1000, seed)[which * 500 :][:500]

    def calibration(seed: int) -> list[Any]:
        rows = half(seed, 0)
        return list(zip(symmetric(imagenet()[rows]).split(IMAGENET_BATCH), rows.split(IMAGENET_BATCH)))  # noqa: B905

    def evaluate(model: nn.Module, seed: int, limit: int | None) -> float:
        rows = half(seed, 1)[:limit]
        return accuracy(model, imagenet()[rows], rows, symmetric, torch.channels_last, size=20)

    return Task(
        name="mobilenet",
        title="MobileNetV1 on a sample of ImageNet",
        metric="accuracy",
        cost="macs",
        budgets=(0.85, 0.7),
        example=torch.zeros(1, 3, 224, 224),
        timed=torch.zeros(4, 3, 224, 224),
        dense=lambda seed: shared().mobilenet_v1(),
        calibration=calibration,
        evaluate=evaluate,
        layout=torch.channels_last,
        norms=True,
        splits=True,
        peer_ignores=("classifier",),
        note="1,000 images, one a class, probably training images: good for before and after only. The seed cuts them "
        "into 500 to calibrate and 500 to evaluate, so that the dense network has a spread too",
    )


# ---------------------------------------------------------------------- stories


def llama() -> Task:
    """A Llama on stories, its embeddings not counted."""

    @cache
    def long_stories() -> list[Tensor]:
        return [s[:STORY_TOKENS] for s in shared().stories(0, -HELD_OUT) if len(s) >= STORY_TOKENS]

    def calibration(seed: int) -> list[Any]:
        found = long_stories()
        tokens = torch.stack([found[int(i)] for i in chosen(STORIES, len(found), seed)])
        return [{"input_ids": part, "labels": part} for part in tokens.split(STORY_BATCH)]

    def evaluate(model: nn.Module, seed: int, limit: int | None) -> float:
        return perplexity(model, shared().stories(-HELD_OUT)[:limit])

    return Task(
        name="llama",
        title="Llama of 260 k parameters on stories",
        metric="perplexity",
        cost="params",
        budgets=(0.9, 0.75, 0.6),
        example={"input_ids": torch.zeros(1, 64, dtype=torch.long)},
        timed={"input_ids": torch.zeros(8, 256, dtype=torch.long)},
        dense=lambda seed: shared().stories_llama(),
        calibration=calibration,
        evaluate=evaluate,
        apart=("model.embed_tokens.*", "lm_head.*"),
        peer_ignores=("lm_head", "model.embed_tokens", "*.self_attn.*"),
        peer_note="torch-pruning does not come to an end on rotary embeddings with grouped queries, so attention is "
        "ignored; so is the residual stream, whose pruning would also shrink the embeddings",
        note=f"Calibration: the first {STORY_TOKENS} tokens of {STORIES} stories, drawn by the seed, none of them "
        f"among the last {HELD_OUT}, which are evaluated on; labels are the tokens themselves. The budget is of the "
        "parameters without the (tied) embeddings",
        planning={"ignore": ("model.embed_tokens",)},
    )


def perplexity(model: nn.Module, texts: Sequence[Tensor], size: int = 20) -> float:
    """Exponential of the mean loss of a token. Texts are padded on the right, where causal attention never looks."""
    texts, total, count = sorted(texts, key=len), 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(texts), size):
            part = texts[start : start + size]
            ids = nn.utils.rnn.pad_sequence(list(part), batch_first=True)
            wanted = nn.utils.rnn.pad_sequence(list(part), batch_first=True, padding_value=-100)[:, 1:]
            scores = model(input_ids=ids).logits[:, :-1]
            total += F.cross_entropy(scores.flatten(0, 1), wanted.flatten(), reduction="sum").item()
            count += int((wanted >= 0).sum())
    return math.exp(total / count)


# ---------------------------------------------------------------------- digits


@cache
def trained(seed: int) -> tuple[nn.Module, Data]:
    """The embedded example, trained as ``secateur prune --seed SEED`` trains it before pruning."""
    settings = PruneSettings(budget="macs=0.5", seed=seed)
    dense, data = prepare(settings)
    train_dense(dense, data, settings)
    return dense, data


def digits() -> Task:
    """The embedded example on scikit-learn's digits."""

    def calibration(seed: int) -> list[Any]:
        data = trained(seed)[1]
        if callable(set_epoch := getattr(data.train, "set_epoch", None)):
            set_epoch(0)
        return list(data.train)

    def evaluate(model: nn.Module, seed: int, limit: int | None) -> float:
        batches = list(trained(seed)[1].test)
        images, labels = (torch.cat([b[i] for b in batches])[:limit] for i in (0, 1))
        return accuracy(model, images, labels, torch.Tensor.float)

    return Task(
        name="digits",
        title="The embedded example on digits",
        metric="accuracy",
        cost="macs",
        budgets=(0.5, 0.25),
        example=torch.zeros(2, 1, 10, 10),
        timed=torch.zeros(64, 1, 10, 10),
        dense=lambda seed: trained(seed)[0],
        calibration=calibration,
        evaluate=evaluate,
        splits=True,
        peer_ignores=("fc3", "conv2"),
        peer_note="The literal size in forward makes what torch-pruning returns fail unless conv2 keeps its width",
        note="Calibration: one pass over the training split. Evaluation: the test split. Each seed "
        "trains a dense network of its own",
    )
