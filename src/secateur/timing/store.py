"""Timed samples on disk, so that each operation is timed once on a device.

A JSON file for each device, number of threads and version of torch in the user's cache directory: `SECATEUR_CACHE`,
else `$XDG_CACHE_HOME/secateur`, else `~/.cache/secateur`. Delete it to time anew.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any, cast

import torch

from secateur.errors import OutputError
from secateur.files import write_text
from secateur.reporting.environment import environment
from secateur.timing.operations import Operation

VERSION = 1


def cache_folder() -> Path:
    """Where timings are kept."""
    if own := os.environ.get("SECATEUR_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or "~/.cache"
    return Path(base).expanduser() / "secateur"


def conditions(device: torch.device) -> dict[str, Any]:
    """All that a timing depends on besides the operation itself."""
    found = environment(str(device))
    kept = {name: found[name] for name in ("torch", "processor", "device")}
    flags = {
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "precision": torch.get_float32_matmul_precision(),
        "onednn": torch.backends.mkldnn.enabled,
        "benchmark": torch.backends.cudnn.benchmark,
    }
    return kept | flags


class Store:
    """Seconds by operation and sizes, in memory and in a file.

    Args:
        under: what the timings depend on, plain data.
        folder: where the file is; None keeps nothing.
    """

    def __init__(self, under: dict[str, Any], folder: Path | None) -> None:
        self.under = under
        digest = hashlib.sha256(json.dumps(under, sort_keys=True).encode()).hexdigest()[:12]
        self.path = None if folder is None else folder / f"timings-{digest}.json"
        self.seconds = self._read()
        self.changed = False

    def get(self, operation: Operation, sizes: Sequence[int]) -> float | None:
        """What was timed before; NaN where the operation does not run at these sizes, None where it was not tried."""
        return self.seconds.get(operation.key, {}).get(_spelled(sizes))

    def put(self, operation: Operation, sizes: Sequence[int], seconds: float) -> None:
        self.seconds.setdefault(operation.key, {})[_spelled(sizes)] = seconds
        self.changed = True

    def save(self) -> None:
        """Write the file, together with what others wrote meanwhile. A place that can't be written is no reason to
        stop: a warning says so.
        """
        if self.path is None or not self.changed:
            return
        for key, timed in self._read().items():
            self.seconds[key] = timed | self.seconds.get(key, {})
        plain = {
            key: {sizes: value if isfinite(value) else None for sizes, value in timed.items()}
            for key, timed in self.seconds.items()
        }
        text = json.dumps({"version": VERSION, "under": self.under, "seconds": plain}, allow_nan=False)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, text + "\n")
        except (OSError, OutputError) as error:
            warnings.warn(
                f"timings are not kept for the next time: {error}. Set SECATEUR_CACHE to a folder that can be written",
                stacklevel=2,
            )
        else:
            self.changed = False

    def _read(self) -> dict[str, dict[str, float]]:
        """What the file holds; nothing, with a warning, where it is damaged."""
        if self.path is None or not self.path.is_file():
            return {}
        try:
            data = json.loads(self.path.read_text(encoding="utf-8"))
            if data["version"] != VERSION or data["under"] != self.under:
                return {}
            rows = cast("dict[str, dict[str, float | None]]", data["seconds"])
            return {k: {s: _seconds(v) for s, v in timed.items()} for k, timed in rows.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            warnings.warn(f"the timings in {self.path} can't be read, and are taken anew: {error}", stacklevel=2)
            return {}


def _seconds(value: float | None) -> float:
    if value is None:
        return float("nan")
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"{value!r} is no time")
    return float(value)


def _spelled(sizes: Sequence[int]) -> str:
    return ",".join(map(str, sizes))
