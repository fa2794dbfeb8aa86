"""Must show: a network that was adapted to a new task and pruned beats a linear probe of the original one.

    python benchmarks/adapt.py --seeds 0 1 2 --results adapt.jsonl --out docs/adapt.md

MobileNetV1 of ImageNet (1,000 classes) learns ants from bees (hymenoptera: 244 training images, 153 test images).
Everything goes as `sc.adapt` goes: head on fixed features, then all weights, a choice by validation images; scores,
compensation and tuning on the new data, the adapted network as the teacher. As a control, units are scored at random.
Validation images are a fifth of the training images, drawn anew for each seed. Test images are looked at once, by
networks that are finished. The probe is logistic regression on the original's features of all training images. Rows
are appended to the file of ``--results`` as they come, and what is there is not done again.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accuracy import setting
from accuracy_table import spread
from accuracy_tasks import SHARED, shared
from PIL import Image
from torch import Tensor, nn

from secateur.adapting.adapt import CALIBRATION_BATCHES, task_of, teaches
from secateur.adapting.choosing import Fitted, Task, fit
from secateur.adapting.finding import find_head, with_head
from secateur.adapting.head import Head
from secateur.adapting.passes import same_pass
from secateur.data.augmenting import mirrored
from secateur.data.batches import Batches, TensorSource
from secateur.data.images import middle
from secateur.data.splitting import stratified
from secateur.measuring import measure_all
from secateur.planning import Budget
from secateur.pruning import prune
from secateur.tuning import evaluate, tune

SIDE = 224  # pixels
BATCH = 8
SHARE = 0.8  # of the training images that are trained on; the others validate
NAMES = ("ants", "bees")
PROBE = "linear probe (logistic regression, all training images)"
HEAD = """# Adapting to a new task, and pruning what it does not need

`{command}`

{setting}. MobileNetV1 (width 0.75, 224 pixels, ImageNet) learns ants from bees: {train} images to train
on, {validation} to choose by (drawn anew for each seed), 153 to test on, which nothing was chosen or calibrated by. {epochs} epochs of
{batch} images before pruning and again after it. Mean ± standard deviation over seeds.

| network | test accuracy in % | MACs | parameters | latency in ms | seconds | seeds |
| --- | --- | --- | --- | --- | --- | --- |
"""
TAIL = """
*Head alone* and *everything* are the two trainings of the unpruned network that are compared on validation images; what
is pruned is the better one of them by validation: {chosen}. *Before tuning* is right after pruning and compensation.
The seconds are those of one core's work, with other processes on the machine; latencies are of one image, all
networks in turns, and the least of the seeds', which other processes disturbed least.
"""


def pixels(split: str) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 224, 224) in [-1, 1], as the network takes them, and labels (N,)."""
    images: list[Tensor] = []
    labels: list[int] = []
    for label, name in enumerate(NAMES):
        for path in sorted((SHARED / "hymenoptera" / split / name).glob("*.jpg")):
            with Image.open(path) as opened:
                images.append(torch.from_numpy(np.array(middle(opened, SIDE))).permute(2, 0, 1))
            labels.append(label)
    scaled = torch.stack(images).float() / 127.5 - 1
    return scaled.contiguous(memory_format=torch.channels_last), torch.tensor(labels)


