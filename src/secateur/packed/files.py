"""Files of packed tensors: one function that reads them, packed or not, and one that writes them."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from secateur.errors import ArtifactError
from secateur.files import atomic
from secateur.packed.packing import pack, unpack


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of any safetensors file, those that were packed as they were.

    Args:
        path: what `write_tensors`, ``sc.save`` (``model.safetensors`` in its directory) or anybody else wrote.

    Raises:
        ArtifactError: it can't be read, or was damaged.
    """
    try:
        return unpack(load_file(path))
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} can't be read: {error}") from error


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], *, plain: bool = False) -> None:
    """Write tensors to a safetensors file, in one step.

    Args:
        path: the file. One that is there is replaced.
        tensors: by name; each in memory of its own.
        plain: leave tensors as they are, zeros and all, so that every tool reads the file.

    Raises:
        OutputError: it can't be written.

    Example:
        >>> import tempfile, torch
        >>> file = Path(tempfile.mkdtemp()) / "half.safetensors"
        >>> x = torch.randn(512, 512).clamp(min=0)  # half of it are zeros
        >>> write_tensors(file, {"x": x})
        >>> file.stat().st_size < 0.6 * 4 * x.numel(), torch.equal(read_tensors(file)["x"], x)
        (True, True)
    """
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic(path) as temporary:
        save_file(whole if plain else pack(whole), temporary, metadata={"format": "pt"})
