"""Experts are whole units: each goes with its row of the router where code only picks, counts or masks by number."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from secateur.choices import Note
from secateur.proof import silenced
from secateur.tracing import Op
from secateur.tracing.rules import RULES

Forward = Callable[[Any, Tensor], Any]


class Moe(nn.Module):
    """A router and four stacked experts of width 8 on 6 channels, between two layers; two experts for each row."""

    def __init__(self, mix: Forward, experts: int = 4) -> None:
        super().__init__()
        self.__dict__["mix"] = mix
        self.num_experts, self.top_k = experts, 2
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)
        self.router = nn.Linear(6, experts, bias=False)
        self.up = nn.Parameter(torch.randn(experts, 6, 8))
        self.down = nn.Parameter(torch.randn(experts, 8, 6))
        self.register_buffer("load", torch.rand(experts))

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        return self.last(x + self.mix(self, x))

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Shares and numbers of the experts for each row."""
        shares, chosen = self.router(x).softmax(-1).topk(self.top_k, dim=-1)
        return shares / shares.sum(-1, keepdim=True), chosen

    def all(self, x: Tensor) -> Tensor:
        """What every expert makes of every row."""
        return torch.einsum("neh,ehd->ned", torch.einsum("nd,edh->neh", x, self.up).relu(), self.down)


def dense(self: Moe, x: Tensor) -> Tensor:
    return torch.einsum("ne,ned->nd", self.router(x).softmax(-1), self.all(x))


def one_hot(self: Moe, x: Tensor) -> Tensor:
    shares, chosen = self.choose(x)
    mask = F.one_hot(chosen, num_classes=self.num_experts).to(x.dtype)
    return torch.einsum("nk,nke,ned->nd", shares, mask, self.all(x))


def scatter(self: Moe, x: Tensor) -> Tensor:
    shares, chosen = self.choose(x)
    gates = torch.zeros(x.shape[0], self.num_experts, dtype=x.dtype).scatter(1, chosen, shares)
    return torch.einsum("ne,ned->nd", gates, self.all(x))


def compared(self: Moe, x: Tensor) -> Tensor:
    shares, chosen = self.choose(x)
    mask = chosen.unsqueeze(-1) == torch.arange(self.num_experts)
    return torch.einsum("nke,nk,ned->nd", mask.to(x.dtype), shares, self.all(x))


def gathered(self: Moe, x: Tensor) -> Tensor:
    shares, chosen = self.choose(x)
    hidden = torch.einsum("nd,nkdh->nkh", x, self.up[chosen]).relu()
    return torch.einsum("nk,nkh,nkhd->nd", shares, hidden, self.down[chosen])


def balanced(self: Moe, x: Tensor) -> Tensor:
    """A bias only chooses; the shares are the router's own, each squashed alone."""
    scores = self.router(x).sigmoid()
    chosen = (scores + self.load).topk(self.top_k, sorted=False)[1]
    outputs = self.all(x).gather(1, chosen[..., None].expand(-1, -1, x.shape[-1]))
    return (scores.gather(1, chosen)[..., None] * outputs).sum(1)


def best(self: Moe, x: Tensor) -> Tensor:
    share, chosen = self.router(x).softmax(-1).max(-1)
    return share[:, None] * (x[:, None] @ self.up[chosen] @ self.down[chosen])[:, 0]


def along(self: Moe, x: Tensor) -> Tensor:
    shares, chosen = self.choose(x)
    return (shares[..., None] * torch.take_along_dim(self.all(x), chosen[..., None].clamp(0, 3), 1)).sum(1)


def counted(self: Moe, x: Tensor) -> Tensor:
    """Experts that many rows chose get less of a say."""
    shares, chosen = self.choose(x)
    ones = torch.ones(chosen.numel(), dtype=x.dtype)
    load = torch.zeros(self.num_experts, dtype=x.dtype).scatter_add(0, chosen.flatten(), ones)
    gates = torch.zeros_like(self.router(x)).scatter_(-1, chosen, shares)
    return torch.einsum("ne,ned->nd", gates / (load + 1), self.all(x))


