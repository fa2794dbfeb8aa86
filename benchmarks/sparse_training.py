"""Must show: what training under masks brings, against zeros at one shot and against masks at random.

    python benchmarks/sparse_training.py --into docs/sparse_training.md

A small convolutional network on Fashion-MNIST: 10,000 training images, 2,000 others for the choice of the best state,
the official 10,000 test images for the table alone. The dense network is trained first; every row goes on from it, with
the same batches, number of steps, optimizer and learning rate. Three seeds: of weights, batches and random masks. With
``--rows FILE`` rows that are done are kept there, and not done again. A seed takes two to three minutes of one core.
"""

import argparse
import copy
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accuracy import setting
from accuracy_table import spread
from accuracy_tasks import shared
from torch import nn

import secateur as sc
from secateur.data.batches import Batches, TensorSource
from secateur.sparsity import GradualSparsity, StraightThrough, broken_patterns, sparsity_of
from secateur.tuning import Callback, evaluate, tune

TRAIN, VALIDATION, BATCH = 10_000, 2_000, 128
RATE = 1e-3
IGNORE = ("0", "10")  # the first layer, which has one input channel, and the last one
NM = sc.NM(2, 4)
Way = tuple[str, str]
"""A sparsity, and how it was come to."""
Found = dict[Way, float]
Make = Callable[[nn.Module, int, int], tuple[nn.Module, Sequence[Callback] | None]]
"""From the dense network, a seed and a number of steps to a network, and how it is trained on; None for not at all."""


def network() -> nn.Sequential:
    """105,898 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(32 * 49, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def images(seed: int) -> tuple[Batches, Batches, Batches]:
    """Training, validation and test batches; the order hangs on the seed, the split does not."""
    found: list[Batches] = []
    for split in ("train", "test"):
        pixels, labels = shared().fashion_mnist(split)
        source = TensorSource((pixels[:, None].float() / 255 - 0.286) / 0.353, labels)
        parts = [range(TRAIN), range(TRAIN, TRAIN + VALIDATION)] if split == "train" else [range(len(labels))]
        for number, part in enumerate(parts):
            first = split == "train" and number == 0
            found.append(Batches(source, list(part), batch_size=BATCH if first else 1000, shuffle=first, seed=seed))
    return found[0], found[1], found[2]


def zeros(share: float | sc.NM, importance: str, *, then: bool) -> Make:
    """At one shot, and then trained with these masks or not."""
    amount: dict[str, Any] = {"pattern": share} if isinstance(share, sc.NM) else {"sparsity": share}

    def made(dense: nn.Module, seed: int, steps: int) -> tuple[nn.Module, Sequence[Callback] | None]:
        result = sc.sparsify(dense, importance=importance, ignore=IGNORE, seed=seed, **amount)
        return result.model, () if then else None

    return made


def rising(share: float) -> Make:
    """Over the first three quarters of the training."""
    return lambda dense, seed, steps: (
        copy.deepcopy(dense),
        [GradualSparsity(share, end=3 * steps // 4, ignore=IGNORE, seed=seed)],
    )


def straight(decay: float) -> Make:
    """2:4, chosen at every step."""
    return lambda dense, seed, steps: (copy.deepcopy(dense), [StraightThrough(NM, decay=decay, ignore=IGNORE)])


def rows() -> dict[Way, Make]:
    """Every row of the table: its sparsity and its way."""
    found: dict[Way, Make] = {
        ("none", "as trained"): lambda dense, seed, steps: (copy.deepcopy(dense), None),
        ("none", "trained on"): lambda dense, seed, steps: (copy.deepcopy(dense), ()),
    }
    for share in (0.8, 0.95):
        name = f"{share:.0%}".replace("%", " %")
        found |= {
            (name, "one shot"): zeros(share, "magnitude", then=False),
            (name, "one shot, trained with its masks"): zeros(share, "magnitude", then=True),
            (name, "random masks, trained with them"): zeros(share, "random", then=True),
            (name, "gradual"): rising(share),
        }
    return found | {
        ("2:4", "one shot"): zeros(NM, "magnitude", then=False),
        ("2:4", "one shot, trained with its masks"): zeros(NM, "magnitude", then=True),
        ("2:4", "random masks, trained with them"): zeros(NM, "random", then=True),
        ("2:4", "straight-through, decay 0"): straight(0.0),
        ("2:4", "SR-STE, decay 0.0002"): straight(2e-4),
    }


def accuracy(model: nn.Module, batches: Batches) -> float:
    """In per cent."""
    return 100 * evaluate(model, batches)["accuracy"]


def run(seed: int, dense_epochs: int, epochs: int, done: Collection[Way]) -> Iterator[tuple[Way, float]]:
    """The test accuracy of every row that is not done."""
    torch.manual_seed(seed)
    train, validation, test = images(seed)
    dense = network()
    tune(dense, train, validation, epochs=dense_epochs, lr=RATE, optimizer="adamw", seed=seed, device="cpu")
    for (share, way), make in rows().items():
        if (share, way) in done:
            continue
        model, callbacks = make(dense, seed, epochs * -(-TRAIN // BATCH))
        if callbacks is not None:
            tune(
                model, train, validation, epochs=epochs, lr=RATE, optimizer="adamw", seed=seed, device="cpu",
                callbacks=callbacks,
            )  # fmt: skip
        check(model, share)
        yield (share, way), accuracy(model, test)


def measured(seeds: int, settings: tuple[int, int], file: Path | None, *, only_kept: bool) -> dict[int, Found]:
    """Every seed's accuracies; rows that a file holds are from there, others go into it."""
    found: dict[int, Found] = {seed: {} for seed in range(seeds)}
    lines = file.read_text(encoding="utf-8").splitlines() if file is not None and file.exists() else []
    for row in map(json.loads, lines):
        if row["settings"] == list(settings) and row["seed"] in found:
            found[row["seed"]][row["share"], row["way"]] = row["accuracy"]
    for seed, own in found.items():
        if only_kept or len(own) == len(rows()):
            continue
        for (share, way), value in run(seed, *settings, done=tuple(own)):
            own[share, way] = value
            print(f"seed {seed}: {share}, {way}: {value:.2f} %", flush=True)
            if file is not None:
                row = {"seed": seed, "settings": settings, "share": share, "way": way, "accuracy": value}
                with file.open("a", encoding="utf-8") as kept:
                    kept.write(json.dumps(row) + "\n")
    return found


