"""The whole call: order, data, odd models, bad input, saving."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import DataError, ModelError, PatternError, ScoreError, SparsityError, UnknownImportance
from secateur.reporting.numbers import size


def net(*, width: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4))


def batches(n: int = 4, size: int = 16, seed: int = 0) -> list[Tensor]:
    return list(torch.randn(n, size, 8, generator=torch.Generator().manual_seed(seed)))


LABELLED = [(x, x.argmax(1) % 4) for x in batches()]


@pytest.mark.parametrize("compensate", [None, "sparsegpt", "alps", "sparsegpt+alps"])
@pytest.mark.parametrize("pattern", [sc.Unstructured(), sc.NM(2, 4), sc.Block(2, 2)])
def test_every_pattern_with_every_compensation(pattern: Any, compensate: str | None):
    model = net()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    result = sc.sparsify(model, pattern=pattern, data=batches(), compensate=compensate)
    assert result.sparsity == 0.5
    for name, mask in result.masks.items():
        weight = result.model.get_parameter(name)
        assert torch.equal(weight != 0, mask)
        assert not bool(weight[~mask].signbit().any())  # all bits are zero
        if pattern == sc.NM(2, 4):
            assert bool((mask.unflatten(1, (-1, 4)).sum(-1) == 2).all())
        if pattern == sc.Block(2, 2):
            blocks = mask.unflatten(1, (-1, 2)).unflatten(0, (-1, 2)).transpose(1, 2).flatten(2).sum(-1)
            assert set(blocks.flatten().tolist()) == {0, 4}
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize("importance", sc.sparsity.names())
def test_every_criterion_twice_gives_the_same(importance: str):
    first, again = (sc.sparsify(net(), importance=importance, data=LABELLED, sparsity=0.7, seed=3) for _ in "ab")
    assert all(torch.equal(mask, again.masks[name]) for name, mask in first.masks.items())
    assert sum(int((~mask).sum()) for mask in first.masks.values()) == round(0.7 * 96)
    assert first.report["sparsity"]["importance"] == importance


@pytest.mark.parametrize("allocation", ["uniform", "global", "erk", "owl"])
def test_every_allocation_meets_the_total(allocation: str):
    result = sc.sparsify(net(width=12), allocation=allocation, data=batches(), sparsity=0.3)
    assert sum(int((~mask).sum()) for mask in result.masks.values()) == round(0.3 * (96 + 48))


def test_one_ranking_is_one_ranking():
    result = sc.sparsify(net(), allocation="global", importance="magnitude", sparsity=0.4)
    kept = torch.cat([result.model.get_parameter(n)[m] for n, m in result.masks.items()]).abs().min()
    dense = net()
    gone = torch.cat([dense.get_parameter(n)[~m] for n, m in result.masks.items()]).abs().max()
    assert float(gone.detach()) <= float(kept.detach())


def test_a_threshold_is_relative_to_the_layers_mean():
    model = nn.Linear(4, 1, bias=False)
    model.weight.data = torch.tensor([[1.0, 2.0, 3.0, 6.0]])  # mean 3
    assert sc.sparsify(model, threshold=0.7).masks["weight"].tolist() == [[False, False, True, True]]
    assert sc.sparsify(model, threshold=1.0).masks["weight"].tolist() == [[False, False, True, True]]
    result = sc.sparsify(model, threshold=0.9, pattern=sc.Block(1, 2))  # means 1.5 and 4.5
    assert result.masks["weight"].tolist() == [[False, False, True, True]]
    result = sc.sparsify(model, threshold=0.7, compensate="sparsegpt", data=[torch.eye(4)])
    assert result.report["sparsity"]["importance"] == "wanda"


def test_a_callable_of_ones_own():
    result = sc.sparsify(net(), importance=lambda view: -view.weight.abs())  # the largest go
    weight, mask = net()[0].weight, result.masks["0.weight"]
    assert float(weight[mask].abs().max().detach()) <= float(weight[~mask].abs().min().detach())


def test_fisher_is_of_each_sample_and_taylor_of_their_mean():
    model, x, y = net(), *[torch.cat(part) for part in zip(*LABELLED, strict=True)]
    slopes: list[Tensor] = []
    for k in range(len(x)):
        loss = nn.functional.cross_entropy(model(x[k : k + 1]), y[k : k + 1])
        slopes.append(torch.autograd.grad(loss, model[0].weight)[0])
    weight, gathered = model[0].weight.detach(), torch.stack(slopes)
    wanted = {
        "taylor": (weight * gathered.mean(0)).abs(),
        "fisher": weight.square() * gathered.square().mean(0) / 2,
    }
    for name, scores in wanted.items():
        mask = sc.sparsify(model, importance=name, data=LABELLED, only=["0"]).masks["0.weight"]
        assert torch.equal(mask, sc.Unstructured().mask(scores, 0.5))


def test_a_layer_is_pruned_by_what_the_pruned_ones_before_it_give():
    model, x = net(width=32), torch.cat(batches())
    result = sc.sparsify(model, data=batches(), importance="wanda", sparsity=0.75)
    hidden = result.model[1](result.model[0](x)).detach()
    scores = model[2].weight.detach().abs() * hidden.square().mean(0).sqrt()
    assert torch.equal(result.masks["2.weight"], sc.Unstructured().mask(scores, remove=96, within_rows=True))
    dense = model[1](model[0](x)).detach()
    other = model[2].weight.detach().abs() * dense.square().mean(0).sqrt()
    assert not torch.equal(result.masks["2.weight"], sc.Unstructured().mask(other, remove=96, within_rows=True))


def test_batches_do_not_matter():
    whole = sc.sparsify(net(), data=[torch.cat(batches())], compensate="sparsegpt")
    parts = sc.sparsify(net(), data=batches(), compensate="sparsegpt")
    for name, mask in whole.masks.items():
        assert torch.equal(mask, parts.masks[name])
        a, b = (r.model.get_parameter(name) for r in (whole, parts))
        assert torch.allclose(a, b, atol=1e-6)


def test_padding_does_not_count():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.up = nn.Embedding(10, 8), nn.Linear(8, 8)

        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return self.up(self.embed(input_ids))

    ids = torch.randint(1, 10, (3, 5), generator=torch.Generator().manual_seed(0))
    padded = torch.cat([ids, torch.zeros(3, 4, dtype=torch.long)], 1)
    mask = torch.cat([torch.ones(3, 5), torch.zeros(3, 4)], 1).long()
    for how in ({"importance": "wanda"}, {"compensate": "sparsegpt"}):
        short = sc.sparsify(Model(), data=[{"input_ids": ids}], **how)
        long = sc.sparsify(Model(), data=[{"input_ids": padded, "attention_mask": mask}], **how)
        blind = sc.sparsify(Model(), data=[{"input_ids": padded}], **how)
        assert short.report["sparsity"]["layers"][0]["rows"] == long.report["sparsity"]["layers"][0]["rows"] == 15
        assert torch.equal(short.model.up.weight, long.model.up.weight)
        assert not torch.equal(short.model.up.weight, blind.model.up.weight)
        assert "embedding" in short.report["sparsity"]["left"]["embed.weight"]


def test_everything_is_left_as_it_was():
    model = net().train()
    model[2].eval()
    state, grads = torch.get_rng_state(), torch.is_grad_enabled()
    result = sc.sparsify(model, importance="fisher", data=LABELLED, compensate="alps")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled() == grads
    assert (
        [m.training for m in result.model.modules()]
        == [m.training for m in model.modules()]
        == [True, True, True, False]
    )
    assert all(p.requires_grad and p.grad is None for m in (model, result.model) for p in m.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in result.model.modules())


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_wherever_it_is_called(mode: Any):
    for how in ({"importance": "fisher"}, {"compensate": "sparsegpt"}):
        wanted = sc.sparsify(net(), data=LABELLED, **how)
        with mode():
            result = sc.sparsify(net(), data=LABELLED, **how)
            again = result.apply(net())
        for name, parameter in result.model.named_parameters():
            assert torch.equal(parameter, wanted.model.get_parameter(name))
            assert not parameter.is_inference()
            assert not again.get_parameter(name).is_inference()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype: torch.dtype):
    data = [x.to(dtype) for x in batches()]
    for compensate in (None, "sparsegpt", "alps"):
        result = sc.sparsify(net().to(dtype), data=data, compensate=compensate)
        assert result.sparsity == 0.5
        for name, mask in result.masks.items():
            weight = result.model.get_parameter(name)
            assert weight.dtype == dtype
            assert bool((weight[~mask] == 0).all())


def test_tied_weights_count_once_and_stay_tied():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.a, self.b = nn.Embedding(10, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.head = nn.Linear(8, 10, bias=False)
            self.b.weight, self.head.weight = self.a.weight, self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.b(self.a(self.embed(ids)).relu()))

    model, ids = Tied(), torch.arange(10)[None]
    for how in ({"importance": "wanda"}, {"compensate": "sparsegpt"}):
        result = sc.sparsify(model, data=[ids], **how)
        assert list(result.masks) == ["a.weight"]
        assert result.model.b.weight is result.model.a.weight
        assert "tied to one" in result.report["sparsity"]["left"]["embed.weight"]
        assert result.report["sparsity"]["layers"][0]["rows"] == 20  # both uses, in the dense model
    result = sc.sparsify(model, only=["embed"])
    assert list(result.masks) == ["embed.weight"]
    assert result.model.head.weight is result.model.embed.weight


def test_transformers_conv1d_is_held_the_other_way_round():
    gpt2 = pytest.importorskip("transformers").pytorch_utils.Conv1D(6, 8)  # 8 inputs
    x = batches()
    plain = nn.Linear(8, 6)
    plain.weight.data, plain.bias.data = gpt2.weight.detach().T.clone(), gpt2.bias.detach().clone()
    for how in ({"pattern": sc.NM(2, 4), "compensate": "sparsegpt"}, {"importance": "wanda"}, {"importance": "ria"}):
        a, b = (sc.sparsify(m, data=x, **how).model.weight for m in (gpt2, plain))
        assert a.shape == (8, 6)
        assert torch.allclose(a.T, b, atol=1e-6)


def test_attention_and_what_is_no_matrix():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    result = sc.sparsify(layer, data=[torch.randn(4, 5, 8)], pattern=sc.NM(2, 4), compensate="sparsegpt")
    assert list(result.masks) == [
        "self_attn.in_proj_weight",
        "self_attn.out_proj.weight",
        "linear1.weight",
        "linear2.weight",
    ]
    other = nn.Sequential(nn.Linear(8, 8), nn.LSTM(8, 8), nn.ConvTranspose1d(8, 8, 3))
    left = sc.sparsify(other).report["sparsity"]["left"]
    assert set(left) == {"1.weight_ih_l0", "1.weight_hh_l0", "2.weight"}
    assert left["2.weight"] == "weight of ConvTranspose1d is no matrix of a linear layer or a convolution"


class Branches(nn.Module):
    """One layer that is used, one that is not, and one that is used the other way round."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.used, self.idle, self.turned = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x) @ self.turned.weight


