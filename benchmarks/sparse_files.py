"""Must show: sizes of files of weights with zeros as shares of the dense file, and how long they take to load and save.

    python benchmarks/sparse_files.py --out docs/sparse_files.md

Weights of linear layers and convolutions are set to zero by magnitude within each tensor, in each pattern; biases,
norms and embeddings stay as they are, and so do tensors that a pattern does not divide. Every file is read back and
compared bit by bit. Files are in the page cache. Times are medians, packed and dense files in turns; loading means that
every tensor ends up in memory of its own, as `secateur.load` leaves it.
"""

import argparse
import copy
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accuracy import setting
from accuracy_tasks import shared
from safetensors.torch import load_file
from torch import Tensor, nn

from secateur.packed import read_tensors, size_bytes, write_tensors

WIDTH, DEPTH = 4096, 6  # of the large network: six square matrices, 100.7 million weights
PATTERNS = ("20 %", "50 %", "80 %", "95 %", "2:4", "4:8", "16x16, 50 %", "16x16, 95 %")
HEAD = """# Files of weights with zeros

`{command}`

{setting}. Shares are of the same weights in a plain safetensors file. Weights of linear layers and convolutions are set
to zero by magnitude within each tensor. Biases, norms and embeddings stay as they are, and so do tensors that a pattern
does not divide ("left dense" says how many); so a share can be above what the pattern alone would give. Every file was
read back and compared bit by bit. Times are medians of {rounds} rounds ({few} for the random network), packed and dense
files in turns: processor time of the one thread, since the machine did other things besides; files come from the page
cache, and what the disk takes is not in it. Loading leaves every tensor in memory of its own.

"""
TITLES = (
    "network", "type", "pattern", "left dense", "zeros", "dense bytes", "packed bytes", "share", "load ms, dense",
    "load ms, packed", "save ms, dense", "save ms, packed",
)  # fmt: skip
MEMORY = """
import re, sys
from pathlib import Path
from safetensors.torch import load_file
from secateur.packed import read_tensors
status = lambda key: 1024 * int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
loaders = {"packed": read_tensors, "dense": lambda file: {n: t.clone() for n, t in load_file(file).items()}}
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: a process inherits that of its parent
before = status("VmHWM")
found = loaders[sys.argv[1]](sys.argv[2])
print(status("VmHWM") - before)
"""


def networks() -> dict[str, Callable[[], nn.Module]]:
    """What is measured, by name."""
    return {
        "ResNet-56, CIFAR-10": lambda: shared().cifar_resnet(56),
        "MobileNetV1 0.75": lambda: shared().mobilenet_v1(),
        "Llama of 260 k": lambda: shared().stories_llama(),
        "random, 100.7 M": lambda: nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(DEPTH))),
    }


