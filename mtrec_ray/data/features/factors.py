"""Factors of items and of the values of categories: truncated SVDs of what the users of the train rows did.

They are fitted once, where all buckets come together; tasks that only look them up need neither scipy nor sklearn.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.utils.extmath import randomized_svd
from threadpoolctl import threadpool_limits

from mtrec_ray.data.features.statistics import PRIOR_WEIGHT

Array = np.ndarray[Any, np.dtype[Any]]

_FACTORS = 32
_TASTE_FACTORS = 16


@dataclass(frozen=True)
class Interactions:
    """N train rows of a sample of users, in canonical order: the matrix that factors are taken from."""

    user: Array
    """int64 [N]"""
    item: Array
    """int [N] row of the item statistics"""
    fold: Array
    """int [N]"""
    values: Array
    """float32 or float64 [N, S], NaN = not observed"""
    codes: dict[str, Array] = field(default_factory=dict)
    """int32 [N, w] rows of the vocabulary, per category column with a `taste`"""


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
