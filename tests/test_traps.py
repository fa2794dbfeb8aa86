"""Code as people write it, in which a size or a weight hides from a trace: each trap was once fallen into."""

import functools
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal

import secateur as sc
from secateur.artifacts.build import Build
from secateur.errors import ArtifactError, ProofFailed


class Literal(nn.Module):
    """(N, 2, 6, 6) to (N, 3) through a literal size; tests change what happens before it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.out = nn.Conv2d(2, 8, 3), nn.Linear(128, 12), nn.Linear(12, 3)

    def before(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.fc(self.before(self.conv(x).relu()).view(-1, 8 * 16)).relu())


X = torch.randn(2, 2, 6, 6)


# ---------------------------------------------------------------------- outputs


class ActorCritic(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.body, self.mean, self.value, self.how = nn.Linear(4, 16), nn.Linear(16, 8), nn.Linear(16, 1), how

    def forward(self, x: Tensor) -> Any:
        h = self.body(x).relu()
        mean, value = self.mean(h), self.value(h)
        hidden = Normal(mean, 1.0, validate_args=False) if self.how == "distribution" else SimpleNamespace(mean=mean)
        return hidden, value


@pytest.mark.parametrize("how", ["distribution", "namespace"])
def test_outputs_inside_objects_keep_their_width(how: str) -> None:
    small = sc.prune(ActorCritic(how), torch.randn(3, 4), keep=0.5).model
    assert small(torch.randn(3, 4))[0].mean.shape == (3, 8)
    assert small.body.out_features == 8  # type: ignore[union-attr]


# ---------------------------------------------------------------------- rewritten graphs


def test_another_branch_than_the_captured_one_is_refused_and_not_taken_wrongly() -> None:
    class Pooling(Literal):
        def before(self, x: Tensor) -> Tensor:
            return F.avg_pool2d(x, 2) if x.shape[-1] > 4 else x

    model = Pooling()
    small = sc.prune(model, X, keep=0.5).model
    assert small(torch.randn(5, 2, 6, 6)).shape == (5, 3)
    with pytest.raises(AssertionError, match="captured on inputs that take another branch"):
        small(torch.randn(3, 2, 10, 10))


def test_a_plain_input_that_decides_is_kept_to() -> None:
    class Switched(Literal):
        def forward(self, x: Tensor, how: str = "plain") -> Tensor:  # type: ignore[override]
            return super().forward(2 * x if how == "twice" else x)

    small = sc.prune(Switched(), {"x": X, "how": "twice"}, keep=0.5).model
    small(x=X, how="twice")
    with pytest.raises(AssertionError, match="another branch"):
        small(x=X, how="plain")


class Rounding(torch.autograd.Function):
    """Rounds, with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class Rounded(Literal):
    def before(self, x: Tensor) -> Tensor:
        return Rounding.apply(x)  # type: ignore[return-value]


class Detached(Literal):
    def before(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return 2 * x


@pytest.mark.parametrize(
    ("model", "reason"), [(Rounded(), "a backward pass of its own"), (Detached(), "switches gradients on or off")]
)
def test_gradients_that_a_graph_would_lose_keep_the_class(model: nn.Module, reason: str) -> None:
    result = sc.prune(model, X, keep=0.5)
    assert type(result.model) is type(model)
    assert reason in result.graph.frozen["conv.weight:0"].frozen[0]
    assert torch.autograd.Function.apply.__name__ == "apply"


def test_layers_in_another_order_than_their_use_and_unused_ones_are_rewritten() -> None:
    class Disordered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out, self.spare, self.fc, self.conv = (
                nn.Linear(12, 3), nn.Linear(7, 9), nn.Linear(128, 12), nn.Conv2d(2, 8, 3),
            )  # fmt: skip

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.fc(self.conv(x).relu().view(-1, 8 * 16)).relu())

    result = sc.prune(Disordered(), X, keep=0.5)
    assert result.rewritten is not None
    assert result.model.conv.out_channels == 4  # type: ignore[union-attr]


def test_a_rewritten_model_can_be_pickled_by_those_who_want_to() -> None:
    small = sc.prune(Literal(), X, keep=0.5).model
    assert torch.equal(pickle.loads(pickle.dumps(small))(X), small(X))


# ---------------------------------------------------------------------- proofs


