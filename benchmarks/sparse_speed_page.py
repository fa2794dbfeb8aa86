"""Puts what sparse_speed.py measured into a page.

python benchmarks/sparse_speed_page.py cpu.json cuda.json --out docs/sparse_speed.md
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sparse_speed_cpu import header, line

HEAD = """# Weights with zeros: how fast

Zeros make files smaller ([sparse_files.md](sparse_files.md)). They save time only where a kernel leaves them out faster
than the dense one multiplies them, which hangs on the machine, on how many zeros there are and where, and on how many
inputs come at once. So `sc.measure` and `secateur measure` try it on models with 30 % of zeros in a layer, and say what
came of it, that they save no time included; `sc.accelerate` gives the model that was faster:

```python
found = sc.accelerate(model, example)  # each layer by its fastest kernel; print it
found.summary  # "80 % of the parameters are zeros. They make the file smaller, but save no time here: ..."
fast = found.model  # for inference here; save the original, not this one
```

A sparse kernel is kept where its outputs agree with the dense one's and it was measured to be at least 5 % faster, and
all of them only where the whole model is faster. The figures below are of `benchmarks/sparse_speed.py`, whatever they
are.
"""
CPU = """
## On a CPU

`python benchmarks/sparse_speed.py --device cpu --json cpu.json`

{device}. Weights in float32 are set to zero by chance, singly ("-") or in blocks. Dense is torch's own kernel; CSR and
BSR are torch's sparse layouts by MKL, BSR in the fastest of its blocks that are empty often enough; "runs by" is what
`sc.accelerate` keeps, and the last column what that gains. Times are medians of calls in turns, of the processor and
not on the wall, since the machine did other things besides; caches it shared all the same.

"""
CUDA = """
## 2:4 on a GPU

`python benchmarks/sparse_speed.py --device cuda --json cuda.json`

{device}, CUDA {cuda}, torch {torch}. The MLP of a Llama 7B ({shape[0]} -> {shape[1]} -> {shape[0]}, gated by SiLU),
random weights made 2:4 by magnitude. "eager" is a call from Python, launches included; "graph" a replayed CUDA graph,
the kernels alone; each the median of {rounds} CUDA-event times, the variants in turns. "off" is the largest difference
from float32 as a share of the output's scale; "searched" has the algorithm that cuSPARSELt found fastest for the input.

| type | tokens | variant | eager ms | x dense | graph ms | x dense | off |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""


def cuda_rows(rows: Iterable[dict[str, Any]]) -> Iterable[str]:
    """The table of a GPU; what failed says why."""
    for row in rows:
        names = ("eager_ms", "eager_speedup", "graph_ms", "graph_speedup", "off")
        cells = [f"{row[n]:.3g}" if row.get(n) is not None else "-" for n in names]
        said = row["variant"] + (f" ({row['error'] or row.get('graph_error')})" if row["error"] else "")
        wrong = "" if row["error"] or row["correct"] else " WRONG"
        yield f"| {row['dtype'].removeprefix('torch.')} | {row['tokens']} | {said}{wrong} | {' | '.join(cells)} |"


def chosen_rows(chosen: Iterable[dict[str, Any]]) -> Iterable[str]:
    """What `sc.accelerate` made of it, in words."""
    for case in chosen:
        if case.get("error"):
            yield f"`sc.accelerate`, {case['tokens']} tokens: {case['error']}."
            continue
        kept = [f"{layer['name']}: {layer['kept'] or 'dense'}" for layer in case["layers"]]
        times = f"; {case['dense_ms']:.3g} ms become {case['sparse_ms']:.3g} ms" if case["sparse_ms"] else ""
        yield f"`sc.accelerate` in bfloat16, {case['tokens']} tokens: {', '.join(kept)}{times}."


def main() -> None:
    """One page of all files."""
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    text = HEAD
    for file in asked.files:
        found: dict[str, Any] = json.loads(file.read_text())
        if "cuda" in found:
            text += CUDA.format(**found) + "\n".join(cuda_rows(found["rows"])) + "\n\n"
            text += "\n\n".join(chosen_rows(found["accelerate"])) + "\n"
        else:
            text += CPU.format(**found) + header() + "\n" + "\n".join(map(line, found["rows"])) + "\n"
    asked.out.write_text(text)


if __name__ == "__main__":
    main()
