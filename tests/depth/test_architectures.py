"""Depth of the models that people have: torchvision, timm, transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import PlanError
from support.blocks import llama

pytestmark = pytest.mark.slow
IDS = {"input_ids": torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(0))}


def outputs(model: nn.Module, x: Any) -> torch.Tensor:
    with torch.no_grad():
        found: Any = model.eval()(**x) if isinstance(x, dict) else model.eval()(x)
    return found if isinstance(found, torch.Tensor) else found.logits


def check_deeper(model: nn.Module, after: str, new: str, x: Any, place: Path, dense: nn.Module) -> nn.Module:
    """Deepen, compare, take a step of training, save, load."""
    result = sc.deepen(model, after, x)
    deeper, wanted = result.model, outputs(model, x)
    assert float((outputs(deeper, x) - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())
    before = [p.clone() for p in deeper.get_submodule(new).parameters()]
    optimizer = torch.optim.SGD(deeper.train().parameters(), lr=0.1)
    out: Any = deeper(**x) if isinstance(x, dict) else deeper(x)
    (out if isinstance(out, torch.Tensor) else out.logits).square().mean().backward()
    optimizer.step()
    after_step = list(deeper.get_submodule(new).parameters())
    assert any(not torch.equal(p, q) for p, q in zip(before, after_step, strict=True))
    sc.save(deeper, place)
    assert torch.equal(outputs(sc.load(place, model=dense), x), outputs(deeper, x))
    return result.model


def test_resnet18_deeper(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    x = torch.randn(2, 3, 32, 32)
    deeper = check_deeper(
        resnet18(num_classes=5), "layer3.1", "layer3.2", x, tmp_path / "deep", resnet18(num_classes=5)
    )
    assert len(deeper.layer3) == 3


def test_vision_transformers_deeper(tmp_path: Path) -> None:
    import timm
    from torchvision.models import VisionTransformer

    x = torch.randn(2, 3, 32, 32)

    def torchvisions() -> nn.Module:
        net = VisionTransformer(32, 8, 3, 2, 16, 32, num_classes=4)
        nn.init.normal_(net.heads.head.weight)
        return net

    def timms() -> nn.Module:
        return timm.create_model(
            "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=16, num_heads=2, depth=3, num_classes=4
        )

    layers = "encoder.layers.encoder_layer_"
    check_deeper(torchvisions(), f"{layers}1", f"{layers}2", x, tmp_path / "torchvision", torchvisions())
    check_deeper(timms(), "blocks.1", "blocks.2", x, tmp_path / "timm", timms())


@pytest.mark.parametrize("layers", [1, 3])
def test_llama_deeper(layers: int, tmp_path: Path) -> None:
    model = llama(layers)
    last = layers - 1
    deeper: Any = check_deeper(
        model, f"model.layers.{last}", f"model.layers.{layers}", IDS, tmp_path / "deep", llama(layers)
    )
    assert deeper.config.num_hidden_layers == layers + 1
    assert [layer.self_attn.layer_idx for layer in deeper.model.layers] == list(range(layers + 1))
    assert model.config.num_hidden_layers == layers
    fresh: Any = sc.deepen(model, f"model.layers.{last}", IDS).model
    how = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones(2, 9)}
    assert torch.equal(fresh.generate(**IDS, **how), model.generate(**IDS, **how))


def test_llama_shorter_loads_and_generates_without_secateur(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    narrow = sc.prune(llama(), IDS, keep=0.5, uniform=True).model
    result = sc.shorten(narrow, IDS, importance=["model.layers.0", "model.layers.2"])
    assert not result.unsaid
    result.model.save_pretrained(tmp_path / "short")
    again: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "short")
    assert torch.equal(outputs(again, IDS), outputs(result.model, IDS))
    assert again.config.num_hidden_layers == 2
    how = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones(2, 9)}
    cached = again.generate(**IDS, **how)
    assert torch.equal(cached, again.generate(**IDS, **how, use_cache=False))
    assert torch.equal(cached, result.model.generate(**IDS, **how))


def test_lists_of_layer_types_follow(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig

    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Gemma3TextConfig(
        vocab_size=64, num_hidden_layers=4, head_dim=8, layer_types=kinds, sliding_window=4, **sizes
    )
    model = Gemma3ForCausalLM(config).eval()
    result = sc.shorten(model, IDS, importance=["model.layers.1", "model.layers.2"])
    assert result.model.config.layer_types == ["full_attention", "sliding_attention"]
    assert result.model.config.num_hidden_layers == 2
    assert model.config.layer_types == kinds
    result.model.save_pretrained(tmp_path / "short")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "short")
    assert torch.equal(outputs(again, IDS), outputs(result.model, IDS))
    deeper = sc.deepen(model, "model.layers.1", IDS).model
    assert deeper.config.layer_types == [*kinds[:2], "sliding_attention", *kinds[2:]]


def test_depths_of_stages_in_a_config() -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[2, 3], layer_type="basic")
    x = {"pixel_values": torch.randn(2, 3, 32, 32)}
    result = sc.shorten(ResNetForImageClassification(config).eval(), x, blocks=2, data=[x])
    assert sum(result.model.config.depths) == 3
    assert not result.unsaid


def test_bert_gets_shorter_and_not_deeper() -> None:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
    model = BertForSequenceClassification(config).eval()
    short: Any = sc.shorten(model, IDS, blocks=1, data=[IDS])
    assert short.model.config.num_hidden_layers == 2
    assert not short.unsaid
    with pytest.raises(PlanError, match="no parameters at zero make it the identity"):
        sc.deepen(model, "bert.encoder.layer.1", IDS)
