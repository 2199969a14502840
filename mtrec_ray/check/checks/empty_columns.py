"""Columns that say nothing, and labels that stop."""

from collections.abc import Iterator

import numpy as np

from mtrec_ray.check.examined import Array, Examined
from mtrec_ray.check.finding import CHECKS, Finding
from mtrec_ray.check.periods import PERIODS, period_of

_EXPECTED = 20
"""Users with the label that a period would have by the rate of the others; by chance none of them is missing."""


@CHECKS.register("empty_columns")
def empty_columns(log: Examined) -> Iterator[Finding]:
    """Columns that are constant or all missing, and labels that are missing, or never given, for a whole period."""
    for feature in log.by_user.features:
        there = ~feature.missing
        different = len(np.unique(feature.cells[there]))
        if different > 1 or not feature.used:
            continue
        yield Finding(
            "warning",
            "empty_columns",
            f"Column {feature.described} is "
            + ("missing in all rows." if different == 0 else "the same in all rows that have it."),
            {"different values": different, "rows that have it": int(there.sum())},
            log.places(log.by_user, np.flatnonzero(there) if there.any() else np.arange(log.by_user.size)),
            "See that the join or the export that fills it did so; a constant column teaches nothing.",
        )
    for t, task in enumerate(log.run.tasks):
        if task in log.tasks:
            yield from _label(log, task, log.by_user.labels[:, t])


def _label(log: Examined, task: str, label: Array) -> Iterator[Finding]:
    """`label` [C] as the log has it, before anything is taken away for being late."""
    view = log.by_user
    period, seen = period_of(view.time), ~np.isnan(label)
    positive = seen & (label > 0)
    for rows, what in ((seen, "is not observed"), (positive, "is never given")):
        users = [len(np.unique(view.user[rows & (period == p)])) for p in range(PERIODS)]
        absent = [p for p in range(PERIODS) if users[p] == 0 and (period == p).any()]  # ties may leave a period empty
        others = [count for count in users if count]
        if absent and others and float(np.median(others)) >= _EXPECTED:
            yield Finding(
                "error",
                "empty_columns",
                f"'{task}' {what} in period {', '.join(str(p + 1) for p in absent)} of {PERIODS}; elsewhere some "
                f"{float(np.median(others)):.0f} users a period have it.",
                {f"users in period {p + 1} of {PERIODS}": count for p, count in enumerate(users)},
                log.places(view, np.flatnonzero(np.isin(period, absent))),
                "Find the rows' labels; or leave the period out, where rows without feedback would count as negatives.",
            )
            return
