"""What goes wrong in a run, and what is left then: the best state, a checkpoint, and a message that says what to do."""

import errno
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from secateur.errors import ArtifactError, TrainingError
from secateur.tuning import Callback, evaluate, tune
from secateur.tuning.averaging import Average
from secateur.tuning.parts import labels_of, sliced

Batch = tuple[Tensor, Tensor]


def batches(count: int = 4, size: int = 8, seed: int = 0) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    labels = [torch.arange(size) % 2 for _ in range(count)]
    return [(torch.randn(size, 2, generator=generator) + 2 * y[:, None], y) for y in labels]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))


def train(model: nn.Module, loader: Any, *rest: Any, **options: Any) -> Any:
    return tune(model, loader, *rest, **{"epochs": 2, "lr": 0.05, "device": "cpu", **options})


def state(model: nn.Module) -> Tensor:
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


class Broken:
    """Batches of which one can't be read, until it is mended."""

    def __init__(self, at: int | None, error: Exception | None = None) -> None:
        self.at, self.error, self.read = at, error or OSError("the disk is gone"), 0

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[Batch]:
        for batch in batches():
            self.read += 1
            if self.read == self.at:
                raise self.error
            yield batch


# data


def test_a_loader_that_raises_keeps_the_state_before_it(tmp_path: Path) -> None:
    """Though no checkpoint was due; and the run goes on from there with the bits of one that nothing befell."""
    whole, model = net(), net()
    train(whole, Broken(None))
    with pytest.raises(
        TrainingError,
        match=r"data loader raised at step 7 of 8 \(epoch 2\): OSError: the disk is gone\..*repair the data",
    ):
        train(model, Broken(7), checkpoints=tmp_path, every="1h")
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000006"]
    history = train(model, Broken(None), checkpoints=tmp_path, every="1h")
    assert history.resumed == 6
    assert torch.equal(state(model), state(whole))


def test_an_error_of_our_own_in_a_loader_keeps_the_state_too(tmp_path: Path) -> None:
    from secateur.errors import DataError

    with pytest.raises(TrainingError, match="no such picture"):
        train(net(), Broken(3, DataError("no such picture")), checkpoints=tmp_path, every="1h")
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


class Liar(list[Batch]):
    """Says that it holds another number of batches."""

    def __init__(self, said: int, count: int = 4) -> None:
        super().__init__(batches(count))
        self.said = said

    def __len__(self) -> int:
        return self.said


@pytest.mark.parametrize(
    ("said", "steps", "what"), [(2, 8, "is 0 where the schedule ends"), (6, 8, "does not come down to its end")]
)
def test_a_loader_whose_length_lies_is_read_to_its_end_and_named(said: int, steps: int, what: str) -> None:
    with pytest.warns(UserWarning, match=f"batches for {said} steps an epoch .its len., and gave 4: .* {what}"):
        history = train(net(), Liar(said))
    assert history.steps == steps
    assert [row.steps for row in history.epochs] == [4, 4]
    assert len(history.notes) == 1


def test_a_loader_that_is_empty_in_the_second_epoch() -> None:
    class Once:
        full = True

        def __len__(self) -> int:
            return 4

        def __iter__(self) -> Iterator[Batch]:
            full, self.full = self.full, False
            return iter(batches() if full else [])

    model, rows = net(), []
    with pytest.raises(TrainingError, match="the loader held no batch in epoch 2"):
        train(model, Once(), on_epoch=lambda row: rows.append(state(model)))
    assert len(rows) == 1
    assert torch.equal(state(model), rows[0])


def test_an_iterator_is_refused_before_it_is_used_up() -> None:
    given = iter(batches())
    with pytest.raises(TrainingError, match="a list_iterator, which can be read only once"):
        train(net(), given)
    assert len(list(given)) == 4


