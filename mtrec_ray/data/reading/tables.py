"""Item and user tables: key -> text, categories and numbers."""

import string
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrec_ray.config import Category, Table
from mtrec_ray.data.reading.cells import as_micros, as_numbers, as_text
from mtrec_ray.data.reading.formats import BadRow, RawBatch, column_names, find_shards, read_batches
from mtrec_ray.data.reading.patterns import extract_numbers
from mtrec_ray.data.reading.versions import Versions
from mtrec_ray.errors import ConfigError, DataError
from mtrec_ray.registry import suggest

_LATEST = np.iinfo(np.int64).max


@dataclass(frozen=True)
class EntityTable:
    """N entities, items or users; one row each, in the files' order. With `valid_from` N versions of entities."""

    keys: pa.Array
    """string [N], distinct but for versions"""
    text: list[str]
    """[N] rendered templates, "" without one"""
    categories: dict[str, list[list[str]]]
    """column -> [N] values of each entity, none or several"""
    numbers: dict[str, np.ndarray]
    """feature -> float64 [N], NaN = missing"""
    duplicates: int
    """Rows left out because their key had come before with other content; identical repetitions do not count."""
    bad: list[tuple[str, BadRow]]
    """(file, row) of rows without key or that could not be read; left out."""
    rows_read: int
    versions: Versions | None = None
    """Of a table with `valid_from`"""

    def lookup(self, keys: Sequence[str | None] | np.ndarray | pa.Array, times: np.ndarray | None = None) -> np.ndarray:
        """int64: the row of each key, -1 where the table has none; of versions the one that is valid at the key's time
        (int64 microseconds), without times the latest."""
        wanted = keys if isinstance(keys, pa.Array | pa.ChunkedArray) else pa.array(keys, pa.string())
        if self.versions is not None:
            return self.versions.at(wanted, np.full(len(wanted), _LATEST) if times is None else times)
        return pc.index_in(wanted, value_set=self.keys).fill_null(-1).to_numpy().astype(np.int64)


def read_entities(table: Table, what: str = "data.items", unit: str = "s", zone: str = "UTC") -> EntityTable:
    """Reads the table from its file, folder or glob (CSV, JSONL or Parquet, by extension).

    `unit` and `zone` are those of the times in `valid_from`. Of several rows with one key (and time) the first counts.
    A row with an empty key or time, or a cell that should be a number and is none, is left out and listed in `bad`.

    Raises:
        DataError: no such file, not of its format, an unknown column (with the nearest), or no rows at all.
        ConfigError: a text that is no template, or a pattern that does not extract numbers.
    """
    merged, bad = _read_all(table, what, unit, zone)
    entities, duplicates = _first_of_each_key(merged)
    return EntityTable(
        entities.keys,
        entities.text,
        entities.categories,
        entities.numbers,
        duplicates,
        bad,
        rows_read=len(merged.keys) + len(bad),
        versions=None if table.valid_from is None else Versions(entities.keys, entities.valid_from),
    )


def read_texts(table: Table, what: str) -> tuple[list[str], list[str], int]:
    """Keys and texts of all rows, also of several with one key, and how many rows had no key or no text.

    Raises:
        DataError, ConfigError: as `read_entities`.
    """
    merged, bad = _read_all(table, what, "s", "UTC")
    rows = [(key, text) for key, text in zip(merged.keys.to_pylist(), merged.text, strict=True) if text]
    return [key for key, _ in rows], [text for _, text in rows], len(bad) + len(merged.text) - len(rows)


def template_columns(template: str, where: str) -> list[str]:
    """Names of the columns in `"{title} {genres}"`.

    Raises:
        ConfigError: unbalanced braces, or more than a name inside them.
    """
    return [name for _, name in _pieces(template, where) if name is not None]


def _pieces(template: str, where: str) -> list[tuple[str, str | None]]:
    """(literal text, name of the column after it)."""
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"{where}: '{template}' is not a template ({error}). Write e.g. \"{{title}}\".") from None
    for _, name, spec, conversion in pieces:
        if name == "" or spec or conversion:
            raise ConfigError(f"{where}: '{template}': only column names may stand in braces, as \"{{title}}\".")
    return [(literal, name) for literal, name, _, _ in pieces]


def _needed_columns(table: Table, what: str) -> list[tuple[str, str]]:
    needed = [(f"{what}.key", table.key)]
    if table.valid_from is not None:
        needed.append((f"{what}.valid_from", table.valid_from))
    if table.text is not None:
        needed += [(f"{what}.text", column) for column in template_columns(table.text, f"{what}.text")]
    needed += [(f"{what}.categories[{i}]", category.column) for i, category in enumerate(table.categories)]
    needed += [(f"{what}.numbers[{i}]", number.column) for i, number in enumerate(table.numbers)]
    return needed


def _read_all(table: Table, what: str, unit: str, zone: str) -> tuple["_Part", list[tuple[str, BadRow]]]:
    files = find_shards(table.path, "auto", f"{what}.path")
    needed = _needed_columns(table, what)
    parts, bad = [], []
    for file in files:
        found = column_names(file)
        for where, column in needed:
            if column not in found:
                raise DataError(f"{where}: no column '{column}' in '{file.path}'.{suggest(column, found)}")
        for batch in read_batches(file, [column for _, column in needed]):
            part, rejected = _read_part(table, batch, what, unit, zone)
            parts.append(part)
            bad += [(file.path, row) for row in batch.bad + rejected]
    merged = _Part.join(parts)
    if not len(merged.keys):
        raise DataError(f"{what}.path: no rows with a key in {len(files)} file(s), the first is '{files[0].path}'.")
    return merged, bad


