"""Lists of different lengths as one flat array and offsets, as Arrow keeps them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Ragged:
    """N lists: list n is `values[offsets[n] : offsets[n + 1]]`."""

    values: Array
    offsets: Array
    """int64 [N + 1]"""

    @classmethod
    def of(cls, lists: Sequence[Array], dtype: Any) -> "Ragged":
        values = np.concatenate([np.zeros(0, dtype), *lists]).astype(dtype)
        return cls(values, offsets_of(np.array([len(part) for part in lists], dtype=np.int64)))

    @property
    def lengths(self) -> Array:
        return np.diff(self.offsets)

    def take(self, which: Array) -> "Ragged":
        """The lists with these numbers, in this order."""
        lengths = self.lengths[which]
        return Ragged(self.values[spans(self.offsets[which], lengths)], offsets_of(lengths))

    def regroup(self, counts: Array) -> "Ragged":
        """Joins the first counts[0] lists to one, the next counts[1] to the second, and so on."""
        return Ragged(self.values, self.offsets[offsets_of(counts)])

    def to_arrow(self) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(self.offsets.astype(np.int32)), pa.array(self.values))


def offsets_of(lengths: Array) -> Array:
    """int64 [N + 1] from lengths [N]."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])


def spans(starts: Array, lengths: Array) -> Array:
    """int64: `starts[0], starts[0] + 1, ...` (lengths[0] of them), then those of the next span, and so on."""
    before = offsets_of(lengths)[:-1]
    return np.arange(int(lengths.sum())) + np.repeat(starts - before, lengths)
