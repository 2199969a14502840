"""Candidates that are left out at random, and what those that stay count for them."""

from typing import Any

import numpy as np
import pyarrow as pa

from mtrec_ray.data.streaming.augment.rows import RequestRows

Array = np.ndarray[Any, np.dtype[Any]]

WEIGHT = "weight"
"""Column over candidates that is added: how much the candidate's losses count."""


def thinned(rows: RequestRows, shares: Array, draws: Array) -> RequestRows:
    """Keeps the candidates whose draw [C], in [0, 1), is below their share [C], in (0, 1].

    A kept one counts 1 / share: the inverse of the probability with which it is there (Horvitz and Thompson 1952), so
    that sums of losses over kept candidates are those over all candidates in expectation, for every task, and predicted
    rates need no correction. That of He et al. 2014 ("Practical Lessons from Predicting Clicks on Ads at Facebook",
    Sec. 6.3) is for negatives that count 1. Done once more, the weights multiply.
    """
    before = rows.values(WEIGHT) if WEIGHT in rows.of_candidates else 1.0
    weight = (before / shares).astype(np.float32)
    return rows.with_column(WEIGHT, pa.array(weight)).with_candidates(draws < shares)
