"""A run of transformers' Trainer that prunes a tiny Llama after step 20: ``python FILE FOLDER whole|killed|resumed``.

It leaves ``whole.json`` or ``resumed.json``: the losses, step by step, and the widths. A killed run dies after step 27.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from secateur.integrations.transformers import PruneCallback

DENSE = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
SETTINGS: dict[str, dict[str, Any]] = {
    "uniform": {"at": 20, "keep": 0.5, "uniform": True},
    "free": {"at": [10, 20], "importance": "l1", "only": ["*mlp*"]},
}


class Dies(TrainerCallback):
    """As if the machine were switched off."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 27:
            os.kill(os.getpid(), signal.SIGKILL)


def build() -> LlamaForCausalLM:
    """What a user's program starts with, also when it goes on."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=2, attention_dropout=0.1, **DENSE))


def main(folder: Path, what: str, way: str) -> None:
    torch.set_num_threads(1)
    ids = torch.randint(64, (64, 9), generator=torch.Generator().manual_seed(0))
    callback = PruneCallback({"input_ids": ids[:2]}, **SETTINGS[way])
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=40,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        logging_steps=1,
        save_steps=5,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        seed=1,
    )
    trainer = Trainer(
        model=build(),
        args=arguments,
        train_dataset=[{"input_ids": row, "labels": row} for row in ids],
        callbacks=[callback, *([Dies()] if what == "killed" else [])],
    )
    trainer.train(resume_from_checkpoint=what == "resumed")
    model: Any = trainer.model
    report = {
        "losses": {row["step"]: row["loss"] for row in trainer.state.log_history if "loss" in row},
        "rates": {row["step"]: row["learning_rate"] for row in trainer.state.log_history if "loss" in row},
        "widths": {name: list(p.shape) for name, p in model.named_parameters()},
        "config": {name: getattr(model.config, name) for name in DENSE},
        "steps": callback.record.steps,
        "sum": [float(p.detach().double().sum()) for p in model.parameters()],
    }
    (folder / f"{what}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
