import copy
import json
import time

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import nn

from secateur.errors import MeasureError
from secateur.examples import SimpleNet
from secateur.measuring import count_macs, file_size, measure, measure_all
from secateur.memory import peak_memory

QUICK = {"min_run_time": 0.01, "threads": 1}


class Attention(nn.Module):
    """Scaled dot-product attention without projections."""

    def forward(self, x):
        return nn.functional.scaled_dot_product_attention(x, x, x)


# counts


def test_simplenet_by_hand():
    got = measure(SimpleNet(), torch.zeros(2, 1, 10, 10), **QUICK)
    one = 6 * 9 * 64 + 16 * 54 * 36 + 576 * 120 + 120 * 84 + 84 * 10
    assert got.params == 81_194
    assert got.macs == 2 * one
    assert got.throughput == pytest.approx(2 / got.latency_ms * 1e3)


def test_attention_counts_both_products():
    assert count_macs(Attention(), torch.zeros(1, 2, 5, 8)) == 2 * (2 * 5 * 5 * 8)


def test_an_encoder_layer_is_counted_in_eval_mode_too():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    x = torch.zeros(1, 5, 8)
    assert count_macs(layer.eval(), x) == count_macs(layer.train(), x) > 5 * (4 * 64 + 2 * 128)
    assert torch.backends.mha.get_fastpath_enabled()


def test_tied_parameters_count_once():
    one, two = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
    two.weight = one.weight
    model = nn.Sequential(one, two)
    assert measure(model, torch.zeros(1, 8), **QUICK).params == 64
    assert file_size(model) < 2 * 64 * 4


@pytest.mark.parametrize(
    "model", [SimpleNet(), nn.Sequential(nn.Linear(4, 4).half(), nn.BatchNorm1d(4))], ids=["simplenet", "mixed"]
)
def test_size_is_that_of_the_file(model, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(model.state_dict(), path)
    assert file_size(model) == path.stat().st_size


def test_size_where_state_is_no_tensor_or_a_view():
    class Odd(nn.Linear):
        def __init__(self):
            super().__init__(4, 4)
            self.register_buffer("view", self.weight.detach()[:2].t())

        def get_extra_state(self):
            return {"version": 1}

        def set_extra_state(self, state): ...

    assert file_size(Odd()) > (16 + 4 + 8) * 4


# inputs


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (torch.zeros(3, 4), None),
        ((torch.zeros(3, 4),), {}),
        ({"input": torch.zeros(3, 4)}, None),
        ((), {"input": torch.zeros(3, 4)}),
    ],
)
def test_inputs_in_every_form(args, kwargs):
    got = measure(nn.Linear(4, 5), args, kwargs, **QUICK)
    assert got.macs == 3 * 4 * 5
    assert got.throughput == pytest.approx(3 / got.latency_ms * 1e3)


def test_model_is_left_as_found():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
    model[2].eval()
    model[0].weight.grad = torch.ones(4, 4)
    before = copy.deepcopy(model.state_dict())
    x = torch.rand(8, 4)
    random = torch.get_rng_state()
    measure(model, x, **QUICK)
    assert [module.training for module in model] == [True, True, False]
    assert torch.equal(model[0].weight.grad, torch.ones(4, 4))
    assert model[0].bias.grad is None
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# times


def test_a_slower_model_measures_slower():
    class Sleeper(nn.Linear):
        def forward(self, x):
            time.sleep(0.005)
            return super().forward(x)

    got = measure_all({"quick": nn.Linear(2, 2), "slow": Sleeper(2, 2)}, torch.zeros(1, 2), memory=False, **QUICK)
    assert list(got) == ["quick", "slow"]
    assert 5 <= got["slow"].latency_ms < 100
    assert got["slow"].training_step_ms >= 5
    assert got["quick"].latency_ms < got["slow"].latency_ms / 2
    assert got["quick"].peak_memory_bytes is None


def test_models_take_turns():
    calls = []

    class Named(nn.Identity):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self, x):
            calls.append(self.name)
            return x

    measure_all({"a": Named("a"), "b": Named("b")}, torch.zeros(1), training=False, memory=False, **QUICK)
    turns = [name for i, name in enumerate(calls) if i == 0 or calls[i - 1] != name]
    assert len(turns) >= 8


def test_the_training_step_uses_the_loss_that_is_given():
    seen = []

    def loss(output):
        seen.append(output.shape)
        return output.sum()

    assert measure(nn.Linear(2, 3), torch.zeros(4, 2), loss=loss, memory=False, **QUICK).training_step_ms > 0
    assert set(seen) == {(4, 3)}
    assert measure(nn.Linear(2, 3), torch.zeros(4, 2), training=False, memory=False, **QUICK).training_step_ms is None


