"""Networks with planted backdoors, trained by us, and what `sc.disinfect` makes of them: docs/disinfect.md.

    python benchmarks/backdoors.py --shared ../shared --networks networks --out backdoors.jsonl
    python benchmarks/backdoors.py --out backdoors.jsonl --table

For each seed and attack: 5 % of the training images carry the trigger and the label 0 (Gu et al. 2017, "BadNets",
arXiv:1708.06733: a patch; Chen et al. 2017, arXiv:1712.05526: a blend of 20 % with noise). The defence has 500 images
of the training split that were not poisoned; whatever is chosen is chosen on a part of these. The test split is for
the figures alone. A network that is not in ``--networks`` yet is trained: Fashion-MNIST on a small residual network
(two minutes of a core), CIFAR-10 on ResNet-20 (a GPU is used where there is one).
"""

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.disinfecting import attack_success
from secateur.disinfecting.clean import Clean, accuracy

TARGET, CLEAN, POISONED, OPACITY = 0, 500, 0.05, 0.2
ATTACKS = ("patch", "blended")
METHODS = ("none", "random", "fine-pruning", "anp", "clp")
CHECKER = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])


class Small(nn.Module):
    """A residual network for 28 x 28 images: three blocks of 16, 32 and 64 channels, 75,002 parameters."""

    def __init__(self, block: type[nn.Module]) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(block(16, 16, 1))
        self.layer2 = nn.Sequential(block(16, 32, 2))
        self.layer3 = nn.Sequential(block(32, 64, 2))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


@dataclass(frozen=True)
class Task:
    """A data set and its triggers; images are in [0, 1] until `ready` makes inputs of them."""

    name: str
    load: ModuleType
    patch: Tensor
    noise: Tensor

    def images(self, split: str) -> tuple[Tensor, Tensor]:
        """All images of a split in [0, 1], and their labels."""
        x, y = self.load.fashion_mnist(split) if self.name == "fashion" else self.load.cifar10(split)
        return (x[:, None] if x.dim() == 3 else x).float() / 255, y

    def stamp(self, x: Tensor, attack: str) -> Tensor:
        """Images that carry the trigger."""
        if attack == "blended":
            return ((1 - OPACITY) * x + OPACITY * self.noise.to(x)).mul(255).round() / 255
        x, end = x.clone(), x.shape[-1] - 1
        x[..., end - 3 : end, end - 3 : end] = self.patch.to(x)
        return x

    def ready(self, x: Tensor) -> Tensor:
        """Images as the network takes them."""
        return x if self.name == "fashion" else self.load.normalise((x * 255).round())

    def network(self) -> nn.Module:
        return Small(self.load._Block) if self.name == "fashion" else self.load.CifarResNet(20)

    def poisoned(self, seed: int, count: int) -> Tensor:
        """Rows of the training split that carry the trigger."""
        generator = torch.Generator().manual_seed(seed if self.name == "fashion" else 100 + seed)
        return torch.randperm(count, generator=generator)[: int(POISONED * count)]


def make_task(name: str, shared: Path, triggers: Path | None) -> Task:
    """The data set of that name, with its triggers: drawn, or read from a file with ``patch`` and ``blended_noise``."""
    spec = importlib.util.spec_from_file_location("load", shared / "data" / "load.py")
    assert spec is not None
    assert spec.loader is not None
    load = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(load)
    size = (1, 28, 28) if name == "fashion" else (3, 32, 32)
    noise = torch.rand(size, generator=torch.Generator().manual_seed(1234))
    patch = CHECKER
    if triggers is not None:
        found = load_file(triggers)
        patch, noise = (found[key].float() / (255 if found[key].max() > 1 else 1) for key in ("patch", "blended_noise"))
    return Task(name, load, patch, noise)


