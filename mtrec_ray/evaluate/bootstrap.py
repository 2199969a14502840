"""Intervals by resampling users with replacement: the rows of one user are not independent, the users are.

A resample is a count per user [U]; a metric of the resampled rows is the same metric with these counts as row weights,
times those that the rows have, so rows are sorted once and each resample costs O(N). Resample b of a seed is the same
whatever the scores and the metric: the difference of two score columns is paired by subtracting their `replicates`.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from mtrec_ray.evaluate import metrics
from mtrec_ray.evaluate.conditional import CONDITIONAL, given_parent
from mtrec_ray.evaluate.judged import METRICS, Judged, Metric
from mtrec_ray.evaluate.lists import Coverage, MeanOfLists

LEVEL = 0.95
MIN_DEFINED = 0.5
"""No interval is given where fewer of the resamples define the metric."""


class Interval(NamedTuple):
    """Percentiles of the resamples, between which `LEVEL` of them lie."""

    low: float
    high: float


def resamples(num_users: int, count: int, seed: int) -> Iterator[np.ndarray]:
    """`count` times: how often each user [U] is drawn when U users are drawn with replacement."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield np.bincount(rng.integers(num_users, size=num_users), minlength=num_users).astype(np.float64)


def replicates(
    names: Iterable[str], rows: Judged, count: int, seed: int, pool: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Each named metric on each resample [count]; NaN where the resample does not define it.

    Rows as for `metrics.measure`: a label that is NaN is left out. Without rows there are no resamples.

    Args:
        pool: the users that are drawn from, all of `rows.users` among them; by default those with an observed label.
            What is drawn from one pool is the same resamples whichever labels are observed, as of several tasks.
    """
    rows = rows.observed()
    names = list(names)
    values = {name: np.full(count, np.nan) for name in names}
    if len(rows.labels) == 0:
        return values
    own, code = np.unique(rows.users, return_inverse=True)
    drawn = own if pool is None else np.unique(pool)
    weighted = {name: _weighted(name, rows, code) for name in names}
    places = np.searchsorted(drawn, own)
    for b, user_weights in enumerate(resamples(len(drawn), count, seed)):
        for name in names:
            values[name][b] = weighted[name](user_weights[places])
    return values


def interval(values: np.ndarray) -> Interval | None:
    """The interval of one metric's replicates; None where too few resamples define it."""
    defined = values[~np.isnan(values)]
    if len(defined) == 0 or len(defined) < MIN_DEFINED * len(values):
        return None
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


Weighted = Callable[[np.ndarray], float]


def _weighted(name: str, rows: Judged, code: np.ndarray) -> Weighted:
    """The metric as a function of the users' weights [U]; rows of user u are `code == u`."""
    if name == "auc":
        return _weighted_auc(rows, code)
    if name == "gauc":
        areas, sizes = metrics.user_aucs(rows.labels, rows.scores, code, rows.weights)
        return _ratio(np.where(np.isnan(areas), 0, areas * sizes), np.where(np.isnan(areas), 0, sizes))
    if name in CONDITIONAL:
        return _weighted_given_parent(name, rows, code)
    metric = METRICS[name]
    if isinstance(metric, MeanOfLists):
        return _weighted_lists(metric, rows, code)
    if isinstance(metric, Coverage):
        return lambda weights: np.nan
    terms = _row_terms(name, rows.labels, rows.scores, rows.train_mean)
    if terms is None:
        return _resampled(metric, rows, code)
    above, below = (np.bincount(code, weights=term * rows.counts) for term in terms)
    ratio = _ratio(above, below)
    return (lambda weights: ratio(weights) ** 0.5) if name == "rmse" else ratio


def _row_terms(
    name: str, labels: np.ndarray, scores: np.ndarray, train_mean: float
) -> tuple[np.ndarray, np.ndarray | float] | None:
    """Terms per row such that the metric (squared, for rmse) is the sum of the first over the sum of the second."""
    if name == "logloss":
        loss = metrics.row_log_loss if scores.ndim == 1 else metrics.row_multiclass_log_loss
        return loss(labels, scores), 1.0
    if name == "ne" and 0 < train_mean < 1:
        constant = np.full(len(labels), train_mean)
        return metrics.row_log_loss(labels, scores), metrics.row_log_loss(labels, constant)
    if name == "calibration":
        return np.asarray(scores, dtype=np.float64), labels
    if name in ("rmse", "mae"):
        error = np.subtract(scores, labels, dtype=np.float64)
        return (np.square(error) if name == "rmse" else np.abs(error)), 1.0
    if name == "rank_mae":
        return metrics.row_rank_error(labels, scores), 1.0
    if name == "accuracy":
        return (np.argmax(scores, axis=1) == labels) * 1.0, 1.0
    return None


def _weighted_given_parent(name: str, rows: Judged, code: np.ndarray) -> Weighted:
    given, happened = given_parent(rows)
    if len(given.labels) == 0:
        return lambda weights: np.nan
    users, own = np.unique(code[happened], return_inverse=True)
    weighted = _weighted(CONDITIONAL[name], given, own)
    return lambda weights: weighted(weights[users])


def _ratio(above: np.ndarray, below: np.ndarray) -> Weighted:
    def value(weights: np.ndarray) -> float:
        total = weights @ below
        return float(weights @ above / total) if total > 0 else np.nan

    return value


def _weighted_auc(rows: Judged, code: np.ndarray) -> Weighted:
    order = np.argsort(rows.scores, kind="stable")
    code, positive, counts = code[order], rows.labels[order] > 0, rows.counts[order]
    starts = np.flatnonzero(np.append(True, np.diff(rows.scores[order]) != 0))

    def value(weights: np.ndarray) -> float:
        drawn = weights[code] * counts
        hits = np.add.reduceat(np.where(positive, drawn, 0), starts)
        misses = np.add.reduceat(np.where(positive, 0, drawn), starts)
        pairs = hits.sum() * misses.sum()
        below = np.cumsum(misses) - misses / 2  # negatives with a lower score, and half of those tied
        return float(hits @ below / pairs) if pairs > 0 else np.nan

    return value


def _weighted_lists(metric: MeanOfLists, rows: Judged, code: np.ndarray) -> Weighted:
    """A list is one user's."""
    each = metric.each(rows)
    defined, users = ~np.isnan(each.value), int(code.max()) + 1
    owner, weight = code[each.owner[defined]], each.weight[defined]
    above, below = weight * each.value[defined], weight
    return _ratio(*(np.bincount(owner, weights=term, minlength=users) for term in (above, below)))


def _resampled(metric: Metric, rows: Judged, code: np.ndarray) -> Weighted:
    """Any other metric, by really repeating the rows; what was shown together is repeated as a list of its own."""
    _, list_ = np.unique(rows.shown, return_inverse=True)

    def value(weights: np.ndarray) -> float:
        times = weights[code].astype(np.int64)
        chosen = np.repeat(np.arange(len(code)), times)
        if len(chosen) == 0:
            return np.nan
        copy = np.arange(len(chosen)) - np.repeat(np.cumsum(times) - times, times)
        repeated = rows.take(chosen)._replace(users=code[chosen], shown=list_[chosen] * int(times.max()) + copy)
        found = metric(repeated)
        return np.nan if found is None else found

    return value
