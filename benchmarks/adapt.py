"""Must show: a network that was adapted to a new task and pruned beats a linear probe of the original one.

    python benchmarks/adapt.py --seeds 0 1 2 --results adapt.jsonl --out docs/adapt.md

MobileNetV1 of ImageNet (1,000 classes) learns ants from bees (hymenoptera: 244 training images, 153 test images).
Everything goes as `sc.adapt` goes: head on fixed features and on what the old head knows, then all weights, a choice by
validation images; scores, compensation and tuning on the new data, the adapted network as the teacher. As a control,
units are scored at random.
Validation images are a fifth of the training images, drawn anew for each seed. Test images are looked at once, by
networks that are finished. The probe is logistic regression on the original's features of all training images; what
the original says itself, by its classes "ant" and "bee", is measured as well, for it was trained on such images. Rows
are appended to the file of ``--results`` as they come, networks are saved beside it, and what is there is not done
again. Latencies are measured in the end, all networks of a seed in turns.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accuracy import setting
from accuracy_table import deliver, spread
from accuracy_tasks import SHARED, shared
from PIL import Image
from torch import Tensor, nn

import secateur as sc
from secateur.adapting.adapt import CALIBRATION_BATCHES, IMPORTANCE, RATE
from secateur.adapting.choosing import Fitted, Task, fit
from secateur.adapting.finding import find_head, with_head
from secateur.adapting.head import Head
from secateur.adapting.known import known_by
from secateur.adapting.passes import same_pass
from secateur.adapting.stages import task_of, teaches
from secateur.data.augmenting import mirrored
from secateur.data.batches import Batches, TensorSource
from secateur.data.imagefolder import SUFFIXES
from secateur.data.images import middle
from secateur.data.splitting import stratified
from secateur.measuring import measure_all
from secateur.planning import Budget
from secateur.pruning import prune
from secateur.tuning import evaluate, tune

SIDE = 224  # pixels
BATCH = 16
SHARE = 0.8  # of the training images that are trained on; the others validate
NAMES = ("ants", "bees")
UNPRUNED = ("unpruned, head alone", "unpruned, everything")
KNOWN_PROBE = 93.5  # percent, of the notes beside the data
PROBE = "linear probe (logistic regression, all training images)"
OWN = "the original as it is: the likelier of its classes ant and bee"
OWN_CLASSES = (310, 309)  # of ImageNet: ant, bee
HEAD = """# Adapting to a new task, and pruning what it does not need

`{command}`

{setting}. MobileNetV1 (width 0.75, 224 pixels, ImageNet) learns ants from bees: {train} images to train
on, {validation} to choose by (drawn anew for each seed), 153 to test on, which nothing was chosen or
calibrated by. {epochs} epochs of batches of {batch} at a rate of {rate} before pruning and again after it. Mean ±
standard deviation over seeds.

| network | test accuracy in % | MACs | parameters | latency in ms | seconds | seeds |
| --- | --- | --- | --- | --- | --- | --- |
"""
TAIL = """
*Head alone* and *everything* are the two trainings of the unpruned network that are compared on validation images; what
is pruned is the better one of them by validation: {chosen}. *Before tuning* is right after pruning and compensation;
what follows was chosen by validation, too: {tuned}.

How the heads of the unpruned networks were fitted, by seed: {heads}. Units are scored by Fisher's information, which
was chosen on training images; the test figure of one network by another criterion was known then
([decisions.md](decisions.md) says what spoke for it). The original network was trained on ImageNet, which has ants and
bees, and most likely some of these very images: what its old head says is evidence that a probe of its features throws
away. A new task that no old class is akin to gains nothing from this.

