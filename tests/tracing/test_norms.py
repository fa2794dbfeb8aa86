"""Norms of every kind, of activations and of weights."""

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import secateur as sc
from support.operations import CHANNELS, IMAGES, LINES, ROWS, VOLUMES, Net, chain, halved, images, weight

AXIS = ("a.weight:0 channels 12>6",)
ROW = ("a.weight:0 hidden 12>6",)
GROUPED = ("a.weight:0/groups groups 3>2", "a.weight:0/channels channels 4>2")
NORMS: dict[str, tuple[Callable[[bool], nn.Module], Tensor, tuple[str, ...], str, Any]] = {
    "batch 1d": (lambda on: nn.BatchNorm1d(12, affine=on), ROWS, AXIS, "num_features", 6),
    "batch 1d, no statistics": (
        lambda on: nn.BatchNorm1d(12, affine=on, track_running_stats=False), LINES, AXIS, "num_features", 6),
    "batch 2d": (lambda on: nn.BatchNorm2d(12, affine=on), IMAGES, AXIS, "num_features", 6),
    "batch 3d": (lambda on: nn.BatchNorm3d(12, affine=on), VOLUMES, AXIS, "num_features", 6),
    "instance 1d": (lambda on: nn.InstanceNorm1d(12, affine=on), LINES, AXIS, "num_features", 6),
    "instance 2d": (lambda on: nn.InstanceNorm2d(12, affine=on), IMAGES, AXIS, "num_features", 6),
    "instance 2d, statistics": (
        lambda on: nn.InstanceNorm2d(12, affine=on, track_running_stats=True), IMAGES, AXIS, "num_features", 6),
    "instance 3d": (lambda on: nn.InstanceNorm3d(12, affine=on), VOLUMES, AXIS, "num_features", 6),
    "layer": (lambda on: nn.LayerNorm(12, elementwise_affine=on), ROWS, ROW, "normalized_shape", (6,)),
    "layer over all": (
        lambda on: nn.LayerNorm((12, 6, 6), elementwise_affine=on), IMAGES, AXIS, "normalized_shape", (6, 6, 6)),
    "root mean square": (lambda on: nn.RMSNorm(12, elementwise_affine=on), ROWS, ROW, "normalized_shape", (6,)),
    "group": (lambda on: nn.GroupNorm(3, 12, affine=on), IMAGES, GROUPED, "num_channels", 4),
    "one group": (lambda on: nn.GroupNorm(1, 12, affine=on), IMAGES, AXIS, "num_channels", 6),
}  # fmt: skip


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("name", NORMS)
def test_norms(name: str, affine: bool) -> None:
    make, inputs, axes, attribute, expected = NORMS[name]
    layers = {2: nn.Linear, 3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[inputs.dim()]
    more = () if inputs.dim() == 2 else (1,)
    net, inputs, axes = chain(inputs, layers(inputs.shape[1], 12, *more), make(affine), layers(12, 3, *more), axes=axes)
    assert getattr(halved(net, inputs, *axes).model.b, attribute) == expected


def test_local_response_norm_names_its_place() -> None:
    net, inputs, _ = chain(IMAGES, nn.Conv2d(2, 12, 1), nn.LocalResponseNorm(5), nn.Conv2d(12, 3, 1), axes=())
    graph = sc.trace(net, inputs)
    assert not graph.axes
    (reason, *_) = graph.frozen["a.weight:0"].frozen
    assert re.search(r"aten::avg_pool3d at .*operations\.py:\d+", reason)


WITHOUT_EPSILON = {
    "norm in space": lambda x: x / x.norm(dim=(2, 3), keepdim=True),
    "deviation in space": lambda x: x / x.std((2, 3), keepdim=True),
    "root of a sum": lambda x: x * x.pow(2).sum((2, 3), keepdim=True).rsqrt(),
    "logarithm": lambda x: x * x.abs().log(),
}


@pytest.mark.parametrize("name", WITHOUT_EPSILON)
def test_what_a_silenced_unit_has_no_number_for_counts_as_zero(name: str) -> None:
    halved(*images(WITHOUT_EPSILON[name])[:2], CHANNELS)


def test_directions_and_lengths_by_hand() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.out(F.linear(x, net.v / net.v.norm(dim=1, keepdim=True) * net.g).relu())

    halved(Net(forward, v=weight(8, 4), g=weight(8, 1), out=nn.Linear(8, 3)), ROWS, "v:0 hidden 8>4")


def test_a_silenced_unit_that_reaches_others_is_found_out() -> None:
    net, inputs, _ = images(lambda x: x * (1 / (x + 0.1)).sum(1, keepdim=True))
    with pytest.raises(sc.SecateurError, match="differs from the silenced original"):
        sc.prune(net, inputs, keep=0.5)


class Standardised(nn.Conv2d):
    """Weight standardisation, by hand or through a batch norm of the weight."""

    through_batch_norm = False

    def forward(self, input: Tensor) -> Tensor:
        if self.through_batch_norm:
            rows = self.weight.reshape(1, self.out_channels, -1)
            w = F.batch_norm(rows, None, None, training=True, momentum=0.0).reshape_as(self.weight)
        else:
            var, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True)
            w = (self.weight - mean) / (var + 1e-5).sqrt()
        return self._conv_forward(input, w, self.bias)