def test_weights_of_which_the_data_say_nothing_stay_dense():
    result = sc.sparsify(Branches(), data=batches(), importance="wanda")
    assert list(result.masks) == ["used.weight"]
    left = result.report["sparsity"]["left"]
    assert left["idle.weight"] == "no data come to it"
    assert "the other way round" in left["turned.weight"]
    assert "idle.weight" in str(result)
    assert list(sc.sparsify(Branches(), data=batches(), importance="magnitude").masks) == [
        "used.weight",
        "idle.weight",
        "turned.weight",
    ]
    with pytest.raises(SparsityError, match=r"2 weights can't be pruned as asked: turned.weight.*idle.weight: no data"):
        sc.sparsify(Branches(), data=batches(), importance="wanda", strict=True)
    with pytest.raises(DataError, match="reach none"):
        sc.sparsify(Branches(), data=batches(), importance="wanda", only=["idle"])


def test_shapes_that_a_pattern_does_not_divide():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1))
    result = sc.sparsify(model, pattern=sc.NM(2, 4))
    assert list(result.masks) == ["1.weight"]
    assert "3 inputs are no multiple of 4" in result.report["sparsity"]["left"]["0.weight"]
    with pytest.raises(SparsityError, match=r"1 weights can't be pruned as asked: 0.weight: shape \(8, 3\)"):
        sc.sparsify(model, pattern=sc.NM(2, 4), strict=True)
    with pytest.raises(PatternError, match=r"fits no weight: 0.weight: 8 outputs are no multiple of 5"):
        sc.sparsify(model, pattern=sc.Block(5, 1), only=["0"])


