"""Rows shown together, or the same row twice, on both sides of the split."""

from collections.abc import Iterator

import numpy as np

from mtrec_ray.check.examined import Array, Examined
from mtrec_ray.check.finding import CHECKS, Finding

_SOME, _MANY = 0.005, 0.05
"""Shares of the held-out rows: of a warning, of an error."""
_LEAST = 3
"""A cut by time goes through one request for each of its two boundaries, and that is no leak worth a word."""
_CLOSE_US = 60 * 1_000_000


@CHECKS.register("same_request")
def same_request(log: Examined) -> Iterator[Finding]:
    """The same request in train and test, or the same user and item within a minute.

    What was shown together shares its context, its page and often its outcome; what is delivered twice shares it all.
    """
    view, train = log.by_user, log.train
    held_out = ~train
    in_train = np.bincount(view.shown, train) > 0
    cut = held_out & in_train[view.shown]
    column = log.run.data.columns.request
    what = f"requests (column '{column}')" if column else "requests (one user at one time)"
    yield from _finding(
        log,
        cut,
        np.flatnonzero(np.isin(view.shown, np.unique(view.shown[cut]))),
        len(np.unique(view.shown[cut])),
        f"lie in {what} that train has a part of",
        "Split so that a request stays whole: split.by: time, or a split column with one value per request.",
    )
    pairs = _near(log)
    near = np.isin(np.arange(view.size), pairs) & held_out
    yield from _finding(
        log,
        near,
        pairs.ravel(),
        int(near.sum()),
        "repeat a train row of the same user and item within a minute",
        "Keep one row of each impression when the log is written, before it is split.",
    )


def _near(log: Examined) -> Array:
    """int64 [P, 2] neighbours in the order by user, item and time that are within a minute, on two sides of the split,
    and of two requests."""
    view = log.by_user
    order = np.lexsort((view.time, view.item, view.user))
    first, second = order[:-1], order[1:]
    near = (view.user[first] == view.user[second]) & (view.item[first] == view.item[second])
    near &= (view.time[second] - view.time[first] <= _CLOSE_US) & (log.train[first] != log.train[second])
    near &= view.shown[first] != view.shown[second]
    return np.stack([first[near], second[near]], axis=1)


def _finding(log: Examined, bad: Array, rows: Array, groups: int, what: str, remedy: str) -> Iterator[Finding]:
    held_out = int((~log.train).sum())
    share = float(bad.sum()) / max(1, held_out)
    if groups < _LEAST or share < _SOME:
        return
    names = ["train", "validation", "test"]
    notes = [names[int(code)] for code in log.split[rows[:8]]]
    yield Finding(
        "error" if share >= _MANY else "warning",
        "same_request",
        f"{int(bad.sum()):,} of {held_out:,} ({share:.1%}) validation and test rows {what}.",
        {"rows": int(bad.sum()), "share": round(share, 4), "of them in test": int((bad & log.test).sum())},
        log.places(log.by_user, rows, notes),
        remedy,
    )
