"""What a row's past tells of its label: the measure of what a single column may honestly tell."""

from typing import Any

import numpy as np

from mtrec_ray.check.examined import View

Array = np.ndarray[Any, np.dtype[Any]]
PRIOR = 10.0
"""Pseudo-rows with the mean label that each rate starts from."""


def past_scores(view: View, label: Array) -> Array:
    """float64 [C]: smoothed rates of the user and of the item over strictly earlier rows, added in log-odds.

    `label` [C]: 1, 0 or NaN. Feedback counts from its row on, so this knows rather more than a model may.
    """
    base = float(np.clip(np.nanmean(label), 1e-6, 1 - 1e-6))
    rates = [rates_before(key, view.time, label, base) for key in (view.user, view.item)]
    return sum((np.log(rate / (1 - rate)) for rate in rates), np.zeros(view.size))


def rates_before(key: Array, time: Array, label: Array, base: float) -> Array:
    """float64 [C] mean label of the key's strictly earlier rows, shrunk to `base`."""
    order = np.lexsort((time, key))
    begins_key = np.ones(len(order), dtype=bool)
    begins_key[1:] = np.diff(key[order]) != 0
    begins_time = begins_key.copy()
    begins_time[1:] |= np.diff(time[order]) != 0
    places = np.arange(len(order))
    start, left = (np.maximum.accumulate(np.where(begins, places, 0)) for begins in (begins_key, begins_time))
    rate = np.empty(len(order))
    sums = [np.concatenate([[0.0], np.cumsum(v[order])]) for v in (np.nan_to_num(label), ~np.isnan(label))]
    positive, count = (running[left] - running[start] for running in sums)
    rate[order] = (positive + PRIOR * base) / (count + PRIOR)
    return rate


def encoded(codes: Array, label: Array, fitted: Array) -> Array:
    """float64 [C]: the smoothed mean label of each code [C] (>= 0) over the rows `fitted` (bool [C])."""
    use = fitted & ~np.isnan(label)
    size = int(codes.max(initial=0)) + 1
    base = float(label[use].mean()) if use.any() else 0.0
    total = np.bincount(codes[use], label[use], minlength=size)
    return ((total + PRIOR * base) / (np.bincount(codes[use], minlength=size) + PRIOR))[codes]


def binned(values: Array, fitted: Array, bins: int) -> Array:
    """int64 [C]: which of `bins` quantile bins of the rows `fitted` a value lies in; NaN in the last."""
    there = values[fitted & ~np.isnan(values)]
    edges = np.unique(np.quantile(there, np.arange(1, bins) / bins)) if len(there) else np.zeros(0)
    return np.searchsorted(edges, values, side="right")