def test_rank_deficient_data_are_damped_and_told():
    result = sc.sparsify(net(), data=[batches()[0][:3]], compensate="sparsegpt")
    notes = result.report["sparsity"]["layers"][0]["notes"]
    assert notes == ["rank-deficient: 8 inputs, 3 rows of data; the matrix is damped"]
    assert "rank-deficient" in str(result)
    dead = [torch.cat([x[:, :6], torch.zeros(16, 2)], 1) for x in batches()]
    notes = sc.sparsify(net(), data=dead, compensate="alps").report["sparsity"]["layers"][0]["notes"]
    assert notes == ["rank-deficient: 8 inputs, 6 that are ever not zero; the matrix is damped"]


def test_the_error_is_that_of_the_layers_outputs():
    model, x = net(), torch.cat(batches())
    result = sc.sparsify(model, data=batches(), importance="magnitude")
    rows = result.report["sparsity"]["layers"]
    change = (result.model[0].weight - model[0].weight).detach()
    wanted = float((x @ change.T).norm() / (x @ model[0].weight.detach().T).norm())
    assert rows[0]["error"] == pytest.approx(wanted, rel=1e-4)
    assert sc.sparsify(model).report["sparsity"]["layers"][0]["error"] is None


def test_what_was_saved_loads(tmp_path: Path):
    model = net()
    result = sc.sparsify(model, data=batches(), compensate="sparsegpt")
    sc.save(result, tmp_path / "sparse")
    loaded = sc.load(tmp_path / "sparse", model=net())
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), result.model.parameters(), strict=True))
    text = (tmp_path / "sparse" / "README.md").read_text()
    assert "made sparse: single weights are zero" in text
    assert "not masked" not in text
    sc.save(sc.sparsify(model), tmp_path / "other", args=batches()[0])


