"""What some candidates of a bucket are made of, and no more: a bucket of its own, from which their requests are encoded
and whose digest says whether they were encoded before.

A candidate sees the events of its user before its own time, and the cells of its own row. So of a user these events
are kept that one of the chosen candidates sees, and of rows what was known when they happened. Labels and feedback of
rows are left out: of a candidate they are in the bucket's labels, of an event in the event.
"""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrec_ray.config import Run
from mtrec_ray.data.features.attributes import Scope, Tables, stored_hashes
from mtrec_ray.data.reading.tables import EntityTable
from mtrec_ray.data.requests.attribution import Delays
from mtrec_ray.data.requests.bucket import Bucket
from mtrec_ray.data.requests.ragged import Ragged, offsets_of, spans
from mtrec_ray.data.requests.requests import Candidates, Events
from mtrec_ray.data.requests.rows import NEVER, Rows

Array = np.ndarray[Any, np.dtype[Any]]

_RENUMBERED = ("users", "starts", "items", "item", "labels", "feedback_time", "request")


def part_of(bucket: Bucket, chosen: Array, delayed: bool) -> Bucket:
    """The bucket of the chosen candidates (int64, ascending) alone, in which no event is a train event. `delayed`:
    whether requests say how late feedback came."""
    candidates, events, delays = bucket.candidates, bucket.events, bucket.delays
    users, user = np.unique(candidates.user[chosen], return_inverse=True)
    seen = np.zeros(len(users), dtype=np.int64)
    np.maximum.at(seen, user, bucket.ends[chosen])
    kept = spans(events.starts[users], seen)
    rows = np.unique(np.concatenate([candidates.row[chosen], events.row[kept]]))
    return Bucket(
        rows=_rows(bucket.rows, rows, users),
        candidates=Candidates(
            row=np.searchsorted(rows, candidates.row[chosen]),
            user=user,
            asof=candidates.asof[chosen],
            starts=np.searchsorted(user, np.arange(len(users) + 1)),
        ),
        split=bucket.split[chosen],
        labels=bucket.labels[chosen],
        delays=Delays(*(times[chosen] if delayed else times[:0] for times in (delays.delays, delays.elapsed))),
        events=_events(events, kept, rows, seen),
        ends=bucket.ends[chosen],
        train_events=np.zeros(len(kept), dtype=bool),
    )


def train_part(bucket: Bucket) -> Bucket:
    """The bucket of the train events alone, without candidates."""
    events, none = bucket.events, np.zeros(0, dtype=np.int64)
    kept = np.flatnonzero(bucket.train_events)
    of_user = np.bincount(bucket.rows.user[events.row[kept]], minlength=len(bucket.rows.users))
    users = np.flatnonzero(of_user)
    rows = np.unique(events.row[kept])
    return Bucket(
        rows=_rows(bucket.rows, rows, users),
        candidates=Candidates(none, none, none, np.zeros(len(users) + 1, dtype=np.int64)),
        split=bucket.split[:0],
        labels=bucket.labels[:0],
        delays=Delays(bucket.delays.delays[:0], bucket.delays.elapsed[:0]),
        events=_events(events, kept, rows, of_user[users]),
        ends=none,
        train_events=np.ones(len(kept), dtype=bool),
    )


def table_rows(bucket: Bucket, tables: Tables, run: Run) -> list[Any]:
    """What the tables say of the rows of a bucket: for each table which of its rows they have, and what these hold.

    Not where they lie in the whole table, which may come in another order: requests name stored vectors by hashes.
    """
    described: list[Any] = list(stored_hashes(bucket.rows, run, tables).items())
    scopes: list[tuple[Scope, EntityTable | None]] = [("item", tables.items), ("user", tables.users)]
    for scope, table in scopes:
        if table is not None:
            of_row = tables.rows_of(scope, bucket.rows)
            used = np.unique(of_row[of_row >= 0])
            order = _by_key(table, used)
            rank = np.append(np.argsort(order), -1)
            place = rank[np.where(of_row >= 0, np.searchsorted(used, of_row), -1)]
            described += [scope, place, _entities(table, used[order])]
    return described


def _by_key(table: EntityTable, rows: Array) -> Array:
    """int64: the order of some rows by their keys, and of versions by since when they hold."""
    since = np.zeros(len(rows), np.int64) if table.versions is None else table.versions.valid_from[rows]
    columns = pa.table({"key": table.keys.take(pa.array(rows)), "since": since})
    order: Array = pc.sort_indices(columns, sort_keys=[("key", "ascending"), ("since", "ascending")]).to_numpy()
    return order.astype(np.int64)


def _events(events: Events, kept: Array, rows: Array, of_user: Array) -> Events:
    row = np.searchsorted(rows, events.row[kept])
    return Events(row, events.time[kept], events.feedback[kept], events.exposure[kept], offsets_of(of_user))


def _rows(rows: Rows, kept: Array, users: Array) -> Rows:
    """Some rows (ascending) of these users; items in the order of their names, which no others have a part in."""
    used, item = np.unique(rows.item[kept], return_inverse=True)
    names = [rows.items[i] for i in used.tolist()]
    order = sorted(range(len(names)), key=names.__getitem__)
    place = np.empty(len(names), dtype=np.int64)
    place[order] = np.arange(len(names))
    columns = {field.name: getattr(rows, field.name) for field in fields(rows) if field.name not in _RENUMBERED}
    return replace(
        rows,
        users=[rows.users[u] for u in users.tolist()],
        starts=np.searchsorted(rows.user[kept], np.append(users, len(rows.users))),
        items=[names[i] for i in order],
        item=place[item.ravel()],
        labels=np.full((len(kept), rows.labels.shape[1]), np.nan, dtype=np.float32),
        feedback_time=np.full((len(kept), rows.feedback_time.shape[1]), NEVER, dtype=np.int64),
        request=np.full(len(kept), -1, dtype=np.int64),
        **{name: _taken(name, column, kept, rows.num_rows) for name, column in columns.items()},
    )


def _entities(table: EntityTable, used: Array) -> dict[str, Any]:
    """What a table holds in some of its rows: every column it has."""
    length = len(table.keys)
    columns = {field.name: getattr(table, field.name) for field in fields(table)}
    left_out = ("duplicates", "bad", "rows_read", "versions")  # of the whole table; which version holds, `of_row` says
    return {name: _taken(name, column, used, length) for name, column in columns.items() if name not in left_out}


def _taken(name: str, column: Any, kept: Array, length: int) -> Any:
    """Some of the `length` rows of a column, or of a dictionary of columns.

    Raises:
        TypeError: something else, which would not say what it depends on.
    """
    if column is None:
        return None
    if isinstance(column, dict):
        return {key: _taken(f"{name}.{key}", entry, kept, length) for key, entry in column.items()}
    if isinstance(column, Ragged) and len(column.offsets) == length + 1:
        return column.take(kept)
    if isinstance(column, np.ndarray) and len(column) == length:
        return column[kept]
    if isinstance(column, list) and len(column) == length:
        return [column[i] for i in kept.tolist()]
    if hasattr(column, "take") and len(column) == length:
        return column.take(kept)
    raise TypeError(f"'{name}' is no column of {length} rows")
