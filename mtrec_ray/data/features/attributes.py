"""Categories, numbers and vectors of the log, the items and the users, looked up for the rows of a bucket."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from mtrec_ray.config import Category, Number, Run, Table, Vector
from mtrec_ray.data.fitting.tally import Vocabulary
from mtrec_ray.data.reading.tables import EntityTable, read_entities
from mtrec_ray.data.requests.rows import Rows
from mtrec_ray.errors import ConfigError
from mtrec_ray.labels import MATCHING

Array = np.ndarray[Any, np.dtype[Any]]
Scope = Literal["log", "item", "user"]


@dataclass(frozen=True)
class Tables:
    """The tables of the run; None where it has none."""

    items: EntityTable | None
    users: EntityTable | None

    def item_texts(self, items: Sequence[str]) -> list[str]:
        """Text of each item, empty for items that the table lacks."""
        if self.items is None:
            return [""] * len(items)
        rows = self.items.lookup(list(items))
        return [self.items.text[row] if row >= 0 else "" for row in rows]

    def row_texts(self, rows: Rows) -> tuple[list[str], Array]:
        """Distinct texts of the items of a bucket's rows, and int64 [N] which of them each row has, as of its time."""
        if self.items is None or self.items.versions is None:
            return self.item_texts(rows.items), rows.item
        used, text = np.unique(_found("item", rows, self)[1], return_inverse=True)
        return [self.items.text[row] if row >= 0 else "" for row in used.tolist()], text.ravel()

    def rows_of(self, scope: Scope, rows: Rows) -> Array:
        """int64 [N] which row of the table of items or users each row of a bucket has, as of its time; -1 = none."""
        return _found(scope, rows, self)[1]

    def versions(self, rows: Rows, chosen: Array) -> Array:
        """int64: the rows of an item table with versions that the chosen rows of a bucket have; none of another."""
        if self.items is None or self.items.versions is None:
            return np.zeros(0, dtype=np.int64)
        used = np.unique(_found("item", rows, self)[1][chosen])
        return used[used >= 0]