class Sum(nn.Module):
    """Takes tensors, keywords or both; gives its own loss where it gets labels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor, y: Tensor | None = None, labels: Tensor | None = None) -> Any:
        from transformers.modeling_outputs import SequenceClassifierOutput

        scores = self.layer(x if y is None else x + y)
        return scores if labels is None else SequenceClassifierOutput(F.cross_entropy(scores, labels), scores)


@pytest.mark.parametrize("form", ["pair", "list", "keywords", "mapping", "mapping and target", "several inputs"])
def test_batches_in_every_form_train_alike(form: str) -> None:
    def shaped(batch: Batch) -> Any:
        x, y = batch
        forms: dict[str, Any] = {
            "pair": (x, y),
            "list": [x, y],
            "keywords": {"x": x, "labels": y},
            "mapping": {"x": x, "y": torch.zeros_like(x), "labels": y},
            "mapping and target": ({"x": x}, y),
            "several inputs": ((x, torch.zeros_like(x)), y),
        }
        return forms[form]

    plain, other = Sum(), Sum()
    train(plain, batches(), accumulate=2)
    train(other, [shaped(batch) for batch in batches()], accumulate=2)
    assert torch.allclose(state(plain), state(other), atol=1e-6)


def test_batches_without_a_target() -> None:
    model = nn.Linear(2, 2)
    history = train(model, [x for x, _ in batches()], loss=lambda output, target: (output - 1).square().mean())
    assert history.epochs[1].train_loss < history.epochs[0].train_loss


def test_lists_with_one_item_a_sample_are_split_by_samples() -> None:
    """Three pictures of three channels: before, their channels were split."""
    pictures = [torch.full((3, 4, 5), float(k)) for k in range(3)]
    targets = [{"boxes": torch.zeros(k + 1, 4)} for k in range(3)]
    (images,), names = sliced(((pictures,), targets), 1, 3, 3)
    assert [float(image.mean()) for image in images] == [1, 2]
    assert [len(target["boxes"]) for target in names] == [2, 3]
    both = sliced([[torch.zeros(2, 4), torch.zeros(2, 5)], torch.zeros(2)], 0, 1, 2)
    assert [tuple(each.shape) for each in both[0]] == [(1, 4), (1, 5)]


def test_mappings_of_any_kind_are_split() -> None:
    from collections import UserDict

    assert sliced(UserDict(x=torch.arange(4), n=torch.arange(3)), 0, 2, 4)["x"].tolist() == [0, 1]


# numbers


class Rooted(nn.Module):
    """A loss of 0 whose gradient is not a number, once."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight * x).square().sum(1).sqrt()


def test_a_gradient_that_is_nan_under_a_finite_loss_spoils_neither_model_nor_checkpoint(tmp_path: Path) -> None:
    good, bad = (torch.ones(2, 2), torch.ones(2)), (torch.zeros(2, 2), torch.ones(2))
    model, seen = Rooted(), []

    class Look(Callback):
        def after_step(self, run: Any) -> None:
            seen.append(bool(run.model.weight.isnan().any()))

    with pytest.raises(TrainingError, match="the weights became NaN or infinite by step 3 of 9, with lr=.*best state"):
        tune(
            model,
            [good, good, bad],
            epochs=3,
            lr=0.1,
            device="cpu",
            loss=F.mse_loss,
            checkpoints=tmp_path,
            every=1,
            callbacks=[Look()],
        )
    assert seen == [False, False, True]
    assert model.weight.tolist() == [1, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]
    model = Rooted()
    with pytest.raises(TrainingError, match="by step 3"):  # without checkpoints, at the end of the epoch
        tune(model, [good, good, bad], epochs=1, lr=0.1, device="cpu", loss=F.mse_loss)
    assert model.weight.tolist() == [1, 1]


def test_only_the_losses_that_are_none_are_named() -> None:
    data = batches()
    data[1] = (data[1][0] * math.nan, data[1][1])
    with pytest.raises(TrainingError, match=r"the loss became nan at step 1 of 2"):
        train(net(), data, accumulate=2, epochs=1)


def test_batches_without_any_label_are_passed_over() -> None:
    """Padding only: their mean would be NaN."""
    empty = (batches(1)[0][0], torch.full((8,), -100))
    one, other = Small(None), Small(None)
    history = train(one, [empty, *batches()], epochs=1, accumulate=5, optimizer="sgd")
    expected = train(other, batches(), epochs=1, accumulate=5, optimizer="sgd")
    assert torch.equal(state(one.layer), state(other.layer))
    assert history.epochs[0].train_loss == pytest.approx(expected.epochs[0].train_loss)
    with pytest.raises(TrainingError, match="no sample of epoch 1 has a label that counts"):
        train(net(), [empty])


# memory


