"""Loads saved results in a process of its own, and compares what they give with what they gave: ``FOLDER [blocked]``.

``FOLDER/results.json`` lists the results, ``FOLDER/expected.safetensors`` has inputs and outputs of each. With
"blocked", what models are made of can't be imported here.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

folder = Path(sys.argv[1])
if "blocked" in sys.argv:
    for name in ("torchvision", "timm", "transformers", "test_architectures", "support", "users_net"):
        sys.modules[name] = None  # type: ignore[assignment]

import secateur as sc  # noqa: E402 (after blocking)
from secateur.tracing.running import tensors_in  # noqa: E402


def dense(name: str) -> Any:
    """The architecture with other weights than it had."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from test_architectures import MODELS

    torch.manual_seed(1)
    return MODELS[name][0]()


held = load_file(folder / "expected.safetensors")
for result in json.loads((folder / "results.json").read_text()):
    name, path = result["name"], result["path"]
    loaded = sc.load(path, model=None if result["rewritten"] else dense(name))
    inputs = {key.rpartition("|")[2]: t for key, t in held.items() if key.startswith(f"{name}|input|")}
    with torch.no_grad():
        given = tensors_in(loaded(**inputs) if "x" not in inputs else loaded(inputs["x"]))
    wanted = [held[f"{name}|output|{k}"] for k in range(len(given))]
    same = all(torch.equal(a, b) for a, b in zip(given, wanted, strict=True))
    sys.stdout.write(json.dumps([path, same]) + "\n")
