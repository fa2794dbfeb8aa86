"""Every use of a weight as a matrix product: rows @ matrix is the operation's output, whatever the operation."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.calibration.contraction import ELEMENTS, Contraction, sample
from secateur.calibration.watching import Key, Watch, running


class Uses(Watch):
    """Notes every use of a weight and its output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.found: dict[Key, tuple[Contraction, Tensor]] = {}

    def used(self, key: Key, number: int, found: Contraction, compute: Callable[[], Tensor]) -> Tensor:
        out = compute()
        self.found[key] = found, out
        return out


def uses(model: nn.Module, *args: Any) -> dict[Key, tuple[Contraction, Tensor]]:
    copy = running(model)
    watch = Uses(copy)
    with torch.no_grad(), watch:
        copy(*args)
    return watch.found


class Transposed(nn.Module):
    """A weight kept as (inputs, outputs), as in GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(5, 7)), nn.Parameter(torch.randn(7))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


class Experts(nn.Module):
    """A matrix for each of three experts."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 5, 7))

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(x, self.weight)


class Halves(nn.Module):
    """Two projections out of one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.weight.chunk(2)
        return nn.functional.linear(x, first) * nn.functional.linear(x, second)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 7), (4, 5)),
    "linear of sequences": (lambda: nn.Linear(5, 7, bias=False), (4, 6, 5)),
    "transposed": (Transposed, (4, 5)),
    "experts": (Experts, (3, 4, 5)),
    "halves": (Halves, (4, 5)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1, dilation=2), (2, 4, 11)),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0)), (2, 4, 9, 8)),
    "same": (lambda: nn.Conv2d(4, 6, 3, padding="same"), (2, 4, 5, 5)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2, dilation=2), (2, 4, 9, 8)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4, padding=1), (2, 4, 6, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 3, (1, 3, 2), padding=(0, 1, 1)), (2, 2, 4, 5, 4)),
}


@pytest.mark.parametrize("name", CASES)
def test_rows_times_the_matrix_is_the_output(name: str) -> None:
    torch.manual_seed(0)
    make, shape = CASES[name]
    found = uses(make(), torch.randn(shape))
    assert found
    for use, out in found.values():
        bias = 0 if use.bias is None else use.bias.reshape(use.groups if use.bias.numel() else 1, -1)
        rows, matrix = use.rows(), use.matrix()
        got = torch.einsum("rgk,gkn->rgn", rows, matrix) + bias
        torch.testing.assert_close(got, use.outputs(out), rtol=1e-4, atol=1e-5)
        assert rows.shape[0] == use.count()
        pick = torch.tensor([0, use.count() - 1])
        assert torch.equal(use.rows(pick), rows[pick])
        assert torch.equal(use.outputs(out, pick), use.outputs(out)[pick])


@pytest.mark.parametrize("name", CASES)
def test_a_matrix_that_is_put_is_the_parameter_from_then_on(name: str) -> None:
    torch.manual_seed(0)
    make, shape = CASES[name]
    model = make()
    ((use, _), *_) = uses(model, torch.randn(shape)).values()
    with torch.no_grad():
        new = torch.randn_like(use.matrix())
        use.put(new)
        assert torch.equal(use.matrix(), new)
    assert use.weight.untyped_storage().data_ptr() == model.weight.untyped_storage().data_ptr()


def test_both_halves_are_uses_of_one_parameter() -> None:
    assert list(uses(Halves(), torch.randn(4, 5))) == [("weight", 0), ("weight", 1)]


def test_products_of_activations_and_of_weights_alone_are_no_uses() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.randn(3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return (x @ x.T) @ x @ (self.a @ self.b)

    assert not uses(Net(), torch.randn(4, 3))


def test_samples_are_ordered_seeded_and_fewer_where_rows_are_wide() -> None:
    device = torch.device("cpu")
    assert sample(10, 10, 4, 0, device) is None
    pick = sample(1000, 10, 4, 0, device)
    assert pick is not None
    assert len(pick) == 10
    assert torch.equal(pick, pick.sort().values)
    assert torch.equal(pick, sample(1000, 10, 4, 0, device))  # type: ignore[arg-type]
    assert len(sample(1000, 100, ELEMENTS // 50, 0, device)) == 50  # type: ignore[arg-type]
