"""Rows that hold from some time on: which row of a key was valid at a time."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Array = np.ndarray[Any, np.dtype[Any]]


class Versions:
    """V rows, each of a key and valid from a time on until the next row of its key. Of rows of one key and time the
    first counts."""

    def __init__(self, keys: pa.Array, valid_from: Array) -> None:
        """`keys` string [V]; `valid_from` int64 [V] microseconds."""
        self.valid_from = valid_from
        encoded = keys.dictionary_encode()
        self._keys = encoded.dictionary
        self._times, rank = np.unique(valid_from, return_inverse=True)
        place = self._place(encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), rank.ravel() + 1)
        # Of equal places the last is found, so that must be the first of them.
        self._order = np.lexsort((-np.arange(len(place)), place))
        self._places = place[self._order]

    def at(self, keys: pa.Array | pa.ChunkedArray, times: Array) -> Array:
        """int64 [N]: for each key and time (microseconds) the last row valid from no later than it; -1 = none."""
        code = pc.index_in(keys, value_set=self._keys).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        rank = np.searchsorted(self._times, times, side="right")
        found = np.searchsorted(self._places, self._place(code, rank), side="right") - 1
        width = len(self._times) + 1
        known = (found >= 0) & (code >= 0)
        known &= self._places[np.maximum(found, 0)] // width == code if len(self._places) else False
        return np.where(known, self._order[np.maximum(found, 0)] if len(self._order) else -1, -1)

    def _place(self, code: Array, rank: Array) -> Array:
        """A number in the order of (key, time); ranks count from 1, 0 is before all."""
        return code * (len(self._times) + 1) + rank
