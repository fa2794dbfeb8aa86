"""On a trained language model, compensated beats Wanda beats magnitude beats random."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc


def loss(model: nn.Module, stories: list[Tensor]) -> float:
    with torch.inference_mode():
        scores = model(input_ids=torch.stack(stories)).logits[:, :-1]
        return float(F.cross_entropy(scores.flatten(0, 1), torch.stack(stories)[:, 1:].flatten()))


@pytest.mark.slow
@pytest.mark.shared
def test_half_of_a_trained_llama(shared: Path) -> None:
    pytest.importorskip("transformers")
    from test_architectures import _module

    loader = _module(shared / "data" / "load.py")
    model = loader.stories_llama()
    long = [s[:128] for s in loader.stories() if len(s) >= 128]
    data, judged = [{"input_ids": torch.stack(long[:32])}], long[-32:]
    found = {
        name: loss(sc.sparsify(model, data=data, **how).model, judged)
        for name, how in {
            "random": {"importance": "random"},
            "magnitude": {"importance": "magnitude"},
            "wanda": {"importance": "wanda"},
            "sparsegpt": {"compensate": "sparsegpt"},
            "alps": {"compensate": "alps"},
        }.items()
    }
    assert found["alps"] < found["sparsegpt"] < found["wanda"] < found["magnitude"] < found["random"], found
    assert found["sparsegpt"] < math.log(40)
    pruned = sc.sparsify(model, pattern=sc.NM(2, 4), data=data, compensate="alps")
    assert "model.embed_tokens.weight" in pruned.report["sparsity"]["left"]
    assert len(pruned.masks) == 35
