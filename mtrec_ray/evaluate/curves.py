"""Curves of one score column over rows with labels; numpy only. Arguments as in `evaluate.metrics`."""

from typing import NamedTuple

import numpy as np

from mtrec_ray.evaluate.metrics import Weights


class CalibrationCurve(NamedTuple):
    """Per bin [B], ascending: mean score, mean label, and weight of its rows (without weights, how many they are)."""

    predicted: np.ndarray
    observed: np.ndarray
    rows: np.ndarray


def calibration_curve(
    labels: np.ndarray, scores: np.ndarray, bins: int = 10, weights: Weights = None
) -> CalibrationCurve:
    """Mean label against mean score in bins of equal weight, but for whole rows; fewer where there are fewer rows."""
    order = np.argsort(scores, kind="stable")
    weight = (np.ones(len(labels)) if weights is None else weights)[order]
    middle = np.cumsum(weight) - weight / 2
    _, bin_ = np.unique(np.floor(bins * middle / weight.sum()), return_inverse=True)
    rows = np.bincount(bin_, weights=weight)
    of_scores, of_labels = (np.bincount(bin_, weights=weight * values[order]) for values in (scores, labels))
    return CalibrationCurve(of_scores / rows, of_labels / rows, rows)


class RocCurve(NamedTuple):
    """Points from (0, 0) to (1, 1)."""

    false_positive_rate: np.ndarray
    true_positive_rate: np.ndarray


def roc_curve(labels: np.ndarray, scores: np.ndarray, weights: Weights = None) -> RocCurve | None:
    """A point per distinct score, thresholds descending; its trapezoidal area is `auc`. None: one class only."""
    positive = np.asarray(labels) > 0
    if positive.all() or not positive.any():
        return None
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    weight = np.ones(len(order)) if weights is None else weights
    last_of_tie = np.append(np.diff(np.asarray(scores)[order]) != 0, True)
    hits, alarms = (
        np.append(0, np.cumsum(np.where(mask, weight, 0)[order])[last_of_tie]) for mask in (positive, ~positive)
    )
    return RocCurve(alarms / alarms[-1], hits / hits[-1])
