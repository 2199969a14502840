"""What a user's taste reads of a row: the factors of its values of a category."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

LEVEL_WEIGHT, TASTE_WEIGHT = 20.0, 5.0
"""Labels as by which a user's level and taste are drawn towards 0."""


def value_rows(factors: Array, codes: Array) -> Array:
    """float64 [N, 1 + d]: 1, and the unit mean of the values' factors (zeros without any).

    Args:
        factors: [V, d]. codes: int [N, w] rows of the vocabulary; 0 = unknown, -1 = absent, neither counts.
    """
    vectors = (factors[np.maximum(codes, 0)] * (codes > 0)[:, :, None]).sum(axis=1, dtype=np.float64)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return np.concatenate([np.ones((len(codes), 1)), vectors], axis=1)
