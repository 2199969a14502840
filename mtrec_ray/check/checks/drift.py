"""Features and labels that are not distributed in test as they were in train."""

from collections.abc import Iterator

import numpy as np
from scipy.stats import chi2

from mtrec_ray.check.asof import binned
from mtrec_ray.check.examined import Array, Examined, groups
from mtrec_ray.check.features import Feature
from mtrec_ray.check.finding import CHECKS, Finding
from mtrec_ray.check.periods import PERIODS, period_of
from mtrec_ray.check.statistics import mean_shift, psi

_LARGE = 0.25
"""PSI that credit scoring calls a large shift (Siddiqi 2006); small samples must also exceed what chance gives."""
_CHANCE = 1e-4
_DAY_US = 86_400_000_000
_BINS, _MOST_CATEGORIES = 10, 20
_RATE = 0.25
"""Change of a label's rate, as a share of the train rate."""


@CHECKS.register("drift")
def drift(log: Examined) -> Iterator[Finding]:
    """Drift between periods: the distribution of each feature (PSI) and the rate of each label, train against test.

    Without a shift PSI is chi-square distributed with B - 1 degrees of freedom, times 1/n + 1/m (Yurdakul and Naranjo
    2020); n and m count independent things: users of a column that is the same in all rows of a user, and so on, of
    different sizes as in Kish 1965, section 8.2: the square of all rows over the sum of the squares.
    """
    for feature in log.by_user.features:
        yield from _feature(log, feature)
    for task in log.tasks:
        yield from _rate(log, task)


def _feature(log: Examined, feature: Feature) -> Iterator[Finding]:
    there = ~feature.missing
    train, test = there & log.train, there & log.test
    if not train.any() or not test.any():
        return
    bins = _bins(feature, train)
    size = int(bins[there].max()) + 1
    if size < 2:
        return

    def histogram(rows: Array) -> Array:
        return np.bincount(bins[rows], minlength=size)

    shift = psi(histogram(train), histogram(test))
    keys = _independent(log, feature, there)
    n, m = (_size(keys[rows]) for rows in (train, test))
    limit = max(_LARGE, float(chi2.ppf(1 - _CHANCE, size - 1)) * (1 / n + 1 / m))
    if shift <= limit:
        return
    period = period_of(log.by_user.time)
    by_period = {
        f"PSI of period {p + 1} of {PERIODS} against train": round(
            psi(histogram(train), histogram(there & (period == p))), 3
        )
        for p in range(PERIODS)
    }
    surplus = histogram(test) / test.sum() - histogram(train) / train.sum()
    rows = np.flatnonzero(test & (bins == int(np.argmax(surplus))))
    yield Finding(
        "warning",
        "drift",
        f"Column {feature.described} is distributed otherwise in test than in train: PSI {shift:.2f}.",
        {"PSI": round(shift, 4), "suspicious above": round(limit, 4)} | by_period,
        log.places(log.by_user, rows),
        f"See what changed in '{feature.name}' when. A count since the log began grows with time by itself: take one "
        "over a fixed span, or leave it to features.aggregates.",
    )


def _bins(feature: Feature, train: Array) -> Array:
    """int64 [C]: decile of the train rows, or one of the most frequent train categories, the others together."""
    if feature.codes is None:
        return binned(feature.cells, train, _BINS)
    codes = np.maximum(feature.codes, 0)
    counts = np.bincount(codes[train], minlength=int(codes.max()) + 1)
    rank = np.empty(len(counts), dtype=np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    return np.minimum(rank[codes], _MOST_CATEGORIES)


def _independent(log: Examined, feature: Feature, there: Array) -> Array:
    """int64 [C]: of requests, days, items and users the largest groups within which the feature does not change."""
    view = log.by_user
    cells = feature.cells
    found = np.arange(view.size)
    for key in (view.shown, groups(view.user, view.time // _DAY_US), view.item, view.user):
        order = np.flatnonzero(there)[np.argsort(key[there], kind="stable")]
        same = np.diff(key[order]) == 0
        if same.any() and (np.diff(cells[order])[same] == 0).mean() > 0.95:
            found = key
    return found


def _size(keys: Array) -> float:
    """How many independent rows so many rows of some groups are worth."""
    counts = np.unique(keys, return_counts=True)[1].astype(np.float64)
    return float(counts.sum() ** 2 / np.square(counts).sum())


def _rate(log: Examined, task: str) -> Iterator[Finding]:
    label = log.positive(task)
    both = (log.train | log.test) & ~np.isnan(label)
    test = log.test[both]
    shift = mean_shift(label[both], test, log.by_user.user[both])
    if shift is None:
        return
    before, after = float(label[both][~test].mean()), float(label[both][test].mean())
    if not (shift.low > 0 or shift.high < 0) or abs(shift.value) < _RATE * before:
        return
    period = period_of(log.by_user.time)
    seen = ~np.isnan(label)
    rates = [
        float(label[seen & (period == p)].mean()) if (seen & (period == p)).any() else None for p in range(PERIODS)
    ]
    rows = np.flatnonzero(log.test & (label == (after > before)))
    yield Finding(
        "warning",
        "drift",
        f"The rate of '{task}' is {before:.4f} in train and {after:.4f} in test.",
        {"train": round(before, 4), "test": round(after, 4), "error of the difference": round(shift.error, 5)}
        | {f"period {p + 1} of {PERIODS}": round(rate, 4) for p, rate in enumerate(rates) if rate is not None},
        log.places(log.by_user, rows),
        "If the last labels had no time to come, give the task a window (tasks.<name>.window); if the log changed, "
        "train on the time since.",
    )
