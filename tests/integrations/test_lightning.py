"""Pruning inside Lightning's Trainer, which goes on, saves, dies and resumes."""

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import ArtifactError, MissingExtra, RemapError
from support.lives_in_processes import whole_and_resumed
from support.networks import Cnn

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's own, of the machine and of its imports


@pytest.mark.heavy  # the same of transformers' Trainer, on the same code, is in every run
@pytest.mark.parametrize("way", ["once", "twice"])
def test_a_killed_run_goes_on_to_the_same_loss_bit_for_bit(tmp_path: Path, way: str) -> None:
    """Pruned at step 20 (or at 10 and 20), killed after 27 with a checkpoint of 25, resumed in a fresh process.

    Beside it, an exponential average of the weights, which is what remains in the end.
    """
    whole, resumed = whole_and_resumed("trained_by_lightning.py", tmp_path, way)
    assert list(whole["losses"]) == [str(step) for step in range(40)]
    after = {step: loss for step, loss in whole.pop("losses").items() if int(step) >= 25}
    assert resumed.pop("losses") == after
    assert resumed == whole  # learning rate, widths, steps of pruning, sums of the averaged weights, states
    assert whole["steps"] == ([20] if way == "once" else [10, 20])
    assert whole["widths"]["net.conv1.weight"][0] == (4 if way == "once" else 5)


def classes() -> tuple[Any, Any]:
    import pytorch_lightning as pl

    class Module(pl.LightningModule):
        """A CNN without a forward of its own."""

        def __init__(self) -> None:
            super().__init__()
            self.net, self.other = Cnn(), nn.Linear(2, 2)
            self.losses: list[float] = []
            self.automatic_optimization = False
            self.loaded = 0

        def training_step(self, batch: Any, _: int) -> None:
            first, second = self.optimizers()
            first.zero_grad()
            loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            self.manual_backward(loss)
            first.step()
            self.losses.append(loss.item())
            if self.global_step % 2:
                second.zero_grad()
                self.manual_backward(self.other.weight.square().mean())
                second.step()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.net.parameters(), 0.1, momentum=0.9), torch.optim.Adam(self.other.parameters())

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            self.loaded += 1

    return pl.Trainer, Module


def fitted(folder: Path, module: Any, *callbacks: Any, ckpt_path: Any = None, steps: int = 12) -> Any:
    trainer = classes()[0](
        max_steps=steps, callbacks=list(callbacks), accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, enable_checkpointing=False,
    )  # fmt: skip
    data = torch.utils.data.TensorDataset(torch.randn(8, 3, 8, 8), torch.randint(5, (8,)))
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=4), ckpt_path=ckpt_path)
    return trainer


def callback(**settings: Any) -> Any:
    from secateur.integrations.lightning import PruneCallback

    return PruneCallback(**{"example": torch.randn(2, 3, 8, 8), "at": 6, "part": "net", "keep": 0.5, **settings})


def widths(module: nn.Module) -> dict[str, Any]:
    return {name: tuple(p.shape) for name, p in module.named_parameters()}


def test_a_part_with_an_optimizer_beside_another_and_an_average(tmp_path: Path) -> None:
    from pytorch_lightning.callbacks import WeightAveraging

    from secateur.integrations.lightning import prepare_

    module, one, average = classes()[1](), callback(), WeightAveraging()
    trainer = fitted(tmp_path, module, one, average)
    assert module.net.conv1.weight.shape[0] == 4
    assert average._average_model.module.net.conv1.weight.shape[0] == 4
    first, second = trainer.optimizers
    assert {id(p) for p in first.param_groups[0]["params"]} == {id(p) for p in module.net.parameters()}
    assert len(second.param_groups[0]["params"]) == 2
    assert first.state[module.net.conv1.weight]["momentum_buffer"].shape[0] == 4
    assert one.record.steps == (6,)
    assert one.reports[0]["proof"]["status"] == "proved"
    assert "on_load_checkpoint" not in vars(module)

    trainer.save_checkpoint(tmp_path / "file.ckpt")
    content = torch.load(tmp_path / "file.ckpt", weights_only=True)  # plain data
    assert content["secateur_plans"]["steps"] == [6]
    fresh = prepare_(classes()[1](), tmp_path / "file.ckpt", part="net")
    fresh.load_state_dict(content["state_dict"])
    assert prepare_(fresh, content, part="net") is fresh  # small already


