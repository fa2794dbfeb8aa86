"""Must show: a model of 1.5 billion parameters on disk, pruned with a fraction of its size in memory, killed twice.

    python benchmarks/sparse_streaming.py --folder /tmp/streaming --out docs/sparse_streaming.md

A randomly initialised Llama is written in bf16 shards. Each method prunes it twice, from disk to disk and in a process
of its own: once in one go, and once killed twice (SIGKILL) and started again. The peak resident set is VmHWM of the
process, with those of its children added, read from the outside all the time. ``--folder`` is emptied at the end.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

METHODS = {"wanda": (None, 1 / 4), "sparsegpt": ("sparsegpt", 1 / 2)}
"""Compensation, and the share of the checkpoint's size below which the peak has to stay."""
SIZES = {
    "1.5B": {"hidden_size": 2048, "intermediate_size": 5632, "layers": 32, "heads": 32, "kv": 8, "vocab": 32000},
    "150M": {"hidden_size": 768, "intermediate_size": 2112, "layers": 20, "heads": 12, "kv": 4, "vocab": 16000},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "layers": 6, "heads": 4, "kv": 2, "vocab": 512},
}
POLL_S = 0.2
HEAD = """# A model larger than memory, pruned from disk to disk

`{command}`

{machine}. A randomly initialised Llama: {layers} blocks of width {hidden_size}, {intermediate_size} inner
units, {heads} heads with {kv} for keys and values, {vocab:,} tokens; {params:,} parameters in bf16, {files} shards,
{size:,} bytes on disk. Half of the weights of the linear layers within blocks go; calibration on {batches} sequences of
{tokens} random tokens. One thread.

"Peak" is the largest resident set of the process (VmHWM, Python, torch and transformers included, its children's
added), read from the outside every {poll:.0f} ms. "Base" is the same of a process that only imports what is needed and
builds the model without weights. "Killed" runs got SIGKILL twice, in the middle of a block, and were started
again with the same call: their time and peak are those of all three lives, and "same bytes" compares every file of the
two results. Times are minutes of the processor and, in brackets, of the wall clock, on a machine that did other work.

| method | peak | of the checkpoint | allowed | base | time | killed: time | peak | after blocks | same bytes |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""
TAIL = """
{remarks}
"""


@dataclass(frozen=True, kw_only=True)
class Life:
    """A process from its start to its end.

    Attributes:
        peak: bytes.
        seconds: of the wall clock.
        cpu: seconds of the processor.
        done: blocks that were done when it ended.
    """

    peak: int
    seconds: float
    cpu: float
    done: int


def make(folder: Path, size: str) -> None:
    """Write the checkpoint shard by shard: two blocks in each, so that no more is ever in memory."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    s = SIZES[size]
    folder.mkdir(parents=True)
    config: Any = LlamaConfig(
        vocab_size=s["vocab"],
        hidden_size=s["hidden_size"],
        intermediate_size=s["intermediate_size"],
        num_hidden_layers=s["layers"],
        num_attention_heads=s["heads"],
        num_key_value_heads=s["kv"],
        max_position_embeddings=2048,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    config.save_pretrained(folder)
    shards = list(_shards(s))
    where: dict[str, str] = {}
    generator = torch.Generator().manual_seed(0)
    for number, shapes in enumerate(shards, 1):
        tensors = {
            n: torch.ones(shape, dtype=torch.bfloat16)
            if len(shape) == 1
            else (torch.randn(shape, generator=generator) / shape[1] ** 0.5).bfloat16()
            for n, shape in shapes.items()
        }
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, file)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _shards(s: dict[str, int]) -> Iterator[dict[str, tuple[int, ...]]]:
    """Names and shapes, shard by shard."""
    width, inner = s["hidden_size"], s["intermediate_size"]
    keys = width // s["heads"] * s["kv"]
    yield {"model.embed_tokens.weight": (s["vocab"], width)}
    for first in range(0, s["layers"], 2):
        shard: dict[str, tuple[int, ...]] = {}
        for layer in range(first, min(first + 2, s["layers"])):
            at = f"model.layers.{layer}"
            shard |= {f"{at}.self_attn.{n}_proj.weight": (width, width) for n in "qo"}
            shard |= {f"{at}.self_attn.{n}_proj.weight": (keys, width) for n in "kv"}
            shard |= {f"{at}.mlp.{n}_proj.weight": (inner, width) for n in ("gate", "up")}
            shard |= {f"{at}.mlp.down_proj.weight": (width, inner)}
            shard |= {f"{at}.{n}_layernorm.weight": (width,) for n in ("input", "post_attention")}
        yield shard
    yield {"model.norm.weight": (width,), "lm_head.weight": (s["vocab"], width)}


