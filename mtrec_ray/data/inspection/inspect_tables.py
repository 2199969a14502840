"""Finds and describes the item and user tables that belong to a log, for `data.inspect`."""

import os
import re
from pathlib import PurePosixPath
from typing import Any

from mtrec_ray.data.filesystem import find, is_url
from mtrec_ray.data.inspection.glimpse import SCAN_ROWS, Glimpse, plain
from mtrec_ray.data.reading.formats import EXTENSIONS, find_shards
from mtrec_ray.errors import DataError

_FEW = 200
"""A text column with at most this many values is a category."""
_COVERAGE = 0.5
"""Share of the log's ids that a key of another name must have."""
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
            if _find_key(table, key, wanted) is not None:
                notes.append(f"the items are described in '{file.path}', found beside the logs")
                return os.path.relpath(file.path) if relative else file.path
    return None


def describe_table(path: str, log: Glimpse, log_key: str, what: str, notes: list[str]) -> dict[str, Any]:
    """The config part of the table at `path`: its key, a text template, categories and numbers.

    Raises:
        DataError: no such file, or no column of it has the log's ids.
    """
    where = f"data.{what}.path"
    table = Glimpse(find_shards(path, "auto", where), where, 2 * SCAN_ROWS)
    wanted = set(log.texts(log_key))
    key = _find_key(table, log_key, wanted)
    if key is None:
        raise DataError(
            f"{where}: no column of {table.described()} has the ids of the log's '{log_key}', each once. "
            f"Name the right table, or rename its key to '{log_key}'; if rows hold from a time on, several per id, "
            f"leave the table out here and write data.{what} into the config by hand, with `valid_from`."
        )
    covered = len(wanted & set(table.texts(key)))
    notes.append(f"{what}: '{key}' of '{path}' describes {covered} of the log's {len(wanted)} ids")
    texts: list[str] = []
    categories: list[_Column] = []
    numbers: list[_Column] = []
    vectors = [name for name in table.names if name != key and table.is_vector(name)]
    for name in table.names:
        if name != key and name not in vectors:
            _place(table, name, texts, categories, numbers)
    template = " ".join(f"{{{name}}}" for name in texts) or None
    parts = {"path": path, "key": key, "text": template, "categories": categories, "numbers": numbers}
    notes.append(
        f"{what}: text from {texts or 'nothing'}, numbers {numbers or 'none'}, categories {categories or 'none'}"
        + (f", vectors {vectors}" if vectors else "")
    )
    return {part: content for part, content in {**parts, "vectors": vectors}.items() if content}


def _find_key(table: Glimpse, log_key: str, wanted: set[str]) -> str | None:
    """The column, of the same name first, whose values are distinct and among the ids of the log."""
    same_name = [name for name in table.names if plain(name) == plain(log_key)]
    for name in [*same_name, *(name for name in table.names if name not in same_name)]:
        values = table.texts(name)
        known = len(wanted & set(values))
        distinct = len(set(values)) > 0.9 * len(values)
        if distinct and known and (name in same_name or known >= _COVERAGE * len(wanted)):
            return name
    return None


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
