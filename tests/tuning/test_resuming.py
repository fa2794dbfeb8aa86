"""A run that was cut off anywhere and taken up again ends with the same bits as one that was not."""

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from secateur.tuning import Callback, tune


class CutOff(Exception):
    """Stands for a power cut."""


class Cut(Callback):
    """Cuts a run off at a step."""

    def __init__(self, at: int | None) -> None:
        self.at = at

    def after_step(self, run: Any) -> None:
        if run.step == self.at:
            raise CutOff


class Noisy(Dataset[Any]):
    """Samples with noise from every source that people draw from."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, at: int) -> tuple[Tensor, int]:
        noise = torch.rand(2) + random.random() + float(np.random.rand())  # noqa: NPY002 (users' code draws from it)
        return torch.tensor([at % 2 * 2.0 - 1, 1.0]) + noise, at % 2


class Plain:
    """Batches that hang on the epoch, with the random numbers of torch."""

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(5):
            labels = torch.randint(0, 2, (8,))
            yield torch.randn(8, 2) + labels[:, None], labels


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))


def loader(kind: str) -> Any:
    match kind:
        case "shuffled":
            return DataLoader(Noisy(), batch_size=8, shuffle=True)
        case "own generator":
            return DataLoader(Noisy(), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(5))
        case "workers":
            return DataLoader(Noisy(), batch_size=8, shuffle=True, num_workers=2)
        case _:
            return Plain()


def validation() -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(32) % 2
    return [(torch.randn(32, 2, generator=generator) + labels[:, None], labels)]


def trained(folder: Path | None, kind: str, cut: int | None = None, **options: Any) -> dict[str, Tensor]:
    """The state of a model that was trained, and taken up again once if it was cut off."""
    settings: dict[str, Any] = {
        "epochs": 3,
        "lr": 0.05,
        "device": "cpu",
        "ema": 0.9,
        "clip": 1.0,
        "checkpoints": folder,
        "every": 1,
        **options,
    }
    model = net()
    if cut is not None:
        with pytest.raises(CutOff):
            tune(model, loader(kind), validation(), callbacks=[Cut(cut)], **settings)
        model = net()
        with torch.no_grad():
            model[0].weight.add_(1)  # what the model holds does not matter: the checkpoint has it
    history = tune(model, loader(kind), validation(), callbacks=[Cut(None)], **settings)
    assert [row.epoch for row in history.epochs] == [1, 2, 3]
    if cut is not None and folder is not None:
        assert history.resumed == cut - 1
    return dict(model.state_dict())


@pytest.mark.parametrize("kind", ["shuffled", "own generator", "plain"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("cut", [3, 6, 14])
def test_a_run_that_was_cut_off_ends_with_the_same_bits(tmp_path: Path, kind: str, optimizer: str, cut: int) -> None:
    whole = trained(None, kind, optimizer=optimizer)
    resumed = trained(tmp_path, kind, cut, optimizer=optimizer)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_with_workers_and_several_batches_a_step(tmp_path: Path) -> None:
    whole = trained(None, "workers", accumulate=2)
    resumed = trained(tmp_path, "workers", 5, accumulate=2)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_checkpoints_change_nothing(tmp_path: Path) -> None:
    bare, kept = trained(None, "shuffled"), trained(tmp_path, "shuffled")
    assert all(torch.equal(value, kept[name]) for name, value in bare.items())


def test_memory_formats_come_back(tmp_path: Path) -> None:
    """The momenta of weights in another memory format lie as the weights do, so that sums have the same order."""
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(4, 3, 8, 8, generator=generator), torch.arange(4) % 2) for _ in range(4)]

    def run(folder: Path | None, cut: int | None) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
        model.to(memory_format=torch.channels_last)
        settings: dict[str, Any] = {"epochs": 2, "lr": 0.01, "device": "cpu", "checkpoints": folder, "every": 1}
        if cut is not None:
            with pytest.raises(CutOff):
                tune(model, batches, callbacks=[Cut(cut)], **settings)
        seen: list[Any] = []

        class Look(Callback):
            def after_step(self, run: Any) -> None:
                state = next(iter(run.optimizer.state.values()))
                seen.append((state["exp_avg"].stride(), next(run.model.parameters()).stride()))

        tune(model, batches, callbacks=[Look()], **settings)
        assert all(momentum == weight for momentum, weight in seen)
        return model

    whole, resumed = run(None, None), run(tmp_path, 3)
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = trained(tmp_path, "shuffled")
    steps: list[int] = []
    model = net()
    history = tune(
        model,
        loader("shuffled"),
        validation(),
        epochs=3,
        lr=0.05,
        device="cpu",
        ema=0.9,
        clip=1.0,
        checkpoints=tmp_path,
        every=1,
        callbacks=[Cut(None)],
        progress=lambda done, total: steps.append(done),
    )
    assert not steps
    assert history.steps == 15
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in first.items())


def test_the_end_of_a_run_is_a_checkpoint_however_seldom_these_are(tmp_path: Path) -> None:
    """What comes after a run may be killed: then it is not trained again."""
    batches = [(torch.randn(4, 2), torch.arange(4) % 2)] * 3
    options: dict[str, Any] = {"epochs": 2, "lr": 0.01, "device": "cpu", "checkpoints": tmp_path, "every": "1h"}
    torch.manual_seed(0)
    model, again = nn.Linear(2, 2), nn.Linear(2, 2)
    tune(model, batches, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000006"]
    history = tune(again, batches, **options)
    assert history.resumed == 6
    assert torch.equal(model.weight, again.weight)


def test_checkpoints_of_another_model_are_refused(tmp_path: Path) -> None:
    from secateur.errors import TrainingError

    trained(tmp_path, "shuffled")
    data = TensorDataset(torch.randn(8, 2), torch.zeros(8, dtype=torch.long))
    with pytest.raises(TrainingError, match="are of another model or other settings"):
        tune(nn.Linear(2, 2), DataLoader(data, 4), epochs=3, lr=0.1, device="cpu", checkpoints=tmp_path)


def test_losses_of_an_epoch_that_was_cut_off_are_those_of_all_its_batches(tmp_path: Path) -> None:
    rows: list[list[float]] = []
    for folder, cut in ((None, None), (tmp_path, 8)):
        model = net()
        settings: dict[str, Any] = {"epochs": 2, "lr": 0.05, "device": "cpu", "checkpoints": folder, "every": 1}
        if cut:
            with pytest.raises(CutOff):
                tune(model, loader("plain"), callbacks=[Cut(cut)], **settings)
        history = tune(model, loader("plain"), callbacks=[Cut(None)], **settings)
        rows.append([row.train_loss for row in history.epochs])
    assert rows[0] == rows[1]
    assert all(map(math.isfinite, rows[0]))
