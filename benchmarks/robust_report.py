"""Must show: what `sc.robustness` says of a normally pruned network.

    python benchmarks/robust_report.py

ResNet-56 as trained by others on CIFAR-10, pruned to half of its MACs with the defaults of `sc.prune` on 2,048 training
images, and attacked beside the dense one on the first test images. It takes about a quarter of an hour of one core.
"""

import argparse
import time
from typing import Any

import torch
from attacks import load_shared

import secateur as sc


def main() -> None:
    parser = argparse.ArgumentParser(description="The robustness of ResNet-56 before and after pruning.")
    parser.add_argument("--depth", type=int, default=56)
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--apgd-steps", type=int, default=50)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    load: Any = load_shared()
    dense = load.cifar_resnet(options.depth)
    images, labels = load.cifar10("train", 2048)
    calibration = list(zip(load.normalise(images).split(128), labels.split(128), strict=True))
    result = sc.prune(dense, calibration[0][0][:2], budget=sc.Budget(macs=options.macs), data=calibration)
    images, labels = load.cifar10("test", options.samples)
    started = time.perf_counter()
    device = options.device
    found = sc.robustness(
        result.model.to(device),
        [(load.normalise(images), labels)],
        eps=8 / 255,
        normalise=(load.IMAGENET_MEAN, load.IMAGENET_STD),
        dense=dense.to(device),
        classes=["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
        queries=options.queries,
        apgd_steps=options.apgd_steps,
        batch_size=250,
    )
    print(found)
    print(f"\n{time.perf_counter() - started:.0f} s, torch {torch.__version__}, {device}")


if __name__ == "__main__":
    main()
