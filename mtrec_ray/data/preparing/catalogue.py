"""Makes the catalogue (`data.catalogue`): what each bucket of users saw of its items, put together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrec_ray.config import Run
from mtrec_ray.data.catalogue import Catalogue
from mtrec_ray.data.features.attributes import Cells, Tables, category_columns
from mtrec_ray.data.fitting.fitted import Fitted
from mtrec_ray.data.fitting.text_encoder import TextEncoder
from mtrec_ray.data.requests.bucket import Bucket
from mtrec_ray.data.requests.ids import first_repeat, hash_ids
from mtrec_ray.data.requests.ragged import Ragged
from mtrec_ray.data.requests.rows import NEVER
from mtrec_ray.errors import DataError
from mtrec_ray.labels import MATCHING

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class SeenItems:
    """The n items of one bucket; T tasks that match."""

    items: list[str]
    first_seen: Array
    """int64 [n] µs"""
    shown: Array
    """int64 [n] train rows"""
    positives: Array
    """int64 [T, n] train rows with label 1"""


def matching_tasks(run: Run) -> list[str]:
    """The tasks for which there is a catalogue, if any."""
    return [name for name, task in run.tasks.items() if task.kind in MATCHING]


def item_categories(run: Run) -> list[str]:
    """Names of the categories that are the item's own, in the order of all categories."""
    return [category.column for scope, category in category_columns(run) if scope == "item"]


def seen_items(bucket: Bucket, run: Run) -> SeenItems:
    """What the rows of a bucket say of its items."""
    rows, count = bucket.rows, len(bucket.rows.items)
    first_seen = np.full(count, NEVER, dtype=np.int64)
    np.minimum.at(first_seen, rows.item, rows.time)
    shown = rows.item[bucket.candidates.row[bucket.train]]
    columns = [list(run.tasks).index(name) for name in matching_tasks(run)]
    positives = [np.bincount(shown[bucket.labels[bucket.train, t] > 0], minlength=count) for t in columns]
    return SeenItems(
        list(rows.items),
        first_seen,
        np.bincount(shown, minlength=count),
        np.array(positives, dtype=np.int64).reshape(len(columns), count),
    )


def make_catalogue(
    parts: Sequence[SeenItems], run: Run, tables: Tables, fitted: Fitted, encoder: TextEncoder | None
) -> Catalogue:
    """All items of the buckets and of the item table, the same whatever the buckets were.

    Raises:
        DataError: two items with the same hash, which requests could not tell apart.
    """
    names = {item for part in parts for item in part.items}
    if tables.items is not None:
        names |= set(tables.items.keys.to_pylist())
    ordered = sorted(names)
    items = pa.array(ordered, pa.string())
    first_seen = np.full(len(items), NEVER, dtype=np.int64)
    shown = np.zeros(len(items), dtype=np.int64)
    positives = np.zeros((len(matching_tasks(run)), len(items)), dtype=np.int64)
    for part in parts:
        rows = pc.index_in(pa.array(part.items, pa.string()), value_set=items).to_numpy()  # distinct within a part
        first_seen[rows] = np.minimum(first_seen[rows], part.first_seen)
        shown[rows] += part.shown
        positives[:, rows] += part.positives
    first_seen = np.minimum(first_seen, _published(ordered, tables))
    return Catalogue(
        items=items,
        hashes=_hashes(ordered),
        index=fitted.items.lookup(ordered),
        categories=_categories(ordered, run, tables, fitted),
        text=_texts(ordered, run, tables, encoder),
        first_seen=first_seen,
        shown=shown,
        positives=dict(zip(matching_tasks(run), positives, strict=True)),
        item_row=_stored_rows(ordered, run, tables),
    )


def _hashes(items: list[str]) -> Array:
    """int64 [I]; that two of a hundred million items have the same is a chance of 3 in 10,000."""
    hashes = hash_ids(items, "item")
    if (same := first_repeat(hashes)) is not None:
        one, other = (items[place] for place in same)
        raise DataError(
            f"data.columns.item: items '{one}' and '{other}' have the same 64-bit hash, by which requests name the "
            "items that tasks match users with. Give one of them another id, in the log and in data.items."
        )
    return hashes


def _published(items: list[str], tables: Tables) -> Array:
    """int64 [I] µs, `NEVER` where nothing is said: an item exists from its publication on, before anybody meets it."""
    if tables.items is None or tables.items.published is None:
        return np.full(len(items), NEVER, dtype=np.int64)
    rows = tables.items.lookup(items)
    said = np.where(rows >= 0, tables.items.published[rows], 0)
    return np.where(said > 0, said, NEVER)


def _categories(items: list[str], run: Run, tables: Tables, fitted: Fitted) -> Array:
    """int64 [I, G]; an item that the table lacks has none."""
    parts = [np.zeros((len(items), 0), dtype=np.int64)]
    if tables.items is not None:
        rows = tables.items.lookup(items)
        for name in item_categories(run):
            column = tables.items.categories[name]
            cells = Cells([column[row] if row >= 0 else [] for row in rows], np.arange(len(items)))
            parts.append(cells.codes(fitted.categories[name], fitted.widths[name]).astype(np.int64))
    return np.concatenate(parts, axis=1)


def _stored_rows(items: list[str], run: Run, tables: Tables) -> Array | None:
    """int64 [I] rows of the stored vectors; None where items have none."""
    if tables.items is None or run.data.items is None or not run.data.items.vectors:
        return None
    return tables.items.lookup(items) + 1


def _texts(items: list[str], run: Run, tables: Tables, encoder: TextEncoder | None) -> Ragged:
    if encoder is None:
        return Ragged(np.zeros(0, np.int32), np.zeros(len(items) + 1, np.int64))
    return encoder.encode(tables.item_texts(items), run.history.candidate_tokens)[0]
