"""Work for a process of its own, as files in a folder: a model, arrays, and settings as JSON. No torch in here."""

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MODEL, ARRAYS, JOB, ERROR = "model.keras", "arrays.npz", "job.json", "error.json"
SMALL, REPORT, PLAN, KEPT = "small.keras", "report.json", "plan.json", "kept.json"


class Packing:
    """Nested inputs (arrays, lists, tuples, mappings of them) as plain data, and the arrays in them by name."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}

    def pack(self, value: Any) -> Any:
        """Plain data that `unpack` makes the value of again; arrays, tensors of any backend and None are leaves."""
        if value is None:
            return None
        if isinstance(value, Mapping):
            return {"mapping": {str(key): self.pack(item) for key, item in value.items()}}
        if isinstance(value, list | tuple):
            return {type(value).__name__: [self.pack(item) for item in value]}
        name = f"a{len(self.arrays)}"
        self.arrays[name] = np.asarray(value)
        return {"array": name}


def unpack(packed: Any, arrays: Mapping[str, Any]) -> Any:
    """The value again, with other arrays in the place of its own.

    >>> packing = Packing()
    >>> packed = packing.pack([(np.zeros(2), None)])
    >>> unpack(packed, packing.arrays)
    [(array([0., 0.]), None)]
    """
    match packed:
        case {"mapping": items}:
            return {key: unpack(item, arrays) for key, item in items.items()}
        case {"list": items}:
            return [unpack(item, arrays) for item in items]
        case {"tuple": items}:
            return tuple(unpack(item, arrays) for item in items)
        case {"array": name}:
            return arrays[name]
        case _:
            return None


def write_job(folder: Path, *, inputs: Any, data: Sequence[Any] | None, settings: Mapping[str, Any]) -> None:
    """Everything but the model."""
    packing = Packing()
    job = {"inputs": packing.pack(inputs), "data": packing.pack(None if data is None else list(data))}
    with zipfile.ZipFile(folder / ARRAYS, "w") as file:  # what np.savez writes, for any names
        for name, array in packing.arrays.items():
            with file.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.save(entry, array, allow_pickle=False)
    (folder / JOB).write_text(json.dumps({**job, "settings": dict(settings)}))
