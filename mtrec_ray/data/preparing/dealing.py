"""Rows dealt to buckets by the hash of an id."""

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from mtrec_ray.data.requests.ids import bucket_of

Array = np.ndarray[Any, np.dtype[Any]]


def dealt(table: pa.Table, column: str, buckets: int) -> list[pa.Table]:
    """The rows of each bucket, some of them none, in the table's order. Rows are moved once, however many buckets."""
    ids = table[column].combine_chunks().dictionary_encode()
    of_id = np.array([bucket_of(key, buckets) for key in ids.dictionary.to_pylist()], dtype=np.int64)
    of_row = of_id[ids.indices.to_numpy()]
    order = np.argsort(of_row, kind="stable")
    ends = np.searchsorted(of_row[order], np.arange(buckets + 1))
    ordered = table.combine_chunks().take(pa.array(order))
    return [ordered.slice(first, stop - first) for first, stop in pairwise(ends.tolist())]
