"""Sums per key that add up over buckets: how vocabularies and statistics are fitted without holding the rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Tally:
    """K distinct keys and what was summed for each: float64 [K, m] or [K, folds, m], the first of m being the rows."""

    keys: list[str]
    sums: Array

    def rows(self) -> Array:
        """float64 [K] rows per key."""
        return self.sums[:, 0] if self.sums.ndim == 2 else self.sums[:, :, 0].sum(axis=1)


def merge(parts: Sequence[Tally]) -> Tally:
    """The sum of tallies, most frequent keys first, equals by key: the same whatever the parts were."""
    place: dict[str, int] = {}
    for part in parts:
        for key in part.keys:
            place.setdefault(key, len(place))
    sums = np.zeros((len(place), *parts[0].sums.shape[1:]))
    for part in parts:
        sums[[place[key] for key in part.keys]] += part.sums
    keys = list(place)
    rows = Tally(keys, sums).rows()
    order = sorted(range(len(keys)), key=lambda k: (-rows[k], keys[k]))
    return Tally([keys[k] for k in order], sums[order])


@dataclass(frozen=True)
class Vocabulary:
    """Keys with rows of a table: row 0 is the unknown one, the k-th key has row k + 1."""

    keys: pa.Array
    """string [K], most frequent in the train period first"""
    known: int
    """Only the first `known` keys, those with enough train rows, have a row of an embedding table"""

    @classmethod
    def of(cls, tally: Tally, min_count: int) -> "Vocabulary":
        return cls(pa.array(tally.keys, pa.string()), int((tally.rows() >= min_count).sum()))

    @property
    def size(self) -> int:
        """Rows of the embedding table, the unknown one included."""
        return self.known + 1

    def rank(self, keys: Sequence[str]) -> Array:
        """int64: row of each key among *all* train keys, 0 where it was never seen: for statistics."""
        return (
            pc.index_in(pa.array(keys, pa.string()), value_set=self.keys).fill_null(-1).to_numpy().astype(np.int64) + 1
        )

    def lookup(self, keys: Sequence[str]) -> Array:
        """int64: row of the embedding table, 0 for rare and unseen keys."""
        rows = self.rank(keys)
        return np.where(rows <= self.known, rows, 0)
