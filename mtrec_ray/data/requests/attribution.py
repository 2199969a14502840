"""Attribution windows: labels of tasks whose feedback may come late, as they were known at some time.

With a window w (`tasks.<name>.window`) a row at time t has label 1 where its feedback came at a time f with
t <= f <= t + w, and label 0 where it did not. While that is not decided, the label is not known:

    train rows        as of the end of the train period: where the window was not over by then and nothing had come,
                      `tasks.<name>.inside_window` says what the label is
    all other rows    as of the end of the log, the last time that it mentions: where the window was not over by then,
                      there is no label, whether or not feedback came, since the rate of the others would be too high

A log ends when it was written; of one without rows at its end that is not known, and its last time is earlier.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mtrec_ray.config import Run, Task
from mtrec_ray.data.requests.requests import Candidates, pairs
from mtrec_ray.data.requests.rows import NEVER, Rows

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Known:
    """What was known of C candidates when their labels are taken."""

    last: Array
    """int64 [C] the last microsecond of which feedback is known, `NEVER` = of all times"""
    train: Array
    """bool [C]"""

    @classmethod
    def of(cls, label_until: Array, train: Array, log_end: int, run: Run) -> "Known":
        """`label_until` int64 [C]: as `candidate_labels` takes it; in `impressions` that time itself is known too."""
        ends = label_until if run.data.layout == "impressions" else label_until - (label_until != NEVER)
        return cls(np.minimum(ends, log_end), train)


@dataclass(frozen=True)
class Delays:
    """How late feedback came, and how late it could have come; C candidates, T tasks."""

    delays: Array
    """float32 [C, T] seconds from the row to its feedback, of labels 1 of tasks with a window; NaN elsewhere, and
    where the log does not say when it came"""
    elapsed: Array
    """float32 [C] seconds from a train row to the end of what is known; NaN for others, and where there is no end"""


def log_end(rows: Rows, run: Run) -> int:
    """The last time that these rows mention: their own, or one of a column with times of feedback; -1 of no rows."""
    joined = run.data.layout == "impressions"  # behaviours have the rows of the feedback itself
    columns = [
        t
        for t, task in enumerate(run.tasks.values())
        if task.feedback_time is not None or (joined and task.event is not None)
    ]
    times = rows.feedback_time[:, columns]
    return max(int(rows.time.max(initial=-1)), int(times[times != NEVER].max(initial=-1)))


def attribute(labels: Array, rows: Rows, candidates: Candidates, run: Run, known: Known) -> tuple[Array, Delays]:
    """Labels [C, T], of tasks with a window as the window has it, and the delays."""
    time = rows.time[candidates.row]
    labels, delays = labels.copy(), np.full(labels.shape, np.nan, dtype=np.float32)
    for t, task in enumerate(run.tasks.values()):
        if task.window is not None:
            feedback, dated = _feedback(rows, candidates, run, t)
            labels[:, t] = _labels(task, time, feedback, known)
            if task.event is None:
                labels[np.isnan(rows.labels[candidates.row, t]), t] = np.nan
            timed = dated & (labels[:, t] == 1)
            delays[timed, t] = (feedback - time)[timed] / 1e6
    elapsed = np.where(known.train & (known.last != NEVER), np.maximum(known.last - time, 0) / 1e6, np.nan)
    return labels, Delays(delays, elapsed.astype(np.float32))


def _labels(task: Task, time: Array, feedback: Array, known: Known) -> Array:
    """float32 [C] from the times of feedback, `NEVER` = none."""
    assert task.window is not None
    end = time + round(task.window * 1_000_000)
    came, over = feedback <= np.minimum(end, known.last), end <= known.last
    labels = came.astype(np.float32)
    unknown = ~over
    if task.inside == "negative":
        unknown &= ~known.train
    if task.inside == "unobserved":
        unknown &= ~(known.train & came)
    labels[unknown] = np.nan
    return labels


def _feedback(rows: Rows, candidates: Candidates, run: Run, t: int) -> tuple[Array, Array]:
    """int64 [C] when the first feedback came, not before the row itself; and where the log says that.

    `impressions`: a row with label 1 whose feedback has no time, or an earlier one, had it at once. `behaviours`: the
    first row of the task's event on the same user and item from the candidate's time on, in the same microsecond too.
    """
    time = rows.time[candidates.row]
    task = list(run.tasks.values())[t]
    if run.data.layout == "behaviours":
        found = _first_from(rows, np.flatnonzero(rows.event == task.event), candidates.row)
        return found, found != NEVER
    said = rows.feedback_time[candidates.row, t]
    positive, dated = rows.labels[candidates.row, t] > 0, said != NEVER
    return np.where(positive, np.where(dated, np.maximum(said, time), time), NEVER), dated


def _first_from(rows: Rows, happened: Array, asked: Array) -> Array:
    """int64 [C]: the time of the first of the rows `happened` with the user and item of each row `asked`, from that
    row's time on; `NEVER` where there is none."""
    both = np.concatenate([happened, asked])
    _, pair = np.unique(pairs(rows)[both], return_inverse=True)
    times, rank = np.unique(rows.time[both], return_inverse=True)
    place = pair * len(times) + rank  # in the order of (pair, time)
    ours, theirs = place[len(happened) :], np.sort(place[: len(happened)])
    if not len(theirs):
        return np.full(len(asked), NEVER, dtype=np.int64)
    found = theirs[np.minimum(np.searchsorted(theirs, ours), len(theirs) - 1)]
    same = (found >= ours) & (found // len(times) == ours // len(times))
    return np.where(same, times[found % len(times)], NEVER)
