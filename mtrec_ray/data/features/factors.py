"""Factors of items: truncated SVDs of what the users of the train rows did.

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
    """int32 [N, w] rows of the vocabulary, per category column that asks for factors of its values"""

    def first(self, keep: Array, most: int) -> "Interactions":
        """The rows `keep` (bool [N]) of as many whole users as have at most so many, in their order, at least one."""
        chosen = np.flatnonzero(keep)
        if len(chosen) > most:
            user = self.user[chosen]
            chosen = chosen[user < user[most]] if user[0] < user[most] else chosen[user == user[0]]
        codes = {name: codes[chosen] for name, codes in self.codes.items()}
        return Interactions(self.user[chosen], self.item[chosen], self.fold[chosen], self.values[chosen], codes)


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
