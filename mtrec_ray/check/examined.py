"""What all checks look at: candidates with split and labels as training has them, and the raw columns beside them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from mtrec_ray.check.features import Feature, read_features
from mtrec_ray.check.finding import MOST_PLACES, Place
from mtrec_ray.check.reading import MOST_ROWS, LogRead, read_log
from mtrec_ray.config import Run
from mtrec_ray.data.features.attributes import Tables, read_tables
from mtrec_ray.data.reading.events import ROW_BITS
from mtrec_ray.data.reading.vectors import with_sizes
from mtrec_ray.data.requests.attribution import log_end
from mtrec_ray.data.requests.bucket import Bucket, IdOrder, build_bucket, candidate_keys
from mtrec_ray.data.requests.ids import order_keys
from mtrec_ray.data.requests.requests import Candidates, candidate_labels, find_candidates
from mtrec_ray.data.requests.rows import NEVER, Rows, from_table
from mtrec_ray.data.requests.splits import TEST, TRAIN, TimeSplit, explicit_boundaries, sizes
from mtrec_ray.errors import DataError

Array = np.ndarray[Any, np.dtype[Any]]
SESSION_US = 30 * 60 * 1_000_000
"""A pause this long ends a session."""


@dataclass(frozen=True)
class View:
    """The C candidates of some users, or of some items, over the whole log; T tasks."""

    rows: Rows
    candidates: Candidates
    labels: Array
    """float32 [C, T] as the whole log has them, NaN = not observed"""
    features: list[Feature]

    @property
    def size(self) -> int:
        return len(self.candidates.row)

    @cached_property
    def time(self) -> Array:
        """int64 [C] µs"""
        return self.rows.time[self.candidates.row]

    @cached_property
    def item(self) -> Array:
        """int64 [C] place in `rows.items`"""
        return self.rows.item[self.candidates.row]

    @property
    def user(self) -> Array:
        """int64 [C] place in `rows.users`"""
        return self.candidates.user

    @cached_property
    def row_id(self) -> Array:
        return self.rows.row_id[self.candidates.row]

    @cached_property
    def shown(self) -> Array:
        """int64 [C] names the candidates that were shown together: of one request, or of one user and time."""
        request = self.rows.request[self.candidates.row]
        return groups(self.user, np.where(request >= 0, request, -1), np.where(request >= 0, 0, self.time))

    @cached_property
    def session(self) -> Array:
        """int64 [C] names the sessions of the users; rows are sorted by user and time."""
        begins = np.ones(self.size, dtype=bool)
        begins[1:] = (np.diff(self.user) != 0) | (np.diff(self.time) > SESSION_US)
        return np.cumsum(begins) - 1


@dataclass(frozen=True)
class Examined:
    """Everything that a check may look at."""

    run: Run
    read: LogRead
    tables: Tables
    bucket: Bucket
    """Of the users looked at, as `prepare` builds it"""
    by_user: View
    by_item: View
    """Of the items looked at; the same as `by_user` where the whole log is"""
    boundaries: TimeSplit | None

    @property
    def tasks(self) -> list[str]:
        """Those with labels."""
        return [name for name, task in self.run.tasks.items() if task.labelled]

    @property
    def split(self) -> Array:
        """int8 [C] of `by_user`: 0 train, 1 valid, 2 test."""
        return self.bucket.split

    @property
    def train(self) -> Array:
        return self.split == TRAIN

    @property
    def test(self) -> Array:
        return self.split == TEST

    def label(self, task: str) -> Array:
        """float32 [C] of `by_user` as training and evaluation have it, NaN = not observed."""
        return self.bucket.labels[:, list(self.run.tasks).index(task)]

    def positive(self, task: str) -> Array:
        """float64 [C]: 1 or 0, NaN = not observed; of labels that are numbers, above the median of train."""
        labels = self.label(task).astype(np.float64)
        observed = ~np.isnan(labels)
        values = np.unique(labels[observed])
        threshold = 0.0 if len(values) <= 2 else float(np.median(labels[observed & self.train]))
        return np.where(observed, labels > threshold, np.nan)

    def file(self, row_id: int) -> str:
        return self.read.files[int(row_id) >> ROW_BITS].path

    def places(
        self, view: View, chosen: Sequence[int] | Array, notes: Sequence[str] | None = None
    ) -> tuple[Place, ...]:
        """The first few of these candidates; `notes`: what stands there, beside user and item."""
        found = []
        for i, c in enumerate(np.asarray(chosen, dtype=np.int64)[:MOST_PLACES].tolist()):
            user, item = view.rows.users[view.user[c]], view.rows.items[view.item[c]]
            said = f"user {user}, item {item}" + ("" if notes is None else f", {notes[i]}")
            row_id = int(view.row_id[c])
            found.append(Place(self.file(row_id), row_id & ((1 << ROW_BITS) - 1), said))
        return tuple(found)


def examine(run: Run, unused: frozenset[str] = frozenset(), most_rows: int = MOST_ROWS) -> Examined:
    """Reads the log and its tables. `unused`: names of features that are looked at, but not the config's.

    Raises:
        DataError: logs or tables that cannot be used, or too few candidates to split.
        ConfigError: settings that contradict the logs or each other.
    """
    run, tables = with_sizes(run), read_tables(run)
    read = read_log(run, most_rows)
    rows = from_table(read.of_users, run, read.ids.items)
    candidates = find_candidates(rows, run)
    if not len(candidates.row):
        raise DataError(f"data.candidate_event: no row has type '{run.data.candidate_event}'.")
    if run.split.by == "column" and (rows.split[candidates.row] < 0).any():
        raise DataError(
            f"split.column: some candidates have neither train, valid nor test in column '{run.split.column}'. "
            "Correct the column, or use split.by: time."
        )
    boundaries = find_boundaries(rows, candidates, run, read.ids)
    bucket = build_bucket(read.of_users, run, read.ids, boundaries, max(read.last, log_end(rows, run)))
    by_user = _view(bucket.rows, bucket.candidates, run, tables, unused)
    by_item = (
        by_user
        if read.of_items is read.of_users or read.whole
        else _view_of(read.of_items, run, read.ids, tables, unused)
    )
    return Examined(run, read, tables, bucket, by_user, by_item, boundaries)


def find_boundaries(rows: Rows, candidates: Candidates, run: Run, ids: IdOrder) -> TimeSplit | None:
    """Where a split by time cuts these candidates: of the whole log, the very places at which `prepare` cuts it."""
    if run.split.by != "time":
        return None
    if (explicit := explicit_boundaries(run)) is not None:
        return explicit
    row = candidates.row
    users, items = order_keys(rows.users, ids.users), order_keys(rows.items, ids.items)
    order = np.lexsort((rows.row_id[row], items[rows.item[row]], users[candidates.user], rows.time[row]))
    places = sizes(len(row), run.split)
    if not 0 < places[0] < places[1] < len(row):
        raise DataError(f"{len(row)} candidate(s) are too few for a split by time; give a longer log.")
    return TimeSplit(*candidate_keys(rows, candidates, ids, order[list(places)]))


def groups(*keys: Array) -> Array:
    """int64 [N] names the different combinations of some keys [N], from 0."""
    order = np.lexsort(keys[::-1])
    begins = np.zeros(len(order), dtype=bool)
    for key in keys:
        begins[1:] |= key[order][1:] != key[order][:-1]
    named = np.empty(len(order), dtype=np.int64)
    named[order] = np.cumsum(begins)
    return named


def _view_of(table: pa.Table, run: Run, ids: IdOrder, tables: Tables, unused: frozenset[str]) -> View:
    rows = from_table(table, run, ids.items)
    return _view(rows, find_candidates(rows, run), run, tables, unused)


def _view(rows: Rows, candidates: Candidates, run: Run, tables: Tables, unused: frozenset[str]) -> View:
    labels = candidate_labels(rows, candidates, run, np.full(len(candidates.row), NEVER, dtype=np.int64))
    return View(rows, candidates, labels, read_features(rows, candidates.row, run, tables, unused))
