"""Metrics of one task over rows (one row = one candidate with an observed label); numpy only.

N rows: `labels` [N], `scores` [N] (binary: probability; regression: the label's unit) or [N, classes]
(multiclass: probabilities), `users` [N] any sortable ids, `weights` [N] above 0 or None: with whole numbers, a metric
is that of the log in which each row stands so many times. A metric that the rows do not define is None, never NaN,
and `measure` says why. `bootstrap` holds the same metrics under user weights, `lists` those of what was shown together.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from mtrec_ray.evaluate.conditional import CONDITIONAL, given_parent
from mtrec_ray.evaluate.judged import METRICS, Judged, base_name
from mtrec_ray.evaluate.lists import MeanOfLists

EPSILON = 1e-7
"""Probabilities are clipped to [EPSILON, 1 - EPSILON]: float32 scores saturate, and one row must not be infinite."""

Weights = np.ndarray | None

DIRECTION = {
    "auc": 1,
    "gauc": 1,
    "accuracy": 1,
    "ndcg": 1,
    "mrr": 1,
    "recall": 1,
    "ild": 1,
    "novelty": 1,
    "logloss": -1,
    "ne": -1,
    "rmse": -1,
    "mae": -1,
    "rank_mae": -1,
    "cvr_auc": 1,
    "cvr_logloss": -1,
}
"""By base name: +1 where higher is better, -1 where lower is."""


def direction(name: str) -> int:
    """+1 where higher is better, -1 where lower is, 0 where neither is: `calibration` is best at 1."""
    return DIRECTION.get(base_name(name), 0)


def midranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1 [N]; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def auc(labels: np.ndarray, scores: np.ndarray, weights: Weights = None) -> float | None:
    """Area under the ROC curve = P(score of a positive > score of a negative), a tie counts half (Mann-Whitney).

    Weighted, a pair of a positive and a negative counts the product of their weights.
    """
    areas, _ = user_aucs(labels, scores, np.zeros(len(labels)), weights)
    return None if np.isnan(areas).all() else float(areas[0])


class GroupedAuc(NamedTuple):
    """`value`: AUC within a user, averaged with the weight of the user's rows; `covered`: share of it that counts."""

    value: float | None
    covered: float
    users: int
    """Users with both classes."""


def gauc(labels: np.ndarray, scores: np.ndarray, users: np.ndarray, weights: Weights = None) -> GroupedAuc:
    """AUC per user, weighted by rows, over the users with both classes (Zhu et al. 2017, section 4.1)."""
    areas, rows = user_aucs(labels, scores, users, weights)
    mixed = ~np.isnan(areas)
    if not mixed.any():
        return GroupedAuc(None, 0.0, 0)
    value = np.average(areas[mixed], weights=rows[mixed])
    return GroupedAuc(float(value), float(rows[mixed].sum() / rows.sum()), int(mixed.sum()))


def user_aucs(
    labels: np.ndarray, scores: np.ndarray, users: np.ndarray, weights: Weights = None
) -> tuple[np.ndarray, np.ndarray]:
    """AUC [U] (NaN = one class only) and weight of the rows [U] of each distinct user, users ascending."""
    _, code = np.unique(users, return_inverse=True)
    order = np.lexsort((scores, code))
    of, by, positive = code[order], np.asarray(scores)[order], np.asarray(labels)[order] > 0
    weight = np.ones(len(code)) if weights is None else np.asarray(weights)[order]
    begins = np.append(True, (of[1:] != of[:-1]) | (by[1:] != by[:-1]))[: len(of)]
    tie = np.cumsum(begins) - 1
    hits, misses = (np.bincount(tie, weights=np.where(mask, weight, 0)) for mask in (positive, ~positive))
    user = of[begins]
    positives, negatives = (np.bincount(user, weights=found) for found in (hits, misses))
    # Negatives of the user with a lower score, and half of those tied.
    below = np.cumsum(misses) - misses / 2 - (np.cumsum(negatives) - negatives)[user]
    pairs = positives * negatives
    surplus = np.bincount(user, weights=hits * below)
    return np.divide(surplus, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0), positives + negatives