def one(args: argparse.Namespace) -> None:
    """What a process does that is measured: prune, or only what comes before."""
    import torch

    import secateur as sc

    torch.set_num_threads(1)
    if args.base:
        from secateur.sparsity.streaming.building import build
        from secateur.sparsity.streaming.checkpoint import open_checkpoint

        build(open_checkpoint(args.folder / "dense"))
        return
    generator = torch.Generator().manual_seed(1)
    vocab = SIZES[args.size]["vocab"]
    data = [torch.randint(0, vocab, (1, args.tokens), generator=generator) for _ in range(args.batches)]
    compensate, _ = METHODS[args.one]
    sc.sparsify(args.folder / "dense", output=args.to, data=data, compensate=compensate, activations=args.activations)


def lived(args: argparse.Namespace, method: str, to: Path, kill_at: int | None = None, *, base: bool = False) -> Life:
    """Start a process, and watch it until it ends, or kill it in the middle of the block after so many."""
    command = [sys.executable, __file__, "--folder", str(args.folder), "--size", args.size, "--one", method]
    command += ["--to", str(to), "--batches", str(args.batches), "--tokens", str(args.tokens)]
    command += ["--activations", args.activations, *(["--base"] if base else [])]
    begun, peak, journal = time.monotonic(), 0, to.with_name(to.name + ".unfinished") / "journal.json"
    child = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"})
    reached: float | None = None
    last = begun
    while not (ended := os.wait4(child.pid, os.WNOHANG))[0]:
        peak = max(peak, sum(_peak(pid) for pid in _family(child.pid)))
        if kill_at is not None and time.monotonic() - last > 0.5:
            last = time.monotonic()
            if reached is None and _done(journal) >= kill_at:
                reached = last
            elif reached is not None and last - reached > args.into:
                child.send_signal(signal.SIGKILL)
        time.sleep(POLL_S)
    child.returncode = os.waitstatus_to_exitcode(ended[1])
    if child.returncode != (0 if kill_at is None else -signal.SIGKILL):
        raise SystemExit(f"{' '.join(command)} ended with {child.returncode}")
    cpu = ended[2].ru_utime + ended[2].ru_stime
    return Life(peak=peak, seconds=time.monotonic() - begun, cpu=cpu, done=_done(journal))


def _done(journal: Path) -> int:
    """Blocks that are done."""
    try:
        return len(json.loads(journal.read_text())["blocks"])
    except (OSError, ValueError):
        return 0


def _family(pid: int) -> list[int]:
    """A process and its descendants."""
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *(p for child in found for p in _family(int(child)))]


def _peak(pid: int) -> int:
    """VmHWM in bytes; 0 where the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file."""
    found: dict[str, str] = {}
    for file in sorted(folder.iterdir()):
        with file.open("rb") as opened:
            found[file.name] = hashlib.file_digest(opened, "sha256").hexdigest()
    return found