def pruned(weight: Tensor, pattern: str) -> Tensor | None:
    """A weight with zeros in a pattern; None where the pattern does not divide it."""
    if pattern.endswith("%") and not pattern.startswith("16x16"):
        count = round(weight.numel() * float(pattern.split()[0]) / 100)
        cut = weight.abs().flatten().kthvalue(count).values
        return weight.masked_fill(weight.abs() <= cut, 0.0)
    if ":" in pattern:
        n, m = map(int, pattern.split(":"))
        if weight.shape[1] % m:
            return None
        rows = weight.movedim(1, -1)
        groups = rows.reshape(-1, m)
        least = groups.abs().topk(m - n, dim=1, largest=False).indices
        return groups.scatter(1, least, 0.0).view_as(rows).movedim(-1, 1).contiguous()
    matrix = weight.flatten(1)
    if matrix.shape[0] % 16 or matrix.shape[1] % 16:
        return None
    grid = matrix.view(matrix.shape[0] // 16, 16, -1, 16)
    norms = grid.square().sum((1, 3))
    count = round(norms.numel() * float(pattern.split()[1]) / 100)
    gone = torch.zeros(norms.numel(), dtype=torch.bool)
    gone[norms.flatten().argsort()[:count]] = True
    return grid.masked_fill(gone.view(norms.shape)[:, None, :, None], 0.0).reshape(weight.shape)


def state(model: nn.Module, pattern: str, dtype: torch.dtype) -> tuple[dict[str, Tensor], str]:
    """The tensors of a model after pruning, and how many were left dense."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    tied = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    weights = {id(layer.weight): layer.weight for layer in layers if id(layer.weight) not in tied}
    left = 0
    with torch.no_grad():
        for weight in weights.values():
            made = pruned(weight.detach(), pattern)
            left += made is None
            if made is not None:
                weight.copy_(made)
    named: dict[str, Tensor] = dict(model.named_parameters()) | dict(model.named_buffers())
    tensors = {n: t.detach().to(dtype) if t.is_floating_point() else t for n, t in named.items()}
    return tensors, f"{left} of {len(weights)}"


def in_turns(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median milliseconds of processor time of each call."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.process_time()
            call()
            found[name].append(1e3 * (time.process_time() - start))
    return {name: statistics.median(values) for name, values in found.items()}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Bit by bit."""
    return a.keys() == b.keys() and all(
        t.shape == b[n].shape and torch.equal(t.reshape(-1).view(torch.uint8), b[n].reshape(-1).view(torch.uint8))
        for n, t in a.items()
    )


def row(name: str, model: nn.Module, pattern: str, dtype: torch.dtype, rounds: int, folder: Path) -> str:
    """One line of the table. The files stay in the folder."""
    tensors, left = state(copy.deepcopy(model), pattern, dtype)
    files = {"dense": folder / "dense.safetensors", "packed": folder / "packed.safetensors"}
    save = in_turns({k: lambda k=k: write_tensors(files[k], tensors, plain=k == "dense") for k in files}, rounds)
    assert same(read_tensors(files["packed"]), tensors), "not the same bits"
    load = in_turns(
        {
            "dense": lambda: {n: t.clone() for n, t in load_file(files["dense"]).items()},
            "packed": lambda: {n: t if t.numel() * t.element_size() >= 4096 else t.clone()
                               for n, t in read_tensors(files["packed"]).items()},
        },
        rounds,
    )  # fmt: skip
    sizes = {k: file.stat().st_size for k, file in files.items()}
    zeros = sum(int((t == 0).sum()) for t in tensors.values()) / sum(t.numel() for t in tensors.values())
    kind = str(dtype).removeprefix("torch.")
    cells = [
        name, kind, pattern, left, f"{100 * zeros:.1f} %", f"{sizes['dense']:,}", f"{sizes['packed']:,}",
        f"**{sizes['packed'] / sizes['dense']:.3f}**", *(f"{t[k]:.3g}" for t in (load, save) for k in files),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def memory(folder: Path) -> str:
    """By how much the largest resident set of a process grows as it loads each file, as multiples of the tensors."""
    peaks: dict[str, float] = {}
    dense = size_bytes(load_file(folder / "dense.safetensors").values())
    for name in ("dense", "packed"):
        file = folder / f"{name}.safetensors"
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, name, str(file)], capture_output=True, text=True, check=True
        )
        peaks[name] = int(done.stdout) / dense
    return f"dense file {peaks['dense']:.2f}, packed file {peaks['packed']:.2f}"


def rows(asked: argparse.Namespace, folder: Path) -> Iterator[str]:
    said: list[str] = []
    for name, make in networks().items():
        if asked.only and asked.only not in name:
            continue
        torch.manual_seed(0)
        model, large = make(), name.startswith("random")
        for dtype in (torch.float32, torch.bfloat16):
            for pattern in PATTERNS:
                yield row(name, model, pattern, dtype, asked.few if large else asked.rounds, folder)
                if large and dtype is torch.float32 and pattern in ("50 %", "95 %", "2:4"):
                    said.append(f"{pattern}: {memory(folder)}")
    if said:
        yield (
            "\nPeak memory of a process that loads the random network in float32, beyond what it held before, as "
            f"multiples of its {4 * DEPTH * WIDTH**2:,} bytes; pages of the file that are mapped count, too. "
            f"{'; '.join(said)}."
        )


def main() -> None:
    """The table, printed as it grows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--few", type=int, default=3, help="rounds for the large network")
    parser.add_argument("--only", help="networks whose name holds this")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    text = HEAD.format(command=" ".join(["python", *sys.argv]), setting=setting(), rounds=asked.rounds, few=asked.few)
    text += f"| {' | '.join(TITLES)} |\n{'| --- ' * len(TITLES)}|\n"
    print(text, end="")
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        for line in rows(asked, Path(folder)):
            print(line, flush=True)
            text += f"{line}\n"
    if asked.out:
        asked.out.write_text(text)


if __name__ == "__main__":
    main()
