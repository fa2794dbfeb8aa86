"""Equal scores may come in another order; unequal ones may not."""

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
import secateur.proof
from secateur.choices import Follow, Note
from secateur.errors import ProofFailed
from secateur.proof import prove

VALUES = torch.tensor([[3.0, 1.0, 3.0, 2.0], [0.0, 5.0, 4.0, 5.0]], dtype=torch.float64)
NUDGED = VALUES + torch.tensor([[0.0, 0.0, 1e-12, 0.0], [0.0, 0.0, 0.0, 1e-12]], dtype=torch.float64)

PICKS = {
    "sort": lambda x: x.sort(dim=1, descending=True),
    "sort stable": lambda x: x.sort(dim=0, stable=True),
    "topk": lambda x: x.topk(2),
    "argsort": lambda x: (x.argsort(1, descending=True),),
    "argmax": lambda x: (x.argmax(),),
    "argmax of rows": lambda x: (x.argmax(1),),
    "max": lambda x: x.max(1),
    "max and keepdim": lambda x: x.max(1, keepdim=True),
    "threshold": lambda x: (x > 3.0,),
}


@pytest.mark.parametrize("pick", PICKS)
def test_choices_between_equals_are_repeated(pick: str) -> None:
    with Note() as noted:
        expected = PICKS[pick](VALUES)
    assert len(noted.choices) == 1
    with Follow(noted.choices, 1e-5):
        got = PICKS[pick](NUDGED)
    assert torch.equal(got[-1], expected[-1])
    assert all(torch.allclose(a.double(), b.double()) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("pick", PICKS)
def test_choices_between_different_values_are_not(pick: str) -> None:
    """Followed or not, the result is that of the values themselves."""
    other = VALUES.flip(1) + torch.tensor([[0.0, 0.1, 0.2, 0.3], [0.3, 0.2, 0.1, 0.0]])
    with Note() as noted:
        PICKS[pick](VALUES)
    with Follow(noted.choices, 1e-5):
        got = PICKS[pick](other)
    for a, b in zip(got, PICKS[pick](other), strict=True):
        assert torch.equal(a, b)


class Detector(nn.Module):
    """Scores of places that are all alike, the best of them first: the order is that of rounding."""

    def __init__(self, skew: float = 0.0) -> None:
        super().__init__()
        self.hidden, self.score, self.box = nn.Linear(4, 16), nn.Linear(16, 1), nn.Linear(16, 3)
        self.skew = skew

    def forward(self, x: Tensor) -> Tensor:
        h = self.hidden(x).relu()
        scores = self.score(h)[..., 0]
        best = scores.topk(3, dim=1).indices
        if h.shape[-1] < 16:  # a fault, for the test of it
            best = (best + int(self.skew)) % x.shape[1]
        return self.box(h).gather(1, best[..., None].expand(-1, -1, 3)) + best[..., None]


def alike() -> Tensor:
    """Places that differ in the last bits of a double."""
    noise = torch.randint(0, 3, (2, 6, 4)).double() * 2.0**-52
    return torch.randn(2, 1, 4, dtype=torch.float64) * (1 + noise)


def test_detections_in_the_order_of_rounding_are_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Detector().double(), alike()
    result = sc.prune(model, x, keep=0.5)
    assert result.proof.status == "proved"
    assert list(result.plan.sizes.values()) == [8]

    def gives_up(*args: object) -> None:
        raise args[-1]  # type: ignore[misc]

    monkeypatch.setattr(secateur.proof, "_agree_between_equals", gives_up)
    with pytest.raises(ProofFailed, match="differs from the silenced original"):
        prove(model, result.model, result.graph, result.plan, x)


def test_another_choice_is_no_matter_of_rounding() -> None:
    model, x = Detector(skew=1), torch.randn(2, 6, 4)
    graph = sc.trace(model, x)
    plan = sc.plan(graph, sc.score(model, graph), keep=0.5)
    with pytest.raises(ProofFailed, match="differs from the silenced original"):
        prove(model, plan.apply(model), graph, plan, x)
