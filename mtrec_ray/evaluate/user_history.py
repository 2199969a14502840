"""Sums of a user's feedback strictly before a candidate, over the whole history that the shards of one bucket hold.

A request holds a window of its user's events; the windows of all the user's requests, in all splits, put together and
freed of repetitions are the history. What is summed is only what was known before the candidate, so later splits in it
do no harm.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrec_ray.config import Run
from mtrec_ray.data.manifest import TaskEntry
from mtrec_ray.evaluate.candidates import flat, lengths

COLUMNS = ["user", "event_item", "event_time", "event_feedback", "time"]
"""Columns of request rows that this module reads."""


def label_values(tasks: list[TaskEntry], labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels [N, T] (NaN = unknown) as values [N, T, K], one-hot for multiclass tasks, and weights [N, T] (0 or 1)."""
    known = ~np.isnan(labels)
    values = np.zeros((*labels.shape, max(task.classes for task in tasks)))
    for t, task in enumerate(tasks):
        rows = np.flatnonzero(known[:, t])
        if task.labels == "class":
            values[rows, t, labels[rows, t].astype(np.int64)] = 1
        else:
            values[rows, t, 0] = labels[rows, t]
    return values, known.astype(np.float64)


class UserHistory:
    """The events of all users of one bucket, in order of (user, time), with running sums of their feedback.

    Where only positive feedback ever becomes known (layout `behaviours`, or a `feedback_time`), a binary task's weight
    is the first event of each item, its exposure; else it is each known label.
    """

    def __init__(self, tables: list[pa.Table], tasks: list[TaskEntry], run: Run) -> None:
        self.names = pc.unique(
            pa.chunked_array([chunk for t in tables for chunk in t.column("user").chunks], pa.string())
        )
        self.lag = round(run.history.lag * 1e6)
        user = np.concatenate([np.repeat(self._codes(table), lengths(table, "event_time")) for table in tables])
        item, time = (np.concatenate([flat(t, name) for t in tables]) for name in ("event_item", "event_time"))
        feedback = np.concatenate([flat(t, "event_feedback") for t in tables]).reshape(len(user), len(tasks))
        order = _distinct_in_order(user, time, item, feedback)
        user, item, feedback, known_after = user[order], item[order], feedback[order], time[order] + self.lag
        values, weights = label_values(tasks, feedback)
        first = _first_of_pair(user, item)
        for t, task in enumerate(tasks):
            if task.labels == "binary" and run.tasks[task.name].dated:
                weights[:, t] = first
        self.times = np.unique(known_after)
        self.keys = self._key(user, np.searchsorted(self.times, known_after))
        self.values = np.concatenate([np.zeros((1, *values.shape[1:])), np.cumsum(values, axis=0)])
        self.weights = np.concatenate([np.zeros((1, len(tasks))), np.cumsum(weights, axis=0)])

    def before(self, table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """Sums of values [C, T, K] and weights [C, T] over the user's events with time + lag < the candidate's time."""
        user = np.repeat(self._codes(table), lengths(table, "time"))
        start = np.searchsorted(self.keys, self._key(user, np.zeros_like(user)))
        end = np.searchsorted(self.keys, self._key(user, np.searchsorted(self.times, flat(table, "time"))))
        return self.values[end] - self.values[start], self.weights[end] - self.weights[start]

    def _codes(self, table: pa.Table) -> np.ndarray:
        return pc.index_in(table.column("user").cast(pa.string()), value_set=self.names).to_numpy().astype(np.int64)

    def _key(self, user: np.ndarray, time_rank: np.ndarray) -> np.ndarray:
        """One number that orders by (user, time)."""
        return user * (len(self.times) + 1) + time_rank


def _distinct_in_order(user: np.ndarray, time: np.ndarray, item: np.ndarray, feedback: np.ndarray) -> np.ndarray:
    """Places of the distinct events, by (user, time, item, feedback)."""
    columns = [user, time, item, *np.nan_to_num(feedback, nan=-np.inf).T]
    order = np.lexsort(columns[::-1])
    changed = np.zeros(len(order), dtype=bool)
    changed[:1] = True
    for column in columns:
        changed[1:] |= (
            np.diff(column[order]) != 0 if column.dtype.kind == "i" else column[order][1:] != column[order][:-1]
        )
    return order[changed]


def _first_of_pair(user: np.ndarray, item: np.ndarray) -> np.ndarray:
    """1.0 at the first event of each user and item, for events in order of time."""
    order = np.lexsort((item, user))  # stable: within a pair the earliest stays first
    first = np.ones(len(order))
    first[order[1:]] = (user[order][1:] != user[order][:-1]) | (item[order][1:] != item[order][:-1])
    return first