class Case:
    """One seed: the original network, the task, and the test images.

    Args:
        seed: of everything random, the validation images among it.
        train, test: images and labels.
    """

    def __init__(self, seed: int, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> None:
        images, labels = train
        fitting, choosing = stratified(labels.tolist(), (SHARE,), seed)
        augmented, plain = TensorSource(images, labels, augment=mirrored), TensorSource(images, labels)
        batches = Batches(augmented, fitting, batch_size=BATCH, shuffle=True, seed=seed)
        validate = Batches(plain, choosing, batch_size=BATCH)
        self.seed, self.sizes = seed, (len(fitting), len(choosing))
        self.task: Task = task_of(batches, validate, 2, seed=seed, device="cpu")
        self.test = Batches(TensorSource(*test), range(len(test[1])), batch_size=BATCH)
        self.example = images[:1]
        self.calibration = list(same_pass(batches, seed, "cpu", CALIBRATION_BATCHES))

    def start(self) -> tuple[nn.Module, Head]:
        """The original network with a fresh head."""
        original = shared().mobilenet_v1().to(memory_format=torch.channels_last)
        head = find_head(original, self.example, classes=2, labels=NAMES, seed=self.seed)
        return with_head(original, head, self.example), head

    def accuracy(self, model: nn.Module) -> float:
        """On the test images, in percent."""
        return 100 * evaluate(model, self.test)["accuracy"]


def trainer(seed: int) -> Any:
    """`sc.tune` as `sc.adapt` calls it."""

    def train(model: nn.Module, batches: Any, validate: Any, *, stage: str, rate: bool, **how: Any) -> Any:
        rates: dict[str, Any] = {"lr": 3e-4 if rate else "auto", "optimizer": "adamw"}
        return tune(model, batches, validate, device="cpu", seed=seed, **rates, **how)

    return train


def probe(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Logistic regression (L2, C=1) on the original network's features."""
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

    began = time.process_time()
    network: Any = shared().mobilenet_v1().to(memory_format=torch.channels_last)
    with torch.no_grad():
        given, asked = (
            torch.cat([network.features(part).mean((2, 3)) for part in images.split(BATCH)]).numpy()
            for images, _ in (train, test)
        )
    fitted = LogisticRegression(max_iter=5000).fit(given, train[1].numpy())
    score = 100 * fitted.score(asked, test[1].numpy())
    return {"name": PROBE, "seed": 0, "accuracy": score, "seconds": time.process_time() - began}


def rows(case: Case, options: Any) -> list[dict[str, Any]]:
    """All networks of one seed, tested and measured."""
    began = time.process_time()
    start, head = case.start()
    how: dict[str, Any] = {"train_only": "auto", "epochs": options.epochs}
    dense = fit(start, head, case.task, trainer(case.seed), stage="adapted", **how)
    seconds = time.process_time() - began
    titles = {"head": "unpruned, head alone", "all": "unpruned, everything"}
    found = [_row(case, titles[name], model, seconds, dense) for name, model in dense.tried.items()]
    print(json.dumps(found), file=sys.stderr, flush=True)
    models = {row["name"]: model for row, model in zip(found, dense.tried.values(), strict=True)}
    ways = [("auto", "on the new task", b) for b in options.budgets]
    for importance, words, budget in [*ways, *(("random", "random", b) for b in options.control)]:
        title = f"{budget:.0%} of the MACs, importance {words}"
        for row, model in _pruned(case, dense, head, budget, importance, title, how):
            found.append(row)
            models[row["name"]] = model
            print(json.dumps(row), file=sys.stderr, flush=True)
    taken = measure_all({name: model.eval() for name, model in models.items()}, case.example)
    for row in found:
        measured = taken[row["name"]].to_dict()
        row.update({key: measured[key] for key in ("macs", "params", "latency_ms")})
    return found


def _pruned(
    case: Case, dense: Fitted, head: Head, budget: float, importance: str, title: str, how: dict[str, Any]
) -> list[tuple[dict[str, Any], nn.Module]]:
    began = time.process_time()
    result = prune(
        dense.model.eval(),
        case.example,
        importance=importance,
        budget=Budget(macs=budget),
        data=case.calibration,
        seed=case.seed,
    )
    teacher = dense.model if teaches(dense.model, result.model, case.task)[0] else None
    tuned = fit(result.model, head, case.task, trainer(case.seed), stage="tuned", teacher=teacher, **how)
    seconds = time.process_time() - began
    before = _row(case, f"{title}, before tuning", result.model, 0.0, None)
    return [(before, result.model), (_row(case, title, tuned.model, seconds, tuned), tuned.model)]


def _row(case: Case, name: str, model: nn.Module, seconds: float, fitted: Fitted | None) -> dict[str, Any]:
    return {
        "name": name,
        "seed": case.seed,
        "accuracy": case.accuracy(model),
        "seconds": seconds,
        "choice": None if fitted is None else fitted.choice.to_dict(),
        "images": case.sizes,
    }


def document(found: Sequence[dict[str, Any]], options: Any) -> str:
    sizes = next(row["images"] for row in found if "images" in row)
    text = HEAD.format(
        command="python benchmarks/adapt.py " + " ".join(sys.argv[1:]),
        setting=setting(),
        train=sizes[0],
        validation=sizes[1],
        epochs=options.epochs,
        batch=BATCH,
    )
    for name in dict.fromkeys(row["name"] for row in found):
        own = [row for row in found if row["name"] == name]
        cells = [name, spread([row["accuracy"] for row in own])]
        for key, form in (("macs", "{:.3g}M"), ("params", "{:.3g}M"), ("latency_ms", "{:.1f}")):
            values = [row[key] / (1 if key == "latency_ms" else 1e6) for row in own if key in row]
            cells.append(
                form.format(min(values) if key == "latency_ms" else sum(values) / len(values)) if values else ""
            )
        seconds = [row["seconds"] for row in own if row["seconds"]]
        cells += [f"{sum(seconds) / len(seconds):.0f}" if seconds else "", str(len(own))]
        text += f"| {' | '.join(cells)} |\n"
    chosen = [row["choice"]["trained"] for row in found if row["name"] == "unpruned, head alone"]
    return text + TAIL.format(chosen=", ".join({"all": "everything", "head": "the head alone"}[c] for c in chosen))


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy on a new task after adapting and pruning.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.7, 0.5], help="shares of the MACs that stay")
    parser.add_argument("--control", type=float, nargs="*", default=[0.5], help="the same with units scored at random")
    parser.add_argument("--results", type=Path, default=Path("adapt.jsonl"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found: list[dict[str, Any]] = []
    if options.results.exists():
        found = [json.loads(line) for line in options.results.read_text().splitlines()]
    torch.set_num_threads(1)
    train, test = pixels("train"), pixels("val")
    todo: list[Any] = [] if any(row["name"] == PROBE for row in found) else [lambda: [probe(train, test)]]
    done = {row["seed"] for row in found if row["name"] != PROBE}
    todo += [lambda seed=seed: rows(Case(seed, train, test), options) for seed in options.seeds if seed not in done]
    for work in todo:
        new = work()
        found += new
        with options.results.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in new)
    text = document(found, options)
    if options.out:
        options.out.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
