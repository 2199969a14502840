"""Metrics of one task over rows (one row = one candidate with an observed label); numpy only.

N rows: `labels` [N], `scores` [N] (binary: probability; regression: the label's unit) or [N, classes]
(multiclass: probabilities), `users` [N] any sortable ids. A metric that the rows do not define is None, never NaN,
and `measure` says why. `bootstrap` holds the same metrics under user weights.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from mtrec_ray.errors import DataError
from mtrec_ray.registry import Registry

EPSILON = 1e-7
"""Probabilities are clipped to [EPSILON, 1 - EPSILON]: float32 scores saturate, and one row must not be infinite."""

DIRECTION = {"auc": 1, "gauc": 1, "accuracy": 1, "logloss": -1, "ne": -1, "rmse": -1, "mae": -1}
"""+1 where higher is better, -1 where lower is. `calibration` is best at 1 and ranks no models."""


def midranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1 [N]; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def auc(labels: np.ndarray, scores: np.ndarray) -> float | None:
    """Area under the ROC curve = P(score of a positive > score of a negative), a tie counts half (Mann-Whitney)."""
    positive = np.asarray(labels) > 0
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if positives == 0 or negatives == 0:
        return None
    surplus = midranks(np.asarray(scores))[positive].sum() - positives * (positives + 1) / 2
    return float(surplus / (positives * negatives))


class GroupedAuc(NamedTuple):
    """`value`: AUC within a user, averaged with the user's rows as weight; `covered`: share of rows that count."""

    value: float | None
    covered: float
    users: int
    """Users with both classes."""


def gauc(labels: np.ndarray, scores: np.ndarray, users: np.ndarray) -> GroupedAuc:
    """AUC per user, weighted by rows, over the users with both classes (Zhu et al. 2017, section 4.1)."""
    areas, rows = user_aucs(labels, scores, users)
    mixed = ~np.isnan(areas)
    if not mixed.any():
        return GroupedAuc(None, 0.0, 0)
    value = np.average(areas[mixed], weights=rows[mixed])
    return GroupedAuc(float(value), float(rows[mixed].sum() / rows.sum()), int(mixed.sum()))


