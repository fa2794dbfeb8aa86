import json

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import TrainingError
from secateur.inputs import as_call, run
from secateur.proof import silenced
from secateur.tracing.running import tensors_in
from secateur.tuning.softmasks import SoftMasks, fade_
from secateur.tuning.units import planner
from support.networks import Attention, Cnn, Grouped, LiteralNet, Mlp, Residual, Tied, example, llama
from support.runs import Running, still


def sgd(model: nn.Module, lr: float = 0.05) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def half(model: nn.Module) -> tuple[sc.Graph, sc.Plan]:
    graph = sc.trace(model, example(model))
    return graph, sc.plan(graph, sc.score(model, graph, "l2"), keep=0.5)


def test_the_factor_by_hand():
    """Two steps alone, then 4/4 to 0/4: without gradients, weights that go are f times what they were."""
    model = Mlp()
    _, plan = half(model)
    before = model[0].weight.detach().clone()
    gone = [k for k in range(8) if k not in plan.axes["0.weight:0"].kept]
    masks, running = SoftMasks(plan, begin=2, fall=4), Running(model, sgd(model), 8)
    seen = []
    for _ in range(8):
        running.go([], still, count=1)
        masks.after_step(running)
        seen.append((model[0].weight[gone] / before[gone]).mean().item())
        assert torch.equal(
            model[0].weight[list(plan.axes["0.weight:0"].kept)], before[list(plan.axes["0.weight:0"].kept)]
        )
    assert seen == pytest.approx([1, 1, 0.75, 0.5, 0.25, 0, 0, 0])
    assert masks.hard_from == 6


@pytest.mark.parametrize(
    "kind", [Mlp, Cnn, Residual, Grouped, LiteralNet, Attention, Tied, llama], ids=lambda k: k.__name__
)
def test_the_end_is_the_silenced_model_and_surgery_changes_nothing(kind):
    model = kind().train()
    inputs = example(model)
    graph = sc.trace(model, inputs)
    masks = SoftMasks(planner(graph, "l2", keep=0.5), begin=1, fall=3, every=1)

    def loss(m: nn.Module) -> torch.Tensor:
        return sum(t.float().sin().mean() for t in tensors_in(run(m, inputs)) if t.is_floating_point())

    Running(model, sgd(model), 6).go([masks], loss)
    model.eval()
    small = masks.plan.apply(model).eval()
    with torch.no_grad():
        got, own = tensors_in(run(small, inputs)), tensors_in(run(model, inputs))
        proof, over = silenced(model, graph, masks.plan, *as_call(inputs), dtype=torch.float32)
    assert masks.normalised(graph) == tuple(a for a in masks.plan.axes if graph.axes[a].normalising)
    assert bool(masks.normalised(graph)) == bool(over)
    for a, b, c in zip(got, own, proof, strict=True):
        assert torch.allclose(a, c, atol=1e-5)
        if not over:
            assert torch.allclose(a, b, atol=1e-5)


def test_what_is_zero_is_what_the_proof_silences():
    model = Cnn()
    _, plan = half(model)
    fade_(model, plan, 0.0)
    for name, kept in plan.kept.items():
        tensor = model.state_dict()[name]
        for dim, at in kept.items():
            gone = [k for k in range(tensor.shape[dim]) if k not in at.tolist()]
            assert not tensor.index_select(dim, torch.tensor(gone)).any(), name
    assert model.bn1.running_var[list(plan.axes["conv1.weight:0"].kept)].all()


def test_units_come_back_while_the_choice_is_open():
    """The planner first wants unit 0 to go, then unit 1; only the last one ends at zero."""
    model = Mlp(2)
    graph = sc.trace(model, torch.zeros(1, 4))
    asked: list[int] = []

    def fickle(m: nn.Module) -> sc.Plan:
        asked.append(len(asked))
        scores = torch.tensor([0.0, 1.0]) if len(asked) == 1 else torch.tensor([1.0, 0.0])
        return sc.plan(graph, {"0.weight:0": scores}, keep=0.5)

    before = model[0].weight.detach().clone()
    masks = SoftMasks(fickle, fall=4, every=2)
    Running(model, sgd(model), 5).go([masks], still)
    assert len(asked) == 2  # after steps 1 and 3; after step 5 the masks are hard
    assert not model[0].weight[1].any()
    assert torch.allclose(model[0].weight[0], before[0] * 0.5)
    assert masks.plan.axes["0.weight:0"].kept == (0,)


def test_the_end_is_hard_even_when_training_is_interrupted():
    model = Mlp()
    _, plan = half(model)
    masks, running = SoftMasks(plan, fall=10), Running(model, sgd(model), 10)
    running.go([masks], still, count=2)
    small = plan.apply(model)
    x = torch.randn(3, 4)
    assert torch.allclose(small(x), model(x), atol=1e-6)


def test_checkpoints_go_on_as_if_nothing_had_happened():
    def trained(interrupted: bool) -> torch.Tensor:
        torch.manual_seed(0)
        model = Mlp()
        graph = sc.trace(model, torch.zeros(1, 4))
        make = lambda: SoftMasks(planner(graph, "l2", keep=0.5), fall=4)  # noqa: E731
        masks, running = make(), Running(model, sgd(model), 4)
        for k in range(4):
            if interrupted and k == 2:
                state = masks.state_dict()
                assert json.loads(json.dumps(state)) == state
                masks = make()
                masks.load_state_dict(state)
            running.go([], still, count=1)
            masks.after_step(running)
            if k == 2:
                half_way = model[0].weight.detach().clone()
        return half_way

    assert torch.equal(trained(False), trained(True))


def test_errors_say_what_to_do():
    model = Mlp()
    _, plan = half(model)
    with pytest.raises(
        TrainingError, match="begin=-1 must be at least 0; fall=0 must be at least 1; every= chooses anew"
    ):
        SoftMasks(plan, begin=-1, fall=0, every=2)
    masks = SoftMasks(plan, begin=3, fall=4)
    with pytest.raises(TrainingError, match="no unit was chosen yet: masks begin after 3 steps"):
        _ = masks.plan
    with pytest.raises(TrainingError, match="hard after begin . fall = 7 steps, but training has 5"):
        masks.on_start(Running(model, sgd(model), 5))
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 2))
    graph = sc.trace(normed, torch.zeros(1, 4))
    plan = sc.plan(graph, sc.score(normed, graph, "l2"), keep=0.5)
    with pytest.raises(TrainingError, match="a parametrization computes a weight"):
        Running(normed, sgd(normed), 2).go([SoftMasks(plan, fall=2)], still)
