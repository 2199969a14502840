"""Statistics of items and categories, fitted on train rows: means, deviations, counts, and factors of items.

They come once per fold of users and once over all. A train row is given the statistics that leave out its own user's
fold; leave-one-out statistics would leak the label (what is left out tells what it was).
Smoothing: a mean of n labels is (sum + 5 * prior) / (n + 5), the prior being the mean over all train labels.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.utils.extmath import randomized_svd
from threadpoolctl import threadpool_limits

Array = np.ndarray[Any, np.dtype[Any]]

PRIOR_WEIGHT = 5.0
_CATEGORY_PRIOR_WEIGHT = 20.0
_FACTORS = 32
_TASTE_FACTORS = 16


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
    tastes: dict[str, Array] = field(default_factory=dict)
    """float32 [V, d] per category column with a `taste`: see `value_factors`"""


@dataclass(frozen=True)
class Interactions:
    """N train rows of a sample of users, in canonical order: the matrix that factors are taken from."""

    user: Array
    """int64 [N]"""
    item: Array
    """int64 [N] row of the item statistics"""
    fold: Array
    """int64 [N]"""
    values: Array
    """float64 [N, S], NaN = not observed"""
    codes: dict[str, Array] = field(default_factory=dict)
    """int32 [N, w] rows of the vocabulary, per category column with a `taste`"""


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


def item_factors(rows: Interactions, keep: Array, items: int, mean: Array, names: list[str]) -> dict[str, Array]:
    """Unit factors of items by truncated SVD of the users' matrices; only rows `keep` (bool [N]) enter.

    `shown`: who saw what, users scaled by 1/sqrt(n + 1), items by 1/sqrt(n + 10), so that neither the busy nor the
    popular rule. One per name in `names` (signal by signal): label - item mean - the user's mean of that.
    """
    _, user = np.unique(rows.user[keep], return_inverse=True)
    item, values = rows.item[keep], rows.values[keep]
    shape = (int(user.max(initial=-1)) + 1, items)
    per_item = 1 / np.sqrt(np.bincount(item, minlength=items) + 10.0)
    per_user = 1 / np.sqrt(np.bincount(user, minlength=shape[0]) + 1.0)
    result = {"shown": _factors(sparse.csr_matrix((per_user[user] * per_item[item], (user, item)), shape=shape))}
    for s, name in enumerate(names):
        seen = ~np.isnan(values[:, s])
        u, i = user[seen], item[seen]
        residual = values[seen, s] - mean[i, s]
        own = np.bincount(u, weights=residual, minlength=shape[0]) / (np.bincount(u, minlength=shape[0]) + PRIOR_WEIGHT)
        weighted = (residual - own[u]) * per_item[i]
        result[name] = _factors(sparse.csr_matrix((weighted, (u, i)), shape=shape))
    return result


def _factors(matrix: sparse.csr_matrix) -> Array:
    rank = min(_FACTORS, *(n - 1 for n in matrix.shape))
    if rank < 1 or matrix.nnz == 0:
        return np.zeros((matrix.shape[1], 1), dtype=np.float32)
    with threadpool_limits(1):  # the number of threads changes the last digits
        _, values, right = randomized_svd(matrix, rank, n_iter=5, random_state=0)
    factors = right.T * values
    norm = np.linalg.norm(factors, axis=1, keepdims=True)
    return np.where(norm > 1e-7 * values[0], factors / np.maximum(norm, 1e-30), 0).astype(np.float32)


def value_factors(rows: Interactions, keep: Array, column: str, values: int, mean: Array, spread: Array) -> Array:
    """float32 [V, d] factors of the values of a category by what the same users like: those of near values are alike.

    A truncated SVD of the users' residuals, summed over the items that have the value; values scaled by 1/sqrt(n + 10)
    before and after, so that each has the same noise. Signals stand below each other, those of numbers scaled to the
    spread of a coin. If nobody liked anything in particular, the squared singular values would lie below the edge of
    Marchenko and Pastur (1967), variance * (1 + sqrt(V / users))^2: what does not exceed it is left out. Of the others
    the root counts, since what is shown goes by what was liked, so that liking enters twice.
    """
    _, user = np.unique(rows.user[keep], return_inverse=True)
    item, codes, labels = rows.item[keep], rows.codes[column][keep], rows.values[keep]
    users = int(user.max(initial=-1)) + 1
    row, slot = np.nonzero(codes > 0)
    value = codes[row, slot]
    per_value = 1 / np.sqrt(np.bincount(value, minlength=values) + 10.0)
    parts, noise = [], 0.0
    for s in range(labels.shape[1]):
        residual = (labels[:, s] - mean[item, s]) / max(1.0, 2 * spread[s])
        seen = ~np.isnan(residual)
        u = user[seen]
        total, count = np.bincount(u, residual[seen], users), np.bincount(u, minlength=users)
        residual = np.nan_to_num(residual - (total / (count + PRIOR_WEIGHT))[user])
        weighted = residual[row] * per_value[value]
        parts.append(sparse.csr_matrix((weighted, (user[row], value)), shape=(users, values)))
        noise += float(weighted @ weighted)
    matrix = sparse.vstack(parts).tocsr()
    rank = min(_TASTE_FACTORS, *(n - 1 for n in matrix.shape))
    if rank < 1 or matrix.nnz == 0:
        return np.zeros((values, 1), dtype=np.float32)
    with threadpool_limits(1):
        _, strength, right = randomized_svd(matrix, rank, n_iter=5, random_state=0)
    present = max(1, len(np.unique(value)))
    edge = noise / present * (1 + np.sqrt(present / users)) ** 2
    root = np.maximum(strength**2 - edge, 0) ** 0.25
    return (right.T * root * per_value[:, None]).astype(np.float32)