def test_weights_that_are_zero_prove_nothing() -> None:
    class Scaled(nn.Module):
        """Divides by the root of a width that no trace sees, in a branch that counts for nothing yet."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(4, 8), nn.Linear(8, 4), nn.Linear(4, 2)
            self.alpha = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x).relu()
            return self.out(x + self.alpha * self.b(h * h.stride(0) ** -0.5))

    graph = sc.trace(Scaled(), torch.randn(2, 4))
    assert "a.weight:0" in graph.axes
    with pytest.raises(sc.SecateurError, match="proof"):
        sc.prune(Scaled(), torch.randn(2, 4), keep=0.5)


def test_a_zero_head_is_proved_with_other_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    nn.init.zeros_(model[2].weight)  # type: ignore[arg-type]
    nn.init.zeros_(model[2].bias)  # type: ignore[arg-type]
    assert sc.prune(model, torch.randn(2, 4), keep=0.5).proof.scale > 0


def test_empty_outputs_prove_nothing() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises((ProofFailed, sc.SecateurError), match="outputs are empty"):
        sc.prune(model, torch.randn(0, 4), keep=0.5)


def test_a_size_that_only_fits_the_example_batch_is_found_out() -> None:
    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.width = nn.Linear(4, 6), nn.Linear(6, 2), 6

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x).view(-1, self.width).relu()
            return self.b(h * 0 if x.shape[0] > self.width else h)

    with pytest.raises(sc.SecateurError, match="differs from the silenced original"):
        sc.prune(Looking(), torch.randn(3, 4), keep=0.5)


def test_random_draws_are_the_same_in_both_models() -> None:
    class Vae(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enc, self.mean, self.dec, self.out = (
                nn.Linear(8, 16),
                nn.Linear(16, 4),
                nn.Linear(4, 16),
                nn.Linear(16, 8),
            )

        def forward(self, x: Tensor) -> Tensor:
            mean = self.mean(self.enc(x).relu())
            return self.out(self.dec(mean + torch.randn_like(mean)).relu())

    small = sc.prune(Vae(), torch.randn(3, 8), keep=0.5).model
    assert (small.enc.out_features, small.dec.out_features) == (8, 8)  # type: ignore[union-attr]


def test_heads_that_only_training_uses_still_fit() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.aux = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Any:
            h = self.a(x).relu()
            y = self.c(self.b(h).relu())
            return (y, self.aux(h)) if self.training else y

    small = sc.prune(Auxiliary(), torch.randn(3, 4), keep=0.5).model
    small.train()(torch.randn(3, 4))[1].sum().backward()
    assert small.b.out_features == 4  # type: ignore[union-attr]


def test_a_recurrent_layer_in_the_middle() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inp, self.rnn, self.mid, self.out = (
                nn.Linear(4, 12),
                nn.LSTM(12, 10),
                nn.Linear(10, 8),
                nn.Linear(8, 2),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.mid(self.rnn(self.inp(x))[0]).relu())

    result = sc.prune(Tagger(), torch.randn(3, 2, 4), keep=0.5)
    assert list(result.plan.axes) == ["inp.weight:0", "rnn.weight_ih_l0:0/hidden", "mid.weight:0"]


def test_the_old_spectral_norm_keeps_its_weight() -> None:
    torch.manual_seed(0)
    normed = torch.nn.utils.spectral_norm(nn.Linear(6, 16))
    model = nn.Sequential(nn.Linear(3, 6), normed, nn.ReLU(), nn.Linear(16, 3))
    result = sc.prune(model, torch.randn(2, 3), keep=0.5)
    assert list(result.plan.axes) == ["0.weight:0", "1.bias:0"]
    assert result.model[1].weight.shape == (8, 3), "the weight that was last computed is made anew"


# ---------------------------------------------------------------------- what must stay as it is


def test_inputs_that_forward_writes_to_are_left_alone() -> None:
    class Centring(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x.sub_(0.5)).relu())

    x = torch.randn(3, 4)
    before = x.clone()
    sc.prune(Centring(), x, keep=0.5)
    sc.measure(Centring(), x, training=False, memory=False)
    assert torch.equal(x, before)


def test_weights_that_a_layer_renormalises_are_left_alone() -> None:
    model = nn.Sequential(nn.Embedding(20, 8, max_norm=0.1), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    before = model[0].weight.clone()  # type: ignore[operator,union-attr]
    sc.prune(model, torch.randint(0, 20, (3, 5)), keep=0.5)
    assert torch.equal(model[0].weight, before)  # type: ignore[arg-type,union-attr]


def test_a_model_that_keeps_an_activation_can_be_pruned() -> None:
    class Keeping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)
            self.last: Any = None

        def forward(self, x: Tensor) -> Tensor:
            self.last = self.a(x).relu()
            return self.b(self.last)

    model = Keeping()
    model(torch.randn(3, 4))
    kept = model.last
    assert sc.prune(model, torch.randn(3, 4), keep=0.5).model.a.out_features == 4  # type: ignore[union-attr]
    assert model.last is kept


# ---------------------------------------------------------------------- saving


def small_net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))


@pytest.mark.parametrize("build", [small_net, Literal])
def test_a_model_pruned_twice_is_saved_with_both_plans(build: Any, tmp_path: Path) -> None:
    x = torch.randn(3, 4) if build is small_net else X
    first = sc.prune(build(), x, keep=0.8)
    second = sc.prune(first.model, x, keep=0.7)
    sc.save(second, tmp_path / "twice")
    loaded = sc.load(tmp_path / "twice", model=build())
    assert torch.equal(loaded(x), second.model.eval()(x))
    sc.save(loaded, tmp_path / "again")  # the probe's inputs are known from the first time
    assert torch.equal(sc.load(tmp_path / "again", model=build())(x), loaded(x))


def test_what_is_not_trained_stays_so(tmp_path: Path) -> None:
    model = Literal()
    model.fc.weight.requires_grad_(False)
    sc.save(sc.prune(model, X, keep=0.5), tmp_path / "saved")
    loaded = dict(sc.load(tmp_path / "saved").named_parameters())
    assert [name for name, p in loaded.items() if not p.requires_grad] == ["fc.weight"]


def test_a_graph_that_can_not_be_stored_is_refused_at_saving(tmp_path: Path) -> None:
    class Attending(Literal):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, bias=False)

        def before(self, x: Tensor) -> Tensor:
            rows = x.flatten(2).permute(2, 0, 1)
            return self.attention(rows, rows, rows)[0].permute(1, 2, 0).reshape(x.shape)

    class Wide(Attending):
        def forward(self, x: Tensor) -> Tensor:
            h = self.fc(self.before(self.conv(x).relu()).flatten(1)).relu()
            return self.out(h.view(-1, 12))

    result = sc.prune(Wide(), X, keep=0.5)
    assert result.rewritten is not None
    with pytest.raises(ArtifactError, match=r"can't be stored .* build="):
        sc.save(result, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize("target", ["os:system", "os:makedirs", "subprocess:Popen", "torch.serialization:load"])
def test_a_file_can_not_name_what_is_no_model(target: str) -> None:
    with pytest.raises(ArtifactError, match=f"{target} need not build a model"):
        Build(target, {})(trust=False)


def test_embedded_classes_are_trusted() -> None:
    assert isinstance(Build("secateur.examples:SimpleNet", {})(trust=False), nn.Module)


@functools.lru_cache
def triangle(size: int) -> Tensor:
    return torch.tril(torch.ones(size, size))


def test_a_cache_of_the_users_code_holds_no_fake_tensors_afterwards() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(triangle(x.shape[0]) @ self.a(x).relu())

    for _ in range(2):
        sc.prune(Masked(), torch.randn(3, 4), keep=0.5)
        assert type(triangle(3)) is Tensor


# ---------------------------------------------------------------------- paths that the example does not take


class Masked(nn.Module):
    """Spares itself the mask where it can, and with it a size; where it is exported it can't."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.a, self.b = 8, nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        h = self.a(x).relu()
        if mask is None and torch.compiler.is_exporting():
            mask = torch.ones(x.shape[0], 1)
        if mask is not None:
            h = h.reshape(-1, self.width) * mask
        return self.b(h)


def test_sizes_on_the_path_of_an_export_are_followed_too() -> None:
    x = torch.randn(3, 4)
    small = sc.prune(Masked(), x, keep=0.5).model
    assert small.width == 4
    assert torch.equal(small(x, torch.ones(3, 1)), small(x))
    program = torch.export.export(small, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=9)},))
    assert torch.allclose(program.module()(torch.cat([x, x])), small(torch.cat([x, x])))
    assert not torch.compiler.is_exporting()


def test_a_cache_given_as_an_input_is_left_as_it_was() -> None:
    class Cache:
        def __init__(self) -> None:
            self.steps: list[Tensor] = []

    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor, cache: Cache) -> Tensor:
            cache.steps.append(self.a(x).relu())
            return self.b(torch.stack(cache.steps).mean(0))

    cache = Cache()
    assert sc.prune(Remembering(), (torch.randn(3, 4), cache), keep=0.5).model.a.out_features == 4  # type: ignore[union-attr]
    assert cache.steps == []
    cache.steps.append(torch.randn(3, 8, requires_grad=True) * 2)  # an activation, which no deep copy takes
    graph = sc.trace(Remembering(), (torch.randn(3, 4), cache))
    assert "a.weight:0" in graph.frozen
    assert len(cache.steps) == 1
