"""Ids without a list of them: each names some rows of a table by its hash, and shares them with others by chance.

The k rows of an id are those that k hash functions give (Weinberger et al. 2009, "Feature Hashing for Large Scale
Multitask Learning", arXiv 0902.2206, with k = 1; Serra & Karatzoglou 2017, "Getting Deep Recommenders Fit: Bloom
Embeddings for Sparse Binary Input/Output Networks", arXiv 1706.03993; Svenstrup et al. 2017, "Hash Embeddings for
Efficient Word Representations", arXiv 1709.03933), and its vector is the sum of theirs. Two ids that share one row of k
still have vectors of their own. Where we differ: without the signs of Weinberger et al. and without the weights that
Svenstrup et al. learn for each id, which need a second table.

Prepared data holds the ids' own hashes, 64 bits; which rows these are is computed where a table is read, so the same
data serves tables of any size.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtrec_ray.config import Run
from mtrec_ray.data.manifest import CollisionEntry
from mtrec_ray.data.requests.ids import Of, hash_ids
from mtrec_ray.model.dropout import mix64

Array = np.ndarray[Any, np.dtype[Any]]
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
"""SplitMix64's step from one number to the next (Steele, Lea & Flood 2014)"""


def hashed_rows(hashes: Tensor, rows: int, count: int) -> Tensor:
    """int64 [...] -> int64 [..., count] below `rows`, ascending: of ids with the same rows the sums are equal to the
    last digit."""
    steps = torch.arange(1, count + 1, device=hashes.device) * _GAMMA
    found = torch.remainder(mix64(hashes[..., None] + steps), rows)
    return found.sort(dim=-1).values


def collisions(hashes: Array, of: Of, rows: int, count: int) -> CollisionEntry:
    """How many of the distinct ids int64 [n] share rows in a table of M rows with k of them for each id.

    Expected, for hashes by chance: an id with k different rows has one of them in common with another unless all k of
    each of the n - 1 others lie beside its own, so some = 1 - (1 - k / M)^(k (n - 1)). Another id has the same rows, so
    that no table of this size tells the two apart, if its k hashes are the first's in any order: all = 1 - (1 - k! /
    M^k)^(n - 1).
    """
    n = len(hashes)
    found = hashed_rows(torch.from_numpy(hashes), rows, count).numpy().reshape(n, count)
    _, group, sizes = np.unique(found, axis=0, return_inverse=True, return_counts=True)
    # A row that an id has twice is used by one id.
    first = np.concatenate([np.ones((n, 1), dtype=bool), found[:, 1:] != found[:, :-1]], axis=1)
    users = np.bincount(found[first], minlength=rows)
    alone, orders = 1 - count / rows, float(np.prod(np.arange(1, count + 1)))
    return CollisionEntry(
        of=of,
        ids=n,
        rows=rows,
        hashes=count,
        some=float((users[found] > 1).any(axis=1).mean()) if n else 0.0,
        all=float((sizes[group.ravel()] > 1).mean()) if n else 0.0,
        expected_some=1 - max(alone, 0.0) ** (count * max(n - 1, 0)),
        expected_all=float(-np.expm1(max(n - 1, 0) * np.log1p(-min(orders / rows**count, 1 - 1e-16)))),
    )


def table_collisions(users: Sequence[str], items: Sequence[str], run: Run) -> list[CollisionEntry]:
    """Of the different ids of the train rows in the run's hashed tables; none of exact ones."""
    features = run.features
    if features.ids == "exact":
        return []
    return [
        collisions(hash_ids(users, "user"), "user", features.user_rows, features.hashes),
        collisions(hash_ids(items, "item"), "item", features.item_rows, features.hashes),
    ]


def collision_notes(entries: Sequence[CollisionEntry]) -> list[str]:
    """One line for each table."""
    return [
        f"{entry.ids:,} {entry.of}s in {entry.rows:,} rows, {entry.hashes} for each: {entry.some:.2%} share some of "
        f"them with another ({entry.expected_some:.2%} expected), {entry.all:.2%} all ({entry.expected_all:.2%})"
        for entry in entries
    ]
