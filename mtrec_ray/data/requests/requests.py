"""From rows to what is asked and what may be known: candidates, their labels, history events and history ends."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mtrec_ray.config import Run
from mtrec_ray.data.requests.distinct import distinct_rows
from mtrec_ray.data.requests.rows import NEVER, Rows

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Candidates:
    """C rows that are scored, sorted as their rows are (user, time, item)."""

    row: Array
    """int64 [C] position in `Rows`"""
    user: Array
    """int64 [C]"""
    asof: Array
    """int64 [C] time before which events are known: that of the first row shown together with this one"""
    starts: Array
    """int64 [U + 1]: candidates of user u are `starts[u] : starts[u + 1]`"""


@dataclass(frozen=True)
class Events:
    """E history events, sorted by (user, time, row)."""

    row: Array
    """int64 [E] the row with the event's item"""
    time: Array
    """int64 [E]"""
    feedback: Array
    """float32 [E, T] labels that became known with the event, NaN = none"""
    exposure: Array
    """bool [E] whether the item was shown with this event, which is not so for later feedback"""
    starts: Array
    """int64 [U + 1]"""


def find_candidates(rows: Rows, run: Run) -> Candidates:
    """`impressions`: every row. `behaviours`: the first row of type `data.candidate_event` of each user and item."""
    chosen = np.arange(rows.num_rows)
    if run.data.layout == "behaviours":
        chosen = np.flatnonzero(rows.event == run.data.candidate_event)
        _, first = np.unique(pairs(rows)[chosen], return_index=True)  # rows are sorted by time within a user
        chosen = chosen[np.sort(first)]
    user = rows.user[chosen]
    starts = np.searchsorted(user, np.arange(len(rows.users) + 1))
    return Candidates(chosen, user, _asof(rows, chosen, user), starts)


def candidate_labels(rows: Rows, candidates: Candidates, run: Run, known_until: Array) -> Array:
    """float32 [C, T], NaN = not observed.

    `behaviours`: whether the task's event ever occurs on the candidate's user and item (with `value`: the value of the
    first such row; without one the label is not observed). A feedback at or after `known_until` (int64 [C]) does not
    count: what is learnt from the train period must not depend on what came later. `impressions`: the label of the
    row, not observed where its feedback came later than that, or 0 where feedback has files of its own: so are there
    the rows of which nobody knows yet. Those of tasks with a window are taken by `attribution`.
    """
    if run.data.layout == "impressions":
        feedback_time = rows.feedback_time[candidates.row]
        hidden = (feedback_time != NEVER) & (feedback_time > known_until[:, None])
        observed = np.where(hidden, np.float32(np.nan), rows.labels[candidates.row])
        joined = [task.event is not None and task.value is None for task in run.tasks.values()]
        return np.where(hidden & joined, np.float32(0), observed)
    pair = pairs(rows)
    mine = pair[candidates.row]
    labels = np.zeros((len(mine), len(run.tasks)), dtype=np.float32)
    for t, task in enumerate(run.tasks.values()):
        if not task.labelled:
            labels[:, t] = np.nan
            continue
        happened = np.flatnonzero(rows.event == task.event)
        keys, first = np.unique(pair[happened], return_index=True)
        first = happened[first]
        place = np.minimum(np.searchsorted(keys, mine), max(len(keys) - 1, 0))
        known = np.zeros(len(mine), dtype=bool)
        if len(keys):
            known = (keys[place] == mine) & (rows.time[first[place]] < known_until)
        if task.value is None:
            labels[:, t] = known
        else:
            labels[:, t] = np.nan
            labels[known, t] = rows.labels[first[place[known]], t]
    return labels


def find_events(rows: Rows, run: Run) -> Events:
    """Every row at its own time, and every feedback at *its* own time.

    A feedback at its row's time is one event with it; later (or earlier) ones are events of their own, one per row and
    time. In layout `behaviours` a row of a task's type carries its feedback itself, and only rows of the candidate's
    type are exposures.
    """
    known = ~np.isnan(rows.labels) & (rows.feedback_time != NEVER)
    at_once = known & (rows.feedback_time == rows.time[:, None])
    feedback = np.where(at_once, rows.labels, np.float32(np.nan))
    row, task = np.nonzero(known & ~at_once)
    times = rows.feedback_time[row, task]
    own, event = distinct_rows([row, times])
    later = np.full((len(own), rows.labels.shape[1]), np.nan, dtype=np.float32)
    later[event, task] = rows.labels[row, task]
    shown = rows.event == run.data.candidate_event if run.data.layout == "behaviours" else np.ones(rows.num_rows, bool)
    exposure = np.concatenate([shown.astype(bool), np.zeros(len(own), dtype=bool)])
    return _sorted_events(
        rows,
        np.concatenate([np.arange(rows.num_rows), row[own]]),
        np.concatenate([rows.time, times[own]]),
        np.concatenate([feedback, later]),
        exposure,
    )


def without_exposures(events: Events) -> Events:
    """Only the events that carry feedback (`history.exposures: false`)."""
    kept = ~np.isnan(events.feedback).all(axis=1)
    before = np.concatenate([[0], np.cumsum(kept)])
    return Events(
        events.row[kept], events.time[kept], events.feedback[kept], events.exposure[kept], before[events.starts]
    )


def history_ends(candidates: Candidates, events: Events, lag_us: int) -> Array:
    """int64 [C]: how many of its user's events a candidate may see: those with `time + lag < asof`, ties excluded."""
    ends = np.zeros(len(candidates.row), dtype=np.int64)
    for user in range(len(events.starts) - 1):
        mine = slice(candidates.starts[user], candidates.starts[user + 1])
        times = events.time[events.starts[user] : events.starts[user + 1]]
        ends[mine] = np.searchsorted(times, candidates.asof[mine] - lag_us, side="left")
    return ends


def pairs(rows: Rows) -> Array:
    """int64 [N] names the (user, item) pair of each row."""
    return rows.user * max(len(rows.items), 1) + rows.item


def _asof(rows: Rows, chosen: Array, user: Array) -> Array:
    asof = rows.time[chosen].copy()
    said = rows.request[chosen] >= 0
    if said.any():
        own, group = distinct_rows([user[said], rows.request[chosen][said]])
        first = np.full(len(own), NEVER, dtype=np.int64)
        np.minimum.at(first, group, asof[said])
        asof[said] = first[group]
    return asof


def _sorted_events(rows: Rows, row: Array, time: Array, feedback: Array, exposure: Array) -> Events:
    user = rows.user[row]
    order = np.lexsort((row, time, user))
    events = Events(row[order], time[order], feedback[order], exposure[order], rows.starts)
    return replace(events, starts=np.searchsorted(user[order], np.arange(len(rows.users) + 1)))
