"""Statistics of items and categories, fitted on train rows: means, deviations, counts, and factors (`factors`).

They come once per fold of users and once over all. A train row is given the statistics that leave out its own user's
fold; leave-one-out statistics would leak the label (what is left out tells what it was).
Smoothing: a mean of n labels is (sum + 5 * prior) / (n + 5), the prior being the mean over all train labels.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

PRIOR_WEIGHT = 5.0
_CATEGORY_PRIOR_WEIGHT = 20.0


@dataclass(frozen=True)
class Statistics:
    """What one fold (or all) of the train rows says; I items with row 0 = unknown, S signals."""

    prior: Array
    """float64 [S] mean label"""
    spread: Array
    """float64 [S] standard deviation of the labels"""
    shown: Array
    """float64 [I] train rows"""
    count: Array
    """float64 [I, S] observed labels"""
    mean: Array
    """float64 [I, S] smoothed"""
    std: Array
    """float64 [I, S] smoothed towards that of all labels"""
    categories: dict[str, Array]
    """float64 [V, S] per category column: smoothed mean of label - prior, row 0 = unknown"""
    factors: dict[str, Array]
    """float32 [I, d] unit rows (or zero): `shown` from co-occurrence, one per signal from its residuals"""
    scales: dict[str, float]
    """Distance at which two values of a number are unlike, per number feature"""
    value_factors: dict[str, Array] = field(default_factory=dict)
    """float32 [V, d] per category column that asks for them: see the module of this name"""


def item_statistics(sums: Array) -> dict[str, Array]:
    """Fields from sums [I, 1 + 3S] over train rows (rows; labels, sum, sum of squares per signal), row 0 zero."""
    width = (sums.shape[1] - 1) // 3
    shown, (count, total, squares) = sums[:, 0], (sums[:, 1 + k * width : 1 + (k + 1) * width] for k in range(3))
    seen = np.maximum(count.sum(axis=0), 1)
    prior, prior_square = total.sum(axis=0) / seen, squares.sum(axis=0) / seen
    mean = (total + PRIOR_WEIGHT * prior) / (count + PRIOR_WEIGHT)
    square = (squares + PRIOR_WEIGHT * prior_square) / (count + PRIOR_WEIGHT)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    spread = np.sqrt(np.maximum(prior_square - prior**2, 0))
    return {"prior": prior, "spread": spread, "shown": shown, "count": count, "mean": mean, "std": std}


def category_statistics(sums: Array, prior: Array) -> Array:
    """From sums [V, 1 + 2S] over train rows (rows; labels, sum per signal) to float64 [V, S]."""
    width = (sums.shape[1] - 1) // 2
    count, total = sums[:, 1 : 1 + width], sums[:, 1 + width :]
    return (total - count * prior) / (count + _CATEGORY_PRIOR_WEIGHT)
