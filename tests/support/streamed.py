"""Tiny checkpoints that are pruned from disk to disk; also in processes: ``python -m support.streamed NAME FOLDER``."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import secateur as sc
from secateur.sparsity.streaming.journal import Journal

VOCAB, WIDTH = 48, 16
HEADS = {"num_attention_heads": 4, "max_position_embeddings": 32}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"hidden_size": WIDTH, "intermediate_size": 24, "num_key_value_heads": 2, **HEADS}),
    "gpt2": ("GPT2", {"n_embd": WIDTH, "n_head": 4, "n_positions": 32, "bos_token_id": 0, "eos_token_id": 0}),
    "opt": ("OPT", {"hidden_size": WIDTH, "ffn_dim": 24, "word_embed_proj_dim": 8, **HEADS}),
    "qwen": (
        "Qwen3",
        {
            "hidden_size": WIDTH,
            "intermediate_size": 24,
            "num_key_value_heads": 2,
            "head_dim": 4,
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 1,
            **HEADS,
        },
    ),
    "bloom": ("Bloom", {"hidden_size": WIDTH, "n_head": 4}),
    "neox": ("GPTNeoX", {"hidden_size": WIDTH, "intermediate_size": 24, **HEADS}),
}


def model_of(kind: str, *, layers: int = 3, dtype: torch.dtype = torch.float32, **more: Any) -> nn.Module:
    """A random model of a few thousand parameters."""
    import transformers

    name, settings = KINDS[kind]
    count = {"gpt2": "n_layer", "bloom": "n_layer"}.get(kind, "num_hidden_layers")
    config = getattr(transformers, f"{name}Config")(vocab_size=VOCAB, **{count: layers, **settings, **more})
    torch.manual_seed(0)
    found = getattr(transformers, "GPT2LMHeadModel" if kind == "gpt2" else f"{name}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)  # so that blocks do something
    return found.to(dtype).eval()


def written(model: Any, folder: Path, *, shard: str = "8KB") -> Path:
    """A checkpoint of a model, in several files."""
    model.save_pretrained(folder, max_shard_size=shard)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"the same weights again")
    return folder


def tokens(batches: int = 3, *, padded: bool = True) -> list[dict[str, Tensor]]:
    """Batches of two sequences, one of them with padding."""
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(0, VOCAB, (2, 9), generator=generator) for _ in range(batches)]
    found = [{"input_ids": x, "attention_mask": torch.ones_like(x)} for x in ids]
    if padded:
        found[-1]["attention_mask"][1, 6:] = 0
    return found


def contents(folder: Path) -> dict[str, bytes]:
    """Every file's bytes."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def prune(folder: Path, to: str = "sparse", **settings: Any) -> Any:
    """What the processes of the tests do."""
    settings = {"data": tokens(4), "compensate": "sparsegpt", **settings}
    return sc.sparsify(folder / "dense", output=folder / to, **settings)


# ---------------------------------------------------------------------- in processes of their own


def whole(folder: Path) -> None:
    prune(folder, "whole")


def killed(folder: Path) -> None:
    """Dies in the middle of the block after the number that stands in a file, which then is one higher."""
    at = folder / "kill-at"
    number, write = int(at.read_text()), Journal.write
    at.write_text(str(number + 1))

    def dying(self: Journal, place: Path) -> None:
        if len(self.blocks) > number:  # its weights are on the disk, and the journal does not know it
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, place)

    Journal.write = dying  # type: ignore[method-assign]
    prune(folder, "killed")


def resumed(folder: Path) -> None:
    prune(folder, "killed")


def interrupted(folder: Path) -> None:
    """Ctrl-C in the second block."""
    write = Journal.write

    def press(self: Journal, place: Path) -> None:
        write(self, place)
        if len(self.blocks) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    Journal.write = press  # type: ignore[method-assign]
    try:
        prune(folder, "interrupted")
    except KeyboardInterrupt:
        (folder / "interrupted.txt").write_text("as it should be")


def shared(folder: Path) -> None:
    """Under torchrun: by criterion and compensation."""
    prune(folder, "by-wanda", compensate=None)
    prune(folder, "by-sparsegpt")
    (folder / f"seen-by-{os.environ.get('RANK', 'one')}.txt").write_text(os.environ.get("WORLD_SIZE", "1"))


def main() -> None:
    globals()[sys.argv[1]](Path(sys.argv[2]))


if __name__ == "__main__":
    main()
