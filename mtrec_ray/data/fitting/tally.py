"""Sums per key that add up over buckets: how vocabularies and statistics are fitted without holding the rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrec_ray.data.requests.rows import NEVER

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


def earliest(which: Array, times: Array, keys: int, count: int) -> Array:
    """int64 [keys, count]: the first times of each key, ascending, of rows with their key in `which` [N] and `times`
    int64 [N]; `NEVER` where it has fewer rows."""
    order = np.lexsort((times, which))
    which, times = which[order], times[order]
    place = np.arange(len(which)) - np.searchsorted(which, which)
    kept = place < count
    found = np.full((keys, count), NEVER, dtype=np.int64)
    found[which[kept], place[kept]] = times[kept]
    return found


def in_order(tally: Tally, parts: Sequence[tuple[Sequence[str], Array]]) -> Tally:
    """The tally with its keys in the order in which they were seen often enough, by their `earliest` times [., count]
    in all parts; keys that are seen less than `count` times come last, and in the order of the keys.

    So what later rows add comes behind, and no key that had a row of a table gets another.
    """
    place = {key: k for k, key in enumerate(tally.keys)}
    count = parts[0][1].shape[1]
    times = np.full((len(place), count), NEVER, dtype=np.int64)
    for keys, found in parts:
        rows = np.array([place[key] for key in keys], dtype=np.int64)
        times[rows] = np.sort(np.concatenate([times[rows], found], axis=1), axis=1)[:, :count]
    since = times[:, -1].tolist()
    order = sorted(range(len(place)), key=lambda k: (since[k], tally.keys[k]))
    return Tally([tally.keys[k] for k in order], tally.sums[order])


@dataclass(frozen=True)
class Vocabulary:
    """Keys with rows of a table: row 0 is the unknown one, the k-th key has row k + 1."""

    keys: pa.Array
    """string [K]; of ids in the order in which they were seen often enough, of others most frequent first"""
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