The seconds are those of one core's work, with other processes on the machine. Latencies are of one image, all networks
of a seed in turns, and the least of the seeds'. The machine had two cores and up to ten busy processes: {latencies}.
"""


def pixels(split: str) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 224, 224) in [-1, 1], as the network takes them, and labels (N,)."""
    images: list[Tensor] = []
    labels: list[int] = []
    for label, name in enumerate(NAMES):
        folder = SHARED / "hymenoptera" / split / name
        for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES):
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
        network = original()
        head = find_head(network, self.example, classes=2, labels=NAMES, seed=self.seed)
        return with_head(network, head, self.example), head

    def fitted(self, model: nn.Module, head: Head, before: nn.Module, **how: Any) -> Fitted:
        """Trained as `sc.adapt` trains, with what the head of another network, of the same features, knows."""
        known = known_by(before, head.layers)
        return fit(model, head, self.task, trainer(self.seed), train_only="auto", known=known, **how)

    def accuracy(self, model: nn.Module) -> float:
        """On the test images, in percent."""
        return 100 * evaluate(model, self.test)["accuracy"]


def original() -> nn.Module:
    """ImageNet's network."""
    return shared().mobilenet_v1().to(memory_format=torch.channels_last)


def trainer(seed: int) -> Any:
    """`sc.tune` as `sc.adapt` calls it."""

    def train(model: nn.Module, batches: Any, validate: Any, *, stage: str, rate: bool, **how: Any) -> Any:
        rates: dict[str, Any] = {"lr": RATE if rate else "auto", "optimizer": "adamw"}
        return tune(model, batches, validate, device="cpu", seed=seed, **rates, **how)

    return train


