"""Pruning inside transformers' Trainer, which goes on, saves, dies and resumes."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import ArtifactError, PlanError, RemapError
from secateur.integrations import transformers as integration
from secateur.integrations.record import FILE, Record
from secateur.integrations.transformers import PruneCallback, prepare_
from support.lives_in_processes import whole_and_resumed
from support.networks import llama

IDS = torch.randint(64, (32, 9), generator=torch.Generator().manual_seed(0))
DATA = [{"input_ids": row, "labels": row} for row in IDS]


def trainer(folder: Path, callback: Any, model: Any = None, **settings: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    optimizers = settings.pop("optimizers", (None, None))
    plain = {
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_steps": 2,
    }
    arguments = TrainingArguments(
        output_dir=str(folder), report_to="none", use_cpu=True, disable_tqdm=True, **{**plain, **settings}
    )
    return Trainer(
        llama() if model is None else model,
        arguments,
        train_dataset=DATA,
        eval_dataset=DATA[:4],
        callbacks=[callback],
        optimizers=optimizers,
    )


def callback(**settings: Any) -> PruneCallback:
    return PruneCallback({"input_ids": IDS[:2]}, **{"at": 3, "keep": 0.5, **settings})


def losses(made: Any) -> list[float]:
    return [row["loss"] for row in made.state.log_history if "loss" in row]


def widths(model: nn.Module) -> dict[str, Any]:
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


# ---------------------------------------------------------------------- killed and resumed


@pytest.mark.slow
@pytest.mark.parametrize("way", ["uniform", pytest.param("free", marks=pytest.mark.heavy)])
def test_a_killed_run_goes_on_to_the_same_loss_bit_for_bit(tmp_path: Path, way: str) -> None:
    """Pruned at step 20 (or at 10 and 20), killed after 27 with a checkpoint of 25, resumed in a fresh process."""
    from transformers import LlamaForCausalLM

    whole, resumed = whole_and_resumed("trained_by_trainer.py", tmp_path, way)
    assert list(whole["losses"]) == [str(step) for step in range(1, 41)]
    assert resumed == whole  # losses, learning rates, widths, config, steps of pruning, sums of all weights
    assert whole["steps"] == ([20] if way == "uniform" else [10, 20])
    for name in ("whole", "cut"):
        checkpoint = tmp_path / name / "checkpoint-40"
        assert json.loads((checkpoint / FILE).read_text())["steps"] == whole["steps"]
        if way == "uniform":
            small = LlamaForCausalLM.from_pretrained(checkpoint)
            assert {n: list(p.shape) for n, p in small.named_parameters()} == whole["widths"]
    if way == "uniform":
        assert whole["config"] == {
            "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 1, "num_key_value_heads": 1
        }  # fmt: skip


# ---------------------------------------------------------------------- in one process


def test_the_trainer_goes_on_with_the_model_that_it_has(tmp_path: Path) -> None:
    model, one = llama(), callback()
    average = torch.optim.swa_utils.AveragedModel(model)
    shadow = {name: p.detach().clone() for name, p in model.named_parameters()}
    one = callback(also=[average, shadow])
    made = trainer(tmp_path, one, model)
    made.train()
    assert made.model is model
    assert model.model.layers[0].mlp.gate_proj.weight.shape == (24, 16)
    assert {id(p) for g in made.optimizer.param_groups for p in g["params"]} == {id(p) for p in model.parameters()}
    assert all(made.optimizer.state[p]["step"] == 6 for p in model.parameters())
    assert made.lr_scheduler.last_epoch == 6
    assert widths(average.module) == widths(model) == {name: tuple(t.shape) for name, t in shadow.items()}
    average.update_parameters(model)
    assert len(one.reports) == 1
    assert one.reports[0]["proof"]["status"] == "proved"
    assert (one.at, one.record.steps) == ((3,), (3,))
    assert len(losses(made)) == 6


def test_a_checkpoint_from_before_pruning_leads_to_the_same_pruning(tmp_path: Path) -> None:
    made = trainer(tmp_path, callback())
    made.train()
    again = trainer(tmp_path, callback())
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert losses(again) == losses(made)
    assert widths(again.model) == widths(made.model)


def test_an_optimizer_of_the_users_own_is_carried_over_on_resuming(tmp_path: Path) -> None:
    def build() -> tuple[Any, Any]:
        torch.manual_seed(0)
        model = llama()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        return model, (optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2))

    made = [trainer(tmp_path, callback(), model, optimizers=optimizers) for model, optimizers in (build(), build())]
    made[0].train()
    made[1].train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert losses(made[1]) == losses(made[0])


def test_mixed_precision_and_accumulated_gradients(tmp_path: Path) -> None:
    """Accelerate puts a forward of its own on the model, which a copy would share."""
    made = trainer(tmp_path, callback(), bf16=True, gradient_accumulation_steps=2)
    made.train()
    assert made.model.model.layers[0].mlp.gate_proj.weight.shape == (24, 16)
    assert "forward" in vars(made.model)
    assert len(losses(made)) == 6


def test_the_best_checkpoint_is_one_of_the_smaller_model(tmp_path: Path) -> None:
    made = trainer(
        tmp_path, callback(at=5), eval_strategy="steps", eval_steps=2, load_best_model_at_end=True,
        metric_for_best_model="loss", greater_is_better=True, learning_rate=0.1,
    )  # fmt: skip
    made.train()
    assert made.state.best_model_checkpoint == str(tmp_path / "checkpoint-6")
    assert made.model.model.layers[0].mlp.gate_proj.weight.shape == (24, 16)


# ---------------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A run that was pruned twice, without a config that says so."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    made = trainer(folder, callback(at=[3, 5], keep=None, budget=sc.Budget(params=0.5)))
    made.train()
    return folder, made


def test_budgets_are_reached_bit_by_bit(run: tuple[Path, Any]) -> None:
    record = Record.load(run[0] / "checkpoint-6" / FILE)
    assert record.steps == (3, 5)
    assert record.dense is not None
    count = sum(p.numel() for p in run[1].model.parameters())
    assert 0.48 < count / record.dense["params"] <= 0.5
    assert Record.load(run[0] / "checkpoint-4" / FILE).steps == (3,)
    assert not (run[0] / "checkpoint-2" / FILE).exists()
    assert Record.load(run[0] / FILE) == record


def test_weights_load_into_the_original_architecture_that_was_made_small(run: tuple[Path, Any]) -> None:
    from safetensors.torch import load_file

    model = prepare_(llama(), run[0] / "checkpoint-6")
    missing = model.load_state_dict(load_file(run[0] / "checkpoint-6" / "model.safetensors"), strict=False)
    assert not missing.unexpected_keys
    assert torch.equal(model(IDS).logits, run[1].model.eval()(IDS).logits)
    assert prepare_(model, run[0] / "checkpoint-6") is model  # small already
    dense = llama()
    before = widths(dense)
    assert widths(prepare_(dense, run[0] / "checkpoint-2")) == before


def test_a_model_between_two_prunings_gets_the_second_one(run: tuple[Path, Any]) -> None:
    model = prepare_(llama(), run[0] / "checkpoint-4")
    assert widths(model) != widths(run[1].model)
    assert widths(prepare_(model, run[0] / "checkpoint-6")) == widths(run[1].model)


def test_a_checkpoint_whose_plans_were_not_written_any_more_has_them_from_the_run(
    run: tuple[Path, Any], tmp_path: Path
) -> None:
    """Killed between the two."""
    import shutil

    shutil.copytree(run[0], tmp_path / "run")
    for step in (4, 6):
        (tmp_path / "run" / f"checkpoint-{step}" / FILE).unlink()
    assert integration.stored(tmp_path / "run" / "checkpoint-4").steps == (3,)
    made = trainer(tmp_path / "run", callback(at=[3, 5], keep=None, budget=sc.Budget(params=0.5)))
    made.train(resume_from_checkpoint=True)
    assert widths(made.model) == widths(run[1].model)


def test_a_checkpoint_from_elsewhere(run: tuple[Path, Any], tmp_path: Path) -> None:
    settings: dict[str, Any] = {"at": [3, 5], "keep": None, "budget": sc.Budget(params=0.5)}
    checkpoint = str(run[0] / "checkpoint-4")
    made = trainer(tmp_path / "new", callback(**settings))
    with pytest.raises(RemapError, match=r"no plan in .* leads from one to the other: call callback.prepare_"):
        made.train(resume_from_checkpoint=checkpoint)
    one, model = callback(**settings), llama()
    one.prepare_(model, checkpoint)
    made = trainer(tmp_path / "new", one, model)
    made.train(resume_from_checkpoint=checkpoint)
    assert losses(made) == losses(run[1])
    assert one.record.steps == (3, 5)


def test_another_model_is_refused(run: tuple[Path, Any]) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    other = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=24, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(RemapError, match="the plans of this checkpoint don't fit the model: the plan was made for"):
        prepare_(other, run[0] / "checkpoint-6")
    with pytest.raises(ArtifactError, match="can't be read"):
        prepare_(other, run[0] / "nowhere")


def test_a_run_from_the_beginning_forgets_the_one_before(run: tuple[Path, Any], tmp_path: Path) -> None:
    import shutil

    shutil.copytree(run[0], tmp_path / "run")
    made = trainer(tmp_path / "run", callback(at=100), save_strategy="no")
    made.train()
    assert not (tmp_path / "run" / FILE).exists()


# ---------------------------------------------------------------------- settings


@pytest.mark.parametrize("at", [0, (), [3, 3], [5, 2]])
def test_steps_must_rise(at: Any) -> None:
    with pytest.raises(PlanError, match="give the steps after which to prune, from 1 and rising"):
        callback(at=at)


def test_the_class_stays() -> None:
    with pytest.raises(PlanError, match="keep_class=True"):
        callback(keep_class=False)


def test_several_processes_are_refused() -> None:
    class Arguments:
        world_size, output_dir = 2, "nowhere"

    with pytest.raises(RemapError, match="trains in 2 processes, .* prune in one process"):
        callback().on_train_begin(Arguments(), None, None)


def test_a_model_may_be_copied_while_it_waits_for_weights(tmp_path: Path) -> None:
    made = trainer(tmp_path, callback())
    double = copy.deepcopy(made.model)
    double.load_state_dict(made.model.state_dict())
