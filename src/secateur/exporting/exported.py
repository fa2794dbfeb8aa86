"""What an export left: its file, what it takes and gives, how well it agrees, and how fast it is."""

from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Literal, Self

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from secateur.exporting.latency import Latency

Format = Literal["onnx", "pt2", "safetensors"]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A file that was written, read back and compared. It prints as a table.

    Args:
        path: the file.
        format: "onnx", "pt2" or "safetensors" (the weights alone).
        files: all files that belong together, ``path`` first.
        size_bytes: of all of them.
        inputs: the shape of each input, by name; a size that may differ from call to call is a name.
        outputs: the names of the outputs.
        opset: of ONNX; None for others.
        difference: the largest difference from the model, as a share of the output's scale.
        checks: at which inputs it was compared, in words.
        notes: what differs from what was asked for, in words.
        latency: against the dense model in onnxruntime, where that was given.
    """

    path: Path
    format: Format
    files: tuple[Path, ...]
    size_bytes: int
    inputs: dict[str, tuple[int | str, ...]]
    outputs: tuple[str, ...]
    opset: int | None
    difference: float
    checks: tuple[str, ...]
    notes: tuple[str, ...] = ()
    latency: Latency | None = None

    @property
    def dynamic(self) -> tuple[str, ...]:
        """The sizes that may differ from call to call: "batch", "sequence"."""
        return tuple(dict.fromkeys(size for shape in self.inputs.values() for size in shape if isinstance(size, str)))

    def moved(self, folder: Path) -> Self:
        """The same, after its files were moved."""
        return replace(self, path=folder / self.path.name, files=tuple(folder / file.name for file in self.files))

    def __rich__(self) -> Group:
        table = Table(show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(justify="right", overflow="fold")
        for label, text in self._rows():
            table.add_row(label, text)
        return Group(table, *map(Text, self.notes), *(_timed(self.latency) if self.latency else ()))

    def __str__(self) -> str:
        with StringIO() as text:
            Console(file=text, width=100).print(self)
            return text.getvalue().rstrip("\n")

    def _rows(self) -> list[tuple[str, str]]:
        inputs = ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in self.inputs.items())
        if self.format == "safetensors":
            return [
                ("file", str(self.path)),
                ("format", "safetensors, the weights alone"),
                ("size", f"{self.size_bytes:,} bytes"),
                ("checked", ", ".join(self.checks)),
            ]
        rows = [
            ("file", " and ".join(map(str, self.files))),
            ("format", f"ONNX, opset {self.opset}" if self.format == "onnx" else "torch.export"),
            ("size", f"{self.size_bytes:,} bytes"),
            ("inputs", inputs or "none"),
            ("outputs", ", ".join(self.outputs)),
        ]
        by = "onnxruntime" if self.format == "onnx" else "torch.export"
        return [*rows, (f"checked in {by}", f"{', '.join(self.checks)}: {self.difference:.1e} of the scale apart")]


def _timed(found: Latency) -> tuple[Table, Text]:
    """A table of the latency, and how it was measured."""
    table = Table()
    table.add_column("latency in onnxruntime")
    table.add_column("ms", justify="right")
    table.add_column("of dense", justify="right")
    table.add_row("dense", f"{found.dense_ms:.3g}", "1")
    table.add_row("pruned", f"{found.pruned_ms:.3g}", f"{found.left:.3f}")
    threads = "1 thread" if found.threads == 1 else f"{found.threads} threads"
    return table, Text(
        f"batch {found.batch}, on the CPU, {threads}, in turns, medians of {found.rounds} rounds, {found.clock}",
        style="dim",
    )