def probe(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Logistic regression (L2, C=1) on the original network's features."""
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

    began = time.process_time()
    network: Any = original()
    with torch.no_grad():
        given, asked = (
            torch.cat([network.features(part).mean((2, 3)) for part in images.split(BATCH)]).numpy()
            for images, _ in (train, test)
        )
    fitted = LogisticRegression(max_iter=5000).fit(given, train[1].numpy())
    score = 100 * fitted.score(asked, test[1].numpy())
    return {"name": PROBE, "seed": 0, "accuracy": score, "seconds": time.process_time() - began}


def own(test: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """What the original network says of the test images by classes of its own, without any training."""
    network = original()
    with torch.no_grad():
        scores = torch.cat([network(part)[:, list(OWN_CLASSES)] for part in test[0].split(BATCH)])
    accuracy = 100 * float((scores.argmax(1) == test[1]).float().mean())
    return {"name": OWN, "seed": 0, "accuracy": accuracy, "seconds": 0.0}


class Kept:
    """Networks that are saved as they come."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, name: str) -> bool:
        return (self.folder / name / "artifact.json").exists()

    def put(self, name: str, model: nn.Module, case: Case) -> None:
        sc.save(model.eval(), self.folder / name, args=case.example)

    def get(self, name: str) -> nn.Module:
        return sc.load(self.folder / name, model=original()).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def dense_rows(case: Case, kept: Kept, options: Any) -> list[dict[str, Any]]:
    """The adapted network before pruning: both trainings."""
    began = time.process_time()
    start, head = case.start()
    dense = case.fitted(start, head, original(), stage="adapted", epochs=options.epochs)
    seconds = time.process_time() - began
    kept.put("dense", dense.model, case)
    titles: dict[str, str] = dict(zip(("head", "all"), UNPRUNED, strict=True))
    for name, model in dense.tried.items():
        kept.put(titles[name], model, case)
    return [_row(case, titles[name], model, seconds, dense) for name, model in dense.tried.items()]


def pruned_rows(case: Case, kept: Kept, budget: float, importance: str, options: Any) -> list[dict[str, Any]]:
    """A network that was pruned from the adapted one, before and after tuning."""
    title, dense = _title(budget, importance), kept.get("dense")
    _, head = case.start()
    began = time.process_time()
    result = prune(
        dense.eval(),
        case.example,
        importance=importance,
        budget=Budget(macs=budget),
        data=case.calibration,
        seed=case.seed,
    )
    teacher = dense if teaches(dense, result.model, case.task)[0] else None
    tuned = case.fitted(result.model, head, result.model, stage="tuned", epochs=options.epochs, teacher=teacher)
    seconds = time.process_time() - began
    kept.put(title, tuned.model, case)
    before = _row(case, f"{title}, before tuning", result.model, 0.0, None)
    costs = {key: result.report["pruned"][key] for key in ("macs", "params")}
    return [before | costs, _row(case, title, tuned.model, seconds, tuned)]


def _title(budget: float, importance: str) -> str:
    return f"{budget:.0%} of the MACs, importance {'on the new task' if importance == IMPORTANCE else 'random'}"


def measured(case: Case, kept: Kept, found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Costs and latency of all networks of a seed, in turns."""
    names = [row["name"] for row in found if row["seed"] == case.seed and kept.has(row["name"])]
    taken = measure_all({name: kept.get(name) for name in names}, case.example)
    keys = ("macs", "params", "latency_ms")
    return [{"name": n, "seed": case.seed, **{key: taken[n].to_dict()[key] for key in keys}} for n in names]


def _row(case: Case, name: str, model: nn.Module, seconds: float, fitted: Fitted | None) -> dict[str, Any]:
    return {
        "name": name,
        "seed": case.seed,
        "accuracy": case.accuracy(model),
        "seconds": seconds,
        "choice": None if fitted is None else fitted.choice.to_dict(),
        "images": case.sizes,
    }


def document(lines: Sequence[dict[str, Any]], options: Any) -> str:
    found, costs = [row for row in lines if "accuracy" in row], [row for row in lines if "macs" in row]
    sizes = next(row["images"] for row in found if "images" in row)
    text = HEAD.format(
        command="python benchmarks/adapt.py " + " ".join(sys.argv[1:]),
        setting=setting(),
        train=sizes[0],
        validation=sizes[1],
        epochs=options.epochs,
        batch=BATCH,
        rate=f"{RATE:g}",
    )
    for name in dict.fromkeys(row["name"] for row in found):
        own = [row for row in found if row["name"] == name]
        cells = [name, spread([row["accuracy"] for row in own])]
        for key, form, scale in (("macs", "{:.0f} M", 1e6), ("params", "{:.2f} M", 1e6), ("latency_ms", "{:.1f}", 1)):
            values = [row[key] / scale for row in costs if row["name"] == name and key in row]
            cells.append(form.format(min(values) if key == "latency_ms" else statistics.mean(values)) if values else "")
        seconds = [row["seconds"] for row in own if row["seconds"]]
        cells += [f"{statistics.mean(seconds):.0f}" if seconds else "", str(len(own))]
        text += f"| {' | '.join(cells)} |\n"
    return text + verdict(found) + lever(found) + TAIL.format(**choices(found), latencies=noise(costs))


def noise(costs: Sequence[dict[str, Any]]) -> str:
    """How far latencies can be trusted: those of the two unpruned networks, which are of one architecture."""
    taken = [[r["latency_ms"] for r in costs if r["name"] == n and "latency_ms" in r] for n in UNPRUNED]
    if not all(taken):
        return "they were not measured yet"
    low, high = sorted(min(values) for values in taken)
    return (
        f"the two unpruned networks, which are of one architecture, differ by {high / low - 1:.0%}, and no smaller "
        "difference means anything"
    )


def choices(found: Sequence[dict[str, Any]]) -> dict[str, str]:
    """What was chosen by validation images, in words."""
    words = {"all": "everything", "head": "the head alone"}
    dense = [row["choice"] for row in found if row["name"] == "unpruned, head alone"]
    tuned: dict[str, list[str]] = {}
    for row in found:
        if "of the MACs" in row["name"] and row.get("choice"):
            tuned.setdefault(row["name"], []).append(words[row["choice"]["trained"]])
    return {
        "chosen": ", ".join(words[choice["trained"]] for choice in dense),
        "tuned": "; ".join(f"{name}: {', '.join(made)}" for name, made in tuned.items()) or "nothing yet",
        "heads": "; ".join(choice["head"] or "kept as it was" for choice in dense),
    }


def lever(found: Sequence[dict[str, Any]]) -> str:
    """What the choice after pruning cost, where it cost anything: the next thing to make better."""
    text = ""
    for name in dict.fromkeys(row["name"] for row in found if "of the MACs" in row["name"]):
        before = [row["accuracy"] for row in found if row["name"] == f"{name}, before tuning"]
        after = [row["accuracy"] for row in found if row["name"] == name]
        if before and after and statistics.mean(before) > statistics.mean(after):
            lost = statistics.mean(before) - statistics.mean(after)
            text += (
                f"With {name}, what validation chose after pruning is {lost:.1f} points worse than the network right "
                "after compensation. "
            )
    return text and (
        f"\n{text}The head is refitted there to features of the very images that compensation was fitted to, and few "
        "images choose among many ways to do so. The next lever is to keep what compensation gave unless something is "
        "better by more than the noise of the validation images.\n"
    )


def verdict(found: Sequence[dict[str, Any]]) -> str:
    """Whether the pruned networks beat the probe that was measured, and the one that the data's own notes speak of."""
    bar = max(KNOWN_PROBE, *(row["accuracy"] for row in found if row["name"] == PROBE))
    ours = [row for row in found if "on the new task" in row["name"] and "before" not in row["name"]]
    lines = [f"\nThe bar is {bar:.1f} %, the better of the probe above and of another one's {KNOWN_PROBE} %."]
    for name in dict.fromkeys(row["name"] for row in ours):
        reached = [row["accuracy"] for row in ours if row["name"] == name]
        mean = statistics.mean(reached)
        said = f"With {name} it is {'beaten' if mean > bar else 'not beaten'}: {mean - bar:+.1f} points"
        if len(reached) > 1:
            error = statistics.stdev(reached) / len(reached) ** 0.5
            unsure = ", so that they can't tell" if abs(mean - bar) < 2 * error else ""
            said += f", with a standard error over {len(reached)} seeds of {error:.1f}{unsure}"
        lines.append(f"{said}.")
    if not ours:
        lines.append("No pruned network was measured yet.")
    return " ".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy on a new task after adapting and pruning.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.7, 0.5], help="shares of the MACs that stay")
    parser.add_argument("--control", type=float, nargs="*", default=[0.5], help="the same with units scored at random")
    parser.add_argument("--results", type=Path, default=Path("adapt.jsonl"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    train, test = pixels("train"), pixels("val")
    ways = [(IMPORTANCE, budget) for budget in options.budgets] + [("random", budget) for budget in options.control]

    def missing(name: str, seed: int, key: str = "accuracy") -> bool:
        return not any(row["name"] == name and row["seed"] == seed and key in row for row in read(options.results))

    if missing(PROBE, 0):
        write(options.results, [probe(train, test), own(test)])
    cases = {seed: Case(seed, train, test) for seed in options.seeds}
    kept = {seed: Kept(options.results.with_suffix("") / f"seed-{seed}") for seed in options.seeds}
    for seed in options.seeds:
        if missing("unpruned, head alone", seed):
            write(options.results, dense_rows(cases[seed], kept[seed], options))
    for importance, budget in ways:  # all seeds of one, so that a run that ends early has something to say
        for seed in options.seeds:
            if missing(_title(budget, importance), seed):
                write(options.results, pruned_rows(cases[seed], kept[seed], budget, importance, options))
    for seed in options.seeds:
        if missing("unpruned, head alone", seed, "latency_ms"):
            write(options.results, measured(cases[seed], kept[seed], read(options.results)))
    text = document(read(options.results), options)
    deliver(text, options.out)


def read(file: Path) -> list[dict[str, Any]]:
    """The rows so far."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def write(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Append rows."""
    with file.open("a") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)
    print(*(json.dumps(row) for row in rows), sep="\n", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
