"""The weights alone as a plain safetensors file, zeros and all: what other tools read."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from secateur.artifacts.weights import stored
from secateur.errors import ExportError
from secateur.exporting.exported import Exported
from secateur.packed import write_tensors


def write(model: nn.Module, path: Path) -> Exported:
    """Write every parameter and buffer once, under its name in the model, and compare the file bit by bit.

    Args:
        model: whose weights.
        path: a file in a folder that is there.

    Raises:
        ExportError: what was read back is something else.
        OutputError: it can't be written.
    """
    tensors, aliases = stored(model)
    write_tensors(path, tensors, plain=True)
    found = load_file(path)
    wrong = [name for name, tensor in tensors.items() if name not in found or not _same(tensor, found[name])]
    if wrong:
        raise ExportError(f"{path} holds other values than the model for {', '.join(wrong[:3])}: write it again")
    tied = ", ".join(f"{name} is {of}" for name, of in aliases.items())
    return Exported(
        path=path,
        format="safetensors",
        files=(path,),
        size_bytes=path.stat().st_size,
        inputs={},
        outputs=(),
        opset=None,
        difference=0.0,
        checks=("every tensor, bit by bit",),
        notes=(f"tied tensors are there once: {tied}",) if tied else (),
    )


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
