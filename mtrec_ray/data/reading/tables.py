"""Item and user tables: key -> text, categories, numbers, vectors, and what else they say of items or users."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrec_ray.config import Table
from mtrec_ray.data.reading.formats import BadRow, DataFile, column_names, find_shards, read_batches
from mtrec_ray.data.reading.table_rows import TableRows, read_table_rows
from mtrec_ray.data.reading.templates import template_columns
from mtrec_ray.data.reading.vectors import sized
from mtrec_ray.data.reading.versions import Versions
from mtrec_ray.data.requests.ids import Of, hash_ids
from mtrec_ray.errors import DataError
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
    vectors: dict[str, np.ndarray] = field(default_factory=dict)
    """column -> float32 [N, size], a row of NaN = missing"""
    published: np.ndarray | None = None
    """int64 [N] microseconds, 0 = not said; of a table with `published`"""
    time_zones: np.ndarray | None = None
    """object [N] IANA names, "" = not said; of a table with `time_zone`"""

    def without_vectors(self) -> "EntityTable":
        """What is given to tasks: vectors are stored once, and requests name them by their row."""
        return replace(self, vectors={})

    def lookup(self, keys: Sequence[str | None] | np.ndarray | pa.Array, times: np.ndarray | None = None) -> np.ndarray:
        """int64: the row of each key, -1 where the table has none; of versions the one that is valid at the key's time
        (int64 microseconds), without times the latest."""
        wanted = keys if isinstance(keys, pa.Array | pa.ChunkedArray) else pa.array(keys, pa.string())
        if self.versions is not None:
            return self.versions.at(wanted, np.full(len(wanted), _LATEST) if times is None else times)
        return pc.index_in(wanted, value_set=self.keys).fill_null(-1).to_numpy().astype(np.int64)

    def hashes(self, rows: np.ndarray, of: Of) -> np.ndarray:
        """int64 [n]: what each row is of, whatever its place: the entity, of a version also since when it holds."""
        keys = self.keys.take(pa.array(rows)).to_pylist()
        if self.versions is None:
            return hash_ids(keys, of)
        since = self.versions.valid_from[rows].tolist()
        return hash_ids([f"{time} {key}" for time, key in zip(since, keys, strict=True)], of)


def read_entities(table: Table, what: str = "data.items", unit: str = "s", zone: str = "UTC") -> EntityTable:
    """Reads the table from its file, folder or glob (CSV, JSONL or Parquet, by extension).

    `unit` and `zone` are those of its times. Of several rows with one key (and time) the first counts.
    A row with an empty key or time, or a cell that should be a number, a vector or the name of a time zone and is none,
    is left out and listed in `bad`.

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
        vectors=entities.vectors,
        published=None if table.published is None else entities.published,
        time_zones=None if table.time_zone is None else entities.time_zones,
    )


def read_texts(table: Table, what: str) -> tuple[list[str], list[str], int]:
    """Keys and texts of all rows, also of several with one key, and how many rows had no key or no text.

    Raises:
        DataError, ConfigError: as `read_entities`.
    """
    merged, bad = _read_all(table, what, "s", "UTC")
    rows = [(key, text) for key, text in zip(merged.keys.to_pylist(), merged.text, strict=True) if text]
    return [key for key, _ in rows], [text for _, text in rows], len(bad) + len(merged.text) - len(rows)


def _needed_columns(table: Table, what: str) -> list[tuple[str, str]]:
    needed = [(f"{what}.key", table.key)]
    if table.valid_from is not None:
        needed.append((f"{what}.valid_from", table.valid_from))
    if table.text is not None:
        needed += [(f"{what}.text", column) for column in template_columns(table.text, f"{what}.text")]
    needed += [(f"{what}.categories[{i}]", category.column) for i, category in enumerate(table.categories)]
    needed += [(f"{what}.numbers[{i}]", number.column) for i, number in enumerate(table.numbers)]
    needed += [(f"{what}.vectors[{i}]", vector.column) for i, vector in enumerate(table.vectors)]
    single = {"published": table.published, "time_zone": table.time_zone}
    return needed + [(f"{what}.{role}", column) for role, column in single.items() if column is not None]


def _read_all(table: Table, what: str, unit: str, zone: str) -> tuple[TableRows, list[tuple[str, BadRow]]]:
    files = find_shards(table.path, "auto", f"{what}.path")
    needed = _needed_columns(table, what)
    parts, bad = [], []
    for file in files:
        found = column_names(file)
        for where, column in needed:
            if column not in found:
                raise DataError(f"{where}: no column '{column}' in '{file.path}'.{suggest(column, found)}")
    vectors = sized(table.vectors, files, f"{what}.vectors")
    for file in files:
        for batch in read_batches(file, [column for _, column in needed]):
            part, rejected = read_table_rows(table, batch, what, unit, zone, vectors)
            parts.append(part)
            bad += [(file.path, row) for row in batch.bad + rejected]
    merged = TableRows.join(parts)
    if not len(merged.keys):
        raise _nothing_usable(what, files, bad)
    return merged, bad


def _nothing_usable(what: str, files: Sequence[DataFile], bad: Sequence[tuple[str, BadRow]]) -> DataError:
    if not bad:
        return DataError(f"{what}.path: no row in {len(files)} file(s), the first is '{files[0].path}'.")
    path, row = bad[0]
    return DataError(
        f"{what}.path: none of {len(bad):,} row(s) in {len(files)} file(s) can be used; row {row.row} of '{path}': "
        f"{row.reason}. Correct what {what} says of the table's columns, or the table."
    )


def _first_of_each_key(part: TableRows) -> tuple[TableRows, int]:
    first: dict[tuple[str, int], int] = {}
    different = 0
    for row, key in enumerate(zip(part.keys.to_pylist(), part.valid_from.tolist(), strict=True)):
        if first.setdefault(key, row) != row:
            different += part.row(row) != part.row(first[key])
    return part.take(np.fromiter(first.values(), np.int64)), different