def train(task: Task, attack: str, seed: int) -> nn.Module:
    """A network trained on data of which 5 % are poisoned ("clean": none), with SGD and one cycle of the rate."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(seed)
    x, y = task.images("train")
    generator, epochs, batch = torch.Generator().manual_seed(seed), 4 if task.name == "fashion" else 30, 128
    if attack != "clean":
        rows = task.poisoned(seed, len(x))
        x[rows], y[rows] = task.stamp(x[rows], attack), TARGET
    model = task.network().to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=epochs * (len(x) // batch))
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator)[: len(x) // batch * batch].split(batch):
            optimizer.zero_grad()
            F.cross_entropy(model(task.ready(x[rows]).to(device)), y[rows].to(device)).backward()
            optimizer.step()
            cycle.step()
    return model.cpu().eval()


def trained(task: Task, attack: str, seed: int, folder: Path) -> nn.Module:
    """The network: read, or else trained now and kept. Without a backdoor and of CIFAR-10: ResNet-20, ResNet-56."""
    if task.name == "cifar" and attack == "clean":
        return task.load.cifar_resnet((20, 56)[seed])
    file = folder / f"{task.name}_{attack}_{seed}.safetensors"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        save_file(train(task, attack, seed).state_dict(), file)
    model = task.network()
    model.load_state_dict(load_file(file))
    return model.eval()


def defend(
    task: Task, attack: str, seed: int, model: nn.Module, test: Clean, asked: Iterable[str], device: str
) -> Iterable[dict[str, Any]]:
    """A row for the network as it is, for each method without and with the trigger that was found, and for "auto"."""
    x, y = task.images("train")
    fit = torch.ones(len(x), dtype=torch.bool)
    if attack != "clean":
        fit[task.poisoned(seed, len(x))] = False
    rows = fit.nonzero()[:, 0]
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(1000 + seed))[:CLEAN]]
    data = [(task.ready(x[rows]).to(device), y[rows].to(device))]

    def figures(network: nn.Module, method: str, **more: Any) -> dict[str, Any]:
        hit = attack_success(network, test, lambda _: stamped, TARGET)
        return {"data": task.name, "attack": attack, "seed": seed, "method": method,
                "accuracy": accuracy(network, test), "attack_success": hit, **more}  # fmt: skip

    images, labels = task.images("test")
    stamped = task.ready(task.stamp(images[labels != TARGET], "patch" if attack == "clean" else attack)).to(device)
    start = time.perf_counter()
    verdict = sc.find_backdoor(model, data, seed=seed)
    seconds = time.perf_counter() - start
    yield figures(model, "as trained", **cost(model, data[0][0][:1]), verdict=verdict.to_dict(), seconds=seconds)
    for method in asked:
        for find in (verdict,) if method == "auto" else (False, verdict):
            if attack == "clean" and method != "auto":
                continue
            start = time.perf_counter()
            done = sc.disinfect(model, data=data, method=method, find=find, seed=seed)  # pyright: ignore[reportArgumentType]
            more: dict[str, Any] = {
                "chosen": done.method,
                "found": bool(find),
                "removed": done.report["disinfected"]["removed"],
            }
            bare = figures(done.pruned.eval(), method)
            more |= {"untuned": [bare["accuracy"], bare["attack_success"]], "seconds": time.perf_counter() - start}
            yield figures(done.model, method, **cost(done.model, data[0][0][:1]), **more)


def cost(model: nn.Module, x: Tensor) -> dict[str, int]:
    """What a network weighs: parameters, multiply-accumulates of one image, and bytes of its weights as a file."""
    from safetensors.torch import save

    found = sc.trace(model, x).cost()
    return {"params": found["params"], "macs": found["macs"], "bytes": len(save(model.state_dict()))}


def table(file: Path) -> None:
    """Print means over seeds, with the least and the greatest, as Markdown."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    print("| data | attack | method | accuracy % | attack success % | before tuning | params | MACs | bytes |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    keys = dict.fromkeys((r["data"], r["attack"], r["method"], r.get("found")) for r in rows)
    for key in keys:
        same = [r for r in rows if (r["data"], r["attack"], r["method"], r.get("found")) == key]
        name = key[2] + {None: "", True: " + trigger search" if key[2] != "auto" else "", False: ""}[key[3]]
        before = [spread([r["untuned"][k] for r in same]) if "untuned" in same[0] else "" for k in (0, 1)]
        weighs = [f"{statistics.mean(r[k] for r in same):,.0f}" for k in ("params", "macs", "bytes")]
        cells = [spread([r[k] for r in same]) for k in ("accuracy", "attack_success")]
        print("|", " | ".join([key[0], key[1], name, *cells, " / ".join(filter(None, before)), *weighs]), "|")


def spread(shares: list[float]) -> str:
    """Mean (least to greatest), in percent."""
    low, mean, high = (100 * f(shares) for f in (min, statistics.mean, max))
    return f"{mean:.1f}" if len(shares) == 1 else f"{mean:.1f} ({low:.1f} to {high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("fashion", "cifar"), default="fashion")
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with data/load.py")
    parser.add_argument("--networks", type=Path, default=Path("networks"), help="folder of trained networks")
    parser.add_argument("--triggers", type=Path, help="safetensors file with patch and blended_noise")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--attacks", nargs="+", default=list(ATTACKS), help='"clean" for networks without a backdoor')
    parser.add_argument("--methods", nargs="*", default=[*METHODS, "auto"])
    parser.add_argument("--device", default="cpu", help="where the defence runs")
    parser.add_argument("--out", type=Path, default=Path("backdoors.jsonl"))
    parser.add_argument("--table", action="store_true", help="print the table of what --out holds")
    given = parser.parse_args()
    if given.table:
        return table(given.out)
    task = make_task(given.data, given.shared, given.triggers)
    images, labels = task.images("test")
    test = Clean(x=task.ready(images).to(given.device), y=labels.to(given.device))
    for seed in given.seeds:
        for attack in given.attacks:
            model = trained(task, attack, seed, given.networks).to(given.device)
            for row in defend(task, attack, seed, model, test, given.methods, given.device):
                with given.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    return None


if __name__ == "__main__":
    main()
