"""Ids that rotate -> the users behind them (`data.user_map`)."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrec_ray.config import Data
from mtrec_ray.data.reading.cells import EARLIEST, as_micros, as_text
from mtrec_ray.data.reading.formats import column_names, find_shards, read_batches
from mtrec_ray.data.reading.versions import Versions
from mtrec_ray.errors import DataError
from mtrec_ray.registry import suggest

Array = np.ndarray[Any, np.dtype[Any]]
_WHERE = "data.user_map"


class KnownUsers:
    """The map in memory: `keys` string [V], the `users` that they mean, and int64 [V] from when on, microseconds."""

    def __init__(self, keys: pa.Array, users: pa.Array, valid_from: Array) -> None:
        self._users, self._versions = users, Versions(keys, valid_from)

    def current(self, ids: pa.ChunkedArray, times: Array) -> tuple[pa.Array, Array]:
        """The user of each id at its time, the id itself where the map does not know it; bool [N] whether it does."""
        row = self._versions.at(ids, times)
        known = row >= 0
        users = self._users.take(pa.array(np.where(known, row, 0), mask=~known))
        return pc.coalesce(users, ids.combine_chunks()), known


def read_user_map(data: Data) -> KnownUsers | None:
    """None without `data.user_map`.

    Raises:
        DataError: no such file or column, a row without id, user or time, or an id that means two users at one time.
    """
    settings = data.user_map
    if settings is None:
        return None
    columns = {"key": settings.key, "user": settings.user, "valid_from": settings.valid_from}
    named = {role: column for role, column in columns.items() if column is not None}
    parts: list[tuple[pa.Array, pa.Array, Array]] = []
    for file in find_shards(settings.path, "auto", f"{_WHERE}.path"):
        found = column_names(file)
        for role, column in named.items():
            if column not in found:
                raise DataError(f"{_WHERE}.{role}: no column '{column}' in '{file.path}'.{suggest(column, found)}")
        for batch in read_batches(file, named.values()):
            if batch.bad:
                raise DataError(f"{_WHERE}.path: row {batch.bad[0].row} of '{file.path}': {batch.bad[0].reason}.")
            texts = [as_text(batch.table.column(named[role]), f"{_WHERE}.{role}") for role in ("key", "user")]
            times, bad = np.full(batch.table.num_rows, EARLIEST), np.zeros(batch.table.num_rows, dtype=bool)
            if settings.valid_from is not None:
                read = as_micros(batch.table.column(settings.valid_from), data.time_unit, data.time_zone)
                times, bad = read.micros, read.bad
            for text in texts:
                bad = bad | pc.is_null(text).to_numpy(zero_copy_only=False)
            if bad.any():
                row = batch.rows[np.flatnonzero(bad)[0]]
                raise DataError(
                    f"{_WHERE}: row {row} of '{file.path}' lacks an id, a user, or a time in data.time_unit "
                    f"'{data.time_unit}'. Correct the row or take it out."
                )
            parts.append((texts[0], texts[1], times))
    keys, users = (pa.concat_arrays([part[i] for part in parts] or [pa.array([], pa.string())]) for i in (0, 1))
    valid_from = np.concatenate([part[2] for part in parts]) if parts else np.zeros(0, dtype=np.int64)
    _refuse_contradictions(keys, users, valid_from, settings.valid_from is not None)
    return KnownUsers(keys, users, valid_from)


def _refuse_contradictions(keys: pa.Array, users: pa.Array, valid_from: Array, timed: bool) -> None:
    entries = set(zip(keys.to_pylist(), valid_from.tolist(), users.to_pylist(), strict=True))
    for (key, _), count in Counter((key, time) for key, time, _ in sorted(entries)).most_common(1):
        if count > 1:
            remedy = "leave one of the rows" if timed else "give `valid_from`, the column that says since when"
            raise DataError(f"{_WHERE}: id '{key}' means {count} users at the same time; {remedy}.")
