"""Must show: `Budget(latency=0.5)` is met as measured, and with ``multiple_of="auto"`` fewer MACs are less time.

    python benchmarks/latency.py [resnet50] [vit_b_16] [--threads 1] [--batch 1]

torchvision's networks with random weights, on the CPU. Each is pruned three times: by secateur to half the latency; by
secateur to half the MACs at the widths where this machine is fast; and by torch-pruning to the same MACs. Then all of
them run in turns, in one process, many times; the table has the medians. A share is of the dense network's time in the
same turn. On a machine that does other things besides, the time of the thread alone says more than that on the wall.
"""

import argparse
import copy
import math
import statistics
import time
from typing import Any

import torch
from peers import attention, correct, producers, total
from torch import Tensor, nn

import secateur as sc
from secateur.measuring import count_macs

SEED = 0


def by_peer(model: nn.Module, example: Tensor, macs: int) -> nn.Module:
    """torch-pruning, by the same criterion, at the share of every group of channels that gives nearest to the MACs.

    Its widths of attention must be multiples of the heads, so they are rounded to these.
    """
    low, high, found = 0.0, 1.0, list[tuple[int, nn.Module]]()
    for _ in range(8):
        ratio = (low + high) / 2
        small = _at_ratio(model, example, ratio)
        now = count_macs(small, example)
        found.append((now, small))
        low, high = (ratio, high) if now > macs else (low, ratio)
    return min(found, key=lambda pair: abs(pair[0] - macs))[1]


def _at_ratio(model: nn.Module, example: Tensor, ratio: float) -> nn.Module:
    import torch_pruning as tp  # type: ignore[import-untyped]

    model = copy.deepcopy(model)
    heads = [m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)]
    rounded: dict[str, Any] = {"round_to": math.lcm(*heads)} if heads else {}
    tp.pruner.BasePruner(
        model, example, importance=tp.importance.MagnitudeImportance(p=2), pruning_ratio=ratio,
        ignored_layers=producers(model, (example,), {}), num_heads=dict(attention(model)), output_transform=total,
        **rounded,
    ).step()  # fmt: skip
    for module in model.modules():
        correct(module)
    return model


def in_turns(models: dict[str, nn.Module], example: Tensor, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds of each model on the wall, and of its thread, round by round."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    with torch.no_grad():
        for model in models.values():
            model.eval()(example)
        for _ in range(rounds):
            for name, model in models.items():
                start = time.perf_counter(), time.process_time()
                model(example)
                found[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return found


def bench(name: str, batch: int, rounds: int) -> None:
    """Prune, measure and print one network."""
    import torchvision.models  # type: ignore[import-untyped]

    torch.manual_seed(SEED)
    dense: nn.Module = getattr(torchvision.models, name)(weights=None).eval()
    example = torch.randn(batch, 3, 224, 224)
    start = time.perf_counter()
    models, predicted = {"dense": dense}, {"dense": 1.0}
    for label, budget, multiple_of in (
        ("secateur, latency=0.5", sc.Budget(latency=0.5), 1),
        ("secateur, macs=0.5, auto", sc.Budget(macs=0.5), "auto"),
    ):
        result = sc.prune(dense, example, budget=budget, multiple_of=multiple_of)
        models[label] = result.model
        figures = result.report["dense"], result.report["pruned"]
        predicted[label] = figures[1]["predicted_latency_ms"] / figures[0]["predicted_latency_ms"]
    pruned_in = time.perf_counter() - start
    macs = {label: count_macs(model, example) for label, model in models.items()}
    try:
        models["torch-pruning, same MACs"] = peer = by_peer(dense, example, macs["secateur, macs=0.5, auto"])
        macs["torch-pruning, same MACs"] = count_macs(peer, example)
    except Exception as error:  # whatever it fails on is a finding, not our failure
        print(f"torch-pruning fails on {name}: {type(error).__name__}: {error}")
    times = in_turns(models, example, rounds)
    for label, values in times.items():
        pairs = list(zip(values, times["dense"], strict=True))
        medians = [statistics.median(v[k] for v in values) * 1e3 for k in (0, 1)]
        shares = [statistics.median(a[k] / b[k] for a, b in pairs) for k in (0, 1)]
        work = macs[label] / macs["dense"]
        ratios = [f"{(1 - share) / (1 - work):.2f}" if work < 1 else "-" for share in shares]
        guess = f"{predicted[label]:.3f}" if label in predicted else "-"
        print(
            f"| {name} | {label} | {macs[label] / 1e9:.2f} | {work:.3f} | {guess} | {medians[0]:.1f} | {shares[0]:.3f} "
            f"| {ratios[0]} | {medians[1]:.1f} | {shares[1]:.3f} | {ratios[1]} |",
            flush=True,
        )
    print(f"{name}: pruned twice, with timing and proofs, in {pruned_in:.0f} s\n", flush=True)


def main() -> None:
    """All networks that were named."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=["resnet50", "vit_b_16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=31)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    print(
        "| network | pruned by | MACs G | MACs left | latency left, predicted | wall ms | left | its cut / MAC cut "
        "| thread ms | left | its cut / MAC cut |"
    )
    print("| --- " * 11 + "|", flush=True)
    for name in asked.names:
        bench(name, asked.batch, asked.rounds)


if __name__ == "__main__":
    main()