@dataclass(frozen=True)
class Cells:
    """The categories in a column: U different cells with their values, and which cell each row has."""

    values: list[list[str]]
    """[U]"""
    cell: Array
    """int64 [N]"""

    def codes(self, vocabulary: Vocabulary, width: int) -> Array:
        """int32 [U, width] rows of the vocabulary, 0 = unknown, -1 = absent; values beyond `width` are left out."""
        flat = vocabulary.lookup([value for values in self.values for value in values])
        lengths = np.array([len(values) for values in self.values], dtype=np.int64)
        cell = np.repeat(np.arange(len(lengths)), lengths)
        place = np.arange(len(flat)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        codes = np.full((len(lengths), width), -1, dtype=np.int32)
        kept = place < width
        codes[cell[kept], place[kept]] = flat[kept]
        return codes


def read_tables(run: Run) -> Tables:
    """Raises `DataError` for a table that cannot be read."""

    def read(table: Table | None, what: str) -> EntityTable | None:
        if table is None:
            return None
        return read_entities(table, what, table.time_unit or run.data.time_unit, run.data.time_zone)

    return Tables(read(run.data.items, "data.items"), read(run.data.users, "data.users"))


def category_columns(run: Run) -> list[tuple[Scope, Category]]:
    """Log, item, user ones. Raises `ConfigError` if two share a name, since features are called by it."""
    columns = [(scope, c) for scope, part in _parts(run) for c in part.categories]
    _refuse_repeats([c.column for _, c in columns], "categories")
    return columns


def number_columns(run: Run) -> list[tuple[Scope, Number]]:
    """Log, item, user ones. Raises `ConfigError` if two share a name."""
    columns = [(scope, n) for scope, part in _parts(run) for n in part.numbers]
    _refuse_repeats([n.feature for _, n in columns], "numbers")
    return columns


def vector_columns(run: Run) -> list[tuple[Scope, Vector]]:
    """Log, item, user ones.

    Raises:
        ConfigError: two share a name, or no task of the run reads the log's own.
    """
    columns = [(scope, v) for scope, part in _parts(run) for v in part.vectors]
    _refuse_repeats([v.column for _, v in columns], "vectors")
    if run.data.vectors and all(task.kind in MATCHING for task in run.tasks.values()):
        raise ConfigError(
            f"data.vectors: '{run.data.vectors[0].column}' is a vector of each row of the log, which tasks of kind "
            f"{' and '.join(MATCHING)} do not read, for it may be of the item that the user is yet to be matched with, "
            "and there is no other task; declare it of items or users (data.items.vectors, data.users.vectors), or "
            "leave it out."
        )
    return columns


def read_cells(scope: Scope, category: Category, rows: Rows, tables: Tables) -> Cells:
    """The values of a category in the rows of a bucket."""
    if scope == "log":
        texts, cell = np.unique(_text(rows.categories[category.column]), return_inverse=True)
        return Cells([_split(text, category.separator) for text in texts.tolist()], cell.ravel())
    table, keys, of_row = _entities(scope, rows, tables)
    if table.versions is None:
        found, cell = table.lookup(keys), of_row
    else:
        found, cell = np.unique(_found(scope, rows, tables)[1], return_inverse=True)
    column = table.categories[category.column]
    return Cells([column[row] if row >= 0 else [] for row in found.tolist()], cell.ravel())


def read_numbers(scope: Scope, number: Number, rows: Rows, tables: Tables) -> Array:
    """float64 [N] value of a number in each row, NaN = missing."""
    if scope == "log":
        return rows.numbers[number.feature]
    table, found = _found(scope, rows, tables)
    return np.where(found >= 0, table.numbers[number.feature][found], np.nan)


def log_vectors(rows: Rows, run: Run) -> Array:
    """float32 [N, .] the log's own vectors side by side, NaN = missing; no columns without them."""
    own = [rows.vectors[vector.column] for scope, vector in vector_columns(run) if scope == "log"]
    return np.concatenate([np.zeros((rows.num_rows, 0), dtype=np.float32), *own], axis=1)


def stored_hashes(rows: Rows, run: Run, tables: Tables) -> dict[str, Array]:
    """int64 [N] per scope with vectors: the hash of the stored ones (`data.vectors`) that each row has, 0 = none."""
    found: dict[str, Array] = {}
    for scope in dict.fromkeys(scope for scope, _ in vector_columns(run) if scope != "log"):
        table, of_row = _found(scope, rows, tables)
        used, place = np.unique(of_row, return_inverse=True)
        hashes = np.zeros(len(used), dtype=np.int64)
        hashes[used >= 0] = table.hashes(used[used >= 0], scope)
        found[scope] = hashes[place.ravel()]
    return found


def _parts(run: Run) -> list[tuple[Scope, Any]]:
    parts: list[tuple[Scope, Any]] = [("log", run.data), ("item", run.data.items), ("user", run.data.users)]
    return [(scope, part) for scope, part in parts if part is not None]


def table_width(entities: EntityTable, column: str) -> int:
    """The most values that one cell of a table's category holds, at least 1."""
    return max((len(values) for values in entities.categories[column]), default=1) or 1


def _entities(scope: Scope, rows: Rows, tables: Tables) -> tuple[EntityTable, list[str], Array]:
    table = tables.items if scope == "item" else tables.users
    assert table is not None
    return (table, rows.items, rows.item) if scope == "item" else (table, rows.users, rows.user)


def _found(scope: Scope, rows: Rows, tables: Tables) -> tuple[EntityTable, Array]:
    """The table, and int64 [N] which of its rows each row of the bucket has, as of its time; -1 = none."""
    table, keys, of_row = _entities(scope, rows, tables)
    if table.versions is None:
        return table, table.lookup(keys)[of_row]
    return table, table.lookup(pa.array(keys, pa.string()).take(pa.array(of_row)), rows.time)


def _text(cells: Array) -> Array:
    return np.array(["" if cell is None else cell for cell in cells], dtype=object).astype(str)


def _split(text: str, separator: str | None) -> list[str]:
    values = text.split(separator) if separator else [text]
    return [value.strip() for value in values if value.strip()]


def _refuse_repeats(names: list[str], what: str) -> None:
    for name in names:
        if names.count(name) > 1:
            remedy = "give one of them a `name`" if what == "numbers" else "rename the column in one of the files"
            raise ConfigError(f"data: two {what} are called '{name}'; {remedy}.")
