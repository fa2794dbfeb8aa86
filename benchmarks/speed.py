"""Must show: seconds to trace, score, plan and cut, on one core; and the tracing of a 7B model on the meta device.

    python benchmarks/speed.py

Each model is done in a fresh process, once (the first call, with all its warming up) and once more. Random weights.
"""

import itertools
import multiprocessing
import resource
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import secateur as sc


def resnet50() -> tuple[nn.Module, Any]:
    """One image of 224 pixels."""
    from torchvision.models import resnet50 as build

    return build(weights=None), torch.randn(1, 3, 224, 224)


def llama(
    layers: int, width: int, inner: int, heads: int, groups: int, vocabulary: int, device: str
) -> tuple[nn.Module, Any]:
    """64 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        num_hidden_layers=layers, hidden_size=width, intermediate_size=inner, num_attention_heads=heads,
        num_key_value_heads=groups, vocab_size=vocabulary, use_cache=False,
    )  # fmt: skip
    with torch.device(device):
        return LlamaForCausalLM(config), {"input_ids": torch.zeros(1, 64, dtype=torch.long)}


def llama12() -> tuple[nn.Module, Any]:
    """12 layers, 768 wide, 12 heads in 4 groups."""
    return llama(12, 768, 2048, 12, 4, 8000, "cpu")


def llama7b() -> tuple[nn.Module, Any]:
    """Shapes only: the weights are on the meta device."""
    return llama(32, 4096, 11008, 32, 32, 32000, "meta")


def four_stages(build: Callable[[], tuple[nn.Module, Any]]) -> dict[str, float]:
    """Seconds of each stage."""
    model, example = build()
    model.eval()
    marks = [time.perf_counter()]
    graph = sc.trace(model, example)
    marks.append(time.perf_counter())
    if next(model.parameters()).device.type != "meta":
        scores = sc.score(model, graph)
        marks.append(time.perf_counter())
        plan = sc.plan(graph, scores, budget=sc.Budget(macs=0.5))
        marks.append(time.perf_counter())
        plan.apply(model)
        marks.append(time.perf_counter())
    return dict(zip(("trace", "score", "plan", "apply"), (b - a for a, b in itertools.pairwise(marks)), strict=False))


def report(name: str) -> None:
    """Both calls of one model, in this process."""
    torch.set_num_threads(1)
    for call in ("first", "second"):
        stages = four_stages(globals()[name])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # kilobytes on Linux
        shown = " | ".join(f"{stages[s]:.3f}" if s in stages else "-" for s in ("trace", "score", "plan", "apply"))
        print(f"| {name} | {call} | {shown} | {sum(stages.values()):.3f} | {peak:.2f} |", flush=True)


if __name__ == "__main__":
    print("| model | call | trace s | score s | plan s | apply s | together s | peak memory GB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    context = multiprocessing.get_context("spawn")
    for name in ("resnet50", "llama12", "llama7b"):
        process = context.Process(target=report, args=(name,))
        process.start()
        process.join()
