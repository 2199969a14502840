"""Identifiers: a hash that is the same on every machine, and the order in which ties are resolved."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Literal

import numpy as np

IntArray = np.ndarray[Any, np.dtype[np.int64]]
Of = Literal["user", "item"]

USER, ITEM, EVENT = "user_hash", "item_hash", "event_hash"
"""Columns of a request with hashed id tables (`data.id_hashes`): int64 of its user, and lists of its candidates' and
its events' items."""


def stable_hash(text: str, salt: str) -> int:
    """64 bits of BLAKE2 of `text`, the same in every process. Each use has its own `salt` of at most 16 bytes."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8, salt=salt.encode()).digest(), "little")


def hashed(row_ids: IntArray) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """uint64 [N]: SplitMix64 of each id (Steele, Lea, Flood 2014); a sample drawn by it is the same everywhere."""
    with np.errstate(over="ignore"):
        z = row_ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def hash_ids(ids: Sequence[str], of: Of) -> IntArray:
    """int64 [N] for hashed id tables; each different id is hashed once, so repeat them as you like."""
    known = {key: stable_hash(key, f"ids.{of}") for key in dict.fromkeys(ids)}
    return np.array([known[key] for key in ids], dtype=np.uint64).view(np.int64)


def first_repeat(hashes: IntArray) -> tuple[int, int] | None:
    """The places of two equal hashes of different ids, if there are any: by chance once in 2^64 pairs."""
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    return (int(order[same[0]]), int(order[same[0] + 1])) if len(same) else None


class RowsByHash:
    """The rows of a table by the hashes of what they are of."""

    def __init__(self, hashes: IntArray) -> None:
        """int64 [N], all different."""
        self._order = np.argsort(hashes)
        self._hashes = hashes[self._order]

    def of(self, hashes: IntArray) -> IntArray:
        """int64 [n] of the rows with these hashes, int64 [n]; -1 = none."""
        place = np.searchsorted(self._hashes, hashes)
        known = place < len(self._hashes)
        known[known] = self._hashes[place[known]] == hashes[known]
        found = np.full(len(hashes), -1, dtype=np.int64)
        found[known] = self._order[place[known]]
        return found


def bucket_of(user: str, buckets: int) -> int:
    """Which of the `buckets` holds all rows of this user."""
    return stable_hash(user, "bucket") % buckets


def fold_of(user: str, folds: int) -> int:
    """The user's fold for out-of-fold statistics; independent of the bucket."""
    return stable_hash(user, "fold") % folds


def all_integers(ids: Sequence[str]) -> bool:
    """Whether every id parses as a signed 64-bit integer."""
    try:
        np.array([int(i) for i in ids], dtype=np.int64)
    except (ValueError, OverflowError):
        return False
    return True


def order_keys(ids: Sequence[str], as_integers: bool) -> IntArray:
    """int64 [N] keys of distinct ids that sort as the ids do: as integers, or else as strings (their ranks)."""
    if as_integers:
        return np.array([int(i) for i in ids], dtype=np.int64)
    ranks = np.empty(len(ids), dtype=np.int64)
    ranks[np.argsort(np.array(ids, dtype=object), kind="stable")] = np.arange(len(ids))
    return ranks