def check(model: nn.Module, share: str) -> None:
    """That it is as sparse as the table says."""
    wanted = float(share[:-2]) / 100 if "%" in share else {"none": None, "2:4": 0.5}[share]
    got = sparsity_of(model)
    if wanted is None:
        assert got is None
    else:
        assert got is not None
        assert abs(got - wanted) < 1e-4
    assert not broken_patterns(model)


def table(found: Mapping[int, Found]) -> str:
    """Mean and standard deviation over seeds."""
    text = "| sparsity | way | test accuracy, % | seeds |\n| --- | --- | --- | --- |\n"
    for share, way in rows():
        values = [own[share, way] for own in found.values() if (share, way) in own]
        text += f"| {share} | {way} | {spread(values) if values else '-'} | {len(values)} |\n"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description="Training under masks on Fashion-MNIST.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dense-epochs", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rows", type=Path, help="what was measured, row by row, to be gone on from")
    parser.add_argument("--only-kept", action="store_true", help="measure nothing, make the table of --rows")
    parser.add_argument("--into", type=Path, help="a page whose results, between two marks, are replaced")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = options.dense_epochs, options.epochs
    found = measured(options.seeds, settings, options.rows, only_kept=options.only_kept)
    asked = {"seeds": options.seeds, "dense-epochs": options.dense_epochs, "epochs": options.epochs}
    command = " ".join(["python benchmarks/sparse_training.py", *(f"--{name} {n}" for name, n in asked.items())])
    text = f"`{command}`\n\n{setting()}. Mean ± standard deviation over seeds.\n\n{table(found)}"
    if options.into is None:
        print(text)
        return
    page = options.into.read_text(encoding="utf-8")
    marked = re.compile(r"(<!-- results -->\n).*(<!-- end of results -->)", re.DOTALL)
    options.into.write_text(marked.sub(lambda match: f"{match[1]}\n{text}\n{match[2]}", page), encoding="utf-8")


if __name__ == "__main__":
    main()
