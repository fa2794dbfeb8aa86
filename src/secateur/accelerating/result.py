"""What came of trying sparse kernels: the model, what each layer took, and what that means in a sentence."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import StringIO

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text
from torch import nn

NAMED = 5  # layers that a sentence names


@dataclass(frozen=True, kw_only=True)
class LayerSpeed:
    """What one layer took.

    Attributes:
        name: of the module.
        zeros: share of its weights that are zeros, in [0, 1].
        dense_ms: of its dense kernel, on the input that it gets in the model; NaN where there is no sparse one.
        times_ms: of each sparse kernel that computes the same.
        kept: the kernel that runs it now; None for the dense one.
        failed: why others can't run it, by kernel.
    """

    name: str
    zeros: float
    dense_ms: float
    times_ms: Mapping[str, float] = field(default_factory=dict[str, float])
    kept: str | None = None
    failed: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def best(self) -> tuple[str, float] | None:
        """The fastest sparse kernel and its speed as a multiple of the dense one's; None where there is none."""
        if not self.times_ms:
            return None
        name = min(self.times_ms, key=lambda kernel: self.times_ms[kernel])
        return name, self.dense_ms / self.times_ms[name]


@dataclass(frozen=True, kw_only=True)
class Accelerated:
    """A model whose layers run by sparse kernels where that was faster. It prints as a table.

    Attributes:
        model: for inference; it shares the weights that stay dense with the model that was given.
        layers: those that were tried.
        zeros: share of all parameters that are zeros, in [0, 1].
        dense_ms, sparse_ms: latency of the model as it was and with the sparse kernels; None where none was kept.
        notes: why kernels that were faster by themselves were dropped all the same.
        untried: layers with zeros, too, for which no kernel could be tried: code reads their weights, or they take
            other inputs than one tensor, as attention does.
    """

    model: nn.Module
    layers: tuple[LayerSpeed, ...]
    zeros: float
    dense_ms: float | None = None
    sparse_ms: float | None = None
    notes: tuple[str, ...] = ()
    untried: tuple[str, ...] = ()

    @property
    def faster(self) -> bool:
        """Whether any layer runs by a sparse kernel."""
        return any(layer.kept is not None for layer in self.layers)

    @property
    def summary(self) -> str:
        """What the zeros bring in time, in a sentence."""
        share = f"{100 * self.zeros:.0f} % of the parameters are zeros"
        untried = self._untried()
        if not self.layers:
            return f"{share}, and {untried or 'no layer that a sparse kernel can run has enough of them to be tried'}."
        if self.faster and self.dense_ms is not None and self.sparse_ms is not None:
            count = sum(layer.kept is not None for layer in self.layers)
            text = (
                f"{share}. Sparse kernels run {count} of {len(self.layers)} layers faster here: "
                f"{self.dense_ms:.3g} ms become {self.sparse_ms:.3g} ms with sc.accelerate."
            )
        else:
            text = f"{share}. They make the file smaller, but save no time here: {self._why()}."
        return f"{text} {untried[0].upper()}{untried[1:]}." if untried else text

    def _untried(self) -> str:
        if not self.untried:
            return ""
        names = ", ".join(name or "the model" for name in self.untried[:NAMED])
        more = f" and {len(self.untried) - NAMED} more" if len(self.untried) > NAMED else ""
        return (
            f"layers with zeros ({names}{more}) are not called as modules with one input, so no kernel was tried for "
            "them"
        )

    def _why(self) -> str:
        if self.notes:
            return "; ".join(self.notes)
        tried = [(layer.name, *layer.best) for layer in self.layers if layer.best is not None]
        if not tried:
            return "no sparse kernel can run these layers"
        name, kernel, speed = max(tried, key=lambda found: found[2])
        return f"no sparse kernel is faster than dense ones (at best {kernel} in {name}, {speed:.2f} times as fast)"

    def __rich__(self) -> Group:
        table = Table()
        for title in ("layer", "zeros", "dense ms", "sparse ms", "kernel", "runs by"):
            table.add_column(title, justify="right" if title.endswith(("ms", "zeros")) else "left")
        for layer in self.layers:
            kernel = layer.best[0] if layer.best is not None else ""
            fastest = f"{layer.times_ms[kernel]:.3g}" if kernel else "-"
            dense = "-" if math.isnan(layer.dense_ms) else f"{layer.dense_ms:.3g}"
            cells = (layer.name, f"{100 * layer.zeros:.0f} %", dense, fastest, kernel)
            table.add_row(*cells, layer.kept or "dense")
        return Group(table, Text(self.summary))

    def __str__(self) -> str:
        with StringIO() as text:
            Console(file=text, width=100).print(self)
            return text.getvalue().rstrip("\n")
