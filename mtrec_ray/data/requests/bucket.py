"""One bucket of users, from its canonical events to candidates with split, labels, and the events that each may see."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from mtrec_ray.config import Run
from mtrec_ray.data.requests.attribution import Delays, Known, attribute
from mtrec_ray.data.requests.requests import (
    Candidates,
    Events,
    candidate_labels,
    find_candidates,
    find_events,
    history_ends,
)
from mtrec_ray.data.requests.rows import NEVER, Rows, from_table
from mtrec_ray.data.requests.splits import TRAIN, Key, TimeSplit, known_until, split_by_time, split_by_user

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class IdOrder:
    """Whether all ids of the logs are integers, and so compare as integers where times are equal."""

    users: bool
    items: bool


@dataclass(frozen=True)
class Bucket:
    """All there is to know about the users of a bucket but what is fitted; C candidates, E events, T tasks."""

    rows: Rows
    candidates: Candidates
    split: Array
    """int8 [C] 0 train, 1 valid, 2 test"""
    labels: Array
    """float32 [C, T]"""
    delays: Delays
    events: Events
    ends: Array
    """int64 [C] how many of its user's events a candidate may see"""
    train_events: Array
    """bool [E] events of the train period: all that may be fitted on, beside the train candidates"""

    @property
    def train(self) -> Array:
        """bool [C]"""
        return self.split == TRAIN


def build_bucket(table: pa.Table, run: Run, ids: IdOrder, boundaries: TimeSplit | None, log_end: int = NEVER) -> Bucket:
    """The bucket of a canonical event table; `boundaries` of the split by time, else None. `log_end`: the last time of
    the whole log, up to which tasks with a window know what happened."""
    rows = from_table(table, run, ids.items)
    candidates = find_candidates(rows, run)
    split = _split(rows, candidates, run, ids, boundaries)
    times = rows.time[candidates.row]
    until = known_until(split, candidates.starts, times, run, boundaries)
    label_until = np.where(split == TRAIN, until[candidates.user], NEVER)
    labels = candidate_labels(rows, candidates, run, label_until)
    known = Known.of(label_until, split == TRAIN, log_end, run)
    labels, delays = attribute(labels, rows, candidates, run, known)
    events = find_events(rows, run)
    return Bucket(
        rows=rows,
        candidates=candidates,
        split=split,
        labels=labels,
        delays=delays,
        events=events,
        ends=history_ends(candidates, events, lag_us(run)),
        train_events=_train_events(rows, candidates, split, events, until, run),
    )


def lag_us(run: Run) -> int:
    """`history.lag` in microseconds."""
    return round(run.history.lag * 1_000_000)


def candidate_keys(rows: Rows, candidates: Candidates, ids: IdOrder, chosen: Array) -> list[Key]:
    """Places of some candidates (int64 positions) in the order by time."""
    keys = []
    for c in chosen.tolist():
        row = int(candidates.row[c])
        user, item = rows.users[candidates.user[c]], rows.items[rows.item[row]]
        keys.append(
            Key(
                int(rows.time[row]),
                int(user) if ids.users else user,
                int(item) if ids.items else item,
                int(rows.row_id[row]),
            )
        )
    return keys


def said_splits(rows: Rows, candidates: Candidates) -> Counter[int]:
    """Candidates per code of the split column, -1 = none of train, valid and test."""
    return Counter(rows.split[candidates.row].tolist())


def _split(rows: Rows, candidates: Candidates, run: Run, ids: IdOrder, boundaries: TimeSplit | None) -> Array:
    if run.split.by == "column":
        return rows.split[candidates.row]
    if run.split.by == "user":
        return split_by_user(candidates.starts, run.split)
    assert boundaries is not None
    times = rows.time[candidates.row]
    return split_by_time(times, lambda c: candidate_keys(rows, candidates, ids, np.array([c]))[0], boundaries)


def _train_events(rows: Rows, candidates: Candidates, split: Array, events: Events, until: Array, run: Run) -> Array:
    if run.split.by == "column":
        return rows.split[events.row] == TRAIN
    train_row = np.zeros(rows.num_rows, dtype=bool)
    train_row[candidates.row[split == TRAIN]] = True
    end = until[rows.user[events.row]]
    return (events.time < end) | ((events.time == end) & train_row[events.row])
