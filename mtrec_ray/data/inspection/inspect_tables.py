"""Finds and describes the item and user tables that belong to a log, for `data.inspect`."""

import os
import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

from mtrec_ray.data.filesystem import find, is_url
from mtrec_ray.data.inspection.glimpse import SCAN_ROWS, Glimpse, named, plain
from mtrec_ray.data.reading.cells import as_text, guess_unit
from mtrec_ray.data.reading.formats import EXTENSIONS, find_shards
from mtrec_ray.errors import DataError

_FEW = 200
"""A text column with at most this many values is a category."""
_COVERAGE = 0.5
"""Share of the log's ids that a key of another name must have."""
_SINCE = ("validfrom", "effectivefrom", "effectivedate", "validsince")
"""What a column may be called, in plain form, that says from when on a row holds; and where keys repeat also"""
_CHANGED = ("updatedat", "modifiedat", "changedat", "lastupdated", "lastmodified")
_YEAR = r"\((\d{4})\)"
_Column = str | dict[str, str]


def table_beside(log: Glimpse, key: str, relative: bool, notes: list[str]) -> str | None:
    """A file in the logs' folder, or the one above, whose key has the log's ids in column `key`."""
    mine = {file.path for file in log.files}
    first = log.files[0].path.partition("?")[0]
    folder = first.rsplit("/", 1)[0] if is_url(first) else str(PurePosixPath(first).parent)
    wanted = set(log.texts(key))
    for place in (folder, folder.rsplit("/", 1)[0]):
        for file in find(f"{place}/*"):
            if file.path in mine or not any(ending in file.path.lower() for ending in EXTENSIONS):
                continue
            try:
                table = Glimpse(find_shards(file.path, "auto", "data.items.path"), "data.items.path")
            except DataError:
                continue  # nothing was asked of this file; it only happens to lie there
            if _find_key(table, key, wanted, _since(table, _SINCE)) is not None:
                notes.append(f"the items are described in '{file.path}', found beside the logs")
                return os.path.relpath(file.path) if relative else file.path
    return None


def describe_table(
    path: str, log: Glimpse, log_key: str, what: str, time_unit: str, notes: list[str]
) -> dict[str, Any]:
    """The config part of the table at `path`: its key, a text template, categories and numbers, and from when on rows
    hold, where a column says it. `time_unit`: that of the log.

    Raises:
        DataError: no such file, or no column of it has the log's ids.
    """
    where = f"data.{what}.path"
    table = Glimpse(find_shards(path, "auto", where), where, 2 * SCAN_ROWS)
    wanted = set(log.texts(log_key))
    since = _since(table, _SINCE)
    key = _find_key(table, log_key, wanted, since)
    if key is None and since is None:
        since = _since(table, _CHANGED)
        key = None if since is None else _find_key(table, log_key, wanted, since)
    if key is None:
        raise DataError(
            f"{where}: no column of {table.described()} has the ids of the log's '{log_key}', each once. "
            f"Name the right table, or rename its key to '{log_key}'; if rows hold from a time on, several per id, "
            "call the column with that time 'valid_from'."
        )
    covered = len(wanted & set(table.texts(key)))
    notes.append(f"{what}: '{key}' of '{path}' describes {covered:,} of the log's {len(wanted):,} ids")
    texts: list[str] = []
    categories: list[_Column] = []
    numbers: list[_Column] = []
    vectors = [name for name in table.names if name != key and table.is_vector(name)]
    for name in table.names:
        if name not in (key, since, *vectors):
            _place(table, name, texts, categories, numbers)
    template = " ".join(f"{{{name}}}" for name in texts) or None
    parts = {"path": path, "key": key, "text": template, "categories": categories, "numbers": numbers}
    notes.append(
        f"{what}: text from {texts or 'nothing'}, numbers {numbers or 'none'}, categories {categories or 'none'}"
        + (f", vectors {vectors}" if vectors else "")
    )
    return {part: content for part, content in {**parts, "vectors": vectors}.items() if content} | (
        {} if since is None else _validity(table, since, what, time_unit, notes)
    )


def _since(table: Glimpse, names: Iterable[str]) -> str | None:
    """The first column of such a name that holds times."""
    return next((name for name in named(table.names, names) if guess_unit(table.raw(name).drop_null())), None)


def _validity(table: Glimpse, since: str, what: str, time_unit: str, notes: list[str]) -> dict[str, str]:
    notes.append(f"{what}: a row holds from its '{since}' on, and before its first row an id is unknown (valid_from)")
    unit = guess_unit(table.raw(since).drop_null())
    own = {} if unit in (None, time_unit) or table.is_timestamp(since) else {"time_unit": str(unit)}
    return {"valid_from": since, **own}


def _find_key(table: Glimpse, log_key: str, wanted: set[str], since: str | None) -> str | None:
    """The column, of the same name first, whose values are among the ids of the log, and distinct, or so are they and
    the time `since` when they hold."""
    same_name = [name for name in table.names if plain(name) == plain(log_key)]
    for name in [*same_name, *(name for name in table.names if name not in (*same_name, since))]:
        values = table.texts(name)
        known = len(wanted & set(values))
        rows = values if since is None or not known else _pairs(table, name, since)
        distinct = len(set(rows)) > 0.9 * len(rows)
        if distinct and known and (name in same_name or known >= _COVERAGE * len(wanted)):
            return name
    return None


def _pairs(table: Glimpse, key: str, since: str) -> list[tuple[str, str]]:
    """Key and time of each row, as text."""
    keys, times = (as_text(table.raw(name), name).to_pylist() for name in (key, since))
    return [(own, time) for own, time in zip(keys, times, strict=True) if own is not None]


def _place(table: Glimpse, name: str, texts: list[str], categories: list[_Column], numbers: list[_Column]) -> None:
    """Adds one column to what it is: few distinct texts are a category, many are text."""
    if table.is_list(name):
        categories.append(name)
    elif table.numbers(name) is not None:
        numbers.append(name)
    elif (cells := table.texts(name)) and not table.is_timestamp(name):
        separator = "|" if sum("|" in cell for cell in cells) > 0.2 * len(cells) else None
        values = set(cells) if separator is None else {value for cell in cells for value in cell.split(separator)}
        if len(values) <= min(_FEW, len(cells) / 2):
            categories.append(name if separator is None else {"column": name, "separator": separator})
        if separator is not None or len(values) > min(_FEW, len(cells) / 2):
            texts += [] if _are_links(cells) else [name]
        if sum(re.search(_YEAR, cell) is not None for cell in cells) > 0.5 * len(cells):
            numbers.append({"column": name, "pattern": _YEAR, "name": "year"})


def _are_links(cells: list[str]) -> bool:
    return sum(cell.startswith(("http://", "https://")) for cell in cells) > 0.5 * len(cells)