def user_aucs(labels: np.ndarray, scores: np.ndarray, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUC [U] (NaN = one class only) and rows [U] of each distinct user, users ascending."""
    _, code = np.unique(users, return_inverse=True)
    positive = np.asarray(labels) > 0
    rows = np.bincount(code)
    # Ranks of (user, score) pairs less the rows of all users before are the ranks within the user.
    _, score_code = np.unique(scores, return_inverse=True)
    ranks = midranks(code.astype(np.int64) * (len(score_code) + 1) + score_code) - (np.cumsum(rows) - rows)[code]
    positives = np.bincount(code, weights=positive, minlength=len(rows))
    rank_sums = np.bincount(code, weights=ranks * positive, minlength=len(rows))
    pairs = positives * (rows - positives)
    surplus = rank_sums - positives * (positives + 1) / 2
    return np.divide(surplus, pairs, out=np.full(len(rows), np.nan), where=pairs > 0), rows


def row_log_loss(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """-log of the probability given to each label [N], in nats."""
    p = np.clip(np.asarray(probabilities, dtype=np.float64), EPSILON, 1 - EPSILON)
    return -(labels * np.log(p) + (1 - labels) * np.log1p(-p))


def log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Mean cross entropy of binary labels, in nats."""
    return float(row_log_loss(labels, probabilities).mean()) if len(labels) else None


def normalised_entropy(labels: np.ndarray, probabilities: np.ndarray, base_rate: float) -> float | None:
    """Log loss over the log loss of always saying the train base rate; 1 = learned nothing, lower is better.

    He et al. 2014 divide by the entropy of the rows' own base rate; both agree where train and test rates do. The
    train rate is what a constant model would know.
    """
    if len(labels) == 0 or not 0 < base_rate < 1:
        return None
    reference = row_log_loss(labels, np.full(len(labels), base_rate)).mean()
    return float(row_log_loss(labels, probabilities).mean() / reference)


def calibration_ratio(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Sum of the scores over the sum of the labels; above 1 = promises too much."""
    total = float(np.sum(labels))
    return float(np.sum(probabilities, dtype=np.float64) / total) if total > 0 else None


class CalibrationCurve(NamedTuple):
    """Per bin [B], ascending: mean score, mean label, rows."""

    predicted: np.ndarray
    observed: np.ndarray
    rows: np.ndarray


def calibration_curve(labels: np.ndarray, scores: np.ndarray, bins: int = 10) -> CalibrationCurve:
    """Mean label against mean score in bins of equal count; fewer bins where there are fewer rows."""
    order = np.argsort(scores, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return CalibrationCurve(
        np.array([np.mean(scores[part], dtype=np.float64) for part in parts]),
        np.array([np.mean(labels[part], dtype=np.float64) for part in parts]),
        np.array([len(part) for part in parts], dtype=np.int64),
    )


class RocCurve(NamedTuple):
    """Points from (0, 0) to (1, 1)."""

    false_positive_rate: np.ndarray
    true_positive_rate: np.ndarray


def roc_curve(labels: np.ndarray, scores: np.ndarray) -> RocCurve | None:
    """A point per distinct score, thresholds descending; its trapezoidal area is `auc`. None: one class only."""
    positive = np.asarray(labels) > 0
    if positive.all() or not positive.any():
        return None
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    last_of_tie = np.append(np.diff(np.asarray(scores)[order]) != 0, True)
    hits = np.concatenate([[0], np.cumsum(positive[order])[last_of_tie]])
    alarms = np.concatenate([[0], np.cumsum(~positive[order])[last_of_tie]])
    return RocCurve(alarms / alarms[-1], hits / hits[-1])


def rmse(labels: np.ndarray, scores: np.ndarray) -> float | None:
    """Root mean squared error, in the label's unit."""
    return float(np.sqrt(np.mean(np.square(np.subtract(scores, labels, dtype=np.float64))))) if len(labels) else None


def mae(labels: np.ndarray, scores: np.ndarray) -> float | None:
    """Mean absolute error, in the label's unit."""
    return float(np.mean(np.abs(np.subtract(scores, labels, dtype=np.float64)))) if len(labels) else None


def accuracy(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Share of rows whose likeliest class [N, classes] is the label; the first of equally likely ones counts."""
    return float(np.mean(np.argmax(probabilities, axis=1) == labels)) if len(labels) else None


def row_multiclass_log_loss(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """-log of the probability [N, classes] of each label [N], in nats."""
    chosen = np.asarray(probabilities, dtype=np.float64)[np.arange(len(labels)), np.asarray(labels, dtype=np.int64)]
    return -np.log(np.clip(chosen, EPSILON, 1.0))


def multiclass_log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Mean cross entropy, in nats."""
    return float(row_multiclass_log_loss(labels, probabilities).mean()) if len(labels) else None


Metric = Callable[[np.ndarray, np.ndarray, np.ndarray, float], float | None]
METRICS: Registry[Metric] = Registry("metric")
"""(labels, scores, users, train mean) of the observed rows -> value; a guest's metric registers here too."""

BY_KIND = {
    "binary": ("auc", "gauc", "logloss", "ne", "calibration"),
    "regression": ("rmse", "mae", "calibration"),
    "multiclass": ("accuracy", "logloss"),
}
"""What a report shows of the built-in task kinds; of a guest's kind, the metrics that the kind names itself."""


def measure(
    names: Iterable[str], labels: np.ndarray, scores: np.ndarray, users: np.ndarray, train_mean: float
) -> dict[str, Any]:
    """The named metrics of one task over the rows whose label is observed (not NaN), ready for JSON.

    Gives `n` (rows), `users`, a value per name, with `gauc` also `gauc_covered` (share of rows that count), and
    `undefined`: name -> reason, for each metric that is None.

    Raises:
        DataError: a score of an observed row that is not finite.
        ConfigError: an unknown name.
    """
    labels, scores, users = observed_rows(labels, scores, users)
    found: dict[str, Any] = {"n": len(labels), "users": len(np.unique(users))}
    undefined = {}
    for name in names:
        found[name] = METRICS[name](labels, scores, users, train_mean)
        if found[name] is None:
            undefined[name] = _reason(name, labels)
        if name == "gauc":
            found["gauc_covered"] = gauc(labels, scores, users).covered
    return found | {"undefined": undefined}


def observed_rows(
    labels: np.ndarray, scores: np.ndarray, users: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, scores and users of the rows whose label is not NaN. Raises `DataError`: a score that is not finite."""
    labels = np.asarray(labels, dtype=np.float64)
    observed = ~np.isnan(labels)
    scores = np.asarray(scores)[observed]
    bad = int((~np.isfinite(scores)).sum())
    if bad:
        raise DataError(f"{bad} of {scores.size} scores are not finite numbers; the model that gave them diverged.")
    return labels[observed], scores, np.asarray(users)[observed]


@METRICS.register("auc")
def _auc(labels: np.ndarray, scores: np.ndarray, users: np.ndarray, train_mean: float) -> float | None:
    return auc(labels, scores)


@METRICS.register("gauc")
def _gauc(labels: np.ndarray, scores: np.ndarray, users: np.ndarray, train_mean: float) -> float | None:
    return gauc(labels, scores, users).value


@METRICS.register("logloss")
def _logloss(labels: np.ndarray, scores: np.ndarray, users: np.ndarray, train_mean: float) -> float | None:
    return log_loss(labels, scores) if scores.ndim == 1 else multiclass_log_loss(labels, scores)


@METRICS.register("ne")
def _ne(labels: np.ndarray, scores: np.ndarray, users: np.ndarray, train_mean: float) -> float | None:
    return normalised_entropy(labels, scores, train_mean)


@METRICS.register("calibration")
def _calibration(labels: np.ndarray, scores: np.ndarray, users: np.ndarray, train_mean: float) -> float | None:
    return calibration_ratio(labels, scores)


@METRICS.register("rmse")
def _rmse(labels: np.ndarray, scores: np.ndarray, users: np.ndarray, train_mean: float) -> float | None:
    return rmse(labels, scores)


@METRICS.register("mae")
def _mae(labels: np.ndarray, scores: np.ndarray, users: np.ndarray, train_mean: float) -> float | None:
    return mae(labels, scores)


@METRICS.register("accuracy")
def _accuracy(labels: np.ndarray, scores: np.ndarray, users: np.ndarray, train_mean: float) -> float | None:
    return accuracy(labels, scores)


_REASONS = {
    "auc": "labels of one class only",
    "gauc": "no user with labels of both classes",
    "ne": "the train base rate is 0 or 1",
    "calibration": "the labels add up to zero or less",
}


def _reason(name: str, labels: np.ndarray) -> str:
    return _REASONS.get(name, "not defined on these rows") if len(labels) else "no observed rows"
