"""Must show: what half the MACs is worth in onnxruntime, the table of docs/export.md.

    python benchmarks/export.py --data ../shared/data [--threads 1] [--seconds 20] [--networks mobilenet_v2]
        [--multiples 8]

ResNet-56 for CIFAR-10 with trained weights (the folder of data holds ``load.py`` with ``cifar_resnet(depth)``), and
torchvision's MobileNetV2 with random ones, each pruned by L2 norm to half of its MACs, with any widths
and with multiples of 8. Dense and pruned networks are exported to ONNX, compared with PyTorch, and run in turns.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import secateur as sc
from hints import load_module
from secateur.measuring import count_macs

SEED = 0
NETWORKS = ("resnet56", "mobilenet_v2")
Made = Callable[[], tuple[nn.Module, Tensor]]


def torchvision_network(name: str) -> tuple[nn.Module, Tensor]:
    """A network of torchvision's with random weights, and an image."""
    import torchvision.models  # type: ignore[import-untyped]

    return getattr(torchvision.models, name)(weights=None).eval(), torch.randn(1, 3, 224, 224)


def bench(label: str, made: Made, options: argparse.Namespace) -> None:
    """Prune, export, time and print one network."""
    torch.manual_seed(SEED)
    dense, example = made()
    for multiple_of in options.multiples:
        small = sc.prune(
            dense, example, importance="l2", budget=sc.Budget(macs=0.5), multiple_of=multiple_of, compensate=None
        ).model
        with tempfile.TemporaryDirectory() as folder:
            done = sc.export(
                small, Path(folder) / "small.onnx", dense=dense, threads=options.threads, seconds=options.seconds
            )
        found = done.latency
        assert found is not None
        left = count_macs(small, example) / count_macs(dense, example)
        print(
            f"| {label} | {multiple_of} | {left:.3f} | {found.dense_ms:.2f} | {found.pruned_ms:.2f} | {found.left:.3f} "
            f"| {found.rounds} | {done.difference:.0e} |",
            flush=True,
        )


def main() -> None:
    """All networks."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--multiples", nargs="+", type=int, default=[1, 8], help="what widths are multiples of")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    loader = load_module(options.data / "load.py")
    print(f"load of the machine: {os.getloadavg()[0]:.1f} processes on {os.cpu_count()} cores")
    print(
        "| network | widths are multiples of | MACs left | dense, ms | pruned, ms | latency left | rounds "
        "| difference |"
    )
    print("| --- " * 8 + "|", flush=True)
    made: dict[str, tuple[str, Made]] = {
        "resnet56": ("ResNet-56, CIFAR-10", lambda: (loader.cifar_resnet(56), torch.randn(1, 3, 32, 32))),
        "mobilenet_v2": ("MobileNetV2", lambda: torchvision_network("mobilenet_v2")),
    }
    for name in options.networks:
        bench(*made[name], options)


if __name__ == "__main__":
    main()
