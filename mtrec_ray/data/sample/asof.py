"""Counts of what was known of a key strictly before a time."""

import numpy as np

from mtrec_ray.data.sample.population import Array


class Ledger:
    """Labels [N] of keys, each known at a time; integers. NaN labels are left out."""

    def __init__(self, keys: Array, times: Array, labels: Array) -> None:
        observed = ~np.isnan(labels)
        self.first = int(times.min(initial=0))
        self.span = int(times.max(initial=0)) - self.first + 2
        places = keys[observed].astype(np.int64) * self.span + (times[observed] - self.first)
        order = np.argsort(places, kind="stable")
        self.places = places[order]
        self.sums = np.concatenate([[0.0], np.cumsum(labels[observed][order])])

    def before(self, keys: Array, times: Array) -> tuple[Array, Array]:
        """Number and sum of the labels of each key [M] known strictly before each time [M]."""
        base = keys.astype(np.int64) * self.span
        until = np.clip(times - self.first, 0, self.span - 1)
        low, high = (np.searchsorted(self.places, at, "left") for at in (base, base + until))
        return high - low, self.sums[high] - self.sums[low]
