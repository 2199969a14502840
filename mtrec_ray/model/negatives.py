"""Negatives of a step: rows of the catalogue, drawn as a function of names alone."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class NegativeSampler:
    """Draws rows with replacement, row j with probability q_j proportional to counts_j ** power, and never one of
    count 0."""

    def __init__(self, counts: Array, power: float) -> None:
        """`counts` [I], of which one is above 0."""
        drawn = np.flatnonzero(counts)
        weights = counts[drawn].astype(np.float64) ** power
        self._rows, self._upto = drawn, np.cumsum(weights)
        self._log_q = np.log(weights) - np.log(self._upto[-1])

    def draw(self, count: int, salt: int) -> tuple[Array, Array]:
        """int64 [count] rows and float64 [count] log q of each; `salt`: see `DropoutKey.salt`."""
        uniform = np.random.default_rng(salt).random(count)
        place = np.searchsorted(self._upto, uniform * self._upto[-1], side="right")
        place = np.minimum(place, len(self._rows) - 1)  # the product may round up to the whole sum
        return self._rows[place], self._log_q[place]
