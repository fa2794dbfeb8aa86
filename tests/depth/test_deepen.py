"""Blocks and layers that compute the identity come in, and train."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.errors import PlanError
from secateur.examples import SimpleNet
from support.blocks import Mixing, PostNorm, SmallResNet, Stack

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def equal(a: nn.Module, b: nn.Module, x: Tensor) -> bool:
    """Equal to 1e-5 of the outputs' scale."""
    with torch.no_grad():
        first, second = a.eval()(x), b.eval()(x)
    return float((first - second).abs().max()) <= 1e-5 * float(first.abs().max())


def learns(model: nn.Module, name: str, x: Tensor) -> bool:
    """Whether one step of training changes a part."""
    part = model.get_submodule(name)
    before = [p.clone() for p in part.parameters()]
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
    model(x).square().mean().backward()
    optimizer.step()
    model.eval()
    return any(not torch.equal(p, q) for p, q in zip(part.parameters(), before, strict=True))


def test_residual_blocks_in_a_list() -> None:
    model = Stack()
    result = sc.deepen(model, "blocks.1", X)
    assert equal(model, result.model, X)
    assert [block.index for block in result.model.blocks] == [0, 1, 2, 3, 4]
    assert result.model.depth == 5  # or the last one would never run
    new = result.model.blocks[2]
    assert not new.outer.weight.any()
    assert torch.equal(new.inner.weight, model.blocks[1].inner.weight)
    assert result.proof.max_difference <= 1e-5 * result.proof.scale
    assert "1 came in, each the identity at first, after blocks.1." in " ".join(str(result).split())
    assert learns(result.model, "blocks.2", X)


def test_several_at_once() -> None:
    model = Stack()
    result = sc.deepen(model, ["blocks.0", "blocks.3"], X, times=2)
    assert result.model.depth == len(result.model.blocks) == 8
    assert equal(model, result.model, X)


def test_blocks_of_a_resnet() -> None:
    model, x = SmallResNet().eval(), torch.randn(2, 3, 8, 8)
    result = sc.deepen(model, "stage.2", x)
    assert equal(model, result.model, x)
    assert len(result.model.stage) == 4
    assert not result.model.stage[3].bn2.weight.any()
    assert result.model.stage[3].bn1.weight.all()
    assert learns(result.model, "stage.3", x)


def test_after_a_relu_comes_a_convolution_and_a_relu() -> None:
    model, x = SmallResNet().eval(), torch.randn(2, 3, 8, 8)
    result = sc.deepen(model, "stem.2", x)
    assert str(result.model.stem[3]).splitlines()[1:3] == [
        "  (0): Conv2d(8, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))",
        "  (1): ReLU()",
    ]
    assert equal(model, result.model, x)
    assert learns(result.model, "stem.3", x)


def test_before_a_relu_comes_a_relu_and_a_layer() -> None:
    model, x = SmallResNet().eval(), torch.randn(2, 3, 8, 8)
    result = sc.deepen(model, "stem.1", x)
    assert [type(part).__name__ for part in result.model.stem[2]] == ["ReLU", "Conv2d"]
    assert equal(model, result.model, x)


@pytest.mark.parametrize("name", ["conv1", "conv2", "fc1", "fc2"])
def test_layers_that_forward_calls_by_name(name: str) -> None:
    model, x = SimpleNet().eval(), torch.randn(4, 1, 10, 10)
    result = sc.deepen(model, name, x, times=2)
    kind = type(model.get_submodule(name)).__name__
    parts = [type(part).__name__ for part in result.model.get_submodule(name).modules()][1:]
    assert parts == [kind, *["Sequential", "ReLU", kind] * 2]
    assert equal(model, result.model, x)
    assert learns(result.model, f"{name}.1", x)


def test_a_list_of_layers_whose_relu_stands_in_forward() -> None:
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 8), nn.Linear(8, 8)])

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = F.relu(layer(x))
            return x

    result = sc.deepen(Layers(), "layers.0", X)
    assert [type(layer).__name__ for layer in result.model.layers] == ["Linear"] * 3


class Fixed(nn.Module):
    """Its ``forward`` knows how many blocks there are."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Mixing() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for k in range(2):
            x = self.blocks[k](x)
        return x


@pytest.mark.parametrize(
    ("model", "after", "x", "why"),
    [
        (nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)), "0", torch.randn(5, 8), "differs"),
        (nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)), "1", torch.randn(5, 8), "differs"),
        (nn.Sequential(nn.Linear(8, 8), nn.Tanh()), "0", torch.randn(5, 8), "differs"),
        (SmallResNet(), "stem.0", torch.randn(2, 3, 8, 8), "differs"),
        (SimpleNet(), "fc3", torch.randn(2, 1, 10, 10), "differs"),
        (nn.Sequential(PostNorm(), PostNorm()), "0", torch.randn(5, 8), "no parameters at zero make it the identity"),
        (Fixed(), "blocks.1", torch.randn(5, 8), "passes over blocks.2"),
        (nn.Sequential(nn.Linear(8, 8), nn.ReLU()), "2", torch.randn(5, 8), "no module '2'"),
        (nn.Sequential(nn.Linear(8, 8), nn.ReLU()), "", torch.randn(5, 8), "no module ''"),
        (nn.Sequential(nn.Linear(8, 8), nn.ReLU()), [], torch.randn(5, 8), "name the modules"),
        (nn.Sequential(nn.ReLU()), "0", torch.randn(5, 8), "no linear layer or convolution before it"),
    ],
)
def test_what_is_refused(model: nn.Module, after: str, x: Tensor, why: str) -> None:
    with pytest.raises(PlanError, match=why):
        sc.deepen(model.eval(), after, x)


def test_what_is_nowhere_negative_only_by_chance_is_refused() -> None:
    x = torch.rand(5, 8)
    model = nn.Sequential(nn.Identity(), nn.Linear(8, 8, bias=False), nn.Flatten())
    nn.init.eye_(model[1].weight)
    with pytest.raises((PlanError, sc.SecateurError), match="differs"):
        sc.deepen(model, "2", x)


@pytest.mark.parametrize("times", [0, -1, 1.5, 2000])
def test_misuse(times: int) -> None:
    with pytest.raises(PlanError, match="times="):
        sc.deepen(Stack(), "blocks.0", X, times=times)


def test_training_mode_and_frozen_parameters_stay() -> None:
    model = Stack().train()
    for p in model.blocks[1].inner.parameters():
        p.requires_grad_(False)
    new = sc.deepen(model, "blocks.1", X).model.blocks[2]
    assert new.training
    assert not new.inner.weight.requires_grad
    assert new.outer.weight.requires_grad
