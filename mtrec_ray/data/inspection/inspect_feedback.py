"""Describes feedback that lies in files of its own, for `data.inspect`."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow.compute as pc

from mtrec_ray.data.inspection.glimpse import Glimpse, named, plain
from mtrec_ray.data.reading.cells import as_numbers, as_text, guess_unit
from mtrec_ray.data.reading.formats import find_shards
from mtrec_ray.errors import DataError

_WHERE = "data.feedback[0].logs"
_IMPRESSION = ["impressionid", "impression", "exposureid", "requestid"]
_MOST_TYPES = 50


def describe_feedback(
    path: str, log: Glimpse, columns: Mapping[str, str], events: Iterable[str], notes: list[str]
) -> tuple[dict[str, Any], dict[str, str | None]]:
    """The config part of the feedback at `path`, and each type in it, the most frequent first, with the column of its
    value, if it has one. A part with `by: impression` also says how both call the id, as `impression`.

    Args:
        columns: role -> column of the log.
        events: what a column with the type may be called, in plain form.

    Raises:
        DataError: no such file, or none of its columns has the user, the item, the time or the type.
    """
    table = Glimpse(find_shards(path, "auto", _WHERE), _WHERE)
    part: dict[str, Any] = {"logs": path}
    impression = _impression(log, table)
    part |= {"by": "impression", "impression": impression} if impression is not None else {}
    for role in ("user", "time") if impression is not None else ("user", "item", "time"):
        if columns[role] not in table.names:
            own = [name for name in table.names if plain(name) == plain(columns[role])]
            if not own:
                raise DataError(
                    f"{_WHERE}: no column of {table.described()} is called as the log's {role}, '{columns[role]}'. "
                    f"Rename it, or write data.feedback into a config by hand, with `{role}`."
                )
            part[role] = own[0]
    unit = guess_unit(table.raw(part.get("time", columns["time"])))
    if unit != guess_unit(log.raw(columns["time"])) and unit is not None:
        part["time_unit"] = unit
    types = [name for name in named(table.names, events) if 0 < len(set(table.texts(name))) <= _MOST_TYPES]
    if not types:
        raise DataError(
            f"{_WHERE}: no column of {table.described()} says of what type each row is. Call it 'event', or write "
            "data.feedback into a config by hand, with `type` where all rows are of one."
        )
    part["event"] = types[0]
    values = _values(table, types[0])
    joined = f"the exposure of their '{impression}'" if impression is not None else "the last exposure of user and item"
    notes.append(f"feedback: rows of '{path}' belong to {joined}; their types in '{types[0]}' are {list(values)}")
    return part, values


def _impression(log: Glimpse, feedback: Glimpse) -> str | None:
    """A column of both that names the log's rows: no two of them have the same."""
    for name in named(log.names, _IMPRESSION):
        if name in feedback.names and len(set(log.texts(name))) == log.rows:
            return name
    return None


def _values(table: Glimpse, event: str) -> dict[str, str | None]:
    """Type -> the column `value`, where rows of the type have a number there."""
    cells = as_text(table.raw(event), event)
    counts = pc.value_counts(cells.drop_null()).to_pylist()
    types = [entry["values"] for entry in sorted(counts, key=lambda entry: (-entry["counts"], entry["values"]))]
    column = next((name for name in table.names if plain(name) == "value" and table.numbers(name) is not None), None)
    if column is None:
        return dict.fromkeys(types)
    present = ~np.isnan(as_numbers(table.raw(column))[0])
    valued = set(cells.filter(present).drop_null().to_pylist())
    return {name: column if name in valued else None for name in types}
