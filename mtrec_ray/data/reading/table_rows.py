"""One batch of a table of items or users -> its rows in columns, and the rows that cannot be used."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrec_ray.config import Category, Table, Vector
from mtrec_ray.data.reading.cells import as_micros, as_text, infinite
from mtrec_ray.data.reading.context import trimmed
from mtrec_ray.data.reading.formats import BadRow, RawBatch
from mtrec_ray.data.reading.patterns import extract_numbers
from mtrec_ray.data.reading.raw_rows import RawRows
from mtrec_ray.data.reading.templates import render
from mtrec_ray.data.reading.vectors import is_list
from mtrec_ray.data.reading.zones import unknown_zones


@dataclass(frozen=True)
class TableRows:
    """N rows, in the file's order; the fields are those of `tables.EntityTable`."""

    keys: pa.Array
    text: list[str]
    categories: dict[str, list[list[str]]]
    numbers: dict[str, np.ndarray]
    vectors: dict[str, np.ndarray]
    valid_from: np.ndarray
    """int64 microseconds, 0 in a table without"""
    published: np.ndarray
    """int64 microseconds, 0 where not said"""
    time_zones: np.ndarray
    """object, "" where not said"""

    @classmethod
    def join(cls, parts: Sequence["TableRows"]) -> "TableRows":
        if not parts:
            none = np.zeros(0, dtype=np.int64)
            return cls(pa.array([], pa.string()), [], {}, {}, {}, none, none, none.astype(object))
        first = parts[0]
        return cls(
            pa.concat_arrays([part.keys for part in parts]),
            [text for part in parts for text in part.text],
            {name: [values for part in parts for values in part.categories[name]] for name in first.categories},
            {name: np.concatenate([part.numbers[name] for part in parts]) for name in first.numbers},
            {name: np.concatenate([part.vectors[name] for part in parts]) for name in first.vectors},
            np.concatenate([part.valid_from for part in parts]),
            np.concatenate([part.published for part in parts]),
            np.concatenate([part.time_zones for part in parts]),
        )

    def take(self, rows: np.ndarray) -> "TableRows":
        return TableRows(
            self.keys.take(pa.array(rows)),
            [self.text[row] for row in rows],
            {name: [values[row] for row in rows] for name, values in self.categories.items()},
            {name: values[rows] for name, values in self.numbers.items()},
            {name: values[rows] for name, values in self.vectors.items()},
            self.valid_from[rows],
            self.published[rows],
            self.time_zones[rows],
        )

    def row(self, row: int) -> tuple[object, ...]:
        """What a row says beside its key and time, to be compared with another's."""
        values = [values[row] for values in self.categories.values()]
        arrays = [*self.numbers.values(), *self.vectors.values(), self.published]
        return self.text[row], values, [values[row].tobytes() for values in arrays], self.time_zones[row]


def read_table_rows(
    table: Table, batch: RawBatch, what: str, unit: str, zone: str, vectors: Sequence[Vector]
) -> tuple[TableRows, list[BadRow]]:
    """`vectors`: those of the table, with their sizes; for the others see `tables.read_entities`."""
    rows = RawRows(batch)
    keys = as_text(rows.column(table.key), f"{what}.key")
    rows.reject(pc.is_null(keys).to_numpy(zero_copy_only=False), f"no key (column '{table.key}')")

    def cells(name: str) -> pa.Array:
        return _joined(rows.column(name), f"{what}.text")

    read = TableRows(
        keys=keys,
        valid_from=_times(rows, table.valid_from, unit, zone, needed=True),
        numbers={number.feature: _numbers(rows, table, i, what) for i, number in enumerate(table.numbers)},
        vectors={vector.column: rows.vectors(vector) for vector in vectors},
        published=_times(rows, table.published, unit, zone, needed=False),
        time_zones=_time_zones(rows, table, what),
        text=render(table.text, len(rows), cells, f"{what}.text"),
        categories={c.column: _categories(rows.column(c.column), c, f"{what}.categories") for c in table.categories},
    )
    return read.take(np.flatnonzero(rows.accepted)), rows.rejected()


def _times(rows: RawRows, column: str | None, unit: str, zone: str, needed: bool) -> np.ndarray:
    """int64 microseconds, 0 where there is none, which is a fault only if it is `needed`."""
    if column is None:
        return np.zeros(len(rows), dtype=np.int64)
    times = as_micros(rows.column(column), unit, zone)
    bad = times.bad if needed else times.unreadable | times.implausible
    rows.reject(bad, f"column '{column}' is not a time in unit '{unit}'")
    return times.micros


def _numbers(rows: RawRows, table: Table, place: int, what: str) -> np.ndarray:
    number, where = table.numbers[place], f"{what}.numbers[{place}]"
    if number.pattern is None:
        values = rows.numbers(number.column)
    else:
        values = extract_numbers(as_text(rows.column(number.column), where), number.pattern, f"{where}.pattern")
    rows.reject(infinite(values), f"column '{number.column}' is not finite, as a number of 32 bits")
    return values


def _time_zones(rows: RawRows, table: Table, what: str) -> np.ndarray:
    if table.time_zone is None:
        return np.full(len(rows), "", dtype=object)
    names = trimmed(as_text(rows.column(table.time_zone), f"{what}.time_zone"))
    rows.reject(unknown_zones(names), f"column '{table.time_zone}' is no IANA time zone, as Europe/Oslo")
    return np.array(pc.fill_null(names, "").to_pylist(), dtype=object)


def _joined(column: pa.ChunkedArray, where: str) -> pa.Array:
    """Text of each cell; a list is written with commas."""
    if not is_list(column.type):
        return as_text(column, where)
    return pa.array([", ".join(values) for values in _lists(column)], pa.string())


def _categories(column: pa.ChunkedArray, category: Category, where: str) -> list[list[str]]:
    if is_list(column.type):
        return _lists(column)
    cells = as_text(column, where).to_pylist()
    if category.separator is None:
        return [[] if cell is None else [cell] for cell in cells]
    split = [[] if cell is None else cell.split(category.separator) for cell in cells]
    return [[value.strip() for value in values if value.strip()] for values in split]


def _lists(column: pa.ChunkedArray) -> list[list[str]]:
    return [[str(value) for value in cell or [] if value is not None] for cell in column.to_pylist()]
