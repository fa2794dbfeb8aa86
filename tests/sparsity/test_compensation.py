"""SparseGPT and Wanda against straightforward computations of the published formulas; ALPS against direct solutions."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.sparsity import obs, refining
from secateur.sparsity.statistics import Statistics


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive(weight: Tensor, gram: Tensor, block: int, sparsity: float | None) -> tuple[Tensor, Tensor]:
    """Optimal brain surgery, column by column, an inverse anew for each: no Cholesky factor, no putting off.

    When column j is decided upon, the inverse is that of the Gram matrix of the columns from j on; a weight of it that
    goes costs w^2 / inverse[0, 0], and its going moves the later ones by -w / inverse[0, 0] times the inverse's row.
    """
    weight, rows = weight.clone(), len(weight)
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    inverses = [torch.linalg.inv(damped[j:, j:]) for j in range(len(gram))]
    keep = torch.ones_like(weight, dtype=torch.bool)
    for start in range(0, len(gram), block):
        for j in range(start, min(start + block, len(gram))):
            group = 4 if sparsity is None else block
            if j % group == 0:
                stop = min(j + group, len(gram))
                costs = torch.stack([weight[:, k] ** 2 / inverses[k][0, 0] for k in range(j, stop)], 1)
                if sparsity is None:  # 2:4
                    for row in range(rows):
                        keep[row, j + costs[row].argsort()[:2]] = False
                else:
                    gone = costs.flatten().argsort()[: round(sparsity * costs.numel())]
                    keep[gone // costs.shape[1], j + gone % costs.shape[1]] = False
            for row in range(rows):
                if not keep[row, j]:
                    weight[row, j:] -= weight[row, j] / inverses[j][0, 0] * inverses[j][0]
    return weight * keep, keep


@pytest.mark.parametrize("sparsity", [0.5, None])
def test_sparsegpt_is_optimal_brain_surgery(sparsity: float | None):
    weight, x = drawn(5, 16), drawn(40, 16, seed=1)
    gram = x.T @ x
    pattern = sc.Unstructured() if sparsity else sc.NM(2, 4)
    found, mask, damping = obs.solve(
        weight,
        gram,
        None,
        lambda scores, start: pattern.mask(scores, sparsity),
        columns=pattern.columns,
        at_once=sparsity is not None,
        block=8,
    )
    wanted, keep = naive(weight, gram, 8, sparsity)
    assert torch.equal(mask, keep)
    assert torch.allclose(found, wanted, atol=1e-10)
    assert damping == 0.01


@pytest.mark.parametrize("sparsity", [0.5, None])
def test_sparsify_gives_the_masks_of_that_computation(sparsity: float | None):
    net, x = nn.Linear(16, 6, bias=False), drawn(64, 16, seed=1).float()
    net.weight.data = drawn(6, 16).float()
    pattern = sc.Unstructured() if sparsity else sc.NM(2, 4)
    result = sc.sparsify(net, pattern=pattern, data=list(x.split(16)), compensate="sparsegpt")
    wanted, keep = naive(net.weight.detach().double(), (x.T @ x).double(), 128, sparsity)
    assert torch.equal(result.masks["weight"], keep)
    assert torch.allclose(result.model.weight.double(), wanted, atol=1e-4)


@pytest.mark.parametrize("sparsity", [0.5, None])
def test_wandas_masks_are_those_of_the_formula(sparsity: float | None):
    first, second = nn.Linear(8, 12, bias=False), nn.Linear(12, 3, bias=False)
    net, x = nn.Sequential(first, nn.ReLU(), second), torch.randn(40, 8, generator=torch.Generator().manual_seed(3))
    pattern = sc.Unstructured() if sparsity else sc.NM(2, 4)
    result = sc.sparsify(net, pattern=pattern, data=list(x.split(10)), importance="wanda")

    def mask(weight: Tensor, inputs: Tensor) -> Tensor:
        costs = weight.abs() * inputs.norm(dim=0)
        keep = torch.ones_like(weight, dtype=torch.bool)
        width = 4 if sparsity is None else weight.shape[1]
        for row in range(len(weight)):
            for start in range(0, weight.shape[1], width):
                order = costs[row, start : start + width].argsort()
                keep[row, start + order[: width // 2]] = False
        return keep

    keep = mask(first.weight.detach(), x)
    assert torch.equal(result.masks["0.weight"], keep)
    hidden = F.relu(x @ (first.weight * keep).T).detach()  # of the pruned layer
    assert torch.equal(result.masks["2.weight"], mask(second.weight.detach(), hidden))


def test_a_convolution_is_a_product_with_its_windows():
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
    x = torch.randn(8, 4, 7, 7, generator=torch.Generator().manual_seed(0))
    unfolded = F.unfold(x, 3, padding=1, stride=2)  # (samples, channels x places, windows)
    rows = unfolded.unflatten(1, (4, 9)).permute(0, 3, 2, 1).flatten(2).flatten(0, 1)  # places, then channels
    plain = nn.Linear(36, 6, bias=False)
    plain.weight.data = conv.weight.detach().movedim(1, -1).flatten(1).clone()
    for how in ({"compensate": "sparsegpt"}, {"importance": "wanda"}, {"pattern": sc.NM(2, 4), "compensate": "alps"}):
        a = sc.sparsify(conv, data=[x], **how).model.weight.movedim(1, -1).flatten(1)
        b = sc.sparsify(plain, data=[rows], **how).model.weight
        assert torch.equal(a != 0, b != 0)
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    "layer", [nn.Conv1d(4, 8, 3), nn.Conv2d(4, 8, 3, groups=2), nn.Conv3d(4, 4, 2), nn.Conv2d(6, 6, 3, groups=6)]
)
def test_every_convolution_gets_nearer_to_its_dense_outputs(layer: nn.Module):
    shape = (20, layer.in_channels, *([5] * (layer.weight.dim() - 2)))
    x = drawn(*shape).float()
    wanted = layer(x).detach()
    errors: dict[str, float] = {}
    for how in (None, "sparsegpt", "alps"):
        result = sc.sparsify(layer, data=[x], importance="magnitude", compensate=how, sparsity=0.6)
        assert int((~result.masks["weight"]).sum()) == round(0.6 * layer.weight.numel())
        assert bool((result.model.weight[~result.masks["weight"]] == 0).all())
        errors[str(how)] = float((result.model(x).detach() - wanted).square().sum())
        told = result.report["sparsity"]["layers"][0]["error"]
        without_bias = wanted - layer.bias.detach().reshape(-1, *[1] * (wanted.dim() - 2))
        assert told == pytest.approx((errors[str(how)] / float(without_bias.square().sum())) ** 0.5, rel=1e-3)
    assert errors["alps"] <= errors["sparsegpt"] < errors["None"]


def test_alps_finds_the_least_squares_solution_on_the_places_that_stay():
    dense, x = drawn(3, 10), drawn(50, 10, seed=2)
    gram, mask = x.T @ x, sc.Unstructured().mask(dense.abs(), 0.5)
    found = refining.refine(dense * mask, dense, mask, gram)
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(10, dtype=gram.dtype)
    for row in range(3):
        kept = mask[row]
        wanted = torch.linalg.solve(damped[kept][:, kept], damped[kept] @ dense[row])
        assert torch.allclose(found[row, kept], wanted, atol=1e-8)
        assert bool((found[row, ~kept] == 0).all())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rows", [3, 8, 40])
def test_alps_never_makes_the_error_larger(seed: int, rows: int):
    dense, x = drawn(6, 12, seed=seed), drawn(rows, 12, seed=seed + 100)
    x[:, 3] = 0
    x[:, 4] = x[:, 5]
    gram, mask = x.T @ x, sc.NM(1, 4).mask(drawn(6, 12, seed=seed + 200))
    for steps in (1, 3, 100):
        for start in (dense * mask, obs.solve(dense, gram, mask, lambda s, k: s > 0)[0]):
            found = refining.refine(start, dense, mask, gram, steps=steps)
            after, before = (refining.error(w, dense, gram) for w in (found, start))
            assert bool((after <= before).all())
            assert bool((found[~mask] == 0).all())


def test_a_mask_that_is_given_stays():
    dense, x = drawn(4, 8), drawn(60, 3, seed=1) @ drawn(3, 8, seed=2) + 0.1 * drawn(60, 8, seed=3)
    mask = sc.Unstructured().mask(dense.abs(), 0.5)
    found, kept, _ = obs.solve(dense, x.T @ x, mask, lambda s, k: s > 0)
    assert torch.equal(kept, mask)
    gram = x.T @ x
    assert float(refining.error(found, dense, gram).sum()) < float(refining.error(dense * mask, dense, gram).sum())


def test_inputs_that_are_always_zero_go_first_and_keep_what_stays():
    dense, x = drawn(2, 4), drawn(30, 4, seed=1)
    x[:, 2] = 0
    found, mask, _ = obs.solve(dense, x.T @ x, None, lambda s, k: sc.Unstructured().mask(s, remove=1))
    assert int((~mask[:, 2]).sum()) == 1
    kept = mask[:, 2]
    assert torch.equal(found[kept, 2], dense[kept, 2])


def test_statistics_grow_by_part_and_by_process():
    x = drawn(30, 8)[:, None].float()
    whole, a, b = Statistics(), Statistics(), Statistics()
    whole.add(x, gram=True)
    a.add(x[:7], gram=True)
    b.add(x[7:], gram=True)
    a.merge(b)
    assert a.rows == whole.rows == 30
    for one, other in ((a.square, whole.square), (a.gram, whole.gram)):
        assert one is not None
        assert other is not None
        assert torch.allclose(one, other, rtol=1e-5)
