"""Proofs of models that give nothing on the example inputs."""

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import ProofFailed
from secateur.proof import prove


class Detector(nn.Module):
    """Gives the boxes whose score is above a threshold that none reaches."""

    def __init__(self, threshold: float = 2.0) -> None:
        super().__init__()
        self.body, self.scores, self.boxes = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 1, 1), nn.Conv2d(16, 4, 1)
        self.threshold = threshold

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(x).relu_()
        scores, boxes = self.scores(x).sigmoid().flatten(), self.boxes(x).permute(0, 2, 3, 1).reshape(-1, 4)
        chosen = scores > self.threshold
        return scores[chosen], boxes[chosen]


class Bare(nn.Module):
    """The same, with a last product that no module gives, beside one that a module does."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.other = nn.Conv2d(3, 16, 1), nn.Linear(3, 1)
        self.last = nn.Parameter(torch.randn(1, 16))

    def forward(self, x: Tensor) -> Tensor:
        scores = (self.body(x).mean((2, 3)) * self.last).sum(1).sigmoid() + self.other(x.mean((2, 3))).sigmoid()[:, 0]
        return scores[scores > 2.0]


def test_what_modules_give_is_compared_where_outputs_are_empty() -> None:
    result = sc.prune(Detector(), torch.randn(2, 3, 4, 4), keep=0.5)
    assert result.proof.status == "proved"
    assert result.proof.scale > 0
    assert result.plan.sizes == {"body.weight:0": 8}


def test_it_fails_where_a_module_gives_something_else() -> None:
    model, inputs = Detector(), torch.randn(2, 3, 4, 4)
    graph = sc.trace(model, inputs)
    plan = sc.plan(graph, sc.score(model, graph), keep=0.5)
    small = plan.apply(model)
    small.boxes.weight.data[0, 0] += 1  # type: ignore[union-attr,index]
    with pytest.raises(ProofFailed, match="differs from the silenced original"):
        prove(model, small, graph, plan, inputs)


def test_nothing_is_proved_of_what_no_module_gives() -> None:
    model, inputs = Bare(), torch.randn(2, 3, 4, 4)
    graph = sc.trace(model, inputs)
    plan = sc.plan(graph, sc.score(model, graph), keep=0.5)
    with pytest.raises(ProofFailed, match=r"outputs are empty.* takes part in nothing else that could be compared"):
        prove(model, plan.apply(model), graph, plan, inputs)
