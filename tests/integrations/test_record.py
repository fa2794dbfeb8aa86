"""What stands beside a checkpoint."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import ArtifactError, RemapError
from secateur.integrations.pruner import Pruner, plain
from secateur.integrations.record import Record, first_that_fits
from support.networks import Cnn, Mlp

INPUTS = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


def pruned(**settings: Any) -> tuple[Mlp, Pruner]:
    """A network that was pruned from 8 units to 4, then to 2, and what pruned it."""
    net = Mlp()
    pruner = Pruner(INPUTS, at=(1, 2), schedule="linear", settings={"keep": 0.5, **settings})
    for step in (1, 2):
        assert pruner.due(step)
        pruner.prune_(net, step, ())
    assert not pruner.due(3)
    return net, pruner


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = pruned()[1].record
    record.save(tmp_path / "file.json")
    again = Record.load(tmp_path / "file.json")
    assert again == record
    assert again.steps == (1, 2)
    assert again.until(1).steps == (1,)
    assert again.until(0).plans == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "can't be read"),
        ("[]", "holds no JSON object"),
        ('{"version": 7}', "plans of version 7; this secateur reads version 1"),
        ('{"version": 1, "plans": []}', "not plans that secateur wrote: KeyError: 'steps'"),
        ('{"version": 1, "plans": [], "steps": [3], "dense": null}', "0 plans, 1 steps"),
        ('{"version": 1, "plans": [{}], "steps": [3], "dense": null}', "a plan of version None"),
    ],
)
def test_files_that_are_no_record_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "file.json").write_text(content)
    with pytest.raises(ArtifactError, match=message):
        Record.load(tmp_path / "file.json")
    assert json.loads(json.dumps(Record().to_dict())) == Record().to_dict()


@pytest.mark.parametrize("hidden", [8, 4, 2])
def test_models_of_any_stage_become_the_last(hidden: int) -> None:
    net = Mlp(hidden)
    optimizer, other = torch.optim.SGD(net.parameters(), 0.1), torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)
    copies = [Mlp(hidden), torch.optim.swa_utils.AveragedModel(Mlp(hidden)), dict(Mlp(hidden).named_parameters())]
    small = Mlp(2)
    record = pruned()[1].record
    assert record.prepare_(net, [optimizer, other, *copies, small]) is net
    assert net[0].weight.shape == (2, 4)
    assert optimizer.param_groups[0]["params"][0] is net[0].weight
    assert copies[0][0].weight.shape == copies[1].module[0].weight.shape == copies[2]["0.weight"].shape == (2, 4)
    assert small[0].weight.shape == (2, 4)
    assert record.is_carried_out(net)


def test_models_of_no_stage_are_refused() -> None:
    with pytest.raises(RemapError, match=r"0.weight is \[6, 4\], planned for \[8, 4\]"):
        pruned()[1].record.prepare_(Mlp(6))


def test_the_plans_that_lead_to_weights_are_found() -> None:
    net, pruner = pruned()
    records = [Record(), pruner.record]
    assert first_that_fits(records, net.state_dict()) == pruner.record
    assert first_that_fits(records, Mlp(4).state_dict()) == pruner.record.until(1)
    assert first_that_fits(records, Mlp(3).state_dict()) is None


def test_a_budget_is_approached_as_a_share_of_the_original() -> None:
    """A linear schedule to half of the 58 parameters: 43 at most, then 29; a unit has 7, and 2 biases stay."""
    net, pruner = pruned(keep=None, budget=sc.Budget(params=0.5))
    assert [plan.sizes["0.weight:0"] for plan in pruner.record.plans] == [5, 3]
    assert pruner.record.dense is not None
    assert pruner.record.dense["params"] == 58
    assert sum(p.numel() for p in net.parameters()) == 23


def test_an_optimizer_that_holds_other_tensors_is_no_silent_loss() -> None:
    net = Mlp()
    flat = torch.optim.SGD([nn.Parameter(torch.zeros(58))], 0.1)
    pruner = Pruner(INPUTS, at=1, schedule="cubic", settings={"keep": 0.5})
    with pytest.raises(RemapError, match="does not hold the model's own parameters"):
        pruner.prune_(net, 1, [flat])
    assert net[0].weight.shape == (8, 4)
    pruner.prune_(net, 1, [flat, torch.optim.SGD(net.parameters(), 0.1)])
    assert net[0].weight.shape == (4, 4)


def test_a_forward_on_the_instance_is_put_back() -> None:
    net = Cnn()
    own = net.forward
    net.forward = lambda x: own(x).float()  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError), plain(net):
        assert "forward" not in vars(net)
        _ = 1 / 0
    assert "forward" in vars(net)
