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


class Total:
    """The sum of tallies that are added one after another, the same whatever the parts were; it grows with the distinct
    keys alone."""

    def __init__(self) -> None:
        self._place: dict[str, int] = {}
        self._sums: Array | None = None
        self._times: Array | None = None

    def add(self, part: Tally, times: Array | None = None) -> None:
        """`times`: int64 [K, count], the `earliest` of each key of the part; of all parts or of none."""
        place = self._place
        rows = np.array([place.setdefault(key, len(place)) for key in part.keys], dtype=np.int64)
        self._sums = _grown(self._sums, len(place), part.sums, 0)
        self._sums[rows] += part.sums
        if times is not None:
            self._times = _grown(self._times, len(place), times, NEVER)
            both = np.concatenate([self._times[rows], times], axis=1)
            self._times[rows] = np.sort(both, axis=1)[:, : times.shape[1]]

    def places(self, keys: Sequence[str]) -> Array:
        """int32: where keys that were added stand in the order in which they came, that of `keys`."""
        return np.fromiter(map(self._place.__getitem__, keys), dtype=np.int32, count=len(keys))

    def by_count(self) -> Tally:
        """Most frequent keys first, equals by key."""
        tally = self.tally()
        rows = tally.rows().tolist()
        return _ordered(tally, sorted(range(len(rows)), key=lambda k: (-rows[k], tally.keys[k])))

    def by_time(self) -> Tally:
        """The keys in the order in which they were seen often enough, by their earliest times; keys that are seen less
        than `count` times come last, and in the order of the keys.

        So what later rows add comes behind, and no key that had a row of a table gets another.
        """
        tally = self.tally()
        since = self.times()[:, -1].tolist()
        return _ordered(tally, sorted(range(len(since)), key=lambda k: (since[k], tally.keys[k])))

    def tally(self) -> Tally:
        """The keys in the order in which they came."""
        assert self._sums is not None, "nothing was added"
        return Tally(list(self._place), self._sums[: len(self._place)])

    def times(self) -> Array:
        """int64 [K, count] of the keys in that order."""
        assert self._times is not None, "no times were added"
        return self._times[: len(self._place)]


def merge(parts: Sequence[Tally]) -> Tally:
    """The sum of tallies, most frequent keys first, equals by key."""
    total = Total()
    for part in parts:
        total.add(part)
    return total.by_count()


def _ordered(tally: Tally, order: list[int]) -> Tally:
    return Tally([tally.keys[k] for k in order], tally.sums[order])


def _grown(array: Array | None, length: int, like: Array, empty: int) -> Array:
    """An array with room for so many rows of the type and shape of those of `like`: the given one, or one of at least
    twice its length."""
    if array is not None and len(array) >= length:
        return array
    room = max(length, 0 if array is None else 2 * len(array))
    grown = np.full((room, *like.shape[1:]), empty, dtype=like.dtype)
    if array is not None:
        grown[: len(array)] = array
    return grown


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
