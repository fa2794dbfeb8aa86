"""Must show: what zeros in the weights do to the time of a layer, on a GPU with 2:4 kernels and on the CPU.

    PYTHONPATH=src python benchmarks/sparse_speed.py --device cuda --json cuda.json
    python benchmarks/sparse_speed.py --device cpu --json cpu.json
    python benchmarks/sparse_speed_page.py cpu.json cuda.json --out docs/sparse_speed.md

On CUDA: the MLP of a Llama 7B (4096 -> 11008 -> 4096, gated by SiLU, random weights made 2:4 by magnitude), dense and
with semi-structured tensors of both libraries that torch has for them. Every variant is checked against float32 first.
Times are medians of CUDA events, the variants in turns: "eager" as a user's code calls it, Python and launches
included; "graph" as a replayed CUDA graph, the kernels alone. The three matrices are larger together than the cache.
Last, `secateur.accelerate` chooses by itself.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS

WIDTH, HIDDEN = 4096, 11008  # of Llama 7B
TOKENS = (1, 16, 128, 2048)
DTYPES = (torch.bfloat16, torch.float16)
ROUNDS = 60
SEARCH_SECONDS = 25.0  # for all searches of cuSPARSELt's algorithms together
CLOSE = 2**-6  # share of the output's scale that half precision may be off, after three matrices in a row

Call = Callable[[], Tensor]


def two_four(weight: Tensor) -> Tensor:
    """The two largest of each four consecutive weights of a row, (out, in) -> (out, in)."""
    groups = weight.view(-1, 4)
    smallest = groups.abs().topk(2, dim=1, largest=False).indices
    return groups.scatter(1, smallest, 0.0).view_as(weight)


def mlp(x: Tensor, gate: Any, up: Any, down: Any) -> Tensor:
    """Llama's MLP, (tokens, width) -> (tokens, width)."""
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


