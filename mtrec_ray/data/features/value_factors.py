"""Factors of the values of a category: values that the same users like lie near each other.

What a user u makes of a row, beside what all make of its item, is modelled as normal with the mean

    v (level_u + taste_u . x),   x = the sum of the factors of the row's values,

v being the variance of the label given the item alone: the slope of a logistic curve there. Level and taste are latent,
standard normal. The factors are found by EM (Rubin and Thayer 1982, "EM algorithms for ML factor analysis"; with side
information of the items Agarwal and Chen 2009, "Regression-based latent factor models"): the mean and covariance of
each user's taste, then the ridge regression of all rows on the values. It starts from a truncated SVD.

What occurs beside each other in the same items tends to be alike, too. How far each value is moved towards the mean of
its neighbours, and how many iterations there are, is chosen by how well the users of each fold are predicted from the
factors of all others: on few rows EM fits noise, and the first factors, moved far, are better.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, cg
from sklearn.utils.extmath import randomized_svd
from threadpoolctl import threadpool_limits

from mtrec_ray.data.features.factors import Interactions
from mtrec_ray.data.features.statistics import PRIOR_WEIGHT
from mtrec_ray.data.features.value_rows import LEVEL_WEIGHT, TASTE_WEIGHT, value_rows

Array = np.ndarray[Any, np.dtype[Any]]

_FACTORS = 16
_MOST_ITERATIONS = 3
"""Of EM; with more, factors fit the noise of the values that mean nothing."""
_VALUE_WEIGHT = 30.0
"""Labels (times v) as by which the factors of a value are drawn to 0."""
_LEVEL, _FIRST_TASTE = 0.5, 1.8
"""Standard deviations in log-odds: of the users' levels, and of the tastes that EM starts with."""
_LEAST_VARIANCE = 0.01
_SHARES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
"""How far values may be moved: multiples of their neighbours' mean that are added."""
_MOST_ROWS = 500_000
"""Of each fit: all, or those of the first users by hash."""
_USERS = 10_000
"""Users whose tastes are held at once."""


@dataclass(frozen=True)
class SignalStatistics:
    """What is known of the S signals of `Interactions.values`."""

    mean: Array
    """float64 [I, S] of each item"""
    spread: Array
    """float64 [S] standard deviation of the labels"""
    binary: Array
    """bool [S]"""


