import copy
import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import secateur as sc
from secateur.errors import TrainingError
from secateur.inputs import run
from secateur.objectives import imitation
from secateur.tuning.distilling import Distillation
from secateur.tuning.features import feature, output_dims
from support.networks import Cnn, LiteralNet, Mlp, Residual, Tied, bert, example, llama


def pruned(model: nn.Module, keep: float = 0.5):
    model.eval()
    inputs = example(model)
    return sc.prune(model, inputs, keep=keep), inputs


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


# imitation


def test_imitation_of_pictures_is_a_mean_over_labelled_places():
    """(N, C, H, W): at one place p = (1/2, 1/2), q = (1/4, 3/4); the other is equal on both sides."""
    student, teacher = torch.zeros(1, 2, 1, 2), torch.zeros(1, 2, 1, 2)
    student[0, :, 0, 0] = torch.log(torch.tensor([0.25, 0.75]))
    by_hand = kl([0.5, 0.5], [0.25, 0.75])
    assert imitation(student, teacher, 1.0).item() == pytest.approx(by_hand / 2)
    assert imitation(student, teacher, 1.0, torch.tensor([[[1, -100]]])).item() == pytest.approx(by_hand)
    assert imitation(student, teacher, 1.0, torch.tensor([[[-100, 1]]])).item() == pytest.approx(0, abs=1e-7)


def test_imitation_of_language_models_is_along_the_last_dim_without_padding():
    student, teacher = torch.zeros(1, 3, 2), torch.zeros(1, 3, 2)
    student[0, 1] = torch.log(torch.tensor([0.25, 0.75]))
    student[0, 2] = 100 * torch.randn(2)  # padding
    by_hand = kl([0.5, 0.5], [0.25, 0.75])
    labels = torch.tensor([[1, 0, -100]])
    assert imitation(student, teacher, 1.0, labels).item() == pytest.approx(by_hand / 2)
    # shifted, place 0 speaks of label 1, and place 1 of padding
    assert imitation(student, teacher, 1.0, labels, shift=True).item() == pytest.approx(0, abs=1e-7)
    assert imitation(student, teacher, 1.0, torch.full((1, 3), -100)).item() == 0


def test_imitation_takes_classes_where_the_target_says_they_are():
    """(N, C, T) with targets (N, T): two classes at three places."""
    student, teacher = torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)
    student[0, :, 0] = torch.log(torch.tensor([0.25, 0.75]))
    by_hand = kl([0.5, 0.5], [0.25, 0.75])
    assert imitation(student, teacher, 1.0, torch.tensor([[0, 1, 0]])).item() == pytest.approx(by_hand / 3)


def test_one_score_is_no_class():
    with pytest.raises(TrainingError, match="hold one class only"):
        imitation(torch.zeros(2, 1), torch.ones(2, 1), 1.0)


# features


def test_features_by_hand():
    """Teacher gives 0, 2, 4 and the student the kept units 0 and 4, moved by 1: 1 / variance 4."""
    teacher, student = nn.Sequential(nn.Linear(1, 3), nn.Linear(3, 2)), nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 2))
    graph = sc.trace(teacher, torch.zeros(1, 1))
    scores = {"0.weight:0": torch.tensor([3.0, 1.0, 2.0])}
    plan = sc.plan(graph, scores, keep=0.67)
    assert plan.kept["0.weight"][0].tolist() == [0, 2]
    with torch.no_grad():
        teacher[0].weight.zero_(), teacher[0].bias.copy_(torch.tensor([0.0, 2.0, 4.0]))
        student[0].weight.zero_(), student[0].bias.copy_(torch.tensor([1.0, 5.0]))
    batch = torch.zeros(2, 1), torch.tensor([0, 1])
    with Distillation(teacher, plan, weight=0, features=["0"], feature_weight=2).on(student) as lesson:
        loss = lesson(torch.tensor(0.5), student(batch[0]), batch)
    assert loss.item() == pytest.approx(0.5 + 2 * 1 / 4)
    assert lesson.terms["features"].item() == pytest.approx(1 / 4)
    loss.backward()
    assert student[0].bias.grad is not None
    assert teacher[0].bias.grad is None


@pytest.mark.parametrize("kind", [Mlp, Cnn, Residual, LiteralNet])
def test_features_of_an_untouched_student_that_lost_nothing_are_equal(kind):
    model = kind()
    inputs = example(model)
    student = copy.deepcopy(model).eval()
    with Distillation(model, weight=0, features="auto").on(student) as lesson:
        loss = lesson(torch.tensor(0.0), student(inputs), inputs)
    assert lesson.matched
    assert loss.item() == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("kind", [Cnn, Residual, Tied, llama, bert])
def test_every_module_of_a_pruned_model_is_matched_to_the_units_that_stay(kind):
    """Shapes of all modules that both have agree with what the plan says stays, activations and blocks included."""
    result, inputs = pruned(kind())
    model = kind()
    call = lambda m: run(m, inputs)  # noqa: E731
    _, outputs = output_dims(model, result.plan, call)
    got: dict[str, tuple[int, ...]] = {}

    def note(path: str, module: nn.Module, args: Any, out: Any) -> None:
        got.setdefault(path, tuple(tensor.shape) if (tensor := feature(out)) is not None else ())

    for path, module in result.model.named_modules():
        module.register_forward_hook(partial(note, path))
    call(result.model)
    assert len(got) > 2
    wrong = {p: (s, outputs[p][0].smaller(result.plan)) for p, s in got.items()
             if p in outputs and s and s != outputs[p][0].smaller(result.plan)}  # fmt: skip
    assert not wrong


