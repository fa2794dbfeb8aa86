"""Hollow tensors give the shapes and dtypes that torch gives, and never a value."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.modules import Walk
from secateur.tracing.hollow import Hollow, NeedsValues, hollow
from secateur.tracing.rules.registry import Op
from secateur.tracing.running import run
from secateur.tracing.tracer import Tracer

X = torch.randn(2, 6, 9, 9)
ROWS = torch.randn(2, 5, 12)

CASES = {
    "conv": lambda x: F.conv2d(x, torch.randn(8, 3, 3, 2), stride=(2, 1), padding=1, dilation=2, groups=2),
    "conv transposed": lambda x: F.conv_transpose2d(x, torch.randn(6, 4, 3, 3), stride=2, output_padding=1, groups=2),
    "batch norm": lambda x: F.batch_norm(x, torch.zeros(6), torch.ones(6)),
    "group norm": lambda x: F.group_norm(x, 3),
    "pools": lambda x: F.avg_pool2d(F.max_pool2d(x, 3, 2, ceil_mode=True), 2),
    "adaptive pool": lambda x: F.adaptive_avg_pool2d(x, (3, 2)),
    "pools that round up": lambda x: F.avg_pool2d(F.max_pool2d(x, (3, 2), (2, 3), 1, 1, True), 2, 3, 1, True),
    "pools of one volume": lambda x: F.avg_pool3d(F.max_pool3d(x, 2), (1, 2, 2)),
    "a pool of one image": lambda x: F.avg_pool2d(F.max_pool2d(x[0], 2), 2),
    "positions of a pool": lambda x: F.max_pool2d(x, 2, return_indices=True)[1],
    "pools of volumes": lambda x: F.avg_pool3d(F.max_pool3d(x[:, None], 3, padding=1), 2, (1, 2, 3)),
    "gather": lambda x: x.gather(1, torch.zeros(2, 3, 9, 9, dtype=torch.int64)),
    "index_select": lambda x: x.index_select(-1, torch.tensor([0, 2])),
    "neighbouring indices": lambda x: x[:, torch.tensor([0, 1, 2]), torch.tensor([[1], [2]])],
    "separate indices": lambda x: x[torch.tensor([0, 1]), :, torch.tensor([1, 2])],
    "stack in the middle": lambda x: torch.stack([x, x, x], -2),
    "prelu": lambda x: F.prelu(x, torch.ones(6)),
    "vector norm": lambda x: torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True),
    "resize": lambda x: F.interpolate(x, scale_factor=1.5, mode="bilinear"),
    "mean and keepdim": lambda x: x.mean((2, 3), keepdim=True) + x.sum(1, keepdim=True) - x.amax((0, 1)),
    "comparison": lambda x: (x > 0).to(torch.int32) * 2,
    "mixed dtypes": lambda x: x.double() * x + torch.arange(9),
    "sum of a mask": lambda x: (x > 0).sum((2, 3)),
    "where": lambda x: torch.where(x > 0, x, torch.tensor(0.0, dtype=torch.float64)),
    "cat of dtypes": lambda x: torch.cat([x, x.half()], 1),
    "stack and split": lambda x: torch.stack(x.split([2, 4], 1)[0].unbind(1), 0),
    "in place": lambda x: x.clone().mul_(2).relu_()[:, ::2].transpose_(0, 1),
    "flat": lambda x: x.permute(0, 2, 3, 1).reshape(-1, 6).flatten(),
    "fft": lambda x: torch.fft.rfft2(x).abs(),
}


@pytest.mark.parametrize("case", CASES)
def test_shapes_and_dtypes_are_those_of_torch(case: str) -> None:
    class Case(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(2))

        def forward(self, x: Tensor) -> Tensor:
            return CASES[case](x)

    seen = run(Walk(Case()), (X,), {}, "hollow").tracer
    expected = CASES[case](X)
    last = [t for t in seen._alive if t.dim() == expected.dim()][-1]
    assert (last.shape, last.dtype) == (expected.shape, expected.dtype)


def test_a_layer_norm_and_its_side_results() -> None:
    kernel = torch.ops.aten.native_layer_norm.default
    keeper = Hollow()
    args = (keeper.like(ROWS), [12], None, None, 1e-5)
    made = keeper.compute(Op(Tracer(), kernel, args, {}), args, {})
    real = kernel(ROWS, [12], None, None, 1e-5)
    assert [t.shape for t in made] == [t.shape for t in real]


def test_views_of_hollow_tensors_are_hollow_and_take_no_memory() -> None:
    big = hollow((1 << 20, 1 << 20), torch.float32)
    assert big.untyped_storage().nbytes() == 4
    assert big.view(1 << 10, 1 << 30).transpose(0, 1).reshape(-1).shape == (1 << 40,)


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: x.detach().numpy(),
        lambda x: bool((x > 0).all()),
        lambda x: x[x > 0],
        lambda x: torch.equal(x, x),
        lambda x: torch.zeros(x.shape).copy_(x),
    ],
    ids=["item", "tolist", "numpy", "bool", "mask", "equal", "overwrites a value"],
)
def test_what_needs_a_value_is_refused(read: object) -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6))

        def forward(self, x: Tensor) -> Tensor:
            read(x * 2)  # type: ignore[operator]
            return x * self.weight[:, None, None]

    with pytest.raises(NeedsValues):
        run(Walk(Reads()), (X,), {}, "hollow")
    assert sc.trace(Reads(), X).frozen  # the trace goes on with tensors that know more


def test_values_that_the_code_makes_itself_can_be_read() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Conv2d(6, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            rates = torch.linspace(0, 1, 3).tolist()
            return self.head(self.inner(x) * rates[1])

    assert run(Walk(Reads()), (X,), {}, "hollow").tracer.unknown == []
    assert list(sc.trace(Reads(), X).axes) == ["inner.weight:0"]


def test_layers_under_a_transform_of_functions_are_taken_apart() -> None:
    class Ensemble(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Parameter(torch.randn(3, 8, 5)), nn.Parameter(torch.randn(3, 4, 8))

        def forward(self, x: Tensor) -> Tensor:
            return torch.func.vmap(lambda a, b: F.linear(F.linear(x, a).relu(), b))(self.first, self.last)

    graph = sc.trace(Ensemble(), torch.randn(2, 5))
    assert {name: info.size for name, info in graph.axes.items()} == {"first:1": 8}
    assert sc.prune(Ensemble(), torch.randn(2, 5), keep=0.5).proof.status == "proved"


def test_layers_under_autograd_are_taken_apart() -> None:
    class Forces(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last, self.other = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(8, 6)

        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                hidden = self.first(x).tanh()
                energy = (self.last if hidden.requires_grad else self.other)(hidden).sum()
                return torch.autograd.grad(energy, x)[0]

    result = sc.prune(Forces(), torch.randn(2, 5), keep=0.5)
    assert result.plan.sizes == {"first.weight:0": 4, "last.weight:0": 3}
    assert len(result.graph.macs) == 4  # two products there, two back