def test_after_units_single_weights(tmp_path: Path):
    small = sc.prune(net(width=16), batches()[0], keep=0.5)
    result = sc.sparsify(small.model, data=batches())
    assert result.model[0].weight.shape == (8, 8)
    sc.save(result, tmp_path / "both")
    loaded = sc.load(tmp_path / "both", model=net(width=16))
    assert torch.equal(loaded[0].weight, result.model[0].weight)


def test_masks_fit_retrained_weights():
    result = sc.sparsify(net(), sparsity=0.25)
    other = net()
    other[0].weight.data += 1
    again = result.apply(other)
    assert torch.equal(again[0].weight, (other[0].weight * result.masks["0.weight"]))
    assert bool((other[0].weight != 0).all())
    with pytest.raises(SparsityError, match=r"do not fit Sequential: 0.weight \(8, 8\) \(\(12, 8\)\)"):
        result.apply(net(width=12))


def test_the_report_prints_and_is_json():
    text = str(sc.sparsify(net(), data=batches(), compensate="sparsegpt"))
    assert "48 of 96 weights are zero (50.0 %" in text
    assert "0.weight" in text
    assert "Not proved" not in text


NAN = [torch.full((2, 8), float("nan"))]


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"sparsity": 0.0}, SparsityError, r"in \(0, 1\)"),
        ({"sparsity": 1.0}, SparsityError, r"in \(0, 1\)"),
        ({"sparsity": 50}, SparsityError, r"in \(0, 1\), such as 0.5"),
        ({"sparsity": 0.5, "threshold": 0.5}, SparsityError, "give one of the two"),
        ({"threshold": -1.0}, SparsityError, "above 0"),
        ({"threshold": 0.5, "allocation": "erk"}, SparsityError, "says already what each layer loses"),
        ({"pattern": sc.NM(2, 4), "sparsity": 0.6}, PatternError, "has a sparsity of 0.5"),
        ({"pattern": sc.NM(2, 4), "threshold": 0.6}, PatternError, "fixes how many"),
        ({"pattern": sc.NM(2, 4), "allocation": "erk"}, SparsityError, "says already"),
        ({"pattern": "2:4"}, SparsityError, "is no pattern"),
        ({"pattern": sc.NM}, SparsityError, r"NM'> is no pattern: write .*sc\.NM\(2, 4\)"),
        ({"sparsity": "0.5"}, SparsityError, r"sparsity='0.5': give the share .* such as 0.5"),
        ({"threshold": "1"}, SparsityError, "threshold='1': give a number"),
        ({"pattern": sc.NM(2, 4), "sparsity": "0.5"}, SparsityError, "sparsity='0.5': give the share"),
        ({"only": 3}, SparsityError, "got int: give names"),
        ({"ignore": [nn.ReLU()]}, SparsityError, "got ReLU: give names"),
        ({"allocation": "fair"}, SparsityError, "'uniform', 'global', 'erk', 'owl'"),
        ({"compensate": "lstsq"}, SparsityError, "'sparsegpt', 'alps'"),
        ({"compensate": "alps"}, SparsityError, "needs calibration data"),
        ({"importance": "wanda"}, SparsityError, r"Wanda\(\) needs calibration data"),
        ({"allocation": "owl"}, SparsityError, "'owl' needs calibration data"),
        ({"importance": "l1"}, UnknownImportance, "'l1'"),
        ({"importance": lambda view: view.weight.sum()}, ScoreError, "gave torch.float32 of shape"),
        ({"importance": "taylor", "data": batches()}, ScoreError, "no target"),
        ({"data": []}, DataError, "no sample"),
        ({"data": batches()[0]}, DataError, "iterable of batches"),
        ({"data": NAN}, DataError, "batch 0 of the calibration data holds NaN"),
        ({"data": [torch.full((2, 8), 1e38)]}, DataError, "NaN or infinite values, first at"),
        ({"data": [torch.randn(2, 5)]}, DataError, "fails on batch 0"),
        ({"only": ["layers"]}, SparsityError, "'layers' name no weight"),
        ({"ignore": ["*"]}, SparsityError, "no weight of this Sequential is left"),
    ],
)
def test_bad_input(arguments: dict[str, Any], error: type[Exception], said: str):
    with pytest.raises(error, match=said):
        sc.sparsify(net(), **arguments)