def test_matched_units_are_the_right_ones():
    """Removed units that are zero in the teacher change nothing, so all features of both agree exactly."""
    model = Cnn().eval()
    x = example(model)
    graph = sc.trace(model, x)
    plan = sc.plan(graph, sc.score(model, graph), keep=0.5)
    with torch.no_grad():
        for name, kept in plan.kept.items():
            tensor = dict([*model.named_parameters(), *model.named_buffers()])[name]
            for dim, at in kept.items():
                gone = [k for k in range(tensor.shape[dim]) if k not in at.tolist()]
                tensor.index_fill_(dim, torch.tensor(gone), 0)
    student = plan.apply(model)
    with Distillation(model, plan, weight=0, features=["*"]).on(student) as lesson:
        loss = lesson(torch.tensor(0.0), student(x), x)
    assert set(lesson.matched) == {"conv1", "bn1", "conv2", "bn2", "fc"}
    assert loss.item() < 1e-10


def test_auto_takes_the_ends_of_stages():
    result, inputs = pruned(Residual())
    with Distillation(Residual(), result.plan, features="auto").on(result.model) as lesson:
        lesson(torch.tensor(0.0), result.model(inputs), inputs)
    assert lesson.matched == ("blocks.0", "blocks.1")
    result, inputs = pruned(Cnn())
    with Distillation(Cnn(), result.plan, features="auto").on(result.model) as lesson:
        lesson(torch.tensor(0.0), result.model(inputs), inputs)
    assert lesson.matched == ("bn1", "bn2")


def test_a_student_whose_class_was_replaced():
    result, inputs = pruned(LiteralNet())
    assert result.plan.rewrites
    with Distillation(LiteralNet(), result.plan, features="auto").on(result.model) as lesson:
        loss = lesson(torch.tensor(0.0), result.model(inputs), inputs)
    assert "fc1" in lesson.matched
    assert loss.isfinite()


def test_language_models_learn_from_features_and_scores():
    model = llama()
    result, inputs = pruned(model)
    batch = {**inputs, "labels": inputs["input_ids"], "attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2])}
    student = result.model.train()
    with Distillation(model, result.plan, features="auto").on(student) as lesson:
        output = student(**batch)
        loss = lesson(output.loss, output, batch)
    assert lesson.matched == ("model.layers.0", "model.layers.1")
    loss.backward()
    assert all(p.grad is not None for p in student.parameters())


def test_hooks_go_even_after_an_exception_and_modes_are_kept():
    teacher, student = Cnn().train(), Cnn()
    with pytest.raises(KeyboardInterrupt), Distillation(teacher, features=["bn1"]).on(student):
        assert not teacher.training
        assert student.bn1._forward_hooks
        raise KeyboardInterrupt
    assert teacher.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for n in (teacher, student) for m in n.modules())


def test_validation_and_recomputation_are_not_recorded():
    teacher, student = Mlp(), Mlp()
    batch = torch.randn(3, 4), torch.tensor([0, 1, 0])
    with Distillation(teacher, features=["1"]).on(student) as lesson:
        with torch.no_grad():
            student(batch[0])
        assert not lesson.learnt.given
        output = student(batch[0])
        student[1](torch.zeros(3, 8))  # as checkpointing does in the backward pass
        assert len(lesson.learnt.given["1"]) == 1
        lesson(F.cross_entropy(output, batch[1]), output, batch)
        assert not lesson.learnt.given
        with pytest.raises(TrainingError, match="ran 0 times in the student"):
            lesson(torch.tensor(0.0), output, batch)


def test_a_teacher_of_another_precision():
    teacher, student = Mlp().to(torch.bfloat16), Mlp()
    batch = torch.randn(3, 4), torch.tensor([0, 1, 0])
    with Distillation(teacher, features="auto").on(student) as lesson:
        output = student(batch[0])
        loss = lesson(F.cross_entropy(output, batch[1]), output, batch)
    assert loss.dtype == torch.float32
    assert loss.isfinite()


def test_batches_of_another_form():
    teacher, student = Mlp(), Mlp()
    batch = [torch.randn(3, 4), "names", torch.tensor([0, 1, 0])]
    with Distillation(teacher, features=["1"]).on(student, lambda model, batch: model(batch[0])) as lesson:
        output = student(batch[0])
        assert lesson(F.cross_entropy(output, batch[2]), output, batch, batch[2]).isfinite()


def test_errors_say_what_to_do():
    teacher, student = Mlp(), Mlp(5)
    x = torch.randn(3, 4)
    with pytest.raises(TrainingError, match=r"weight=2 must be in \[0, 1\]; temperature=0 must be above 0"):
        Distillation(teacher, weight=2, temperature=0)
    with pytest.raises(TrainingError, match="They share 0, 1, 2"), Distillation(teacher, features=["no*"]).on(student):
        pass
    with pytest.raises(TrainingError, match="is the teacher itself"), Distillation(teacher).on(teacher):
        pass
    with (
        pytest.raises(TrainingError, match=r"0 gives \[\(3, 8\)\], the student's \[\(3, 5\)\].*can be: 2.*pass plan="),
        Distillation(teacher, features=["0"]).on(student) as lesson,
    ):
        lesson(torch.tensor(0.0), student(x), x)
