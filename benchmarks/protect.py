"""Must show: a class that pruning destroys is kept by protecting it; the tables of docs/protect.md.

    python benchmarks/protect.py --data ../shared/data --out docs/protect.md

ResNet-20 on CIFAR-10 at half of its MACs, its weights refitted. The calibration images hold no cats, as data at hand
may lack what matters. Protected are training images of cats. Everything is measured on the test split, by class, and
nothing is chosen on it. The folder of data holds ``load.py`` with ``cifar10(split, n)``, ``normalise(images)`` and
``cifar_resnet(depth)``.
"""

import argparse
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn

import secateur as sc
from secateur.compensation import compensate_
from secateur.files import write_text
from secateur.protecting import Protect, settled

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCH = 64  # one core is quickest with few images at a time, channels last
MARK = "<!-- the tables of benchmarks/protect.py -->"


@dataclass(frozen=True, kw_only=True)
class Found:
    """A network on the test split: recall of each class, (10,), images of other classes that it calls the protected
    one, a share of them, and how many units protection kept; all but the last in per cent.
    """

    recall: tuple[float, ...]
    called: float
    kept: int = 0

    def others(self, protected: int) -> float:
        """Mean recall of the classes that are not protected."""
        return mean(value for k, value in enumerate(self.recall) if k != protected)


def load_module(path: Path) -> Any:
    """A Python file by its path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def batches(loader: Any, images: Tensor) -> list[Tensor]:
    """Normalised batches without labels: nothing here needs any."""
    return [loader.normalise(part).to(memory_format=torch.channels_last) for part in images.split(BATCH)]


def measure(model: nn.Module, loader: Any, images: Tensor, labels: Tensor, protected: int, kept: int = 0) -> Found:
    """A network on labelled images."""
    with torch.no_grad():
        answers = torch.cat([model(batch).argmax(1) for batch in batches(loader, images)])
    recall = tuple(100 * float((answers[labels == k] == k).float().mean()) for k in range(len(CLASSES)))
    called = 100 * float((answers[labels != protected] == protected).float().mean())
    return Found(recall=recall, called=called, kept=kept)


def one_seed(options: argparse.Namespace, loader: Any, seed: int) -> dict[str, Found]:
    """All networks of one draw of calibration images, by name."""
    images, labels = loader.cifar10("train")
    drawn = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    images, labels = images[drawn], labels[drawn]
    data = batches(loader, images[labels != options.protected][: options.calibration])
    special = batches(loader, images[labels == options.protected][: options.special])
    model = loader.cifar_resnet(options.depth).to(memory_format=torch.channels_last)
    budget, guard = sc.Budget(macs=options.macs), Protect(special, share=options.share)
    whole: dict[str, tuple[nn.Module, int]] = {"dense": (model, 0)}
    given: dict[str, Any] = {"budget": budget, "data": data, "seed": seed}
    plain = sc.prune(model, data[0][:2], importance=options.importance, **given)
    whole["pruned"] = plain.model, 0
    for share in (options.share, *options.dial):
        guarded = sc.prune(
            model, data[0][:2], importance=options.importance, protect=Protect(special, share=share), **given
        )
        label = "pruned, protected" + (f", share={share:g}" if share != options.share else "")
        whole[label] = guarded.model, guarded.report["protected"]["kept"]
    whole["pruned, protected in the refit only"] = refitted(model, plain, data, guard), 0
    random = sc.prune(model, data[0][:2], importance="random", **given)
    whole["random units"] = random.model, 0
    whole["random units, protected in the refit"] = refitted(model, random, data, guard), 0
    if options.judge == "test":
        images, labels = loader.cifar10("test", options.tests)
    else:
        images, labels = images[-options.tests :], labels[-options.tests :]
    return {name: measure(net, loader, images, labels, options.protected, kept) for name, (net, kept) in whole.items()}


def refitted(model: nn.Module, made: sc.Result, data: Sequence[Tensor], guard: Protect) -> nn.Module:
    """The network of a plan that was made without protection, with protected data in its refit."""
    small = made.plan.apply(model)
    compensate_(model, small, made.graph, made.plan, data, protect=settled(guard, model, None))
    return small


def tables(found: Mapping[int, Mapping[str, Found]], options: argparse.Namespace) -> str:
    """Means and standard deviations over seeds."""
    rows = {name: [found[seed][name] for seed in found] for name in found[min(found)]}
    name = CLASSES[options.protected]
    lines = [
        f"| network | accuracy on {name} in % | mean of the other classes in % | others called {name} in % | kept |",
        "| --- | --- | --- | --- | --- |",
    ]
    for label, seen in rows.items():
        cells = [
            spread([one.recall[options.protected] for one in seen]),
            spread([one.others(options.protected) for one in seen]),
            spread([one.called for one in seen]),
            spread([float(one.kept) for one in seen], 1) if any(one.kept for one in seen) else "",
        ]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    lines += ["", "Accuracy of each class in %:", "", f"| network | {' | '.join(CLASSES)} |", "| --- " * 11 + "|"]
    for label, seen in rows.items():
        cells = [spread([one.recall[k] for one in seen], 1) for k in range(len(CLASSES))]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean and standard deviation."""
    over = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{over}"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds load.py")
    parser.add_argument("--out", type=Path, help="page whose tables are replaced")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the calibration images")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--macs", type=float, default=0.5, help="budget, a share of the dense network's")
    parser.add_argument("--importance", default="reconstruction")
    parser.add_argument("--protected", type=int, default=3, help="number of the class; 3 is cat")
    parser.add_argument("--calibration", type=int, default=1024, help="training images of the other classes")
    parser.add_argument("--special", type=int, default=512, help="training images of the protected class")
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--dial", type=float, nargs="*", default=[0.2, 0.3, 0.4], help="other shares")
    parser.add_argument("--tests", type=int, default=10_000, help="images to take figures on")
    parser.add_argument(
        "--judge", choices=("test", "train"), default="test", help="train: other training images, to choose settings by"
    )
    return parser.parse_args()


def main() -> None:
    """Measure, print and write."""
    options = arguments()
    loader = load_module(options.data / "load.py")
    found: dict[int, dict[str, Found]] = {}
    for seed in options.seeds:
        found[seed] = one_seed(options, loader, seed)
        print(json.dumps({"seed": seed, **{name: vars(one) for name, one in found[seed].items()}}), flush=True)
    text = tables(found, options)
    print(text)
    if options.out is not None:
        parts = options.out.read_text().split(MARK)
        write_text(options.out, f"{parts[0]}{MARK}\n\n{text}\n\n{MARK}{parts[2]}")


if __name__ == "__main__":
    main()
