"""Networks that people have: widened, they compute the same and train, and merged again they are what they were."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.examples import SimpleNet
from secateur.inputs import as_call
from secateur.tracing.running import tensors_in
from support.networks import llama

pytestmark = pytest.mark.slow


def resnet18() -> tuple[nn.Module, Any]:
    return pytest.importorskip("torchvision").models.resnet18(num_classes=10), torch.randn(2, 3, 32, 32)


def vit() -> tuple[nn.Module, Any]:
    timm = pytest.importorskip("timm")
    return timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10), torch.randn(2, 3, 32, 32)


def gqa_llama() -> tuple[nn.Module, Any]:
    pytest.importorskip("transformers")
    return llama(), {"input_ids": torch.randint(64, (2, 7))}


def simple_net() -> tuple[nn.Module, Any]:
    return SimpleNet(), torch.randn(2, 1, 10, 10)


def first(model: nn.Module, x: Any, dtype: torch.dtype = torch.float64) -> Tensor:
    """The model's first output in float64."""
    args, kwargs = as_call(x, None)
    args = tuple(a.to(dtype) if a.is_floating_point() else a for a in args)
    return tensors_in(copy.deepcopy(model).eval().to(dtype)(*args, **kwargs))[0].detach()


@pytest.mark.parametrize("make", [simple_net, resnet18, vit, gqa_llama])
def test_widened_trained_and_merged_again(make: Callable[[], tuple[nn.Module, Any]]) -> None:
    torch.manual_seed(0)
    model, x = make()
    model.eval()
    graph = sc.trace(model, x)
    stuck = {n for n, info in graph.axes.items() if info.normalising}
    stuck |= {n for tie in graph.ties if stuck & set(tie) for n in tie}
    widths = {n: 2 * a.size if n in stuck else a.size + max(a.size // 4, 1) for n, a in graph.axes.items()}
    for tie in graph.ties:
        widths |= {n: 2 * graph.axes[n].size for n in tie}
    result = sc.grow(model, x, widths, noise=0.2)
    reference = first(model, x)
    size = reference.abs().max()
    assert (first(result.model, x) - reference).abs().max() < 1e-5 * size
    assert {row["name"]: row["after"] for row in result.axes} == widths

    back = sc.merge_copies(result)
    assert (first(back, x) - reference).abs().max() < 1e-5 * size
    before, after = dict(model.named_parameters()), dict(back.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[n], after[n], atol=1e-5) for n in before)

    optimizer = torch.optim.AdamW(result.model.parameters(), lr=1e-3)
    args, kwargs = as_call(x, None)
    losses: list[Tensor] = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = tensors_in(result.model.train()(*args, **kwargs))[0].square().mean()
        loss.backward()
        losses.append(loss.detach())
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in result.model.parameters())
        optimizer.step()
    assert losses[0] != losses[1]