class BatchStandardised(Standardised):
    through_batch_norm = True


@pytest.mark.parametrize("kind", [Standardised, BatchStandardised])
def test_weight_standardisation(kind: type[nn.Conv2d]) -> None:
    net, inputs, axes = chain(
        IMAGES, kind(2, 12, 3), kind(12, 8, 3), nn.Conv2d(8, 3, 1),
        axes=("a.weight:0 channels 12>6", "b.weight:0 channels 8>4"),
    )  # fmt: skip
    halved(net, inputs, *axes)


@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("old", [False, True])
def test_weight_normalisation(dim: int | None, old: bool) -> None:
    """Lengths are taken anew where a part of a direction goes: the effective weight stays."""
    norm = torch.nn.utils.weight_norm if old else parametrizations.weight_norm
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        layers = [norm(nn.Conv2d(2, 12, 3), dim=dim), norm(nn.Conv2d(12, 8, 3), dim=dim), norm(nn.Conv2d(8, 3, 1))]
    net, inputs, axes = chain(IMAGES, *layers, axes=("a.bias:0 channels 12>6", "b.bias:0 channels 8>4"))
    net.eval()
    plan = sc.prune(net, inputs, keep=0.5).plan
    result = halved(net, inputs, *axes)
    at = plan.kept["b.weight_v" if old else "b.parametrizations.weight.original1"]
    assert torch.allclose(result.model.b.weight, net.b.weight[at[0]][:, at[1]])
    assert "6, 4, kernel_size" in result.model.b.extra_repr()
    other = plan.apply_(net)
    assert torch.equal(other(inputs), result.model(inputs))


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("old", [False, True])
def test_spectral_normalisation(old: bool, dim: int) -> None:
    """Its vectors are taken anew where a part goes: what stays of the effective weight is what it was."""
    norm = torch.nn.utils.spectral_norm if old else parametrizations.spectral_norm
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        layers = [norm(nn.Conv2d(2, 12, 3)), norm(nn.Conv2d(12, 8, 3), dim=dim), nn.Conv2d(8, 3, 1)]
    net, inputs, axes = chain(IMAGES, *layers, axes=("a.bias:0 channels 12>6", "b.bias:0 channels 8>4"))
    plan = halved(net, inputs, *axes).plan
    small = plan.apply(net.train())
    at = plan.kept["b.weight_orig" if old else "b.parametrizations.weight.original"]
    net.eval()(inputs), small.eval()(inputs)
    assert torch.allclose(small.b.weight, net.b.weight[at[0]][:, at[1]], rtol=1e-4, atol=1e-6)
    small.train()(inputs).sum().backward()
    assert torch.linalg.matrix_norm(small.b.weight.detach().movedim(dim, 0).flatten(1), 2) < 1.5, "the norm is its own"


def test_a_spectral_norm_of_zero_stays_zero() -> None:
    layers = [parametrizations.spectral_norm(nn.Linear(4, 12)), nn.Linear(12, 3)]
    net, inputs, _ = chain(ROWS, *layers, axes=())
    with torch.no_grad():
        net.a.parametrizations.weight[0]._u.zero_()
    graph = sc.trace(net, inputs)
    small = sc.plan(graph, sc.score(net, graph), keep=0.5).apply(net)
    assert not small.a.parametrizations.weight[0]._u.any()
