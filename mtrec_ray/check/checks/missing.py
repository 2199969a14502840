"""Columns that are there for some rows only, and for which is no accident."""

from collections.abc import Iterator

import numpy as np

from mtrec_ray.check.examined import Array, Examined
from mtrec_ray.check.features import Feature
from mtrec_ray.check.finding import CHECKS, Finding
from mtrec_ray.check.periods import PERIODS, period_of
from mtrec_ray.check.statistics import clustered_auc, mean_shift

_TELLS = 0.75
"""AUC of "is there" alone: the column is there for half more of one label than of the other."""
_SPLIT, _PERIOD = 0.2, 0.5
"""Differences of the shares of rows that lack it: between train and test, between periods."""


@CHECKS.register("missing")
def missing(log: Examined) -> Iterator[Finding]:
    """Features whose missingness tells the label, or differs between train and test or between periods.

    A column that is filled in after the label is there for one label only; one that a new version of the log began, or
    a table that was taken before the newest items, is missing where it is needed.
    """
    for feature in log.by_user.features:
        absent = feature.missing
        if 0 < absent.sum() < len(absent):
            yield from _by_label(log, feature, absent)
            yield from _by_time(log, feature, absent)


def _by_label(log: Examined, feature: Feature, absent: Array) -> Iterator[Finding]:
    for task in log.tasks:
        label = log.positive(task)
        seen = ~np.isnan(label)
        found = clustered_auc(label[seen], (~absent[seen]).astype(float), log.by_user.user[seen])
        if found is None or max(found.low, 1 - found.high) <= _TELLS:
            continue
        shares = [float((~absent[label == value]).mean()) for value in (1, 0)]
        rows = np.concatenate([np.flatnonzero(~absent & (label == 1))[:4], np.flatnonzero(absent & (label == 0))[:4]])
        notes = [f"{'missing' if absent[c] else 'there'}, {task} {label[c]:g}" for c in rows]
        yield Finding(
            "error" if feature.used else "warning",
            "missing",
            f"Column {feature.described} is there in {shares[0]:.0%} of the rows with '{task}' and in {shares[1]:.0%} "
            "of those without" + ("." if feature.used else " (the config does not use it)."),
            {"there with the label": round(shares[0], 4), "there without": round(shares[1], 4)},
            log.places(log.by_user, rows, notes),
            f"'{feature.name}' is written after the label, or because of it: leave it out.",
        )
        return


def _by_time(log: Examined, feature: Feature, absent: Array) -> Iterator[Finding]:
    view = log.by_user
    if not (log.train.any() and log.test.any()):
        return
    both = log.train | log.test
    train, test = float(absent[log.train].mean()), float(absent[log.test].mean())
    shift = mean_shift(absent[both].astype(float), log.test[both], view.user[both])
    sure = shift is not None and (shift.low > 0 or shift.high < 0) and abs(shift.value) >= _SPLIT
    period = period_of(view.time)
    filled = np.unique(period)  # rows of one time are in one period, which may leave others empty
    shares = np.array([absent[period == p].mean() for p in filled])
    if not sure and float(shares.max() - shares.min()) < _PERIOD:
        return
    rows = np.flatnonzero(absent & (log.test if test > train else log.train))
    yield Finding(
        "warning",
        "missing",
        f"Column {feature.described} is missing in {train:.0%} of the train rows and in {test:.0%} of the test rows.",
        {"train": round(train, 4), "test": round(test, 4)}
        | {f"period {p + 1} of {PERIODS}": round(float(share), 4) for p, share in zip(filled, shares, strict=True)},
        log.places(view, rows),
        "A model learns what the column means from rows that have it. Fill it in for all periods, renew the table, or "
        "leave it out.",
    )
