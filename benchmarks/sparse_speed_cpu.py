"""Layers with zeros on the CPU: dense, in rows (CSR), in blocks (BSR), and what `secateur.accelerate` makes of them."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from accuracy import setting
from torch import Tensor, nn

import secateur as sc
from secateur.accelerating.timing import FAR

SHARES = (0.5, 0.8, 0.95)
BLOCKS = (1, 4, 32)
ROUNDS = 7


def cases() -> Iterator[tuple[str, Callable[[], nn.Module], tuple[Tensor, ...]]]:
    """Layers, by name, with the inputs that they get."""
    wide = tuple(torch.randn(tokens, 4096) for tokens in (1, 16, 128))
    yield "Llama 7B, up: 4096 -> 11008", lambda: nn.Linear(4096, 11008, bias=False), wide
    images = tuple(torch.randn(batch, 256, 14, 14) for batch in (1, 8))
    yield "ResNet-50, 256 -> 256, 3x3 at 14x14", lambda: nn.Conv2d(256, 256, 3, padding=1, bias=False), images


def with_zeros(layer: nn.Module, share: float, size: int) -> None:
    """Set blocks of (size, size) of the weight, flat from its second dim on, to zero by chance."""
    weight: Any = layer.weight
    rows, cols = weight.shape[0], weight[0].numel()
    there = torch.rand(rows // size, cols // size) >= share
    mask = there.repeat_interleave(size, 0).repeat_interleave(size, 1).view_as(weight)
    with torch.no_grad():
        weight.masked_fill_(~mask, 0.0)


def processor_time(calls: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Median seconds of the processor for each call, in turns: what else the machine does is not in it.

    What takes far longer than the fastest is timed once.
    """
    once = {name: _seconds(call, warm=True) for name, call in calls.items()}
    near = [name for name in calls if once[name] <= FAR * min(once.values())]
    times: dict[str, list[float]] = {name: [] for name in near}
    for _ in range(ROUNDS):
        for name in near:
            times[name].append(_seconds(calls[name]))
    return once | {name: statistics.median(values) for name, values in times.items()}


def _seconds(call: Callable[[], Any], *, warm: bool = False) -> float:
    if warm:
        call()
    start = time.process_time()
    call()
    return time.process_time() - start


def on_cpu(only: str = "") -> dict[str, Any]:
    """All rows of layers whose name holds a text, and the machine that they were measured on."""
    started = time.monotonic()
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    for name, make, inputs in (case for case in cases() if only in case[0]):
        for size in BLOCKS:
            for share in SHARES:
                layer = make()
                with_zeros(layer, share, size)
                for x in inputs:
                    found = sc.accelerate(nn.Sequential(layer), x, stopwatch=processor_time)
                    speed = found.layers[0]
                    kept = speed.kept if found.faster else None
                    rows.append(
                        {
                            "layer": name, "zeros": share, "block": size, "inputs": len(x), "dense_ms": speed.dense_ms,
                            "times_ms": dict(speed.times_ms), "kept": kept, "summary": found.summary,
                        }
                    )  # fmt: skip
                    print(line(rows[-1]), flush=True)
    return {"device": setting(), "torch": torch.__version__, "seconds": time.monotonic() - started, "rows": rows}


TITLES = (
    "layer",
    "zeros",
    "blocks",
    "batch",
    "dense ms",
    "CSR ms",
    "best BSR ms",
    "blocks of BSR",
    "runs by",
    "x dense",
)


def line(row: Mapping[str, Any]) -> str:
    """A row of the table."""
    times: dict[str, float] = row["times_ms"]
    blocks = {name: value for name, value in times.items() if name.startswith("BSR")}
    best = min(blocks, key=lambda name: blocks[name], default=None)
    now = times[row["kept"]] if row["kept"] else row["dense_ms"]
    csr = f"{times['CSR']:.3g}" if "CSR" in times else "-"
    cells = (
        row["layer"], f"{100 * row['zeros']:.0f} %", "-" if row["block"] == 1 else f"{row['block']}x{row['block']}",
        str(row["inputs"]), f"{row['dense_ms']:.3g}", csr, f"{blocks[best]:.3g}" if best else "-",
        best.removeprefix("BSR ") if best else "-", row["kept"] or "dense", f"{row['dense_ms'] / now:.2f}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def header() -> str:
    """The head of the table."""
    return f"| {' | '.join(TITLES)} |\n{'| --- ' * len(TITLES)}|"