def searched(weight: Tensor, x: Tensor) -> Any:
    """A cuSPARSELt tensor with the algorithm that is fastest for this input."""
    made: Any = SparseSemiStructuredTensorCUSPARSELT.from_dense(weight)
    rows = -(-x.shape[0] // 8) * 8  # the kernel wants multiples of 8 tokens, and gets them by padding
    padded = F.pad(x, (0, 0, 0, rows - x.shape[0]))
    made.alg_id_cusparselt = torch._cslt_sparse_mm_search(made.packed, padded.t())
    return made


def variants(weights: list[Tensor], x: Tensor, deadline: float) -> dict[str, Any]:
    """The three matrices in each form, by name; what fails is the text of the error."""
    inputs = [x, x, torch.randn(x.shape[0], HIDDEN, device=x.device, dtype=x.dtype)]
    makers: dict[str, Callable[[Tensor, Tensor], Any]] = {
        "dense": lambda w, _: w,
        "2:4 cuSPARSELt": lambda w, _: SparseSemiStructuredTensorCUSPARSELT.from_dense(w),
        "2:4 cuSPARSELt, searched": searched,
        "2:4 CUTLASS": lambda w, _: SparseSemiStructuredTensorCUTLASS.from_dense(w),
    }
    found: dict[str, Any] = {}
    for name, make in makers.items():
        if make is searched and time.monotonic() > deadline:
            found[name] = f"not searched: the {SEARCH_SECONDS:g} s for searching were over"
            continue
        try:
            found[name] = [make(w, i) for w, i in zip(weights, inputs, strict=True)]
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def captured(call: Call) -> Call:
    """The same work as one replayed CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


def medians_ms(calls: dict[str, Call]) -> dict[str, float]:
    """Median of CUDA-event times of each call; the calls take turns."""
    for call in calls.values():
        for _ in range(5):
            call()
    torch.cuda.synchronize()
    pairs: dict[str, list[Any]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            end.synchronize()
            pairs[name].append(start.elapsed_time(end))
    return {name: statistics.median(values) for name, values in pairs.items()}


def case(weights: list[Tensor], x: Tensor, deadline: float) -> list[dict[str, Any]]:
    """One row for each variant of the MLP on one input."""
    exact = mlp(x.float(), *(w.float() for w in weights))
    rows: dict[str, dict[str, Any]] = {}
    eager: dict[str, Call] = {}
    graphs: dict[str, Call] = {}
    for name, made in variants(weights, x, deadline).items():
        row = rows[name] = {"dtype": str(x.dtype), "tokens": x.shape[0], "variant": name, "error": None}
        try:
            if isinstance(made, str):
                raise RuntimeError(made)
            call = lambda made=made: mlp(x, *made)  # noqa: E731
            off = ((call().float() - exact).abs().max() / exact.abs().max()).item()
            row |= {"off": off, "correct": off <= CLOSE}
            eager[name] = call
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        try:
            graphs[name] = captured(call)
        except Exception as error:
            row["graph_error"] = f"{type(error).__name__}: {error}".splitlines()[0]
    for label, calls in (("eager_ms", eager), ("graph_ms", graphs)):
        for name, value in medians_ms(calls).items():
            rows[name][label] = value
            rows[name][label.replace("ms", "speedup")] = None
        for name in calls:
            if "dense" in calls:
                rows[name][label.replace("ms", "speedup")] = rows["dense"][label] / rows[name][label]
    return list(rows.values())


def on_cuda() -> dict[str, Any]:
    """All rows, and the machine that they were measured on."""
    started = time.monotonic()
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    shapes = ((HIDDEN, WIDTH), (HIDDEN, WIDTH), (WIDTH, HIDDEN))
    whole = [two_four(torch.randn(shape, device="cuda") / shape[1] ** 0.5) for shape in shapes]
    with torch.no_grad():
        for dtype in DTYPES:
            weights = [w.to(dtype) for w in whole]
            for tokens in TOKENS:
                x = torch.randn(tokens, WIDTH, device="cuda", dtype=dtype)
                rows += case(weights, x, started + SEARCH_SECONDS)
                print_rows(rows[-4:])
        chosen = [by_itself([w.to(torch.bfloat16) for w in whole], tokens) for tokens in TOKENS]
    return {
        "device": torch.cuda.get_device_name(),
        "capability": list(torch.cuda.get_device_capability()),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "shape": [WIDTH, HIDDEN],
        "rounds": ROUNDS,
        "seconds": time.monotonic() - started,
        "rows": rows,
        "accelerate": chosen,
    }


class Mlp(nn.Module):
    """The same MLP as a module."""

    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__()
        self.gate, self.up, self.down = (nn.Linear(w.shape[1], w.shape[0], bias=False, device="meta") for w in weights)
        for layer, weight in zip((self.gate, self.up, self.down), weights, strict=True):
            layer.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


def by_itself(weights: list[Tensor], tokens: int) -> dict[str, Any]:
    """What `secateur.accelerate` makes of the MLP."""
    try:
        import secateur as sc

        x = torch.randn(tokens, WIDTH, device="cuda", dtype=weights[0].dtype)
        found = sc.accelerate(Mlp(weights), x)
    except Exception as error:
        print(f"accelerate, {tokens} tokens: {type(error).__name__}: {error}")
        return {"tokens": tokens, "error": f"{type(error).__name__}: {error}"}
    print(f"accelerate, {tokens} tokens: {found.summary}", flush=True)
    layers = [vars(layer) for layer in found.layers]
    return {"tokens": tokens, "dense_ms": found.dense_ms, "sparse_ms": found.sparse_ms, "layers": layers}


def print_rows(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        figures = [row.get(name) for name in ("eager_ms", "eager_speedup", "graph_ms", "graph_speedup", "off")]
        cells = [f"{value:.4g}" if value is not None else "-" for value in figures]
        wrong = row["error"] or row.get("graph_error") or ("" if row["correct"] else "WRONG")
        print(f"| {row['dtype']} | {row['tokens']} | {row['variant']} | {' | '.join(cells)} | {wrong} |", flush=True)


def main() -> None:
    """One device, as asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="where the figures are written")
    parser.add_argument("--only", default="", help="layers whose name holds this, on the CPU")
    asked = parser.parse_args()
    if asked.device == "cpu":
        import sparse_speed_cpu

        torch.set_num_threads(1)
        print(sparse_speed_cpu.header())
        _finish(sparse_speed_cpu.on_cpu(asked.only), asked.json)
        return
    print("| dtype | tokens | variant | eager ms | x dense | graph ms | x dense | off | |\n" + "| --- " * 9 + "|")
    _finish(on_cuda(), asked.json)


def _finish(found: dict[str, Any], file: Path | None) -> None:
    if file:
        file.write_text(json.dumps(found, indent=1) + "\n")
    print(f"\n{found['device']}, torch {found['torch']}: {found['seconds']:.0f} s")


if __name__ == "__main__":
    main()
