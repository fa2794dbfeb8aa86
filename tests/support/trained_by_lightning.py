"""A run of Lightning's Trainer that prunes a small network after step 20: ``python FILE FOLDER whole|killed|resumed``.

It leaves ``whole.json`` or ``resumed.json``: the losses, step by step, and the widths. A killed run dies after step 27.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from torch import Tensor
from torch.nn import functional as F

from secateur.integrations.lightning import PruneCallback
from support.networks import Cnn

SETTINGS: dict[str, dict[str, Any]] = {
    "once": {"at": 20, "keep": 0.5},
    "twice": {"at": [10, 20], "part": "net", "importance": "l1", "schedule": "linear"},
}


class Classifier(pl.LightningModule):
    """The CNN of the tests, trained on noise."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Cnn()
        self.losses: dict[int, float] = {}

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, _: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.losses[self.trainer.global_step] = loss.item()
        return loss

    def validation_step(self, batch: Any, _: int) -> None:
        self.log("validation", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2, amsgrad=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Dies(Callback):
    """As if the machine were switched off."""

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 27:
            os.kill(os.getpid(), signal.SIGKILL)


def main(folder: Path, what: str, way: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = Classifier()
    data = torch.utils.data.TensorDataset(torch.randn(20, 3, 8, 8), torch.randint(5, (20,)))
    callback = PruneCallback(torch.randn(2, 3, 8, 8), **SETTINGS[way])
    average = EMAWeightAveraging(decay=0.9)
    kept = ModelCheckpoint(dirpath=folder, filename="{step}", save_top_k=-1, every_n_train_steps=5)
    trainer = pl.Trainer(
        max_steps=40,
        callbacks=[callback, average, kept, *([Dies()] if what == "killed" else [])],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        default_root_dir=folder,
    )
    loader = torch.utils.data.DataLoader(data, batch_size=4)
    last = max(folder.glob("*.ckpt"), key=lambda f: int(f.stem.split("=")[1])) if what == "resumed" else None
    trainer.fit(module, loader, loader, ckpt_path=last)
    optimizer = trainer.optimizers[0]
    report = {
        "losses": module.losses,
        "rate": optimizer.param_groups[0]["lr"],
        "widths": {name: list(p.shape) for name, p in module.named_parameters()},
        "steps": callback.record.steps,
        "sum": [float(p.detach().double().sum()) for p in module.parameters()],  # of the average, in the end
        "states": sorted(len(state) for state in optimizer.state.values()),
    }
    (folder / f"{what}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