def compare(args: argparse.Namespace, method: str) -> dict[str, Any]:
    """Both runs of a method, and whether they end with the same."""
    base = lived(args, method, args.folder / "none", base=True)
    whole, killed = args.folder / f"{method}-whole", args.folder / f"{method}-killed"
    at_once = lived(args, method, whole)
    told(method, "in one go", at_once)
    blocks = SIZES[args.size]["layers"]
    lives: list[Life] = []
    for kill_at in (blocks // 3, 2 * blocks // 3, None):
        lives.append(lived(args, method, killed, kill_at))
        told(method, f"kill at {kill_at}", lives[-1])
    row = {
        "method": method,
        "base": base.peak,
        "at_once": asdict(at_once),
        "killed": [asdict(life) for life in lives],
        "same": digests(whole) == digests(killed),
        "checked": check(args.folder / "dense", whole),
    }
    shutil.rmtree(whole)
    shutil.rmtree(killed)
    return row


def check(dense: Path, sparse: Path) -> dict[str, Any]:
    """What the result holds: shares of zeros by kind of tensor, read back with the safetensors library."""
    from safetensors import safe_open

    zeros: dict[str, list[int]] = {}
    changed_outside = 0
    for file in sorted(sparse.glob("*.safetensors")):
        with safe_open(file, "pt") as new, safe_open(dense / file.name, "pt") as old:
            for name in new.keys():  # noqa: SIM118
                tensor = new.get_tensor(name)
                inside = name.endswith("_proj.weight")
                total = zeros.setdefault("pruned" if inside else "other", [0, 0])
                total[0] += int((tensor == 0).sum())
                total[1] += tensor.numel()
                changed_outside += not inside and not bool((tensor == old.get_tensor(name)).all())
    return {"zeros": zeros, "changed_outside": changed_outside}


def told(method: str, what: str, life: Life) -> None:
    print(
        method,
        what,
        f"peak {life.peak / 1e6:.0f} MB, {life.cpu:.0f} s of {life.seconds:.0f}, {life.done} blocks",
        flush=True,
    )


def table(rows: Sequence[dict[str, Any]], size: int) -> str:
    """One line for each method."""
    lines: list[str] = []
    for row in rows:
        killed, once = row["killed"], row["at_once"]
        lines.append(
            f"| {row['method']} | {once['peak'] / 1e6:.0f} MB | {once['peak'] / size:.1%} | "
            f"{METHODS[row['method']][1]:.0%} | {row['base'] / 1e6:.0f} MB | {_times([once])} | {_times(killed)} | "
            f"{max(life['peak'] for life in killed) / 1e6:.0f} MB | {killed[0]['done']} and {killed[1]['done']} | "
            f"{'yes' if row['same'] else 'NO'} |"
        )
    return "\n".join(lines) + "\n"


def _times(lives: Sequence[dict[str, Any]]) -> str:
    cpu, wall = (sum(life[key] for life in lives) / 60 for key in ("cpu", "seconds"))
    return f"{cpu:.1f} ({wall:.0f})"


def remarks(rows: Sequence[dict[str, Any]]) -> str:
    """What was read back from the results."""
    lines: list[str] = []
    for row in rows:
        found = row["checked"]
        zeros, weights = found["zeros"]["pruned"]
        lines.append(
            f"- {row['method']}: {zeros:,} of {weights:,} weights within blocks are zero ({zeros / weights:.4%}); of "
            f"the tensors outside, {found['changed_outside']} differ from the source."
        )
    return "\n".join(lines)


def machine() -> str:
    """The processor, and how many of it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "a CPU")
    import torch

    return f"{name}, {os.cpu_count()} cores, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="a new folder for ten gigabytes")
    parser.add_argument("--size", choices=tuple(SIZES), default="1.5B")
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=list(METHODS))
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32, help="of a batch, which is one sequence")
    parser.add_argument("--activations", choices=("memory", "disk"), default="memory")
    parser.add_argument("--into", type=float, default=5.0, help="seconds into a block at which a process is killed")
    parser.add_argument("--rows", type=Path, help="where rows are appended; methods that are there are not done again")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", choices=tuple(METHODS), help=argparse.SUPPRESS)
    parser.add_argument("--to", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--base", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--make", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        make(args.folder / "dense", args.size)
    elif args.one is not None:
        one(args)
    else:
        measured(args)


def measured(args: argparse.Namespace) -> None:
    """All methods, and what came of them."""
    known = args.rows.read_text().splitlines() if args.rows and args.rows.exists() else []
    rows: list[dict[str, Any]] = [json.loads(line) for line in known]
    if not (args.folder / "dense").exists():
        subprocess.run(
            [sys.executable, __file__, "--folder", str(args.folder), "--size", args.size, "--make"], check=True
        )
    files = sorted((args.folder / "dense").glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    source = digests(args.folder / "dense")
    for method in args.methods:
        if method not in {row["method"] for row in rows}:
            rows.append(compare(args, method))
            if args.rows is not None:
                with args.rows.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    if digests(args.folder / "dense") != source:
        raise SystemExit("the source was changed")
    s = SIZES[args.size]
    head = HEAD.format(
        command=f"python benchmarks/sparse_streaming.py {' '.join(sys.argv[1:])}",
        machine=machine(),
        params=sum(_count(shape) for shard in _shards(s) for shape in shard.values()),
        files=len(files),
        size=size,
        batches=args.batches,
        tokens=args.tokens,
        poll=POLL_S * 1000,
        **s,
    )
    text = head + table(rows, size) + TAIL.format(remarks=remarks(rows))
    print(text)
    if args.out is not None:
        args.out.write_text(text)
    shutil.rmtree(args.folder)


def _count(shape: Sequence[int]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total


if __name__ == "__main__":
    main()
