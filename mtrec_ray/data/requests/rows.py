"""The canonical events of some users in columns: what every later step of `prepare` computes on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrec_ray.config import Run, Vector
from mtrec_ray.data.reading.context import context_numbers
from mtrec_ray.data.reading.vectors import as_vectors
from mtrec_ray.data.requests.ids import order_keys

Array = np.ndarray[Any, np.dtype[Any]]

NEVER = int(np.iinfo(np.int64).max)
"""The time of a feedback that enters no history."""
SPLIT_CODES = {"train": 0, "valid": 1, "test": 2}


@dataclass(frozen=True)
class Rows:
    """N rows of U users, sorted by (user, time, item), rows alike in these in the order of the files and of their rows
    in them; T tasks. Times are microseconds since 1970 UTC."""

    users: list[str]
    """[U] in string order"""
    starts: Array
    """int64 [U + 1]: rows of user u are `starts[u] : starts[u + 1]`"""
    items: list[str]
    """The distinct items; `item` points into it"""
    item: Array
    """int64 [N]"""
    time: Array
    """int64 [N]"""
    row_id: Array
    """int64 [N]"""
    request: Array
    """int64 [N] names rows that were shown together, within a user; -1 = the log does not say"""
    event: Array
    """object [N] event type, or None (layout `impressions`)"""
    split: Array
    """int8 [N] 0 train, 1 valid, 2 test, -1 where the log does not say"""
    labels: Array
    """float32 [N, T], NaN = not observed"""
    feedback_time: Array
    """int64 [N, T], `NEVER` = enters no history"""
    categories: dict[str, Array]
    """object [N] cell of each category column of the log, None = absent"""
    numbers: dict[str, Array]
    """float64 [N], NaN = missing"""
    context: Array
    """float32 [N, X] in the order of `context_numbers`, NaN = unknown"""
    domain: Array
    """object [N], "" = the log does not say; likewise `policy`, `query` and `time_zone`"""
    policy: Array
    query: Array
    time_zone: Array
    vectors: dict[str, Array]
    """float32 [N, size] of the log's own, a row of NaN = missing"""

    @property
    def num_rows(self) -> int:
        return len(self.time)

    @property
    def user(self) -> Array:
        """int64 [N] position of each row's user."""
        return np.repeat(np.arange(len(self.users)), np.diff(self.starts))


def from_table(table: pa.Table, run: Run, integer_items: bool) -> Rows:
    """Rows of a canonical event table (docs/ARCHITECTURE.md) in any order, in which those of one user, item and time
    stay.

    `integer_items`: whether the ids of *all* items of the logs are integers, so that ties in time compare them as such.
    """
    users, user = _codes(table["user"], sort=True)
    items, item = _codes(table["item"])
    time, row_id = _numpy(table["time"]), _numpy(table["row_id"])
    order = np.lexsort((order_keys(items, integer_items)[item] if len(items) else item, time, user))  # is stable
    starts = np.searchsorted(user[order], np.arange(len(users) + 1))

    def column(name: str, missing: Any = None) -> Array:
        return _objects(table[name])[order] if name in table.column_names else np.full(len(order), missing, object)

    def text(name: str) -> Array:
        if name not in table.column_names:
            return np.full(len(order), "", object)
        return _objects(pc.fill_null(table[name], ""))[order]

    return Rows(
        users=users,
        starts=starts,
        items=items,
        item=item[order],
        time=time[order],
        row_id=row_id[order],
        request=_request_codes(table, order),
        event=column("event"),
        split=_split_codes(table, order),
        labels=_stack([_floats(table[f"label.{t}"])[order] for t in run.tasks], len(order), np.float32),
        feedback_time=_stack([_times(table[f"feedback_time.{t}"])[order] for t in run.tasks], len(order), np.int64),
        categories={c.column: column(f"category.{c.column}") for c in run.data.categories},
        numbers={n.feature: _floats(table[f"number.{n.feature}"])[order] for n in run.data.numbers},
        vectors={v.column: _vectors(table[f"vector.{v.column}"], v)[order] for v in run.data.vectors},
        context=_stack(
            [_floats(table[f"context.{name}"])[order] for name in context_numbers(run.data.columns)],
            len(order),
            np.float32,
        ),
        domain=text("context.domain"),
        policy=text("context.policy"),
        query=text("context.query"),
        time_zone=text("context.time_zone"),
    )


def _split_codes(table: pa.Table, order: Array) -> Array:
    if "split" not in table.column_names:
        return np.full(len(order), -1, dtype=np.int8)
    codes = pc.index_in(table["split"], value_set=pa.array(SPLIT_CODES, pa.string()))
    return pc.fill_null(codes, -1).to_numpy()[order].astype(np.int8)


def _request_codes(table: pa.Table, order: Array) -> Array:
    if "request" not in table.column_names or table["request"].null_count == table.num_rows:
        return np.full(len(order), -1, dtype=np.int64)
    return (
        pc.fill_null(table["request"].combine_chunks().dictionary_encode().indices, -1)
        .to_numpy()[order]
        .astype(np.int64)
    )


def _codes(column: pa.ChunkedArray, sort: bool = False) -> tuple[list[str], Array]:
    encoded = column.cast(pa.string()).combine_chunks().dictionary_encode()
    values, codes = encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)
    if sort:
        ranks = order_keys(values, as_integers=False)
        values, codes = sorted(values), ranks[codes]
    return values, codes


def _numpy(column: pa.ChunkedArray) -> Array:
    return column.cast(pa.int64()).combine_chunks().to_numpy(zero_copy_only=False)


def _objects(column: pa.ChunkedArray) -> Array:
    return np.array(column.to_pylist(), dtype=object)


def _floats(column: pa.ChunkedArray) -> Array:
    return pc.fill_null(column.cast(pa.float64()), float("nan")).combine_chunks().to_numpy(zero_copy_only=False)


def _vectors(column: pa.ChunkedArray, vector: Vector) -> Array:
    assert vector.dim is not None, "of a run `with_sizes`"
    return as_vectors(column, vector.dim)[0]


def _times(column: pa.ChunkedArray) -> Array:
    return pc.fill_null(column.cast(pa.int64()), NEVER).combine_chunks().to_numpy(zero_copy_only=False)


def _stack(columns: Sequence[Array], length: int, dtype: Any) -> Array:
    return np.stack(columns, axis=1).astype(dtype) if columns else np.zeros((length, 0), dtype)
