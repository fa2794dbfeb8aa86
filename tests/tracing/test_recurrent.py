"""Recurrent layers: the units of all gates, layers and directions go together, and the layer says its new sizes."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import secateur as sc
from support.operations import Net, halved, weight

SEQUENCES = torch.randn(2, 5, 6)  # (N, L, 6), or (L, N, 6) where a layer takes time first
LAYERS: dict[str, Callable[..., Any]] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
INPUT = "inp.weight:0 hidden 10>5"


def units(kind: str) -> str:
    """The axis of the hidden units of a layer `rnn`, named after its first weight."""
    return f"rnn.weight_ih_l0:0{'/hidden' if GATES[kind] > 1 else ''} hidden 8>4"


def after(net: Net, x: Tensor) -> Tensor:
    return net.out(net.rnn(net.inp(x))[0])


def around(layer: nn.Module, width: int = 8, function: Callable[..., Any] = after, **more: Any) -> Net:
    return Net(function, inp=nn.Linear(6, 10), rnn=layer, out=nn.Linear(width, 3), **more)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_units_of_all_gates_layers_and_directions_go_together(
    kind: str, batch_first: bool, bidirectional: bool, layers: int
) -> None:
    layer = LAYERS[kind](10, 8, layers, batch_first=batch_first, bidirectional=bidirectional)
    small = halved(around(layer, 16 if bidirectional else 8), SEQUENCES, INPUT, units(kind)).model.rnn
    assert (small.input_size, small.hidden_size) == (5, 4)
    assert small.weight_hh_l0.shape == (4 * GATES[kind], 4)
    assert all(held is own for held, own in zip(small._flat_weights, small.parameters(), strict=True))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("settings", [{"bias": False}, {"num_layers": 2, "dropout": 0.5}])
def test_settings(kind: str, settings: dict[str, Any]) -> None:
    halved(around(LAYERS[kind](10, 8, **settings)), SEQUENCES, INPUT, units(kind))


def test_relu() -> None:
    small = halved(around(nn.RNN(10, 8, nonlinearity="relu")), SEQUENCES, INPUT, units("RNN")).model
    assert repr(small.rnn) == "RNN(5, 4)"


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_projections_are_an_axis_of_their_own() -> None:
    layer = nn.LSTM(10, 8, 2, proj_size=4, bidirectional=True)
    projections = "rnn.weight_hh_l0:1 hidden 4>2"
    small = halved(around(layer, 8), SEQUENCES, INPUT, units("LSTM"), projections).model
    assert repr(small.rnn) == "LSTM(5, 4, proj_size=2, num_layers=2, bidirectional=True)"


def learned(net: Net, x: Tensor) -> Tensor:
    h = net.h0.expand(-1, x.shape[0], -1).contiguous()
    return net.out(net.rnn(net.inp(x), (h, h) if isinstance(net.rnn, nn.LSTM) else h)[0])


def zeros(net: Net, x: Tensor) -> Tensor:
    h = torch.zeros(net.rnn.num_layers, x.shape[0], net.rnn.hidden_size)
    return net.out(net.rnn(net.inp(x), (h, h.clone()) if isinstance(net.rnn, nn.LSTM) else h)[0])


def last_states(net: Net, x: Tensor) -> Tensor:
    h = net.rnn(net.inp(x))[1]
    h = h[0] if isinstance(h, tuple) else h
    return net.out(torch.cat([h[-2], h[-1]], -1))


@pytest.mark.parametrize("kind", LAYERS)
def test_states_that_are_parameters_are_members(kind: str) -> None:
    net = around(LAYERS[kind](10, 8, 2, batch_first=True), 8, learned, h0=weight(2, 1, 8))
    assert halved(net, SEQUENCES, INPUT, "h0:2 hidden 8>4").model.h0.shape == (2, 1, 4)


@pytest.mark.parametrize("kind", LAYERS)
def test_states_that_start_at_zero_follow(kind: str) -> None:
    halved(around(LAYERS[kind](10, 8, 2, batch_first=True), 8, zeros), SEQUENCES, INPUT, units(kind))


@pytest.mark.parametrize("kind", LAYERS)
def test_last_states(kind: str) -> None:
    layer = LAYERS[kind](10, 8, 2, batch_first=True, bidirectional=True)
    halved(around(layer, 16, last_states), SEQUENCES, INPUT, units(kind))


@pytest.mark.parametrize("kind", LAYERS)
def test_one_step_is_enough_to_see_that_states_carry_on(kind: str) -> None:
    net = around(LAYERS[kind](10, 8, 2))
    halved(net, SEQUENCES[:1], INPUT, units(kind), other=(SEQUENCES,))


def test_states_that_are_inputs_keep_their_width() -> None:
    net = Net(lambda net, x, h: net.out(net.rnn(x, h)[0]), rnn=nn.GRU(6, 8), out=nn.Linear(8, 3))
    graph = sc.trace(net, (torch.randn(5, 2, 6), torch.randn(1, 2, 8)))
    assert graph.frozen["rnn.weight_ih_l0:0/hidden"].frozen == ("an input of the model",)


def packed(net: Net, x: Tensor, lengths: Tensor) -> Tensor:
    sequences = pack_padded_sequence(net.inp(x), lengths, batch_first=True, enforce_sorted=False)
    return net.out(pad_packed_sequence(net.rnn(sequences)[0], batch_first=True, total_length=7)[0])


@pytest.mark.parametrize("kind", LAYERS)
def test_packed_sequences(kind: str) -> None:
    net = around(LAYERS[kind](10, 8, 2, batch_first=True, bidirectional=True), 16, packed)
    halved(net, (SEQUENCES, torch.tensor([3, 5])), INPUT, units(kind))


@pytest.mark.parametrize("first", [False, True])
def test_an_unpacked_sequence_is_what_torch_makes_of_it(first: bool) -> None:
    from secateur.tracing.sizes import SizeMode
    from secateur.tracing.tracer import Tracer

    sequence = pack_padded_sequence(torch.randn(4, 3, 2), torch.tensor([4, 2, 1]))
    expected = pad_packed_sequence(sequence, batch_first=first, padding_value=-1.0, total_length=6)
    with SizeMode(Tracer(), tagging=False):
        got = pad_packed_sequence(sequence, batch_first=first, padding_value=-1.0, total_length=6)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


# ---------------------------------------------------------------------- cells, and layers among others


def stepped(net: Net, x: Tensor) -> Tensor:
    x, state = net.inp(x), None
    if "state" in net._parameters:
        state = net.state.expand(x.shape[0], -1)
        state = (state, state) if isinstance(net.rnn, nn.LSTMCell) else state
    steps: list[Tensor] = []
    for step in x.unbind(1):
        state = net.rnn(step, state)
        steps.append(state[0] if isinstance(state, tuple) else state)
    return net.out(torch.stack(steps, 1))


@pytest.mark.parametrize("kind", LAYERS)
def test_cells(kind: str) -> None:
    cell = getattr(nn, f"{kind}Cell")(10, 8)
    axis = units(kind).replace("_l0", "")
    assert repr(halved(around(cell, 8, stepped), SEQUENCES, INPUT, axis).model.rnn) == f"{kind}Cell(5, 4)"


@pytest.mark.parametrize("kind", LAYERS)
def test_cells_with_learned_states(kind: str) -> None:
    cell = getattr(nn, f"{kind}Cell")(10, 8)
    halved(around(cell, 8, stepped, state=weight(1, 8)), SEQUENCES, INPUT, "state:1 hidden 8>4")


def test_one_sequence_without_a_batch() -> None:
    net = Net(lambda net, x: net.out(net.rnn(x)[0]), rnn=nn.GRU(6, 8), out=nn.Linear(8, 3))
    halved(net, torch.randn(5, 6), units("GRU"))


def test_an_encoder_and_a_decoder_share_their_state() -> None:
    def translate(net: Net, x: Tensor, y: Tensor) -> Tensor:
        return net.out(net.decoder(net.table(y), net.rnn(net.table(x))[1])[0])

    parts: dict[str, nn.Module] = {"table": nn.Embedding(20, 10), "rnn": nn.GRU(10, 8), "decoder": nn.GRU(10, 8)}
    ids = torch.randint(0, 20, (2, 5))
    small = halved(
        Net(translate, **parts, out=nn.Linear(8, 20)), (ids, ids), "table.weight:1 hidden 10>5", units("GRU")
    ).model
    assert small.decoder.hidden_size == 4


def test_convolutions_before_a_recurrent_layer() -> None:
    def read(net: Net, x: Tensor) -> Tensor:
        n, _, height, width = (x := net.conv(x).relu()).shape
        return net.out(net.rnn(x.permute(0, 3, 1, 2).reshape(n, width, x.shape[1] * height))[0])

    net = Net(read, conv=nn.Conv2d(2, 8, 3), rnn=nn.LSTM(32, 8, batch_first=True), out=nn.Linear(8, 3))
    small = halved(net, torch.randn(2, 2, 6, 6), "conv.weight:0 channels 8>4", units("LSTM")).model
    assert small.rnn.input_size == 16


def test_a_recurrent_layer_by_hand() -> None:
    """Zero states of a size on the module, gates by ``split`` of the same size."""

    def scan(net: Net, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], net.width, *x.shape[2:])
        c = torch.zeros_like(h)
        for _ in range(3):
            i, f, g, o = net.gates(torch.cat([x, h], 1)).split(net.width, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return net.out(h)

    net = Net(scan, gates=nn.Conv2d(10, 32, 3, padding=1), out=nn.Conv2d(8, 3, 1), width=8)
    small = halved(net, torch.randn(2, 2, 6, 6), "gates.weight:0/residual residual 8>4").model
    assert (small.width, small.gates.in_channels, small.gates.out_channels) == (4, 6, 16)


@pytest.fixture
def fused_cells() -> Iterator[None]:
    """The operations that a GPU runs a cell with, for the CPU: torch has them for GPUs only."""

    def lstm(x: Tensor, h: Tensor, c: Tensor, x_bias: Tensor, h_bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        i, f, g, o = (gates := x + x_bias + h + h_bias).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c, gates

    def gru(x: Tensor, h: Tensor, state: Tensor, x_bias: Tensor, h_bias: Tensor) -> tuple[Tensor, Tensor]:
        (xr, xz, xn), (hr, hz, hn) = (x + x_bias).chunk(3, 1), (h + h_bias).chunk(3, 1)
        r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
        n = (xn + r * hn).tanh()
        return n + z * (state - n), torch.cat([r, z, n, state, hn], 1)

    library = torch.library.Library("aten", "IMPL")
    library.impl("_thnn_fused_lstm_cell", lstm, "CompositeExplicitAutograd")
    library.impl("_thnn_fused_gru_cell", gru, "CompositeExplicitAutograd")
    yield
    library._destroy()


@pytest.mark.usefixtures("fused_cells")
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_cells_that_a_gpu_fuses(kind: str) -> None:
    fused = getattr(torch.ops.aten, f"_thnn_fused_{kind.lower()}_cell")

    def step(net: Net, x: Tensor) -> Tensor:
        state = torch.tanh(net.start(x))
        gates = net.of_input(x), net.of_state(state)
        return net.out(fused(*gates, state, net.input_bias, net.state_bias)[0])

    width = GATES[kind] * 8
    net = Net(step, start=nn.Linear(4, 8), of_input=nn.Linear(4, width, bias=False), out=nn.Linear(8, 3),
              of_state=nn.Linear(8, width, bias=False), input_bias=weight(width), state_bias=weight(width))  # fmt: skip
    net.eval().requires_grad_(False)  # the operation has no gradient here
    small = sc.prune(net, torch.randn(2, 4), keep=0.5).model
    assert (small.start.out_features, small.of_state.in_features) == (4, 4)
    assert (small.of_state.out_features, small.of_input.out_features) == (width // 2, width // 2)
    assert small.input_bias.shape == (width // 2,)


def test_layers_are_traced_without_the_kernel_that_hides_them(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: list[bool] = []
    set_enabled = torch._C._set_cudnn_enabled
    monkeypatch.setattr(torch._C, "_set_cudnn_enabled", lambda on: (settings.append(on), set_enabled(on)))
    before = torch.backends.cudnn.enabled
    sc.trace(around(nn.LSTM(10, 8)), SEQUENCES)
    assert False in settings
    assert torch.backends.cudnn.enabled is before


def test_pruning_in_place_refreshes_the_flat_weights() -> None:
    net = around(nn.LSTM(10, 8))
    net.eval()
    graph = sc.trace(net, SEQUENCES)
    plan = sc.plan(graph, sc.score(net, graph), keep=0.5)
    expected = plan.apply(net)(SEQUENCES)
    assert torch.equal(plan.apply_(net)(SEQUENCES), expected)
    assert [tuple(t.shape) for t in net.rnn._flat_weights] == [(16, 5), (16, 4), (16,), (16,)]


def test_weight_normalised_recurrence() -> None:
    layer = nn.LSTM(10, 8)
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(layer, "weight_hh_l0")
    small = halved(around(layer), SEQUENCES, INPUT, units("LSTM")).model
    assert small.rnn.weight_hh_l0_v.shape == (16, 4)