@pytest.mark.parametrize(("at", "channels"), [(5, 4), (100, 8)])
def test_stochastic_weight_averaging_goes_on(tmp_path: Path, at: int, channels: int) -> None:
    """With pruning as without."""
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import StochasticWeightAveraging

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Cnn()

        def training_step(self, batch: Any, _: int) -> Any:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters())

    module, average = Module(), StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1, device=None)
    trainer = pl.Trainer(
        max_epochs=4, callbacks=[average, callback(at=at)], accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, enable_checkpointing=False,
    )  # fmt: skip
    data = torch.utils.data.TensorDataset(torch.randn(8, 3, 8, 8), torch.randint(5, (8,)))
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=4))
    assert average._average_model.net.conv1.weight.shape[0] == module.net.conv1.weight.shape[0] == channels
    assert average.n_averaged == 4
    assert widths(average._average_model) == widths(module)


def test_the_best_checkpoint_is_one_of_the_smaller_model(tmp_path: Path) -> None:
    """Which may be worse than the dense one was: here every later loss counts as worse."""
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import ModelCheckpoint

    kind = classes()[1]
    kind.on_train_epoch_end = lambda self: self.log("score", float(self.current_epoch))
    kept = ModelCheckpoint(dirpath=tmp_path, monitor="score", mode="min", filename="{epoch}")
    trainer = pl.Trainer(
        max_epochs=5, callbacks=[callback(), kept], accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    data = torch.utils.data.TensorDataset(torch.randn(8, 3, 8, 8), torch.randint(5, (8,)))
    trainer.fit(module := kind(), torch.utils.data.DataLoader(data, batch_size=4))
    best = torch.load(kept.best_model_path, weights_only=True)
    assert kept.best_model_path != str(tmp_path / "epoch=0.ckpt")
    assert {n: t.shape for n, t in best["state_dict"].items()} == {n: t.shape for n, t in module.state_dict().items()}


def test_the_modules_own_hook_runs_and_tests_take_the_checkpoint(tmp_path: Path) -> None:
    module = classes()[1]()
    fitted(tmp_path, module, callback()).save_checkpoint(tmp_path / "file.ckpt")
    again, one = classes()[1](), callback()
    fitted(tmp_path, again, one, ckpt_path=tmp_path / "file.ckpt", steps=14)
    assert again.loaded == 1
    assert one.record.steps == (6,)
    assert widths(again) == widths(module)


def test_example_inputs_of_the_module_itself(tmp_path: Path) -> None:
    kind = classes()[1]
    kind.forward = lambda self, x: self.net(x)
    module = kind()
    module.example_input_array = torch.randn(2, 3, 8, 8)
    fitted(tmp_path, module, callback(example=None, part=""))
    assert module.net.conv1.weight.shape[0] == 4


def test_without_example_inputs_it_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(RemapError, match="example inputs are needed to prune"):
        fitted(tmp_path, classes()[1](), callback(example=None))


def test_a_file_that_is_no_plain_data_is_not_read(tmp_path: Path) -> None:
    from secateur.integrations.lightning import prepare_

    torch.save({"state_dict": {}, "hyper_parameters": types.SimpleNamespace()}, tmp_path / "file.ckpt")
    with pytest.raises(ArtifactError, match="can't be read as plain data"):
        prepare_(classes()[1](), tmp_path / "file.ckpt")


def test_either_package_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that the program has imported comes first."""
    from secateur.integrations import lightning

    class Callback:
        pass

    package = types.ModuleType("lightning.pytorch")
    package.Callback = Callback  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lightning", types.ModuleType("lightning"))
    monkeypatch.setitem(sys.modules, "lightning.pytorch", package)
    assert lightning._callback_class() is Callback
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)  # as if it were not installed
    assert lightning._callback_class() is importlib.import_module("pytorch_lightning").Callback
    monkeypatch.setitem(sys.modules, "pytorch_lightning", None)
    with pytest.raises(MissingExtra, match=r"pip install 'secateur\[lightning\]'"):
        lightning._callback_class()


def test_masks_chosen_at_every_step_where_lightning_makes_the_step(tmp_path: Path) -> None:
    """It runs the model in a closure, within the optimizer's step."""
    import pytorch_lightning as pl

    seen: list[int] = []

    class Automatic(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(8, 4)

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            seen.append(int((self.net.weight == 0).sum()))
            return self.net(batch).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=0.1)

    model = Automatic()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    with sc.sparsity.StraightThrough(sc.NM(2, 4)).on(model.net) as sparse:
        trainer.fit(model, torch.utils.data.DataLoader(list(torch.randn(12, 8)), batch_size=4))
        assert bool((sparse.dense["weight"] != 0).all())
    assert seen == [16] * 3
    assert sc.sparsity.sparsity_of(model.net) == 0.5
