"""Feedback that is dated before, or at, the row that it is feedback on."""

from collections.abc import Iterator

import numpy as np

from mtrec_ray.check.examined import Array, Examined
from mtrec_ray.check.finding import CHECKS, Finding
from mtrec_ray.config import Task
from mtrec_ray.data.requests.requests import pairs
from mtrec_ray.data.requests.rows import NEVER

_MANY = 0.01
"""Share of the feedback dated too early from which no figure should be believed."""
_AT_ONCE = 0.5
_LEAST = 20


@CHECKS.register("feedback_times")
def feedback_times(log: Examined) -> Iterator[Finding]:
    """Labels at or before the exposure: the history would show the answer before the question.

    One row dated before its exposure is one too many: that cannot happen. At the exposure itself is odd only where
    most feedback is: clocks of one second have ties.
    """
    view = log.by_user
    for name, task in log.run.tasks.items():
        known = first_feedback(log, name, task)
        dated = np.flatnonzero(known != NEVER)
        if not len(dated):
            continue
        delay = (known[dated] - view.time[dated]) / 1e6
        early, ties = dated[delay < 0], dated[delay == 0]
        source = f"event '{task.event}'" if task.feedback_time is None else f"column '{task.feedback_time}'"
        evidence: dict[str, int | float | str] = {
            "dated": len(dated),
            "before": len(early),
            "at the same time": len(ties),
            "median delay, s": round(float(np.median(delay)), 3),
        }
        if len(early):
            share = len(early) / len(dated)
            notes = [f"{-d:,.0f} s before" for d in np.sort(delay)[:8]]
            yield Finding(
                "error" if share >= _MANY else "warning",
                "feedback_times",
                f"'{name}': {len(early):,} of {len(dated):,} ({share:.1%}) feedbacks ({source}) are dated before the "
                "row that they belong to.",
                evidence,
                log.places(view, dated[np.argsort(delay, kind="stable")][: len(early)], notes[: len(early)]),
                "Such a row's history holds its own answer. Correct the times; or leave these rows out of the log."
                if log.run.data.layout == "impressions"
                else f"The history of such a candidate holds its own '{task.event}'. Drop pairs whose feedback came "
                f"before the first '{log.run.data.candidate_event}', or log what led to it.",
            )
        elif len(dated) >= _LEAST and len(ties) >= _AT_ONCE * len(dated):
            yield Finding(
                "warning",
                "feedback_times",
                f"'{name}': {len(ties):,} of {len(dated):,} feedbacks ({source}) are dated at the row's own time.",
                evidence,
                log.places(view, ties),
                f"If {source} is not when the feedback came, give tasks.{name}.feedback_delay instead: the user's next "
                "rows see this label at once.",
            )


def first_feedback(log: Examined, name: str, task: Task) -> Array:
    """int64 [C] µs: when each candidate's feedback came, as the log dates it; `NEVER` = not, or not dated.

    Feedback with a declared delay is not dated. Of a `behaviours` pair the first feedback counts, whenever it came.
    """
    view = log.by_user
    rows = view.rows
    if log.run.data.layout == "impressions":
        t = list(log.run.tasks).index(name)
        if task.feedback_time is None and task.event is None:
            return np.full(view.size, NEVER, dtype=np.int64)
        positive = rows.labels[view.candidates.row, t] > 0
        return np.where(positive, rows.feedback_time[view.candidates.row, t], NEVER)
    happened = np.flatnonzero(rows.event == task.event)
    happened = happened[np.argsort(rows.time[happened], kind="stable")]
    keys, first = np.unique(pairs(rows)[happened], return_index=True)
    if not len(keys):
        return np.full(view.size, NEVER, dtype=np.int64)
    mine = pairs(rows)[view.candidates.row]
    place = np.minimum(np.searchsorted(keys, mine), len(keys) - 1)
    return np.where(keys[place] == mine, rows.time[happened[first[place]]], NEVER)