class Small(nn.Module):
    """Has room for so many samples at a time; counts what it saw."""

    def __init__(self, room: int | None, *, only_in: str = "both") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2, 2)
        self.room, self.only_in = room, only_in
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.seen: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += len(x)
        crowded = self.room is not None and len(x) > self.room
        if crowded and self.only_in in ("both", "training" if self.training else "evaluation"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.layer(x)


def test_halved_batches_have_the_gradient_of_the_whole_one() -> None:
    """Against the gradient by hand, of uneven pieces too: 7 samples in 4 pieces."""
    found: list[Tensor] = []

    class Look(Callback):
        def before_step(self, run: Any) -> None:
            found.append(run.model.layer.weight.grad.clone())

    model, by_hand = Small(2), Small(None)
    (batch,) = batches(1, 7)
    with pytest.warns(UserWarning, match="batches are done in .* pieces from here on, with the gradient of the whole"):
        history = tune(model, [batch], epochs=1, lr=0.1, device="cpu", halve=True, callbacks=[Look()])
    F.cross_entropy(by_hand.layer(batch[0]), batch[1]).backward()
    assert torch.allclose(found[0], by_hand.layer.weight.grad, atol=1e-7)
    assert len(history.notes) == 2
    assert "out of memory at step 1 with 7 samples" in history.notes[0]
    assert "done in 4 pieces" in history.notes[1]
    assert int(model.seen) == 7  # what failed attempts had counted is taken back


def test_halved_batches_weigh_by_their_labels() -> None:
    """The mean is over labels, of which the halves have three and one."""
    labels = torch.tensor([0, 1, 1, -100, -100, -100, 0, -100])
    batch = (batches(1)[0][0], labels)
    assert labels_of(batch) == 4
    halved, whole = Small(4), Small(None)
    with pytest.warns(UserWarning, match="2 pieces"):
        tune(halved, [batch], epochs=1, lr=0.1, optimizer="sgd", device="cpu", halve=True)
    tune(whole, [batch], epochs=1, lr=0.1, optimizer="sgd", device="cpu")
    assert torch.allclose(state(halved), state(whole), atol=1e-6)


def test_out_of_memory_without_leave_to_halve_says_what_to_do(tmp_path: Path) -> None:
    model = Small(4, only_in="training")
    before = state(model)
    with pytest.raises(
        TrainingError, match=r"out of memory at step 1 with 8 samples .*: give smaller batches, or .*halve=True"
    ):
        train(model, batches())
    assert torch.equal(state(model), before)
    with (
        pytest.warns(UserWarning, match="2 pieces"),
        pytest.raises(TrainingError, match="done one by one already: nothing smaller is possible"),
    ):
        train(Small(0, only_in="training"), batches(2, 2), halve=True)


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    class Wrong(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(Wrong(2, 2), batches(), halve=True)


def test_out_of_memory_in_validation() -> None:
    model, whole = Small(3, only_in="evaluation"), Small(None)
    with pytest.warns(UserWarning, match=r"out of memory in validation at batch 1 with 8 samples .*changes nothing"):
        history = train(model, batches(), batches(2, seed=1), halve=True, metric="f1")
    expected = train(whole, batches(), batches(2, seed=1), metric="f1")
    got, wanted = history.epochs[-1], expected.epochs[-1]
    assert (got.validation_loss, got.validation_accuracy, got.metric) == pytest.approx(
        (wanted.validation_loss, wanted.validation_accuracy, wanted.metric)
    )
    assert "validation" in history.notes[0]
    with pytest.raises(TrainingError, match="out of memory in validation at batch 1.*give smaller batches"):
        train(Small(3, only_in="evaluation"), batches(), batches(2))


# callbacks and optimizers


class Raises(Callback):
    def __init__(self, at: str) -> None:
        self.at, self.ended = at, 0

    def after_step(self, run: Any) -> None:
        if self.at == "step" and run.step == 6:
            raise ValueError("a user's mistake")

    def on_end(self, run: Any) -> None:
        self.ended += 1
        if self.at == "end":
            raise ValueError("a user's mistake")


@pytest.mark.parametrize("at", ["step", "end"])
def test_a_callback_that_raises_leaves_the_best_state_and_the_others_their_end(at: str, tmp_path: Path) -> None:
    model, rows, other, last = net(), [], Raises("never"), Raises("never")
    with pytest.raises(ValueError, match="a user's mistake"):
        train(
            model,
            batches(),
            callbacks=[other, Raises(at), last],
            on_epoch=lambda row: rows.append(state(model)),
            checkpoints=tmp_path,
            every=2,
        )
    assert torch.equal(state(model), rows[-1])
    assert (other.ended, last.ended) == (1, 1)
    assert all(p.grad is None for p in model.parameters())


def test_an_optimizer_of_the_users() -> None:
    model, made = net(), []

    def make(parameters: Any, *, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        made.append(torch.optim.RMSprop(parameters, lr=lr, weight_decay=weight_decay))
        return made[0]

    train(model, batches(), optimizer=make)
    assert made[0].state
    with pytest.raises(TrainingError, match="'<lambda>' gave a list: it must give a torch.optim.Optimizer"):
        train(net(), batches(), optimizer=lambda parameters, **_: parameters)


# models


class Odd(nn.Module):
    """Tied weights, a buffer that no state dict holds, an integer one, and a state of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(5, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("smooth", torch.zeros(4), persistent=False)
        self.smooth: Tensor
        self.extra = 0

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.embed(x))
        if self.training:
            self.smooth.lerp_(hidden.detach().mean(0), 0.1)
            self.extra += 1
        return self.head(hidden + self.smooth)

    def get_extra_state(self) -> Any:
        return {"extra": self.extra}

    def set_extra_state(self, state: Any) -> None:
        self.extra = state["extra"]


class Cut(Callback):
    def __init__(self, at: int) -> None:
        self.at = at

    def after_step(self, run: Any) -> None:
        if run.step == self.at:
            raise InterruptedError


def test_tied_weights_and_states_that_no_state_dict_holds_are_taken_up_again(tmp_path: Path) -> None:
    data = [(torch.arange(5), (torch.arange(5) + 1) % 5)] * 3
    whole, cut, resumed = Odd(), Odd(), Odd()
    train(whole, data, data)
    with pytest.raises(InterruptedError):
        train(cut, data, data, checkpoints=tmp_path, every=1, callbacks=[Cut(5)])
    train(resumed, data, data, checkpoints=tmp_path, every=1, callbacks=[Cut(0)])
    assert all(torch.equal(v, resumed.get_parameter(n)) for n, v in whole.named_parameters())
    assert all(torch.equal(v, resumed.get_buffer(n)) for n, v in whole.named_buffers())
    assert (resumed.extra, int(resumed.norm.num_batches_tracked)) == (whole.extra, 6)
    assert resumed.head.weight is resumed.embed.weight


def test_the_best_state_has_the_buffers_that_went_with_it() -> None:
    data = [(torch.arange(5), (torch.arange(5) + 1) % 5)] * 3
    model, seen = Odd(), []
    scores = iter([0.0, 2.0, 1.0])
    train(
        model,
        data,
        data,
        metric=lambda model, _: next(scores),
        on_epoch=lambda row: seen.append(model.smooth.clone()),
    )
    assert torch.equal(model.smooth, seen[0])
    assert not torch.equal(seen[0], seen[1])


def test_graph_modules() -> None:
    model = fx.symbolic_trace(net())
    before = state(model)
    train(model, batches(), batches(seed=1))
    assert isinstance(model, fx.GraphModule)
    assert not torch.equal(before, state(model))


def test_bfloat16(tmp_path: Path) -> None:
    data = [(x.bfloat16(), y) for x, y in batches()]
    whole, cut = net().bfloat16(), net().bfloat16()
    train(whole, data, data, clip=1.0, ema=0.9)
    with pytest.raises(InterruptedError):
        train(cut, data, data, clip=1.0, ema=0.9, checkpoints=tmp_path, every=1, callbacks=[Cut(5)])
    train(cut, data, data, clip=1.0, ema=0.9, checkpoints=tmp_path, every=1, callbacks=[Cut(0)])
    assert {value.dtype for value in cut.state_dict().values()} == {torch.bfloat16}
    assert torch.equal(state(cut), state(whole))


def test_averages_of_bfloat16_move() -> None:
    """A thousandth of the way from 1 to 2 is less than bfloat16 tells apart: a hundred of them are not nothing."""
    model = nn.Linear(1, 1, bias=False).bfloat16()
    nn.init.constant_(model.weight, 1.0)
    average = Average(model, 0.999)
    average.steps = 10**6
    nn.init.constant_(model.weight, 2.0)
    for _ in range(100):
        average.update(model)
    with average.swapped(model):
        assert model.weight.item() == pytest.approx(2 - 0.999**100, abs=0.01)
    assert model.weight.item() == 2.0


def test_channels_last_stays() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    model.to(memory_format=torch.channels_last)
    data = [(torch.randn(4, 3, 8, 8).to(memory_format=torch.channels_last), torch.arange(4) % 2)] * 3
    train(model, data, data, ema=0.9)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("accelerate_anew")
def test_mixed_precision_leaves_forward_alone_and_may_change_from_run_to_run() -> None:
    model = net()
    train(model, batches(), precision="bf16")
    train(model, batches(), precision="no")
    assert "forward" not in vars(model)
    model.forward = model.forward  # type: ignore[method-assign]
    own = vars(model)["forward"]
    train(model, batches(), precision="bf16")
    assert vars(model)["forward"] is own


# validation


def test_a_function_judges_a_model_that_evaluates() -> None:
    """Before, it got the model as it trained, dropout and all."""
    modes: list[bool] = []

    def judge(model: nn.Module, loader: Any) -> float:
        modes.append(model.training or torch.is_grad_enabled())
        return evaluate(model, loader)["accuracy"]

    train(net(), batches(), batches(), metric=judge)
    assert modes == [False] * 3


# checkpoints


def test_a_full_disk_does_not_end_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("secateur.tuning.checkpoints.save_file", full)
    model, plain = net(), net()
    with pytest.warns(UserWarning, match="no checkpoint could be written at step .*No space left"):
        history = train(model, batches(), checkpoints=tmp_path, every=3)
    train(plain, batches())
    assert history.steps == 8
    assert torch.equal(state(model), state(plain))


def test_damaged_checkpoints_are_passed_over(tmp_path: Path) -> None:
    whole, model = net(), net()
    train(whole, batches())
    with pytest.raises(InterruptedError):
        train(model, batches(), checkpoints=tmp_path, every=1, callbacks=[Cut(7)])
    newest = tmp_path / "step-00000006" / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    with pytest.warns(UserWarning, match="damaged.*going back to step-00000005, the one before"):
        history = train(model, batches(), checkpoints=tmp_path, every=1, callbacks=[Cut(0)])
    assert history.resumed == 5
    assert torch.equal(state(model), state(whole))


def test_where_all_are_damaged_that_is_an_error_and_the_next_run_starts_anew(tmp_path: Path) -> None:
    with pytest.raises(InterruptedError):
        train(net(), batches(), checkpoints=tmp_path, every=1, callbacks=[Cut(3)])
    for path in tmp_path.glob("step-*"):
        (path / "state.json").write_text("{}")
    model, whole = net(), net()
    before = state(model)
    with (
        pytest.warns(UserWarning, match="step-00000002 is damaged.*going back to step-00000001"),
        pytest.raises(
            ArtifactError, match="no checkpoint in .* is whole: .*step-00000002.*step-00000001.*start once more"
        ),
    ):
        train(model, batches(), checkpoints=tmp_path, every=1)
    assert torch.equal(state(model), before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged-00000001", "damaged-00000002"]
    history = train(model, batches(), checkpoints=tmp_path, every=1)
    train(whole, batches())
    assert (history.resumed, history.steps) == (0, 8)
    assert torch.equal(state(model), state(whole))
    assert (tmp_path / "step-00000008").exists()


def test_checkpoints_of_other_settings_are_refused_and_the_model_stays(tmp_path: Path) -> None:
    with pytest.raises(InterruptedError):
        train(net(), batches(), checkpoints=tmp_path, every=1, callbacks=[Cut(3)])
    for options, said in (({"accumulate": 2}, "accumulate=1, now 2"), ({"seed": 5}, "seed=0, now 5")):
        with pytest.raises(TrainingError, match=f"of another model or other settings .{said}"):
            train(net(), batches(), checkpoints=tmp_path, callbacks=[Cut(0)], **options)
    other = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))  # its first layer fits
    before = state(other)
    with pytest.raises(TrainingError, match="of another model"):
        train(other, batches(), checkpoints=tmp_path, callbacks=[Cut(0)])
    assert torch.equal(state(other), before)


def test_another_learning_rate_is_not_taken_in_silence(tmp_path: Path) -> None:
    with pytest.raises(InterruptedError):
        train(net(), batches(), checkpoints=tmp_path, every=1, callbacks=[Cut(3)])
    with pytest.warns(UserWarning, match=r"goes on from its checkpoint with lr=0.05, not 0.01"):
        history = train(net(), batches(), checkpoints=tmp_path, lr=0.01, callbacks=[Cut(0)])
    assert "lr=0.05" in history.notes[0]


def test_data_of_a_distributed_sampler_is_refused_only_among_several_processes() -> None:
    from torch.utils.data.distributed import DistributedSampler

    from secateur.tuning.counting import steps_per_epoch

    data = TensorDataset(*batches(1)[0])
    loader = DataLoader(data, 4, sampler=DistributedSampler(data, num_replicas=2, rank=0))
    assert steps_per_epoch(loader, several=False) == 1
    with pytest.raises(TrainingError, match="DistributedSampler gives each process samples of its own"):
        steps_per_epoch(loader, several=True)
