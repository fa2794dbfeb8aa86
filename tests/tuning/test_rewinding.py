import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import secateur as sc
from secateur.errors import SurgeryError, TrainingError
from secateur.inputs import run
from secateur.tuning.rewinding import Rewind
from support.networks import Cnn, LiteralNet, Mlp, Tied, example
from support.runs import Running


def trained(model: nn.Module, rewind: Rewind, steps: int = 5) -> list[nn.Module]:
    """Copies of the model after 0, 1, ... steps."""
    x = example(model)
    states = [copy.deepcopy(model)]
    running = Running(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), steps)
    rewind.on_start(running)
    for _ in range(steps):
        running.optimizer.zero_grad()
        model(x).sin().mean().backward()
        rewind.before_step(running)
        running.optimizer.step()
        running.step += 1
        rewind.after_step(running)
        running.optimizer.param_groups[0]["lr"] *= 0.5
        states.append(copy.deepcopy(model))
    rewind.on_end(running)
    return states


@pytest.mark.parametrize("kind", [Mlp, Cnn, LiteralNet, Tied], ids=lambda k: k.__name__)
@pytest.mark.parametrize("step", [0, 2, 5])
def test_the_small_network_has_the_weights_of_that_moment(kind, step):
    model, rewind = kind(), Rewind(step)
    states = trained(model, rewind)
    x = example(model)
    graph = sc.trace(model, x)
    plan = sc.plan(graph, sc.score(model, graph, "l2"), keep=0.5)
    after = {n: t.clone() for n, t in model.state_dict().items()}
    small, wanted = rewind.apply(plan).eval(), plan.apply(states[step]).eval()
    assert small.state_dict().keys() == wanted.state_dict().keys()
    assert all(torch.equal(t, wanted.state_dict()[n]) for n, t in small.state_dict().items())
    assert torch.equal(run(small, x), run(wanted, x))
    assert all(torch.equal(t, after[n]) for n, t in model.state_dict().items())
    assert all(p.requires_grad for p in small.parameters())


def test_weights_are_kept_in_files_and_loaded_in_another_process(tmp_path):
    model, rewind = Tied(), Rewind(1)
    states = trained(model, rewind)
    state = rewind.state_dict()
    save_file(state["tensors"], tmp_path / "rewind.safetensors")
    again = Rewind()
    again.load_state_dict({**state, "tensors": load_file(tmp_path / "rewind.safetensors")})
    with pytest.raises(TrainingError, match="pass the dense network's architecture: model="):
        again.rewound()
    dense = again.rewound(Tied())
    assert dense.head.weight is dense.embed.weight
    assert torch.equal(dense.head.weight, states[1].head.weight)
    assert again.rates == rewind.rates


def test_the_learning_rates_that_were_left():
    """0.1, halved after each step: from step 2 on 0.025, 0.0125 and so on, and then the last one."""
    rewind = Rewind(2)
    trained(Mlp(), rewind)
    assert rewind.rates == pytest.approx([0.025, 0.0125, 0.00625])
    assert rewind.rate(1) == pytest.approx(0.0125)
    assert rewind.rate(9) == pytest.approx(0.00625)


def test_errors_say_what_to_do():
    rewind = Rewind(9)
    trained(Mlp(), rewind)
    with pytest.raises(TrainingError, match="training must begin with this, and come to step 9"):
        rewind.rewound()
    with pytest.raises(TrainingError, match="no learning rate is remembered"):
        rewind.rate(0)
    with pytest.raises(TrainingError, match="step=-1 must be at least 0"):
        Rewind(-1)
    rewind = Rewind()
    trained(Mlp(), rewind)
    with pytest.raises(SurgeryError, match=r"0.weight is \[5, 4\], remembered \[8, 4\]"):
        rewind.rewound(Mlp(5))