def test_a_model_that_cannot_train_on_the_inputs_says_so():
    got = measure(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), torch.zeros(1, 2), memory=False, **QUICK)
    assert got.training_step_ms is None
    assert "Expected more than 1 value per channel" in got.notes[0]
    assert "Expected more than 1 value" in str(got)


# memory


def test_peak_memory_sees_what_the_forward_pass_occupies():
    """32 MiB more in the activations show as about as much more memory, whatever this process held before."""
    before = torch.rand(64 * 2**18)  # 64 MiB, freed at once: must not hide the child's own use
    del before

    def occupy(mebibytes: int):
        return lambda: torch.ones(mebibytes * 2**18).add(1)

    small, large = (peak_memory(occupy(size), torch.device("cpu")) for size in (1, 17))
    if small is None or large is None:
        pytest.skip("processes can't be forked here")
    assert large - small == pytest.approx(32 * 2**20, rel=0.2)


def test_peak_memory_is_that_of_each_model_alone():
    """A model of 64 MiB beside one of 64 KiB, both held by this process."""
    models = {"large": nn.Linear(4096, 4096, bias=False), "small": nn.Linear(128, 128, bias=False)}
    sizes = {name: model.weight.shape[1] for name, model in models.items()}

    class Fitting(nn.Module):
        def __init__(self, inner, size):
            super().__init__()
            self.inner, self.size = inner, size

        def forward(self, x):
            return self.inner(x[:, : self.size])

    got = measure_all(
        {name: Fitting(model, sizes[name]) for name, model in models.items()},
        torch.ones(1, 4096),
        training=False,
        **QUICK,
    )
    large, small = got["large"].peak_memory_bytes, got["small"].peak_memory_bytes
    if large is None or small is None:
        pytest.skip("processes can't be forked here")
    assert large - small == pytest.approx(64 * 2**20, rel=0.2)
    assert models["large"].weight.shape == (4096, 4096)


def test_models_that_share_weights_are_measured_whole():
    shared = nn.Linear(8, 8)
    got = measure_all({"one": nn.Sequential(shared), "two": nn.Sequential(shared)}, torch.ones(1, 8), **QUICK)
    can_fork = peak_memory(lambda: None, torch.device("cpu")) is not None
    assert [figures.peak_memory_bytes is not None for figures in got.values()] == [can_fork, can_fork]


def test_peak_memory_of_a_child_that_fails_or_hangs_is_none():
    started = time.monotonic()
    assert peak_memory(lambda: 1 / 0, torch.device("cpu")) is None
    assert peak_memory(lambda: time.sleep(60), torch.device("cpu"), timeout=0.2) is None
    assert time.monotonic() - started < 10


# errors


def test_inputs_that_do_not_fit():
    with pytest.raises(MeasureError, match=r"model \(Linear\) does not run on these inputs \(\(3, 5\) torch.float32\)"):
        measure(nn.Linear(4, 4), torch.zeros(3, 5))


def test_nan_is_found_where_it_is():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    nn.init.constant_(model[1].weight, torch.nan)
    with pytest.raises(MeasureError, match=r"returns holds NaN. There is NaN in 1.weight\."):
        measure(model, torch.zeros(3, 4))
    with pytest.raises(MeasureError, match=r"There is NaN in the inputs\."):
        measure(nn.Linear(4, 4), torch.full((3, 4), torch.nan))
    with pytest.raises(MeasureError, match="Neither its weights nor the inputs hold any"):
        measure(nn.LogSoftmax(0), torch.full((3,), -torch.inf))


def test_weights_that_are_not_there():
    with pytest.raises(MeasureError, match="meta device"):
        measure(nn.Linear(4, 4, device="meta"), torch.zeros(3, 4))


def test_settings_out_of_range():
    with pytest.raises(MeasureError, match="min_run_time=0"):
        measure(nn.Linear(4, 4), torch.zeros(3, 4), min_run_time=0)


# output


def test_figures_in_the_form_of_the_report():
    got = measure(nn.Linear(4, 4), torch.zeros(3, 4), **QUICK)
    keys = "params macs size_bytes latency_ms throughput training_step_ms peak_memory_bytes metrics"
    assert list(got.to_dict()) == keys.split()
    assert json.loads(json.dumps(got.to_dict())) == got.to_dict()


def test_it_prints_as_a_table():
    got = measure(SimpleNet(), torch.zeros(1, 1, 10, 10), **QUICK)
    assert "81,194" in str(got)
    console = Console(record=True, width=80, file=None, quiet=False)
    with console.capture() as captured:
        console.print(got)
    assert "parameters" in captured.get()