def row_log_loss(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """-log of the probability given to each label [N], in nats."""
    p = np.clip(np.asarray(probabilities, dtype=np.float64), EPSILON, 1 - EPSILON)
    return -(labels * np.log(p) + (1 - labels) * np.log1p(-p))


def log_loss(labels: np.ndarray, probabilities: np.ndarray, weights: Weights = None) -> float | None:
    """Mean cross entropy of binary labels, in nats."""
    return _mean(row_log_loss(labels, probabilities), weights)


def normalised_entropy(
    labels: np.ndarray, probabilities: np.ndarray, base_rate: float, weights: Weights = None
) -> float | None:
    """Log loss over the log loss of always saying the train base rate; 1 = learned nothing, lower is better.

    He et al. 2014 divide by the entropy of the rows' own base rate; both agree where train and test rates do. The
    train rate is what a constant model would know.
    """
    if len(labels) == 0 or not 0 < base_rate < 1:
        return None
    reference = np.average(row_log_loss(labels, np.full(len(labels), base_rate)), weights=weights)
    return float(np.average(row_log_loss(labels, probabilities), weights=weights) / reference)


def calibration_ratio(labels: np.ndarray, probabilities: np.ndarray, weights: Weights = None) -> float | None:
    """Sum of the scores over the sum of the labels; above 1 = promises too much."""
    factors = 1.0 if weights is None else weights
    total = float(np.sum(labels * factors))
    return float(np.sum(probabilities * factors, dtype=np.float64) / total) if total > 0 else None


def rmse(labels: np.ndarray, scores: np.ndarray, weights: Weights = None) -> float | None:
    """Root mean squared error, in the label's unit."""
    square = _mean(np.square(np.subtract(scores, labels, dtype=np.float64)), weights)
    return None if square is None else math.sqrt(square)


def mae(labels: np.ndarray, scores: np.ndarray, weights: Weights = None) -> float | None:
    """Mean absolute error, in the label's unit."""
    return _mean(np.abs(np.subtract(scores, labels, dtype=np.float64)), weights)


def row_rank_error(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Classes between each label [N] and the median of its distribution [N, classes], whose order is a scale.

    The median is the number of classes k with P(label > k) > 1/2 (Shi et al. 2021, arXiv 2111.08851); no class has a
    smaller expected distance.
    """
    up_to = np.cumsum(np.asarray(probabilities, dtype=np.float64)[:, :-1], axis=1)
    return np.abs((up_to < 0.5).sum(axis=1) - labels)


def rank_mae(labels: np.ndarray, probabilities: np.ndarray, weights: Weights = None) -> float | None:
    """Mean distance between label and median class, in classes."""
    return _mean(row_rank_error(labels, probabilities), weights)


def accuracy(labels: np.ndarray, probabilities: np.ndarray, weights: Weights = None) -> float | None:
    """Share of rows whose likeliest class [N, classes] is the label; the first of equally likely ones counts."""
    return _mean(np.argmax(probabilities, axis=1) == labels, weights)


def row_multiclass_log_loss(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """-log of the probability [N, classes] of each label [N], in nats."""
    chosen = np.asarray(probabilities, dtype=np.float64)[np.arange(len(labels)), np.asarray(labels, dtype=np.int64)]
    return -np.log(np.clip(chosen, EPSILON, 1.0))


def multiclass_log_loss(labels: np.ndarray, probabilities: np.ndarray, weights: Weights = None) -> float | None:
    """Mean cross entropy, in nats."""
    return _mean(row_multiclass_log_loss(labels, probabilities), weights)


def _mean(values: np.ndarray, weights: Weights) -> float | None:
    return float(np.average(values, weights=weights)) if len(values) else None


def measure(names: Iterable[str], rows: Judged) -> dict[str, Any]:
    """The named metrics of one task over the rows whose label is observed (not NaN), with their weights; for JSON.

    Gives `n` (rows), `users`, a value per name, with `gauc` also `gauc_covered` (share of rows that count), with
    metrics of lists `lists` (how many the first of them is a mean over), with metrics of a step given its parent
    `cvr_n` (rows), and `undefined`: name -> reason, for each metric that is None.

    Raises:
        DataError: a score of an observed row that is not finite.
        ConfigError: an unknown name.
    """
    rows = rows.observed()
    found: dict[str, Any] = {"n": len(rows.labels), "users": len(np.unique(rows.users))}
    undefined = {}
    for name in names:
        metric = METRICS[name]
        found[name] = metric(rows)
        if found[name] is None:
            undefined[name] = _reason(name, rows)
        if name in CONDITIONAL:
            found["cvr_n"] = len(given_parent(rows)[0].labels)
        if name == "gauc":
            found["gauc_covered"] = gauc(rows.labels, rows.scores, rows.users, rows.weights).covered
        if isinstance(metric, MeanOfLists) and "lists" not in found:
            found["lists"] = int((~np.isnan(metric.each(rows).value)).sum())
    return found | {"undefined": undefined}


@METRICS.register("auc")
def _auc(rows: Judged) -> float | None:
    return auc(rows.labels, rows.scores, rows.weights)


@METRICS.register("gauc")
def _gauc(rows: Judged) -> float | None:
    return gauc(rows.labels, rows.scores, rows.users, rows.weights).value


@METRICS.register("logloss")
def _logloss(rows: Judged) -> float | None:
    loss = log_loss if rows.scores.ndim == 1 else multiclass_log_loss
    return loss(rows.labels, rows.scores, rows.weights)


@METRICS.register("ne")
def _ne(rows: Judged) -> float | None:
    return normalised_entropy(rows.labels, rows.scores, rows.train_mean, rows.weights)


@METRICS.register("calibration")
def _calibration(rows: Judged) -> float | None:
    return calibration_ratio(rows.labels, rows.scores, rows.weights)


@METRICS.register("rmse")
def _rmse(rows: Judged) -> float | None:
    return rmse(rows.labels, rows.scores, rows.weights)


@METRICS.register("mae")
def _mae(rows: Judged) -> float | None:
    return mae(rows.labels, rows.scores, rows.weights)


@METRICS.register("accuracy")
def _accuracy(rows: Judged) -> float | None:
    return accuracy(rows.labels, rows.scores, rows.weights)


@METRICS.register("rank_mae")
def _rank_mae(rows: Judged) -> float | None:
    return rank_mae(rows.labels, rows.scores, rows.weights)


@METRICS.register("cvr_auc")
def _cvr_auc(rows: Judged) -> float | None:
    return _auc(given_parent(rows)[0])


@METRICS.register("cvr_logloss")
def _cvr_logloss(rows: Judged) -> float | None:
    return _logloss(given_parent(rows)[0])


_REASONS = {
    "auc": "labels of one class only",
    "gauc": "no user with labels of both classes",
    "ne": "the train base rate is 0 or 1",
    "calibration": "the labels add up to zero or less",
    **dict.fromkeys(("ndcg", "mrr", "recall"), "no rows of both classes were shown together"),
    "ild": "no two rows were shown together",
}


def _reason(name: str, rows: Judged) -> str:
    if name in CONDITIONAL and len(rows.labels):
        if rows.parent_scores is None:
            return "no scores of the parent task"
        given, _ = given_parent(rows)
        return _reason(CONDITIONAL[name], given) if len(given.labels) else "no rows on which the parent task happened"
    if rows.ranks is not None and isinstance(METRICS[name], MeanOfLists) and len(rows.labels):
        return "no ranks among all items" if (rows.labels > 0).any() else "no row with label 1"
    return _REASONS.get(base_name(name), "not defined on these rows") if len(rows.labels) else "no observed rows"
