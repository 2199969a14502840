"""Distinct rows of several columns, by sorting the columns: `numpy.unique` of rows compares them field by field."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def distinct_rows(columns: Sequence[Array]) -> tuple[Array, Array]:
    """The distinct combinations of columns [N], in their order, the first column counting most.

    Returns:
        int64 [D] a row that has each of them, the first one; int64 [N] which of them each row has.
    """
    order = np.lexsort(columns[::-1])
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = False
    for column in columns:
        ordered = column[order]
        begins[1:] |= ordered[1:] != ordered[:-1]
    which = np.empty(len(order), dtype=np.int64)
    which[order] = np.cumsum(begins) - 1
    return order[begins], which
