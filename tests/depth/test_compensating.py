"""What blocks did that went is taken over by the weights before them, as far as these can."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.depth import compensate_blocks_
from secateur.errors import PlanError
from support.blocks import Keyed, PostNorm, SmallResNet, Stack, llama


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


class Both(nn.Module):
    """A residual block whose last layer sees its input whole, as two halves: what is positive, and what is negative."""

    def __init__(self, layer: type[nn.Module], norm: type[nn.Module] | None) -> None:
        super().__init__()
        width: Any = (1,) if layer is nn.Conv2d else ()
        self.outer, self.norm = layer(16, 8, *width, bias=norm is None), norm(8) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.outer(torch.cat([x.relu(), (-x).relu()], 1)))


class Straight(nn.Module):
    """A residual block that is linear."""

    def __init__(self, layer: type[nn.Module], norm: type[nn.Module] | None) -> None:
        super().__init__()
        width: Any = (1,) if layer is nn.Conv2d else ()
        self.outer, self.norm = layer(8, 8, *width, bias=norm is None), norm(8) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.outer(x))


class Around(nn.Module):
    """Both and Straight blocks between layers, with a ReLU after each block where asked for."""

    def __init__(self, layer: type[nn.Module], norm: type[nn.Module] | None, order: str, relu: bool = False) -> None:
        super().__init__()
        width: Any = (1,) if layer is nn.Conv2d else ()
        self.stem, self.head = layer(3, 8, *width), layer(8, 4, *width)
        self.blocks = nn.Sequential(*({"b": Both, "s": Straight}[kind](layer, norm) for kind in order))
        self.relu = relu
        for name, tensor in self.state_dict().items():
            if name.endswith(("norm.weight", "running_var")):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith(("norm.bias", "running_mean")):
                tensor.normal_()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x).relu() if self.relu else block(x)
        return self.head(x)


@pytest.mark.parametrize(
    ("layer", "norm", "order", "dropped"),
    [
        (nn.Linear, None, "bsb", ["blocks.1"]),
        (nn.Linear, None, "bssb", ["blocks.1", "blocks.2"]),
        (nn.Linear, None, "bsbs", ["blocks.1", "blocks.3"]),
        (nn.Linear, nn.BatchNorm1d, "bsb", ["blocks.1"]),
        (nn.Conv2d, None, "bsb", ["blocks.1"]),
        (nn.Conv2d, nn.BatchNorm2d, "bssb", ["blocks.1", "blocks.2"]),
        (nn.Linear, None, "sb", ["blocks.0"]),  # by the stem
        (nn.Conv2d, nn.BatchNorm2d, "sb", ["blocks.0"]),
    ],
)
def test_linear_blocks_are_taken_over_to_float_tolerance(
    layer: type[nn.Module], norm: type[nn.Module] | None, order: str, dropped: list[str]
) -> None:
    model = Around(layer, norm, order).eval()
    shape = (3, 5, 5) if layer is nn.Conv2d else (3,)
    data = [torch.randn(256, *shape) for _ in range(2)]
    bare = sc.shorten(model, data[0], importance=dropped)
    result = sc.shorten(model, data[0], importance=dropped, data=data)
    done = result.compensation
    assert done is not None
    assert result.proof.status == bare.proof.status == "proved"
    assert done.left == {}
    source = f"blocks.{order.index('s') - 1}.outer.weight" if order[0] == "b" else "stem.weight"
    assert done.refits[0].name == source
    fresh = torch.randn(64, *shape)
    wanted = model(fresh)
    scale = float(wanted.abs().max())
    assert float((bare.model(fresh) - wanted).abs().max()) > 0.1 * scale
    assert float((result.model(fresh) - wanted).abs().max()) < 1e-4 * scale
    assert done.distance[1] < 1e-4 < 0.05 < done.distance[0]


def test_through_a_relu_at_both_ends() -> None:
    model = Around(nn.Linear, None, "bsb", relu=True)
    for name, p in model.named_parameters():  # so that no ReLU cuts anything off
        p.abs_() if not name.startswith("head") else None
    data = [torch.rand(256, 3) for _ in range(2)]
    result = sc.shorten(model, data[0], importance=["blocks.1"], data=data)
    fresh = torch.rand(64, 3)
    torch.testing.assert_close(result.model(fresh), model(fresh), rtol=1e-4, atol=1e-3)


def test_the_constant_that_a_block_adds_goes_into_the_bias_before_it_by_hand() -> None:
    model, x = Stack(3), torch.randn(32, 4)
    nn.init.zeros_(model.blocks[1].outer.weight)  # so that this block adds its bias, whatever it is given
    result = sc.shorten(model, x, importance=["blocks.1"], data=[x], compensate="mean")
    before, bias = model.blocks[0].outer, model.blocks[1].outer.bias
    torch.testing.assert_close(result.model.blocks[0].outer.bias, before.bias + bias)
    assert torch.equal(result.model.blocks[0].outer.weight, before.weight)
    assert torch.equal(result.model.blocks[1].outer.weight, model.blocks[2].outer.weight)
    torch.testing.assert_close(result.model(x), model(x))
    assert result.compensation is not None
    assert [refit.name for refit in result.compensation.refits] == ["blocks.0.outer.weight"]


def test_means_of_a_batch_norm() -> None:
    model, x = SmallResNet().eval(), torch.randn(16, 3, 8, 8)
    nn.init.zeros_(model.stage[1].bn2.weight)  # this block adds a constant, before its ReLU
    result = sc.shorten(model, x, importance=["stage.1"], data=[x], compensate="mean")
    assert result.compensation is not None
    assert result.compensation.distance[1] < result.compensation.distance[0]
    (first, *others) = [refit.name for refit in result.compensation.refits]
    assert first == "stage.0.conv2.weight"
    assert all(name.startswith("stage.1.") for name in others)
    assert torch.equal(result.model.stage[0].bn2.running_var, model.stage[0].bn2.running_var)
    assert not torch.equal(result.model.stage[0].bn2.running_mean, model.stage[0].bn2.running_mean)


class ByTurns(nn.Sequential):
    """Blocks of which one is followed by a ReLU."""

    def __init__(self) -> None:
        a, b, c = Stack(3).blocks
        super().__init__(a, nn.ReLU(), b, c)


class Watched(nn.Module):
    """A stream that something else looks at, or that is returned, or a weight that is used in between, or twice."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.blocks = nn.ModuleList(Stack(3).blocks)
        self.side = nn.Linear(8, 8)
        if how == "tied":
            self.blocks[2].outer.weight = self.blocks[0].outer.weight

    def forward(self, x: Tensor) -> Any:
        given, x = x, self.blocks[0](x)
        stream, side = x, self.side(given) if self.how == "between" else 0
        for block in self.blocks[1:]:
            x = block(x)
        if self.how == "watched":
            return self.side(stream) + x
        return (x, stream) if self.how == "returned" else x + side