def test_bad_models():
    broken = net()
    broken[2].weight.data[0, 0] = float("nan")
    with pytest.raises(ModelError, match="NaN or infinite weights in 2.weight"):
        sc.sparsify(broken)
    with pytest.raises(ModelError, match="meta device"):
        sc.sparsify(nn.Linear(2, 2, device="meta"))
    with pytest.raises(SparsityError, match="it has no matrix"):
        sc.sparsify(nn.BatchNorm1d(3))
    normed = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    with pytest.raises(SparsityError, match="parametrized"):
        sc.sparsify(normed)


def test_what_the_pattern_fixes_may_be_said_to_the_last_digit_or_so():
    assert sc.sparsify(nn.Linear(6, 2), pattern=sc.NM(1, 3), sparsity=2 / 3).sparsity == 8 / 12


def test_names_and_globs():
    assert list(sc.sparsify(net(), only=None, ignore=None).masks) == ["0.weight", "2.weight"]
    assert list(sc.sparsify(net(), only="0").masks) == ["0.weight"]
    assert list(sc.sparsify(net(), ignore=["0.*"]).masks) == ["2.weight"]
    with pytest.raises(SparsityError, match=r"Did you mean '0.weight'"):
        sc.sparsify(net(), only=["0.wieght"])


def test_the_report_has_the_size_of_the_packed_file(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    result = sc.sparsify(net)
    dense, sparse = (result.report[name]["size_bytes"] for name in ("dense", "pruned"))
    assert sparse < 0.6 * dense
    sc.save(result, tmp_path / "net", args=torch.randn(1, 64))
    assert f"| {size(dense)} | {size(sparse)} |" in (tmp_path / "net" / "README.md").read_text()


def test_what_pruning_gave_can_be_given() -> None:
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    small = sc.prune(net, torch.randn(2, 8), keep=0.5)
    assert torch.equal(sc.sparsify(small).masks["0.weight"], sc.sparsify(small.model).masks["0.weight"])


def test_a_criterion_that_changes_the_weight_is_refused() -> None:
    net = nn.Linear(8, 8)
    with pytest.raises(ScoreError, match=r"changed the weights of weight in place: work on a copy"):
        sc.sparsify(net, importance=lambda view: view.weight.abs_())


class Seldom(nn.Module):
    """A second stage to which no row comes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(h[h[:, 0] > 1e9])


@pytest.mark.parametrize("compensate", [None, "sparsegpt", "alps"])
def test_a_layer_to_which_no_row_comes(compensate: str | None) -> None:
    with pytest.raises(DataError, match=r"no row of data comes to b\.weight"):
        sc.sparsify(Seldom(), data=[torch.randn(4, 8)], compensate=compensate)
