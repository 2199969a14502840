"""Figures with errors that hold although rows of one user, or of one item, are not independent; numpy only."""

from typing import Any, NamedTuple

import numpy as np

from mtrec_ray.evaluate.metrics import midranks

Array = np.ndarray[Any, np.dtype[Any]]
SURE = 3.3
"""Standard errors: by chance one figure in 2,000 lies further out on one side. A check tests some tens of them."""


class Estimate(NamedTuple):
    value: float
    error: float
    """Standard error."""

    @property
    def low(self) -> float:
        return self.value - SURE * self.error

    @property
    def high(self) -> float:
        return self.value + SURE * self.error


def clustered_auc(labels: Array, scores: Array, clusters: Array) -> Estimate | None:
    """AUC of `scores` [N] for labels 0 and 1 [N], and its error where rows of one cluster [N] belong together.

    The error is that of Obuchowski 1997 (Biometrics 53, 567): placements of positives among negatives and the reverse,
    summed within clusters. None: fewer than 5 clusters with positives, or with negatives.
    """
    positive = labels > 0
    n1, n0 = int(positive.sum()), int((~positive).sum())
    if len(np.unique(clusters[positive])) < 5 or len(np.unique(clusters[~positive])) < 5:
        return None
    ranks = midranks(scores)
    placement = np.empty(len(scores))
    placement[positive] = (ranks[positive] - midranks(scores[positive])) / n0
    placement[~positive] = 1 - (ranks[~positive] - midranks(scores[~positive])) / n1
    area = float(placement[positive].mean())
    _, cluster = np.unique(clusters, return_inverse=True)
    share = np.where(positive, 1 / n1, 1 / n0)
    summed = np.bincount(cluster, (placement - area) * share)
    count = len(summed)
    return Estimate(area, float(np.sqrt(count / (count - 1) * np.square(summed).sum())))


def clustered_mean(values: Array, clusters: Array) -> Estimate | None:
    """Mean of `values` [N] and its error where rows of a cluster belong together. None: below 5 clusters."""
    _, cluster = np.unique(clusters, return_inverse=True)
    count = int(cluster.max(initial=-1)) + 1
    if count < 5:
        return None
    mean = float(values.mean())
    summed = np.bincount(cluster, values - mean)
    return Estimate(mean, float(np.sqrt(count / (count - 1) * np.square(summed).sum()) / len(values)))


def mean_shift(values: Array, later: Array, clusters: Array) -> Estimate | None:
    """Mean of the rows `later` (bool [N]) minus that of the others; a cluster may have rows of both."""
    if not later.any() or later.all():
        return None
    _, cluster = np.unique(clusters, return_inverse=True)
    count = int(cluster.max()) + 1
    if count < 5:
        return None
    a, b = float(values[later].mean()), float(values[~later].mean())
    influence = np.where(later, (values - a) / later.sum(), -(values - b) / (~later).sum())
    summed = np.bincount(cluster, influence)
    return Estimate(a - b, float(np.sqrt(count / (count - 1) * np.square(summed).sum())))


def psi(expected: Array, found: Array) -> float:
    """Population stability index of two histograms [B] of counts: sum of (q - p) log(q / p); half a row is added to
    each bin, so that an empty one is finite."""
    p, q = ((counts + 0.5) / (counts + 0.5).sum() for counts in (expected, found))
    return float(((q - p) * np.log(q / p)).sum())


def either_way(area: float) -> float:
    """AUC of the better direction."""
    return max(area, 1 - area)
