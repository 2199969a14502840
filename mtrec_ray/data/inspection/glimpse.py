"""The first rows of logs or tables, to look at before there is a config."""

import re
from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from mtrec_ray.config import SHORTEST_VECTOR
from mtrec_ray.data.reading.cells import as_numbers, as_text
from mtrec_ray.data.reading.formats import DataFile, column_names, read_batches
from mtrec_ray.data.reading.vectors import lists_of_numbers
from mtrec_ray.errors import DataError

SCAN_ROWS = 100_000
_VECTOR_ROWS = 100


class Glimpse:
    """At most `rows` rows of the first of `files`; they may differ in columns.

    Raises:
        DataError: no rows, or a file that cannot be read.
    """

    def __init__(self, files: list[DataFile], what: str, rows: int = SCAN_ROWS) -> None:
        self.files = files
        tables: list[pa.Table] = []
        for batch in (batch for file in files for batch in read_batches(file, column_names(file))):
            tables.append(batch.table)
            if sum(table.num_rows for table in tables) >= rows:
                break
        if not any(table.num_rows for table in tables):
            raise DataError(f"{what}: no row in {len(files)} file(s), the first is '{files[0].path}'.")
        self.table = _joined(tables).slice(0, rows)
        self.names = self.table.column_names
        self.rows = self.table.num_rows

    def raw(self, name: str) -> pa.ChunkedArray:
        return self.table.column(name)

    def is_timestamp(self, name: str) -> bool:
        return pa.types.is_temporal(self.raw(name).type)

    def is_list(self, name: str) -> bool:
        return pa.types.is_nested(self.raw(name).type)

    def is_vector(self, name: str) -> bool:
        """Whether the cells are lists of numbers, not all of them whole, and of one size that a vector can have."""
        vectors = [numbers for numbers in lists_of_numbers(self.raw(name).slice(0, _VECTOR_ROWS)) if len(numbers)]
        sizes = {len(numbers) for numbers in vectors}
        if len(sizes) != 1 or min(sizes) < SHORTEST_VECTOR:
            return False
        values = np.concatenate(vectors)
        return bool((values != np.floor(values)).any())

    def texts(self, name: str) -> list[str]:
        """Cells that are not empty."""
        return [] if self.is_list(name) else as_text(self.raw(name), name).drop_null().to_pylist()

    def numbers(self, name: str) -> np.ndarray | None:
        """Cells that are not missing; None if some are no numbers, or all are missing."""
        if self.is_list(name) or self.is_timestamp(name):
            return None
        values, bad = as_numbers(self.raw(name))
        present = values[~np.isnan(values)]
        return None if bad.any() or not len(present) else present

    def described(self) -> str:
        """For messages: the first file and its columns."""
        more = f" and {len(self.names) - 30} more" if len(self.names) > 30 else ""
        return f"'{self.files[0].path}' (columns: {', '.join(self.names[:30])}{more})"


def _joined(tables: list[pa.Table]) -> pa.Table:
    """As one table; a column whose types no type holds all is text."""
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException:
        pass
    names = dict.fromkeys(name for table in tables for name in table.column_names)
    columns = {}
    for name in names:
        parts = [
            table.column(name) if name in table.column_names else pa.chunked_array([pa.nulls(table.num_rows)])
            for table in tables
        ]
        try:
            same = pa.concat_tables([pa.table({name: part}) for part in parts], promote_options="permissive")
            columns[name] = same.column(name)
        except pa.ArrowException:
            columns[name] = pa.chunked_array([_text(part) for part in parts], pa.string())
    return pa.table(columns)


def _text(column: pa.ChunkedArray) -> pa.Array:
    try:
        return as_text(column, "")
    except DataError:  # lists and records
        return pa.array([None if cell is None else str(cell) for cell in column.to_pylist()], pa.string())


def plain(name: str) -> str:
    """`User_ID`, `userId` and `user-id` are one name."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def named(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Those of `names` whose plain form is known, in the order of `known`."""
    order = {name: place for place, name in enumerate(known)}
    return sorted((name for name in names if plain(name) in order), key=lambda name: order[plain(name)])
