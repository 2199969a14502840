"""The baseline of tasks that match users with items: everyone wants what most wanted in train."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mtrec_ray.data.catalogue import Catalogue, CatalogueRows, load_catalogue
from mtrec_ray.data.manifest import Manifest, ShardEntry
from mtrec_ray.data.requests.ids import EVENT, ITEM
from mtrec_ray.data.requests.ragged import offsets_of, spans
from mtrec_ray.evaluate.candidates import flat, lengths, read_shard
from mtrec_ray.evaluate.scored import Scored
from mtrec_ray.tasks.matching import MatchingKind

_PLACES_AT_ONCE = 1 << 24
"""Rows times items that are compared at a time."""


def score(prepared: str, manifest: Manifest, kinds: dict[str, MatchingKind], splits: list[str]) -> Scored:
    """Scores log(1 + train positives of the item), and ranks as `train.ranks` has them; of these tasks alone.

    Equally popular items stand in the order of the catalogue, which nobody's wishes are in: to put all of them before
    the positive, as is done with a model's ties, would make the counts of a small log worse than they are.
    """
    catalogue = load_catalogue(prepared, manifest)
    assert catalogue is not None, "prepared data with tasks that match has a catalogue"
    popularity = {name: catalogue.positives[name] for name in kinds}
    order = {name: np.argsort(np.argsort(-counts, kind="stable")) for name, counts in popularity.items()}
    rows_of = CatalogueRows(catalogue)
    row_ids, scores, ranks = {}, {}, {}
    for split in splits:
        shards = [_read(prepared, entry, len(manifest.tasks), rows_of) for entry in manifest.shards[split]]
        row_ids[split] = np.concatenate([np.empty(0, np.int64), *(shard.row_id for shard in shards)])
        item = np.concatenate([np.empty(0, np.int64), *(shard.catalogue for shard in shards)])
        scores[split] = {name: np.log1p(counts[item]) for name, counts in popularity.items()}
        ranks[split] = {
            name: np.concatenate(
                [np.empty(0, np.int64), *(_ranks(shard, catalogue, order[name], kind) for shard in shards)]
            )
            for name, kind in kinds.items()
        }
    notes = {name: f"train positives of {int((counts > 0).sum()):,} items" for name, counts in popularity.items()}
    return Scored(row_ids, scores, notes, ranks)


class _Shard(NamedTuple):
    """C candidates, E history events."""

    row_id: np.ndarray
    """int64 [C]"""
    catalogue: np.ndarray
    """int64 [C] row of the item"""
    time: np.ndarray
    """int64 [C] µs"""
    labels: np.ndarray
    """float32 [C, T]"""
    first_event: np.ndarray
    """int64 [C]"""
    events: np.ndarray
    """int64 [C] events that the candidate sees"""
    event_catalogue: np.ndarray
    """int64 [E]"""


def _read(prepared: str, entry: ShardEntry, tasks: int, rows_of: CatalogueRows) -> _Shard:
    columns = ["row_id", ITEM, "time", "labels", "candidate_events", EVENT]
    table = read_shard(prepared, entry, columns)
    row_id = flat(table, "row_id")
    begins = offsets_of(lengths(table, EVENT))[:-1]
    return _Shard(
        row_id,
        rows_of.of(flat(table, ITEM)),
        flat(table, "time"),
        flat(table, "labels").reshape(len(row_id), tasks),
        np.repeat(begins, lengths(table, "row_id")),
        flat(table, "candidate_events").astype(np.int64),
        rows_of.of(flat(table, EVENT)),
    )


def _ranks(shard: _Shard, catalogue: Catalogue, place: np.ndarray, kind: MatchingKind) -> np.ndarray:
    """int64 [C], 0 for rows without a positive label; `place` int64 [I] of each item among all."""
    ranks = np.zeros(len(shard.row_id), dtype=np.int64)
    for rows in _parts(np.flatnonzero(shard.labels[:, kind.index] > 0), _PLACES_AT_ONCE // max(1, len(catalogue))):
        own = shard.catalogue[rows]
        before = (catalogue.first_seen <= shard.time[rows, None]) & (place < place[own, None])
        if kind.params.exclude_seen:
            seen = spans(shard.first_event[rows], shard.events[rows])
            before[np.repeat(np.arange(len(rows)), shard.events[rows]), shard.event_catalogue[seen]] = False
        ranks[rows] = 1 + before.sum(axis=1)
    return ranks


def _parts(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for first in range(0, len(rows), max(1, size)):
        yield rows[first : first + max(1, size)]