@dataclass(frozen=True)
class _Part:
    keys: pa.Array
    text: list[str]
    categories: dict[str, list[list[str]]]
    numbers: dict[str, np.ndarray]
    valid_from: np.ndarray
    """int64 microseconds, 0 in a table without"""

    @classmethod
    def join(cls, parts: list["_Part"]) -> "_Part":
        if not parts:
            return cls(pa.array([], pa.string()), [], {}, {}, np.zeros(0, dtype=np.int64))
        first = parts[0]
        return cls(
            pa.concat_arrays([part.keys for part in parts]),
            [text for part in parts for text in part.text],
            {name: [values for part in parts for values in part.categories[name]] for name in first.categories},
            {name: np.concatenate([part.numbers[name] for part in parts]) for name in first.numbers},
            np.concatenate([part.valid_from for part in parts]),
        )

    def take(self, rows: np.ndarray) -> "_Part":
        return _Part(
            self.keys.take(pa.array(rows)),
            [self.text[row] for row in rows],
            {name: [values[row] for row in rows] for name, values in self.categories.items()},
            {name: values[rows] for name, values in self.numbers.items()},
            self.valid_from[rows],
        )

    def row(self, row: int) -> tuple[object, ...]:
        values = [values[row] for values in self.categories.values()]
        return self.text[row], values, [values[row].tobytes() for values in self.numbers.values()]


def _read_part(table: Table, batch: RawBatch, what: str, unit: str, zone: str) -> tuple[_Part, list[BadRow]]:
    columns = batch.table
    reasons: dict[int, str] = {}
    keys = as_text(columns.column(table.key), f"{what}.key")
    for row in np.flatnonzero(pc.is_null(keys).to_numpy(zero_copy_only=False)):
        reasons.setdefault(int(row), f"no key (column '{table.key}')")
    valid_from = np.zeros(columns.num_rows, dtype=np.int64)
    if table.valid_from is not None:
        times = as_micros(columns.column(table.valid_from), unit, zone)
        valid_from = times.micros
        for row in np.flatnonzero(times.bad):
            reasons.setdefault(int(row), f"column '{table.valid_from}' is not a time in unit '{unit}'")
    numbers = {}
    for i, number in enumerate(table.numbers):
        column = columns.column(number.column)
        if number.pattern is not None:
            where = f"{what}.numbers[{i}]"
            values = extract_numbers(as_text(column, where), number.pattern, f"{where}.pattern")
        else:
            values, unreadable = as_numbers(column)
            for row in np.flatnonzero(unreadable):
                reasons.setdefault(int(row), f"column '{number.column}' is not a number")
        numbers[number.feature] = values
    part = _Part(
        keys,
        _render(table.text, columns, f"{what}.text"),
        {category.column: _values(columns, category, f"{what}.categories") for category in table.categories},
        numbers,
        valid_from,
    )
    good = np.array([row for row in range(columns.num_rows) if row not in reasons], dtype=np.int64)
    spoilt = sorted(reasons)
    records = columns.take(pa.array(spoilt, pa.int64())).to_pylist()
    rejected = [
        BadRow(int(batch.rows[row]), reasons[row], str(record)) for row, record in zip(spoilt, records, strict=True)
    ]
    return part.take(good), rejected


def _render(template: str | None, columns: pa.Table, where: str) -> list[str]:
    if template is None:
        return [""] * columns.num_rows
    texts: list[pa.Array] = []
    for literal, name in _pieces(template, where):
        texts.append(pa.array([literal] * columns.num_rows, pa.string()))
        if name is not None:
            texts.append(_joined(columns.column(name), where))
    joined = pc.binary_join_element_wise(*texts, "", null_handling="replace", null_replacement="")
    return pc.utf8_trim_whitespace(joined).to_pylist()


def _joined(column: pa.ChunkedArray, where: str) -> pa.Array:
    """Text of each cell; a list is written with commas."""
    if not _is_list(column.type):
        return as_text(column, where)
    return pa.array([", ".join(values) for values in _lists(column)], pa.string())


def _values(columns: pa.Table, category: Category, where: str) -> list[list[str]]:
    column = columns.column(category.column)
    if _is_list(column.type):
        return _lists(column)
    cells = as_text(column, where).to_pylist()
    if category.separator is None:
        return [[] if cell is None else [cell] for cell in cells]
    split = [[] if cell is None else cell.split(category.separator) for cell in cells]
    return [[value.strip() for value in values if value.strip()] for values in split]


def _lists(column: pa.ChunkedArray) -> list[list[str]]:
    return [[str(value) for value in cell or [] if value is not None] for cell in column.to_pylist()]


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _first_of_each_key(part: _Part) -> tuple[_Part, int]:
    first: dict[tuple[str, int], int] = {}
    different = 0
    for row, key in enumerate(zip(part.keys.to_pylist(), part.valid_from.tolist(), strict=True)):
        if first.setdefault(key, row) != row:
            different += part.row(row) != part.row(first[key])
    return part.take(np.fromiter(first.values(), np.int64)), different