@pytest.mark.parametrize(
    ("model", "x", "dropped", "why"),
    [
        (
            llama(3),
            torch.zeros(1, 8, dtype=torch.long),
            "model.layers.0",
            "comes out of aten::embedding, not of a weight",
        ),
        (nn.Sequential(PostNorm(), PostNorm()), torch.randn(3, 8), "1", "comes out of aten::native_layer_norm"),
        (Keyed(), torch.randn(6, 4), "layers.0", "what it handed on comes out of aten::add"),
        (nn.Sequential(*Stack().blocks), torch.randn(3, 8), "0", "is an input of the model"),
        (SmallResNet().eval(), torch.randn(2, 3, 8, 8), "stage.1", ""),
        (Watched("watched"), torch.randn(3, 8), "blocks.1", "outside of it, looks at what it was given"),
        (Watched("returned"), torch.randn(3, 8), "blocks.1", "the model returns what it was given"),
        (
            Watched("between"),
            torch.randn(3, 8),
            "blocks.1",
            "side.weight is used between blocks.0.outer.weight and blo",
        ),
        (Watched("tied"), torch.randn(3, 8), "blocks.1", "has to stay as it is: its memory is also that of"),
        (ByTurns(), torch.randn(3, 8), "2", "there is aten::relu(), in the block nothing"),
    ],
)
def test_where_no_weight_can_take_over_the_result_says_why(model: nn.Module, x: Tensor, dropped: str, why: str) -> None:
    result = sc.shorten(model, x, importance=[dropped], data=[x])
    assert result.compensation is not None
    assert (why in result.compensation.left[dropped]) if why else (dropped not in result.compensation.left)
    said = " ".join(str(result).split())
    assert (f"No weight took over what {dropped} did: " in said) == bool(why)
    assert "Compensated by least squares on" in said


