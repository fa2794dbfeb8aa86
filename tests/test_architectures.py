"""The models that work on delivery: each pruned to half its MACs, proved, run at two batch sizes, trained, saved,
reloaded.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import secateur as sc
from secateur.examples import SimpleNet
from secateur.tracing.running import tensors_in


class LeNet(nn.Module):
    """LeCun et al. 1998, with tanh and max pooling; input (N, 1, 28, 28)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.tanh(self.conv1(x)), 2)
        x = F.max_pool2d(torch.tanh(self.conv2(x)), 2)
        return self.fc3(torch.tanh(self.fc2(torch.tanh(self.fc1(torch.flatten(x, 1))))))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 48), nn.BatchNorm1d(48), nn.GELU(), nn.Linear(48, 5)
    )


class UNet(nn.Module):
    """Two levels with skips by concatenation; input (N, 3, 32, 32)."""

    def __init__(self, c: int = 16) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = self.block(3, c), self.block(c, 2 * c), self.block(2 * c, 4 * c)
        self.up2, self.fuse2 = nn.ConvTranspose2d(4 * c, 2 * c, 2, 2), self.block(4 * c, 2 * c)
        self.up1, self.fuse1 = nn.ConvTranspose2d(2 * c, c, 2, 2), self.block(2 * c, c)
        self.out = nn.Conv2d(c, 2, 1)

    @staticmethod
    def block(i: int, o: int) -> nn.Module:
        half = [nn.Conv2d(o, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU()]
        return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(), *half)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        y = self.up2(self.bottom(F.max_pool2d(b, 2)))
        y = self.up1(self.fuse2(torch.cat([y, b], 1)))
        return self.out(self.fuse1(torch.cat([y, a], 1)))


def image(channels: int, size: int) -> Callable[[int], Any]:
    return lambda batch: torch.randn(batch, channels, size, size)


def tokens(batch: int) -> dict[str, Tensor]:
    ids = torch.randint(3, 128, (batch, 12))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def torchvision(name: str, **kwargs: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(importlib.import_module("torchvision").models, name)(weights=None, **kwargs)


def timm(name: str, **kwargs: Any) -> Callable[[], nn.Module]:
    return lambda: importlib.import_module("timm").create_model(name, pretrained=False, **kwargs)


def transformers(model: str, config: str, **kwargs: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        library = importlib.import_module("transformers")
        return getattr(library, model)(getattr(library, config)(use_cache=False, **kwargs))

    return build


SMALL = {"vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 128, "max_position_embeddings": 64}  # fmt: skip

MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Any]]] = {
    "simplenet": (SimpleNet, image(1, 10)),
    "lenet": (LeNet, image(1, 28)),
    "mlp": (mlp, lambda batch: torch.randn(batch, 20)),
    "vgg11_bn": (torchvision("vgg11_bn", num_classes=10), image(3, 64)),
    "resnet18": (torchvision("resnet18"), image(3, 64)),
    "resnet50": (torchvision("resnet50"), image(3, 64)),
    "densenet121": (torchvision("densenet121"), image(3, 64)),
    "mobilenet_v2": (torchvision("mobilenet_v2"), image(3, 64)),
    "mobilenet_v3_small": (torchvision("mobilenet_v3_small"), image(3, 64)),
    "efficientnet_b0": (torchvision("efficientnet_b0"), image(3, 64)),
    "resnext50_32x4d": (torchvision("resnext50_32x4d"), image(3, 64)),
    "shufflenet_v2_x0_5": (torchvision("shufflenet_v2_x0_5"), image(3, 64)),
    "vit_tiny_patch16_224": (timm("vit_tiny_patch16_224", img_size=64), image(3, 64)),
    "swin_tiny": (timm("swin_tiny_patch4_window7_224", img_size=64, window_size=4), image(3, 64)),
    "bert": (transformers("BertForSequenceClassification", "BertConfig", **SMALL), tokens),
    "llama_gqa": (
        transformers("LlamaForCausalLM", "LlamaConfig", num_key_value_heads=2, pad_token_id=0, **SMALL),
        tokens,
    ),
    "unet": (UNet, image(3, 32)),
}


@pytest.mark.parametrize("name", MODELS)
def test_half_the_macs(name: str, tmp_path: Path) -> None:
    build, inputs = MODELS[name]
    live(build, inputs, tmp_path)


def test_half_the_macs_of_the_trained_cifar_resnet(shared: Path, tmp_path: Path) -> None:
    """Its shortcut pads channels with zeros."""
    loader = _module(shared / "data" / "load.py")
    live(lambda: loader.cifar_resnet(56), image(3, 32), tmp_path)


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("shared_data", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def live(build: Callable[[], nn.Module], inputs: Callable[[int], Any], folder: Path) -> None:
    """The life of a pruned model, from proof to reloading."""
    model = build().eval()
    example = inputs(2)
    result = sc.prune(model, example, budget=sc.Budget(macs=0.5))
    small = result.model
    _check_costs(model, result, example)
    assert result.proof.status == "proved"
    assert result.proof.dtype == "float64"
    assert result.proof.max_difference <= 1e-5 * result.proof.scale
    for batch in (1, 3):
        shapes = [o.shape for o in _call(small, inputs(batch))]
        assert shapes == [o.shape for o in _call(model, inputs(batch))]
    _train_one_step(small, inputs(4))
    sc.save(result, folder / "saved")
    loaded = sc.load(folder / "saved", model=None if result.rewritten else build())
    fresh = inputs(3)
    for a, b in zip(_call(small.eval(), fresh), _call(loaded, fresh), strict=True):
        assert torch.equal(a, b)


def _call(model: nn.Module, inputs: Any) -> list[Tensor]:
    with torch.no_grad():
        return tensors_in(model(**inputs) if isinstance(inputs, dict) else model(inputs))


def _check_costs(model: nn.Module, result: Any, example: Any) -> None:
    """Half the MACs within a point, by the closed form and by torch's counter, and as many parameters as planned."""
    planned, dense = result.graph.cost(result.plan.sizes), result.graph.cost()
    assert 0.49 <= planned["macs"] / dense["macs"] <= 0.5
    assert sum(p.numel() for p in result.model.parameters()) == planned["params"]
    assert macs(model, example) == dense["macs"]
    assert macs(result.model, example) == planned["macs"]


def macs(model: nn.Module, inputs: Any) -> int:
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        _call(model, inputs)
    return counter.get_total_flops() // 2


def _train_one_step(model: nn.Module, inputs: Any) -> None:
    """Every parameter gets a gradient, and the step changes the model."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    out = tensors_in(model(**inputs) if isinstance(inputs, dict) else model(inputs))
    sum(o.square().mean() for o in out).backward()  # type: ignore[union-attr]
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert not [n for n in without if "pooler" not in n], without
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    optimizer.step()
