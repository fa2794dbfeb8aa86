"""Texts that a tokenizer has turned into numbers, as keyword inputs.

Shape letters: B texts in a batch, T tokens of the longest of them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from secateur.data.batches import IGNORED, Source
from secateur.errors import DataError

OPTIONAL = ("attention_mask", "token_type_ids")
ROWS = 1000  # that are checked at a time


class TokenSource(Source):
    """Rows of token columns; batches are mappings of (B, T), padded on the right to the longest row.

    Where rows have no ``attention_mask`` but differ in length, the batches have one. ``labels`` are (B,) where a row
    has one, (B, T) padded with -100 where it has one for each token. All else is padded with 0.

    Args:
        rows: a split with the column ``input_ids``.
        label: the column of labels; None is "labels", else "label", else none.
        name: of the rows, for errors.
    """

    def __init__(self, rows: Any, label: str | None, name: str) -> None:
        there: list[str] = rows.column_names
        self.label = label or next((column for column in ("labels", "label") if column in there), None)
        self.inputs = ["input_ids", *(column for column in OPTIONAL if column in there)]
        columns = self.inputs + ([self.label] if self.label is not None else [])
        self.each_token = self.label is not None and bool(_item_type(rows.features[self.label]))
        self.rows = rows.select_columns(columns).with_format(None)
        self.name = name
        self._check_types()
        lengths = set(self._lengths())
        self.makes_mask = "attention_mask" not in columns and len(lengths) > 1
        if self.label is not None and not self.each_token and "int" in self.rows.features[self.label].dtype:
            self.labels = torch.tensor(list(self.rows[self.label]), dtype=torch.long)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def names(self) -> list[str]:
        """What the batches hold."""
        mask = ["attention_mask"] if self.makes_mask else []
        return self.inputs + mask + (["labels"] if self.label is not None else [])

    def fetch(self, positions: Sequence[int], draws: Tensor) -> dict[str, Tensor]:
        rows: dict[str, list[Any]] = self.rows[list(positions)]
        batch = {name: padded(rows[name], 0) for name in self.inputs}
        if self.makes_mask:
            batch["attention_mask"] = padded([[1] * len(ids) for ids in rows["input_ids"]], 0)
        if self.label is not None:
            batch["labels"] = padded(rows[self.label], IGNORED) if self.each_token else torch.tensor(rows[self.label])
        return batch

    def _check_types(self) -> None:
        features = self.rows.features
        lists = self.inputs + ([self.label] if self.label is not None and self.each_token else [])
        wrong = [f"{column} ({features[column]})" for column in lists if "int" not in _item_type(features[column])]
        if self.label is not None and not self.each_token:
            dtype = str(getattr(features[self.label], "dtype", features[self.label]))
            wrong += [f"{self.label} ({dtype})"] if not dtype.startswith(("int", "uint", "float")) else []
        if wrong:
            raise DataError(
                f"{', '.join(wrong)} in {self.name}: tokens are lists of whole numbers, as a tokenizer gives them "
                "without return_tensors; labels are such lists, or one number a row"
            )

    def _lengths(self) -> list[int]:
        """The number of tokens of each row; looks at all of them, and raises for rows that will not do."""
        import pyarrow.compute

        pc: Any = pyarrow.compute  # most of its functions are made when it is imported

        lengths: list[int] = []
        bounds: list[int] = []
        for table in self.rows.with_format("arrow").iter(batch_size=ROWS):
            columns: dict[str, Any] = {name: table.column(name) for name in table.column_names}
            empty = [name for name, column in columns.items() if column.null_count]
            if empty:
                raise DataError(f"{', '.join(empty)} in {self.name}: some rows are empty. Take them out")
            counts = {name: pc.list_value_length(c).to_pylist() for name, c in columns.items() if name != self.label}
            if self.each_token:
                counts[str(self.label)] = pc.list_value_length(columns[str(self.label)]).to_pylist()
                values = pc.list_flatten(columns[str(self.label)])
                found = pc.min_max(values.filter(pc.not_equal(values, IGNORED))).as_py()
                bounds += [value for value in found.values() if value is not None]
            self._check_counts(counts, len(lengths))
            if (pc.min(pc.list_flatten(columns["input_ids"])).as_py() or 0) < 0:
                raise DataError(f"input_ids in {self.name} hold numbers below 0: tokens are numbered from 0")
            lengths += counts["input_ids"]
        self.label_range = (min(bounds), max(bounds)) if bounds else None
        return lengths

    def _check_counts(self, counts: dict[str, list[int]], before: int) -> None:
        for row, number in enumerate(counts["input_ids"]):
            other = [f"{counts[name][row]} {name}" for name in counts if counts[name][row] != number]
            if other or not number:
                what = " and ".join([f"{number} input_ids", *other])
                raise DataError(
                    f"row {before + row} of {self.name} has {what}: every row needs tokens, and as many of each kind"
                )


def padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Rows of whole numbers as one tensor (B, T), filled up on the right.

    >>> padded([[1, 2, 3], [4]], 0)
    tensor([[1, 2, 3],
            [4, 0, 0]])
    """
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows], dtype=torch.long)


def _item_type(feature: Any) -> str:
    """The type of the numbers in a column of lists; empty where a column holds no lists of numbers."""
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    return str(getattr(inner, "dtype", ""))
