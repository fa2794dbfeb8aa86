"""Must show: which hint ranks the units of a trained ResNet-20 as ablation does, the table of docs/hints.md.

    python benchmarks/hints.py --data ../shared/data --out docs/hints.md

The truth: every sampled unit is silenced for real, and so is what each hint would choose of an axis. It is measured on
training images (the network has seen them; test images are never used), the hints look at other training images. The
folder of data holds ``load.py`` with ``cifar10(split, n)``, ``normalise(images)`` and ``cifar_resnet(depth)``.
"""

import argparse
import importlib.util
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import secateur as sc
from secateur.files import write_text
from secateur.hints import HintCheck

MARK = "<!-- the table of benchmarks/hints.py -->"
BATCH = 32  # one core is quickest with few images at a time, channels last


def batches(images: Tensor, labels: Tensor, loader: Any) -> list[tuple[Tensor, Tensor]]:
    """Normalised batches."""
    normal = loader.normalise(images).to(memory_format=torch.channels_last)
    return list(zip(normal.split(BATCH), labels.split(BATCH), strict=True))


def measure(options: argparse.Namespace) -> HintCheck:
    """The check of one ResNet."""
    loader = load_module(options.data / "load.py")
    images, labels = loader.cifar10("train", options.calibration + options.samples)
    at = options.calibration
    model = loader.cifar_resnet(options.depth).to(memory_format=torch.channels_last)
    calibration, truth = (batches(images[part], labels[part], loader) for part in (slice(at), slice(at, None)))
    graph = sc.trace(model, truth[0][0][:2])
    return sc.check_hints(
        model,
        graph,
        options.hints or None,
        truth,
        calibration=calibration,
        units_per_axis=options.units,
        shares=tuple(options.shares),
        budget=sc.Budget(macs=options.macs),
        seed=options.seed,
        note=f"{options.calibration:,} other samples for calibration",
    )


def load_module(path: Path) -> Any:
    """A Python file by its path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    here = Path(__file__).parents[2] / "shared/data"
    parser = argparse.ArgumentParser(description="Hints against true ablation on a CIFAR-10 ResNet.")
    parser.add_argument("--data", type=Path, default=here, help="folder with load.py")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--samples", type=int, default=2048, help="training images that the truth is measured on")
    parser.add_argument("--calibration", type=int, default=1024, help="other training images, for the hints")
    parser.add_argument("--units", type=int, default=8, help="units of each axis")
    parser.add_argument("--shares", type=float, nargs="*", default=[0.25, 0.5])
    parser.add_argument("--macs", type=float, default=0.5, help="to which each hint prunes the whole network")
    parser.add_argument("--hints", nargs="*", default=[], help="by default all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="Markdown file in which the table between two marks is replaced")
    parser.add_argument("--picture", type=Path, help=".svg or .html file for the picture")
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args()
    if options.out and not options.out.exists():
        parser.error(f"no {options.out}: the table goes between two marks of a page that is there")
    torch.set_num_threads(1)
    started = time.perf_counter()
    check = measure(options)
    print(check)
    text = check.markdown()
    print(f"\n{text}\n\ntorch {torch.__version__}, CPU, {time.perf_counter() - started:.0f} s")
    if options.json:
        check.save(options.json)
    if options.picture:
        check.save_picture(options.picture)
    if options.out:
        before, _, rest = options.out.read_text(encoding="utf-8").partition(MARK)
        write_text(options.out, f"{before}{MARK}\n\n{text}\n\n{MARK}{rest.partition(MARK)[2]}")


if __name__ == "__main__":
    main()