def value_factors(
    rows: Interactions, column: str, values: int, fits: Sequence[tuple[int | None, SignalStatistics]]
) -> list[Array]:
    """float32 [V, d] for each fit: the factors without the rows of the fold that it names; None = from all rows."""
    with threadpool_limits(1):  # the number of threads changes the last digits
        found = [_fitted(rows, rows.fold != fold, column, values, signals) for fold, signals in fits]
        ways = list(product(range(_MOST_ITERATIONS + 1), _SHARES))
        losses = np.zeros(len(ways))
        for (fold, signals), fitted in zip(fits, found, strict=True):
            if fold is not None:
                held = _Held.of(rows.first(rows.fold == fold, _MOST_ROWS // len(fits)), column, signals)
                losses += [held.loss(fitted.moved(*way)) for way in ways]
        best = ways[int(np.argmin(losses))]
        return [fitted.moved(*best).astype(np.float32) for fitted in found]


@dataclass(frozen=True)
class _Fitted:
    factors: list[Array]
    """[V, d] before any iteration of EM and after each"""
    neighbours: sparse.csr_matrix
    """[V, V]: of each value, with shares that add up to 1, the rarer the more; nothing where it has none"""

    def moved(self, iterations: int, share: float) -> Array:
        """Each value with neighbours towards their mean, as far as it differs from that of others."""
        factors = self.factors[iterations]
        near = self.neighbours @ factors
        some = np.asarray(self.neighbours.sum(axis=1)).ravel() > 0
        return factors + share * np.where(some[:, None], near - near[some].mean(axis=0) if some.any() else 0, 0)


def _fitted(rows: Interactions, keep: Array, column: str, values: int, signals: SignalStatistics) -> _Fitted:
    kept = rows.first(keep, _MOST_ROWS)
    kinds, kind = _kinds(kept, column)
    words = _matrix(kinds, values)
    of_items = np.unique(np.stack([kept.item, kind]), axis=1)[1]  # once an item, however often it was shown
    likings = [_Likings.of(kept, kind, len(kinds), signals, s) for s in range(kept.values.shape[1])]
    factors = [_started(likings, words)]
    for _ in range(_MOST_ITERATIONS):
        factors.append(_next(factors[-1], likings, words) if factors[0].any() else factors[0])
    return _Fitted(factors, _neighbours(words[of_items]))


def _matrix(codes: Array, values: int) -> sparse.csr_matrix:
    """[N, V]: how often each row of codes has each value; the unknown ones do not count."""
    row, slot = np.nonzero(codes > 0)
    return sparse.csr_matrix((np.ones(len(row)), (row, codes[row, slot])), shape=(len(codes), values))


@dataclass(frozen=True)
class _Likings:
    """What one signal says of N rows of U users; K kinds of rows, which have the same values."""

    user: Array
    """int [N] from 0 upwards"""
    kind: Array
    """int [N]"""
    residual: Array
    """float64 [N] label - the item's mean; numbers are scaled to the spread of a coin"""
    variance: Array
    """float64 [N] of the label given the item: v above"""
    users: int
    kinds: int

    @classmethod
    def of(cls, rows: Interactions, kind: Array, kinds: int, signals: SignalStatistics, s: int) -> "_Likings":
        seen = ~np.isnan(rows.values[:, s])
        mean = signals.mean[rows.item[seen], s]
        names, user = np.unique(rows.user[seen], return_inverse=True)
        residual = rows.values[seen, s] - mean
        variance = np.maximum(mean * (1 - mean), _LEAST_VARIANCE)
        if not signals.binary[s]:
            residual, variance = residual / max(2 * signals.spread[s], 1e-12), np.full(len(residual), 0.25)
        return cls(user, kind[seen], residual, variance, len(names), kinds)

    def table(self, values: Array) -> sparse.csr_matrix:
        """[U, K]: the sum of values [N]."""
        return sparse.csr_matrix((values, (self.user, self.kind)), shape=(self.users, self.kinds))


def _started(likings: Sequence[_Likings], words: sparse.csr_matrix) -> Array:
    """[V, d]: a truncated SVD of the users' residuals, summed over the rows that have the value.

    Values are scaled by 1/sqrt(n + 10) before and after, so that each has the same noise; signals stand below each
    other. If nobody liked anything in particular, the squared singular values would lie below the edge of Marchenko and
    Pastur (1967), variance * (1 + sqrt(V / users))^2: what does not exceed it is left out. Of the others the root
    counts, since what is shown goes by what was liked, so that liking enters twice.
    """
    count = sum(np.bincount(part.kind, minlength=words.shape[0]) for part in likings) @ words
    per_value = 1 / np.sqrt(count / max(1, len(likings)) + 10.0)
    parts, noise = [], 0.0
    for part in likings:
        total, rows = np.bincount(part.user, part.residual), np.bincount(part.user)
        residual = part.residual - (total / (rows + PRIOR_WEIGHT))[part.user]
        parts.append(part.table(residual) @ words @ sparse.diags(per_value))
        noise += float(residual**2 @ (words.power(2) @ per_value**2)[part.kind])
    matrix = sparse.vstack(parts).tocsr()
    rank = min(_FACTORS, *(n - 1 for n in matrix.shape))
    if rank < 1 or matrix.nnz == 0:
        return np.zeros((words.shape[1], 1))
    _, strength, right = randomized_svd(matrix, rank, n_iter=5, random_state=0)
    present = max(1, int((count > 0).sum()))
    users = max(part.users for part in likings)
    edge = noise / present * (1 + np.sqrt(present / users)) ** 2
    root = np.maximum(strength**2 - edge, 0) ** 0.25
    factors: Array = (right.T * root * per_value[:, None])[:, root > 0]
    if not factors.shape[1]:
        return np.zeros((words.shape[1], 1))
    shown = np.sqrt(((words @ factors) ** 2).sum(axis=1).mean())
    return factors * (_FIRST_TASTE / max(shown, 1e-12))


def _next(factors: Array, likings: Sequence[_Likings], words: sparse.csr_matrix) -> Array:
    """One iteration of EM."""
    kinds, width = words.shape[0], factors.shape[1]
    rows = np.concatenate([words @ factors, np.full((kinds, 1), _LEVEL)], axis=1)
    of_kinds = _packed(rows[:, :, None] * rows[:, None, :])
    squares, products = np.zeros_like(of_kinds), np.zeros((kinds, width + 1))
    for part in likings:
        variance, residual = part.table(part.variance).astype(np.float32), part.table(part.residual)
        for first in range(0, part.users, _USERS):
            v, r = variance[first : first + _USERS], residual[first : first + _USERS]
            spread = np.linalg.inv(_unpacked(v @ of_kinds, width + 1) + np.eye(width + 1))
            mean = np.einsum("uij,uj->ui", spread, r @ rows)
            squares += v.T @ _packed(spread + mean[:, :, None] * mean[:, None, :])
            products += r.T @ mean
    square = _unpacked(squares, width + 1)
    target = words.T @ (products[:, :width] - _LEVEL * square[:, :width, width])
    square = np.ascontiguousarray(square[:, :width, :width])

    def normal(flat: Array) -> Array:
        given = flat.reshape(-1, width)
        told = words.T @ (square @ (words @ given)[:, :, None])[:, :, 0]
        return (told + _VALUE_WEIGHT * given).ravel()

    size = factors.size
    found, _ = cg(LinearOperator((size, size), normal), target.ravel(), x0=factors.ravel(), rtol=1e-4, maxiter=30)
    return found.reshape(-1, width)


def _packed(symmetric: Array) -> Array:
    """[N, d, d] -> float32 [N, d (d + 1) / 2]: single precision is enough for sums of squares."""
    i, j = np.triu_indices(symmetric.shape[1])
    return symmetric[:, i, j].astype(np.float32)


def _unpacked(packed: Array, width: int) -> Array:
    """[N, d (d + 1) / 2] -> [N, d, d]"""
    i, j = np.triu_indices(width)
    square = np.empty((len(packed), width, width))
    square[:, i, j] = square[:, j, i] = packed
    return square


def _neighbours(words: sparse.csr_matrix) -> sparse.csr_matrix:
    together = words.T @ words
    together = together - sparse.diags(together.diagonal())
    together = together @ sparse.diags(1 / np.maximum(np.asarray(words.sum(axis=0)).ravel(), 1))
    return (sparse.diags(1 / np.maximum(np.asarray(together.sum(axis=1)).ravel(), 1e-12)) @ together).tocsr()


@dataclass(frozen=True)
class _Held:
    """Rows to be predicted: every other one of each signal, from the rows between."""

    kinds: Array
    """int32 [K, w] their codes"""
    parts: list[tuple[_Likings, Array, sparse.csr_matrix, sparse.csr_matrix]]
    """Of each signal: which rows are told (bool [N]), how many of each user and kind, and their residuals"""

    @classmethod
    def of(cls, rows: Interactions, column: str, signals: SignalStatistics) -> "_Held":
        kinds, kind = _kinds(rows, column)
        parts = []
        for s in range(rows.values.shape[1]):
            part = _Likings.of(rows, kind, len(kinds), signals, s)
            told = np.arange(len(part.user)) % 2 == 0
            parts.append((part, told, part.table(told.astype(np.float32)), part.table(told * part.residual)))
        return cls(kinds, parts)

    def loss(self, factors: Array) -> float:
        """Squared error of what is predicted as `tastes` does."""
        x = value_rows(factors, self.kinds)
        of_kinds = _packed(x[:, :, None] * x[:, None, :])
        known = np.diag([LEVEL_WEIGHT] + [TASTE_WEIGHT] * (x.shape[1] - 1))
        total = 0.0
        for part, told, counts, residuals in self.parts:
            seen = _unpacked(counts @ of_kinds, x.shape[1])
            mean = np.linalg.solve(seen + known, (residuals @ x)[:, :, None])[:, :, 0]
            error = (part.residual - np.einsum("nd,nd->n", x[part.kind], mean[part.user]))[~told]
            total += float(error @ error)
        return total


def _kinds(rows: Interactions, column: str) -> tuple[Array, Array]:
    """int32 [K, w] different codes, and int [N] which of them each row has."""
    kinds, kind = np.unique(rows.codes[column], axis=0, return_inverse=True)
    return kinds, kind.ravel()
