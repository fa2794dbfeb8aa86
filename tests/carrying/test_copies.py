"""Moving averages and other copies are cut as the model was."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import secateur as sc
from secateur.errors import RemapError, SurgeryError
from support.networks import Attention, Cnn, LiteralNet, Mlp, Scaled, Tied, example


def drifted(model: nn.Module) -> nn.Module:
    """A copy with weights of its own."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return other


@pytest.mark.parametrize("build", [Mlp, Cnn, Attention, Tied])
def test_a_copy_in_place(build: Any) -> None:
    model = build()
    shadow = drifted(model)
    result = sc.prune(model, example(model), keep=0.5)
    expected = result.plan.apply(shadow)
    assert result.remap_(shadow) is shadow
    x = example(model)
    assert torch.equal(shadow(x), expected(x))


@pytest.mark.parametrize("build", [Cnn, LiteralNet])
def test_an_averaged_model_keeps_its_count_and_goes_on(build: Any) -> None:
    """Also where the class is replaced by its graph."""
    model = build()
    x = example(model)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    average.update_parameters(drifted(model))
    average.update_parameters(model)
    weights = {name: p.detach().clone() for name, p in average.module.named_parameters()}
    result = sc.prune(model, x, keep=0.5)
    assert (result.rewritten is not None) == (build is LiteralNet)
    assert result.remap_(average) is average
    assert average.n_averaged == 2
    for name, parameter in average.module.named_parameters():
        expected = weights[name]
        for dim, at in result.plan.kept.get(name, {}).items():
            expected = expected.index_select(dim, at)
        assert torch.equal(parameter, expected)
    average.update_parameters(result.model)
    assert average.n_averaged == 3
    average(x)


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "module._orig_mod."])
def test_shadow_weights_by_name(prefix: str) -> None:
    model = Cnn()
    shadow: dict[str, Any] = {f"{prefix}{name}": t.clone() for name, t in drifted(model).state_dict().items()}
    wide = dict(shadow)
    result = sc.prune(model, example(model), keep=0.5)
    assert result.remap_(shadow) is shadow
    small = result.model.state_dict()
    assert {name: t.shape for name, t in shadow.items()} == {f"{prefix}{name}": t.shape for name, t in small.items()}
    rows = result.plan.kept["conv1.weight"][0]
    assert torch.equal(shadow[f"{prefix}conv1.weight"], wide[f"{prefix}conv1.weight"][rows])
    assert torch.equal(shadow[f"{prefix}bn1.running_var"], wide[f"{prefix}bn1.running_var"][rows])


def test_shadow_weights_get_new_biases() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 2, bias=False))
    shadow = {name: p.detach().clone() for name, p in net.named_parameters()}
    result = sc.prune(net, torch.randn(4, 4), keep=0.5, data=[torch.randn(9, 4)], compensate="mean")
    result.remap_(shadow)
    assert shadow.keys() == dict(result.model.named_parameters()).keys()
    assert torch.equal(shadow["2.bias"], torch.zeros(2))


def test_compiled_copies() -> None:
    model = Mlp()
    shadow: Any = torch.compile(copy.deepcopy(model), backend="eager")
    result = sc.prune(model, example(model), keep=0.5)
    result.remap_(shadow)
    assert shadow._orig_mod[0].weight.shape == (4, 4)
    assert torch.equal(shadow(x := example(model)), shadow._orig_mod(x))
    torch._dynamo.reset()


def test_a_class_that_is_replaced_can_not_change_in_place() -> None:
    model = LiteralNet()
    shadow = copy.deepcopy(model)
    result = sc.prune(model, example(model), keep=0.5)
    with pytest.raises(SurgeryError, match=r"can't happen in place. Use plan.apply\(model\), or plan with keep_class"):
        result.remap_(shadow)


def test_copies_of_other_models_are_refused() -> None:
    result = sc.prune(Mlp(), example(Mlp()), keep=0.5)
    with pytest.raises(SurgeryError, match="made for another architecture"):
        result.remap_(Cnn())
    with pytest.raises(RemapError, match="none of the 2 names in this dict .'weight', 'bias'. is one of the Mlp"):
        result.remap_(dict(nn.Linear(2, 2).named_parameters()))
    with pytest.raises(RemapError, match="give the smaller model itself"):
        result.plan.remap_({}, Mlp(), dict(result.model.named_parameters()))


def test_norms_of_weights_need_a_module() -> None:
    norm = torch.nn.utils.parametrizations.weight_norm
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), norm(nn.Linear(8, 2)))
    shadow, tensors = drifted(model), dict(drifted(model).named_parameters())
    result = sc.prune(model, torch.randn(2, 4), keep=0.5)
    result.remap_(shadow)
    with pytest.raises(RemapError, match="2.parametrizations.weight.original0 must be computed"):
        result.remap_(tensors)
    assert tensors["0.weight"].shape == (8, 4)


def test_weights_that_are_multiplied_are_so_in_the_shadow() -> None:
    net, x = Scaled(), torch.randn(2, 5, 8)
    module = drifted(net)
    tensors = {name: p.detach().clone() for name, p in module.named_parameters()}
    result = sc.prune(net, x, keep=0.5, only=["head_dim"])
    assert result.plan.scales
    result.remap_(module)
    result.remap_(tensors)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(tensors[name], parameter.detach())