def limited(self: Moe, x: Tensor) -> Tensor:
    """An expert takes the first few rows that chose it."""
    share, chosen = self.router(x).softmax(-1).max(-1)
    mask = F.one_hot(chosen, self.num_experts)
    place = (mask.cumsum(0) - 1) * mask
    seat = F.one_hot(place.sum(-1).clamp(max=2), 3).to(x.dtype)
    taken = ((place < 3) * mask).to(x.dtype)[..., None] * seat[:, None]
    hidden = torch.einsum("necd,edh->nech", torch.einsum("nec,nd->necd", taken, x), self.up).relu()
    return torch.einsum("nech,ehd->nd", hidden, self.down) * share[:, None]


def loop(self: Moe, x: Tensor) -> Tensor:
    """Over the experts that a row chose, each on its rows alone."""
    shares, chosen = self.choose(x)
    mask = F.one_hot(chosen, self.num_experts).permute(2, 1, 0)
    out = torch.zeros_like(x)
    for expert in mask.sum((-1, -2)).gt(0).nonzero():
        place, row = torch.where(mask[expert[0]])
        hidden = (x[row] @ self.up[expert[0]]).relu() @ self.down[expert[0]]
        out.index_add_(0, row, hidden * shares[row, place, None])
    return out


def grouped(self: Moe, x: Tensor) -> Tensor:
    """Rows sorted by expert, and where each expert's rows end."""
    shares, chosen = self.choose(x)
    expert, order = chosen.flatten().sort()
    ends = torch.bincount(expert, minlength=self.num_experts).cumsum(0).to(torch.int32)
    hidden = F.grouped_mm(x[order // self.top_k], self.up, offs=ends).relu()
    hidden = F.grouped_mm(hidden, self.down, offs=ends) * shares.flatten()[order][:, None]
    return hidden[order.argsort()].view(x.shape[0], self.top_k, -1).sum(1)


ROUTINGS = [dense, one_hot, scatter, compared, gathered, balanced, best, along, counted, limited, loop]


def experts_of(graph: sc.Graph) -> str:
    (name,) = [n for n, a in graph.axes.items() if ("router.weight", 0) in a.members]
    assert set(graph.axes[name].members) >= {("router.weight", 0), ("up", 0), ("down", 0)}
    return name


@pytest.mark.parametrize("mix", ROUTINGS, ids=lambda f: f.__name__)
def test_experts_go_with_their_router_rows(mix: Forward) -> None:
    model, x = Moe(mix), torch.randn(10, 4)
    result = sc.prune(model, x, keep=0.5)
    name = experts_of(result.graph)
    assert result.graph.axes[name].kind == "experts" or mix is dense  # where none is chosen it is a width like others
    assert len(result.plan.axes) == 3  # the stream, the experts, and their width
    small = result.model
    assert isinstance(small, Moe)
    assert (small.up.shape, small.down.shape) == ((2, 3, 4), (2, 4, 3))
    assert small.router.out_features == 2
    assert small.num_experts == (4 if mix in (dense, gathered, balanced, best, along) else 2)  # 4: nobody reads it
    assert result.proof.dtype == "float64"
    small(torch.randn(7, 4)).sum().backward()
    assert isinstance(small.up.grad, Tensor)
    assert bool(small.up.grad.isfinite().all())


def test_grouped_matrix_products_keep_their_rows_aligned() -> None:
    """A kernel for grouped products reads rows that start at multiples of 16 bytes: 8 numbers of half precision, or as
    many of them as the model has it.
    """
    model = Moe(grouped)
    model.first, model.last, model.router = nn.Linear(4, 16), nn.Linear(16, 3), nn.Linear(16, 4, bias=False)
    model.up, model.down = nn.Parameter(torch.randn(4, 16, 12)), nn.Parameter(torch.randn(4, 12, 16))
    x = torch.randn(10, 4)
    result = sc.prune(model, x, keep=0.4)
    small = result.model
    assert isinstance(small, Moe)
    assert (small.up.shape, small.num_experts) == ((2, 8, 8), 2)
    assert {a.size: a.step for a in result.graph.axes.values()} == {16: 8, 4: 1, 12: 4}
    assert result.proof.dtype == "float64"
    small(torch.randn(7, 4)).sum().backward()
    assert isinstance(small.up.grad, Tensor)
    assert bool(small.up.grad.isfinite().all())


def test_grouped_products_cost_what_their_rows_need() -> None:
    model = Moe(grouped)
    model.first, model.last, model.router = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 4, bias=False)
    model.up, model.down = nn.Parameter(torch.randn(4, 8, 12)), nn.Parameter(torch.randn(4, 12, 8))
    graph = sc.trace(model, torch.randn(10, 4))
    name = experts_of(graph)
    ends = 10 * (4 * 8 + 8 * 3)
    routed = 10 * 2 * (8 * 12 + 12 * 8)
    assert graph.cost()["macs"] == ends + routed + 10 * 8 * 4
    assert graph.cost({name: 2})["macs"] == ends + routed + 10 * 8 * 2  # each row still visits two experts


def test_enough_experts_stay_for_each_row_to_choose() -> None:
    model, x = Moe(gathered, experts=8), torch.randn(10, 4)
    model.top_k = 3
    graph = sc.trace(model, x)
    name = experts_of(graph)
    assert graph.axes[name].least == 3
    assert "keeps at least 3 units" in str(graph)
    assert "at least 3 units" in str(graph.explain("up", 0))
    scores = sc.score(model, graph)
    for wanted in ({"keep": 0.1}, {"threshold": 100.0}):
        assert len(sc.plan(graph, scores, only="experts", **wanted).axes[name].kept) == 3  # type: ignore[arg-type]
    budget = sc.Budget(params=graph.cost({name: 3})["params"])
    assert len(sc.plan(graph, scores, only="experts", budget=budget).axes[name].kept) == 3
    with pytest.raises(sc.SecateurError, match="smallest"):
        sc.plan(graph, scores, only="experts", budget=sc.Budget(params=graph.cost({name: 2})["params"]))


@pytest.mark.parametrize("mix", [one_hot, best, limited], ids=lambda f: f.__name__)
def test_the_proof_notes_each_choice_once(mix: Forward) -> None:
    """Repeated on the kept units alone, a top-k picks what the smaller model picks: no other choice of it counts."""
    model, x = Moe(mix), torch.randn(10, 4)
    graph = sc.trace(model, x)
    plan = sc.plan(graph, sc.score(model, graph), keep=0.5, only="experts")
    with Note() as noted:
        silenced(model, graph, plan, (x,), {}, dtype=torch.float32, noted=noted)
    with Note() as own, torch.no_grad():
        plan.apply(model)(x)
    assert [(c.name, c.shape) for c in noted.choices] == [(c.name, c.shape) for c in own.choices]
    assert len(own.choices) >= 1


def in_groups(self: Moe, x: Tensor) -> Tensor:
    """The best group of each row, then the best two of it."""
    scores = self.router(x).sigmoid()
    by_group = scores.view(-1, self.groups, self.num_experts // self.groups)
    of_group = by_group.topk(2, dim=-1)[0].sum(-1)
    open_groups = torch.zeros_like(of_group).scatter(1, of_group.topk(self.top_groups, dim=-1)[1], 1.0)
    mask = open_groups[..., None].expand(-1, -1, self.num_experts // self.groups).reshape(-1, self.num_experts)
    chosen = scores.masked_fill(mask == 0, float("-inf")).topk(self.top_k)[1]
    outputs = x[:, None, None] @ self.up[chosen] @ self.down[chosen]
    return torch.einsum("nk,nkd->nd", scores.gather(1, chosen), outputs[:, :, 0])


def test_groups_of_experts_and_experts_in_each_group_go() -> None:
    model, x = Moe(in_groups, experts=16), torch.randn(10, 4)
    model.groups, model.top_groups = 4, 2  # type: ignore[assignment]
    result = sc.prune(model, x, keep=0.5)
    found = {a.kind: (a.size, a.least) for a in result.graph.axes.values() if ("router.weight", 0) in a.members}
    assert found == {"groups": (4, 2), "experts": (4, 2)}
    small = result.model
    assert (small.num_experts, small.groups, small.up.shape[0]) == (4, 2, 4)


MISUSED: dict[str, tuple[Forward, str]] = {
    "an output of the model": (lambda self, x: self.choose(x)[1][:, :1], "add"),
    "arithmetic": (lambda self, x: x * self.choose(x)[1][:, :1], "mul"),
    "a look-up of another size": (lambda self, x: x + F.embedding(self.choose(x)[1], torch.eye(9, 6)).sum(1), "eye"),
    "read by Python": (lambda self, x: x * self.choose(x)[1].max().item(), "max"),
    "a list": (lambda self, x: x * sum(self.choose(x)[1][0].tolist()), "read by Python"),
    "one expert's number": (lambda self, x: x * (self.choose(x)[1] == 2).sum(1, keepdim=True), "eq"),
    "a narrow type": (lambda self, x: x * self.choose(x)[1].bool().sum(1, keepdim=True), "_to_copy"),
    "one expert's weights": (lambda self, x: dense(self, x) @ self.up[0] @ self.down[0], "select"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISUSED)
def test_numbers_of_experts_used_as_data_freeze_them(name: str) -> None:
    mix, operation = MISUSED[name]
    graph = sc.trace(Moe(mix), torch.randn(10, 4))
    (frozen,) = [a for a in graph.frozen.values() if ("router.weight", 0) in a.members]
    assert any(operation in reason and __file__ in reason for reason in frozen.frozen), frozen.frozen


class Chosen(nn.Module):
    """Which expert each row goes to is an output."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.router(x).argmax(-1)


def test_numbers_of_experts_as_an_output_freeze_them() -> None:
    graph = sc.trace(Chosen(), torch.randn(5, 4))
    assert not graph.axes
    assert graph.frozen["router.weight:0"].frozen == ("its units are told apart by number: an output of the model",)


def test_a_literal_number_of_experts_is_followed_by_a_rewritten_graph() -> None:
    def mix(self: Moe, x: Tensor) -> Tensor:
        shares, chosen = self.choose(x)
        return torch.einsum("nk,nke,ned->nd", shares, F.one_hot(chosen, 4).to(x.dtype), self.all(x))

    graph = sc.trace(Moe(mix), torch.randn(10, 4))
    assert "one_hot(4)" in graph.axes[experts_of(graph)].rewrite[0]


class Separate(nn.Module):
    """Experts of their own classes, called by number, each on the rows that chose it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.router, self.last = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 2)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 6)) for width in (8, 10, 12)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        share, chosen = self.router(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for k, expert in enumerate(self.experts):
            rows = torch.where(chosen == k)[0]
            out[rows] = share[rows, None] * expert(x[rows])
        return self.last(out)


def test_experts_in_a_module_list_stay_but_get_narrower() -> None:
    model = Separate()
    result = sc.prune(model, torch.randn(30, 4), keep=0.5)
    (router,) = [a for a in result.graph.frozen.values() if ("router.weight", 0) in a.members]
    assert any("told apart by number: aten::eq" in reason for reason in router.frozen)
    widths = [e[0].out_features for e in result.model.experts]  # type: ignore[union-attr]
    assert (widths, result.model.first.out_features) == ([4, 5, 6], 3)


@torch.library.custom_op("secateur_test::route", mutates_args=())
def route(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Shares and numbers of the k best, in one operation."""
    shares, chosen = logits.softmax(-1).topk(k)
    return shares.clone(), chosen.clone()


@route.register_fake
def _(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return logits.new_empty(logits.shape[0], k), logits.new_empty(logits.shape[0], k, dtype=torch.long)


def test_a_router_of_the_users_own_needs_a_rule_of_five_lines() -> None:
    def mix(self: Moe, x: Tensor) -> Tensor:
        shares, chosen = route(self.router(x), 2)
        return torch.einsum("nk,nd,nkdh,nkhe->ne", shares, x, self.up[chosen], self.down[chosen])

    def rule(op: Op) -> list[list[Any]]:
        rows, experts = op.dims("logits")
        op.normalises(experts)
        op.names(1, experts)
        op.at_least(experts, op["k"])
        return [[rows, op.fixed(op.out[0])[1]]] * 2

    model, x = Moe(mix, experts=8), torch.randn(10, 4)
    assert not sc.trace(model, x).select(["experts"])
    sc.rule("secateur_test::route")(rule)
    try:
        result = sc.prune(model, x, keep=0.1)
    finally:
        RULES.pop("secateur_test::route")
    assert result.model.up.shape == (2, 1, 1)
    assert (experts_of(result.graph), result.proof.status) == ("up:0", "proved")


# ---------------------------------------------------------------------- transformers

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 32, "intermediate_size": 48,
         "num_experts_per_tok": 2}  # fmt: skip
MLA = {"num_key_value_heads": 4, "moe_intermediate_size": 32, "n_routed_experts": 8, "n_group": 2, "topk_group": 1,
       "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
       "v_head_dim": 8}  # fmt: skip
MODELS: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    "Mixtral": ({"num_local_experts": 4}, {"experts": 2}),
    "Qwen2Moe": (
        {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
        {"experts": 2},
    ),
    "DeepseekV3": (MLA, {"groups": 1, "experts": 2}),
}


def transformer(name: str, implementation: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SMALL, **MODELS[name][0]})
    config._experts_implementation = implementation
    model: nn.Module = getattr(transformers, f"{name}ForCausalLM")(config)
    for path, parameter in model.named_parameters():
        if path.endswith("gate.weight"):
            nn.init.normal_(parameter)  # else all rows choose alike
    return model


@pytest.mark.parametrize("implementation", ["grouped_mm", "eager", "batched_mm"])
@pytest.mark.parametrize("name", MODELS)
def test_experts_of_transformers(name: str, implementation: str) -> None:
    model = transformer(name, implementation)
    result = sc.prune(model, {"input_ids": torch.randint(0, 64, (2, 12)), "use_cache": False}, keep=0.5)
    gate, last = "model.layers.1.mlp.gate.weight", model.model.layers[1].mlp.experts  # type: ignore[union-attr]
    axes = {a.kind: n for n, a in result.graph.axes.items() if (gate, 0) in a.members}
    assert {kind: len(result.plan.axes[axes[kind]].kept) for kind in axes} == MODELS[name][1]
    for axis in axes.values():
        assert {(f"model.layers.1.mlp.experts.{w}", 0) for w in ("gate_up_proj", "down_proj")} < set(
            result.graph.axes[axis].members
        )
    assert type(result.model) is type(model)
    small = result.model.model.layers[1].mlp.experts  # type: ignore[union-attr]
    assert small.down_proj.shape[0] < last.down_proj.shape[0]
    if implementation != "batched_mm":  # which does not read it
        assert small.num_experts == small.down_proj.shape[0] < last.num_experts == last.down_proj.shape[0]
    assert not [a for a in result.graph.frozen.values() if "proof" in a.frozen[0]]
    assert result.graph.coverage == 1
    logits = result.model(input_ids=torch.randint(0, 64, (3, 7)), use_cache=False).logits
    logits.sum().backward()
    assert logits.shape == (3, 7, 64)
    assert bool(small.down_proj.grad.isfinite().all())


def test_all_ways_to_run_experts_cost_the_same() -> None:
    inputs = {"input_ids": torch.randint(0, 64, (2, 12)), "use_cache": False}
    costs = [sc.trace(transformer("Mixtral", way), inputs).cost() for way in ("grouped_mm", "eager", "batched_mm")]
    assert costs[0] == costs[1] == costs[2]


class Hit(Separate):
    """Only the experts that some row chose are called."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        share, chosen = self.router(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for k in chosen.unique().tolist():
            rows = chosen == k
            out[rows] = share[rows, None] * self.experts[k](x[rows])
        return self.last(out)


def test_an_expert_that_no_example_reaches_holds_what_it_would_share() -> None:
    model, x = Hit(), torch.randn(30, 4)
    with torch.no_grad():
        model.router.weight.zero_()
        model.router.bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    graph = sc.trace(model, x)
    assert list(graph.axes) == ["experts.0.0.weight:0"]
    reason = "experts.1 would run in the place of experts.0, but the example inputs do not reach it"
    assert reason in graph.frozen["first.weight:0"].frozen
    with torch.no_grad():
        model.router.weight.normal_()
        model.router.bias.zero_()
    assert model.router(model.first(x)).argmax(-1).unique().tolist() == [0, 1, 2]
    assert len(sc.trace(model, x).axes) == 4  # with an example for each expert: their widths, and the stream
