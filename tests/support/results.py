"""What two runs with equal settings have in common, bit by bit: all of a saved result but what was measured."""

import hashlib
import json
from pathlib import Path

MEASURED = ("figures", "history", "files", "sha256")  # of artifact.json


def hashes(folder: Path) -> dict[str, str]:
    """Of the files of a result, and of its record without measurements."""
    names = ("model.safetensors", "plan.json", "probe.safetensors")
    found = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    record = json.loads((folder / "artifact.json").read_text())
    kept = {key: value for key, value in record.items() if key not in MEASURED}
    return {**found, "artifact.json": hashlib.sha256(json.dumps(kept).encode()).hexdigest()}
