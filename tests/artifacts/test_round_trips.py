"""Every architecture comes back with the same output bits, in a fresh process, from a directory and from one file."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import secateur as sc
from secateur.tracing.running import tensors_in
from test_architectures import MODELS, image

LOADER = str(Path(__file__).parents[1] / "support" / "loads_results.py")
SMALL = ("simplenet", "lenet", "mlp", "unet", "bert", "llama_gqa")
LARGE = (
    ("vgg11_bn", "resnet18", "resnet50", "densenet121"),
    ("mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "resnext50_32x4d"),
    ("shufflenet_v2_x0_5", "vit_tiny_patch16_224", "swin_tiny"),
)


def kept_for_later(name: str, build: Callable[[], nn.Module], inputs: Any, folder: Path, held: Any) -> bool:
    """Prune and save one model in both forms, and note what it gives; whether its class was rewritten."""
    torch.manual_seed(0)
    result = sc.prune(build().eval(), inputs(2), budget=sc.Budget(macs=0.5))
    sc.save(result, folder / name)
    sc.save(result, folder / f"{name}.safetensors")
    given = inputs(3)
    named: dict[str, Tensor] = given if isinstance(given, dict) else {"x": given}
    with torch.no_grad():
        outputs = tensors_in(result.model.eval()(**given) if isinstance(given, dict) else result.model.eval()(given))
    held |= {f"{name}|input|{key}": t for key, t in named.items()}
    held |= {f"{name}|output|{k}": t.contiguous().clone() for k, t in enumerate(outputs)}
    return result.rewritten is not None


def come_back(folder: Path, rewritten: dict[str, bool], held: dict[str, Tensor]) -> None:
    """Load everything in fresh processes: what keeps its class in one, the others in one that can't import theirs."""
    save_file(held, folder / "expected.safetensors")
    for graphs in {*rewritten.values()}:
        names = [name for name, graph in rewritten.items() if graph is graphs]
        results = [
            {"name": name, "path": str(folder / f"{name}{ending}"), "rewritten": graphs}
            for name in names
            for ending in ("", ".safetensors")
        ]
        (folder / "results.json").write_text(json.dumps(results))
        command = [sys.executable, "-W", "error", LOADER, str(folder), *(["blocked"] if graphs else [])]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600, env=os.environ.copy())
        assert done.returncode == 0, done.stderr[-3000:]
        same = [json.loads(line) for line in done.stdout.splitlines()]
        assert [path for path, _ in same] == [result["path"] for result in results]
        assert [path for path, equal in same if not equal] == []


def round_trip(names: Iterable[str], folder: Path) -> None:
    held: dict[str, Tensor] = {}
    rewritten = {name: kept_for_later(name, *MODELS[name], folder, held) for name in names}
    come_back(folder, rewritten, held)


@pytest.mark.slow
def test_small_architectures(tmp_path: Path) -> None:
    round_trip(SMALL, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("names", LARGE, ids=lambda names: names[0])
def test_large_architectures(names: tuple[str, ...], tmp_path: Path) -> None:
    round_trip(names, tmp_path)


def test_no_architecture_is_left_out() -> None:
    assert sorted(name for group in (SMALL, *LARGE) for name in group) == sorted(MODELS)


@pytest.mark.shared
def test_the_cifar_resnet(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It pads shortcuts; loaded here with another instance, since its source is not ours to import elsewhere."""
    from test_architectures import _module

    loader = _module(shared / "data" / "load.py")
    held: dict[str, Tensor] = {}
    graph = kept_for_later("resnet56", lambda: loader.cifar_resnet(56), image(3, 32), tmp_path, held)
    x = held["resnet56|input|x"]
    for path in (tmp_path / "resnet56", tmp_path / "resnet56.safetensors"):
        loaded = sc.load(path, model=None if graph else loader.cifar_resnet(56))
        with torch.no_grad():
            assert torch.equal(loaded(x), held["resnet56|output|0"])


# Everyday code with sizes in its forward, of which the class is replaced.
NET = """
import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 16, 3, padding=1)
        self.bn = nn.BatchNorm2d(16)
        self.fc1, self.fc2 = nn.Linear(16 * 16, 20), nn.Linear(20, 4)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        x = self.bn(self.conv2(x)).sigmoid().view(-1, 16 * 16)
        return self.fc2(F.dropout(F.gelu(self.fc1(x)), 0.1, training=self.training))


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = (f(x).view(b, t, 4, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        a = torch.softmax(q @ k.transpose(-1, -2) / 2.0, -1) @ v
        return self.o(a.transpose(1, 2).reshape(b, t, 16))
"""


@pytest.mark.slow
def test_without_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes from a file that is imported, pruned, saved and deleted."""
    (tmp_path / "users_net.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("users_net")
    held: dict[str, Tensor] = {}
    cases: dict[str, tuple[Any, Any]] = {
        "net": (module.Net, lambda batch: torch.randn(batch, 1, 6, 6)),
        "heads": (module.Heads, lambda batch: torch.randn(batch, 5, 16)),
    }
    rewritten = {name: kept_for_later(name, *case, tmp_path, held) for name, case in cases.items()}
    assert all(rewritten.values())
    (tmp_path / "users_net.py").unlink()
    monkeypatch.delitem(sys.modules, "users_net")
    come_back(tmp_path, rewritten, held)
