"""The rows of one batch of a file, with their columns as text and numbers, and what is wrong with some of them."""

import numpy as np
import pyarrow as pa

from mtrec_ray.config import Vector
from mtrec_ray.data.reading import expressions
from mtrec_ray.data.reading.cells import as_numbers, as_records, as_text
from mtrec_ray.data.reading.formats import BadRow, RawBatch
from mtrec_ray.data.reading.vectors import as_vectors


class RawRows:
    """The columns of one batch, each parsed once, and what is wrong with each row (the first reason counts)."""

    def __init__(self, batch: RawBatch, path: str = "") -> None:
        """`path`: of the file, for messages."""
        self.batch, self.path = batch, path
        self.reasons: dict[int, str] = {}
        self._texts: dict[str, pa.Array] = {}
        self._numbers: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return self.batch.table.num_rows

    def column(self, name: str) -> pa.ChunkedArray:
        return self.batch.table.column(name)

    def reject(self, mask: np.ndarray, reason: str) -> None:
        for row in np.flatnonzero(mask):
            self.reasons.setdefault(int(row), reason)

    @property
    def accepted(self) -> np.ndarray:
        accepted = np.ones(self.batch.table.num_rows, dtype=bool)
        accepted[list(self.reasons)] = False
        return accepted

    def rejected(self) -> list[BadRow]:
        spoilt = sorted(self.reasons)
        records = as_records(self.batch.table.take(pa.array(spoilt, pa.int64())))
        return [
            BadRow(int(self.batch.rows[row]), self.reasons[row], str(record))
            for row, record in zip(spoilt, records, strict=True)
        ]

    def text(self, name: str) -> pa.Array:
        if name not in self._texts:
            self._texts[name] = as_text(self.column(name), f"column '{name}'" + f" of '{self.path}'" * bool(self.path))
        return self._texts[name]

    def numbers(self, name: str) -> np.ndarray:
        if name not in self._numbers:
            self._numbers[name], bad = as_numbers(self.column(name))
            self.reject(bad, f"column '{name}' is not a number")
        return self._numbers[name]

    def vectors(self, vector: Vector) -> np.ndarray:
        """float32 [rows, size] of a vector whose size is known, rows of NaN = missing."""
        assert vector.dim is not None
        vectors, faults = as_vectors(self.column(vector.column), vector.dim)
        for mask, found in faults:
            self.reject(mask, f"column '{vector.column}' {found}")
        return vectors

    def evaluate(self, expression: str, where: str) -> np.ndarray:
        texts = expressions.text_columns_of(expression, where)
        columns = {
            name: np.array(self.text(name).to_pylist(), dtype=object) if name in texts else self.numbers(name)
            for name in expressions.columns_of(expression, where)
        }
        return expressions.evaluate(expression, columns, where)