def test_the_original_and_all_around_it_stay_and_the_same_data_give_the_same_bits() -> None:
    model, x = Stack().train(), torch.randn(32, 4)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    state = torch.get_rng_state()
    first, second = (sc.shorten(model, x, blocks=2, data=[x]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert first.model.training
    assert all(p.requires_grad for p in first.model.parameters())


def test_what_is_refitted_is_in_the_report() -> None:
    model, x = Stack(), torch.randn(32, 4)
    with_data = sc.shorten(model, x, importance=["blocks.1"], data=[x])
    without = sc.shorten(model, x, importance=["blocks.1"], data=[x], compensate=None)
    assert without.compensation is None
    assert "compensation" not in without.report
    assert with_data.compensation is not None
    assert with_data.report["compensation"] == with_data.compensation.to_dict()
    assert with_data.report["compensation"]["distance"] < with_data.report["compensation"]["distance_before"]
    assert "Compensated by least squares on 32 samples" in " ".join(str(with_data).split())


def test_a_change_compensates_where_it_is_done_again(tmp_path: Path) -> None:
    model, x = Stack(), torch.randn(32, 4)
    result = sc.shorten(model, x, importance=["blocks.1"], data=[x])
    again = result.change.apply(model, compensate="auto", data=[x])
    assert torch.equal(again(x), result.model(x))
    assert not torch.equal(result.change.apply(model)(x), again(x))
    sc.save(result, tmp_path / "short")
    assert torch.equal(sc.load(tmp_path / "short", model=Stack())(x), result.model(x))
    replayed = sc.replay(model, tmp_path / "short", x, data=[x])
    assert torch.equal(replayed.model(x), result.model(x))
    assert replayed.compensation is not None


def test_after_pruning_of_widths_and_before() -> None:
    model, x = Stack(), torch.randn(64, 4)
    narrow = sc.prune(model, x, keep=0.75, data=[x])
    both = sc.shorten(narrow.model, x, importance=["blocks.1"], data=[x])
    assert both.compensation is not None
    assert both.compensation.distance[1] < both.compensation.distance[0]
    short = sc.shorten(model, x, importance=["blocks.1"], data=[x])
    assert sc.prune(short.model, x, keep=0.75, data=[x]).proof.status == "proved"


def test_inputs_by_keyword_and_forward_of_the_users() -> None:
    model, ids = llama(3), torch.randint(64, (4, 12))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    result = sc.shorten(model, batch, importance=["model.layers.1"], data=[batch])
    given = sc.shorten(
        model, batch, importance=["model.layers.1"], data=[ids], forward=lambda m, b: m(input_ids=b, use_cache=False)
    )
    for found in (result.compensation, given.compensation):
        assert found is not None
        assert found.refits[0].name == "model.layers.0.mlp.down_proj.weight"
        assert found.distance[1] < found.distance[0]
    assert compensate_blocks_(model, result.change.apply(model), result.change, [batch]).refits


def test_misuse() -> None:
    x = torch.randn(6, 4)
    for how, data, said in (
        ("merge", [x], "folds units that go into units that stay"),
        ("lstsq", None, "needs calibration data"),
        ("least", [x], "give None"),
    ):
        with pytest.raises(PlanError, match=said):
            sc.shorten(Stack(), x, importance=["blocks.1"], data=data, compensate=how)


@pytest.mark.shared
def test_a_trained_llama_gets_its_perplexity_back_in_part(shared: Path) -> None:
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("load", shared / "data/load.py")
    assert spec is not None
    assert spec.loader is not None
    load = module_from_spec(spec)
    spec.loader.exec_module(load)
    model = load.stories_llama()
    long = [story[:128] for story in load.stories(0, -300) if len(story) >= 128]
    data = [torch.stack(long[k : k + 16]) for k in range(0, 64, 16)]
    unseen = torch.stack([story[:128] for story in load.stories(-300) if len(story) >= 128][:32])

    def perplexity(net: nn.Module) -> float:
        return float(net(input_ids=unseen, labels=unseen).loss.exp())

    for dropped in (["model.layers.2"], ["model.layers.2", "model.layers.3"]):
        example = {"input_ids": torch.zeros(1, 32, dtype=torch.long)}
        batches = [{"input_ids": ids} for ids in data]
        bare = sc.shorten(model, example, importance=dropped)
        result = sc.shorten(model, example, importance=dropped, data=batches)
        assert perplexity(model) < perplexity(result.model) < 0.8 * perplexity(bare.model)


def test_blocks_in_a_row_have_one_reason() -> None:
    model, ids = llama(4), torch.randint(64, (2, 8))
    dropped = ["model.layers.0", "model.layers.1"]
    done = sc.shorten(model, ids, importance=dropped, data=[ids]).compensation
    assert done is not None
    assert done.left["model.layers.0"].startswith("what it was given comes out of aten::embedding")
    assert done.left["model.layers.1"] == f"in a row with model.layers.0: {done.left['model.layers.0']}"
    assert done.refits[0].name.startswith("model.layers.0.")  # all that follows is refitted nevertheless


@pytest.mark.parametrize(("how", "why"), [("mean", "no bias of its own"), ("lstsq", "it has more than 16 features")])
def test_a_weight_that_can_not_take_over_is_named(how: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.compensation.refitting.WIDEST", 16)
    model, ids = llama(3), torch.randint(64, (2, 8))  # its projections have no biases
    done = sc.shorten(model, ids, importance=["model.layers.1"], data=[ids], compensate=how).compensation
    assert done is not None
    assert done.left["model.layers.0.mlp.down_proj.weight"].startswith(why)
