"""Where the positives of a split stand among all items of the catalogue: what kinds that match are evaluated by."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mtrec_ray.data.batch import Batch
from mtrec_ray.data.catalogue import Catalogue
from mtrec_ray.model.history_attention import visible_pairs
from mtrec_ray.model.matching import Matcher, VectorPair
from mtrec_ray.model.recommender import Recommender
from mtrec_ray.tasks.kind import TaskKind
from mtrec_ray.tasks.matching import MatchingKind

Array = np.ndarray[Any, np.dtype[Any]]

_SCORES_AT_ONCE = 1 << 24
"""Rows times items whose scores are held at a time."""


class Ranked(NamedTuple):
    """Of C rows; 0 for rows without a positive label."""

    rank: Array
    """int64 [C] from 1"""
    size: Array
    """int64 [C] items that were ranked, the row's own included"""


@dataclass(frozen=True)
class _Index:
    """Items that the model cannot tell apart share one of U vectors, so their scores are equal to the last digit."""

    pair: VectorPair
    vectors: Tensor
    """[U, dim]"""
    which: Tensor
    """int64 [I]"""


class CatalogueRanks:
    """Ranks with the weights as they are; make it anew after training steps. All ranks make it together.

    A row with label 1 is ranked among the items that existed at its time (`first_seen` <= its time), its own always
    among them. Items with the same score stand before it: who cannot tell items apart is not helped by their order.
    With `exclude_seen` the items of the history that the row sees do not count, but for its own.
    """

    def __init__(self, model: Recommender, kinds: Sequence[TaskKind]) -> None:
        assert model.matcher is not None
        self._matcher: Matcher = model.matcher
        self._kinds = [kind for kind in kinds if isinstance(kind, MatchingKind)]
        items = self._matcher.pair_of(self._kinds[0].task.name).items  # all of them tell the same items apart
        first, which = told_apart(self._matcher.catalogue, items.told_apart())
        backbone: Any = model.backbone
        self._first_seen = self._matcher.first_seen
        rows, places = (torch.from_numpy(values).to(self._first_seen.device) for values in (first, which))
        self._indexes: list[_Index] = []
        for pair in self._matcher.pairs:
            assert isinstance(pair, VectorPair)
            vectors = pair.items.all_of(rows, None if backbone is None else backbone.embed)
            self._indexes.append(_Index(pair, vectors, places))

    def of(self, batch: Batch) -> dict[str, Ranked]:
        """Per task, for a batch that the model has just scored."""
        found = {}
        positive = {kind.task.name: (batch.labels[:, kind.index] > 0).cpu().numpy() for kind in self._kinds}
        for index, excludes in product(self._indexes, (False, True)):
            alike = [
                kind.task.name
                for kind in self._kinds
                if kind.task.name in index.pair.tasks and kind.params.exclude_seen == excludes
            ]
            if alike:
                rank, size = self._ranked(batch, index, np.any([positive[name] for name in alike], axis=0), excludes)
                for name in alike:
                    found[name] = Ranked(np.where(positive[name], rank, 0), np.where(positive[name], size, 0))
        return found

    @torch.no_grad()
    def _ranked(self, batch: Batch, index: _Index, asked: Array, excludes: bool) -> Ranked:
        """Of the rows of bool [C]."""
        rows = torch.from_numpy(np.flatnonzero(asked)).to(batch.catalogue.device)
        rank, size = (np.zeros(len(asked), dtype=np.int64) for _ in range(2))
        users = index.pair.user
        assert users is not None, "the model has scored the batch"
        for part in _parts(rows, _SCORES_AT_ONCE // max(1, len(index.which))):
            own = batch.catalogue[part]
            scores = (users[part] @ index.vectors.T)[:, index.which]
            counts = self._first_seen <= batch.times[part, None]
            if excludes:
                row, event = visible_pairs(batch.candidate_event_start[part], batch.candidate_event_end[part])
                counts[row, batch.event_catalogue[event]] = False
            counts.scatter_(1, own[:, None], False)
            before = (counts & (scores >= scores.gather(1, own[:, None]))).sum(1)
            places = part.cpu().numpy()
            rank[places] = 1 + before.cpu().numpy()
            size[places] = 1 + counts.sum(1).cpu().numpy()
        return Ranked(rank, size)


def _parts(rows: Tensor, size: int) -> Iterator[Tensor]:
    return iter(rows.split(max(1, size))) if len(rows) else iter(())


def told_apart(catalogue: Catalogue, ids: Array) -> tuple[Array, Array]:
    """int64 [U] an item of each kind that a model can tell apart, and int64 [I] which of them each item is.

    `ids`: see `ItemVectors.told_apart`. Of items that are alike there, categories, text and declared vectors are all
    there is.
    """
    text, vectors, vector_row = catalogue.text, catalogue.vectors, catalogue.item_row

    def described(row: int) -> tuple[bytes, bytes]:
        tokens = text.values[text.offsets[row] : text.offsets[row + 1]]
        return catalogue.categories[row].tobytes(), tokens.tobytes()

    alike = _split(np.unique(ids, axis=0, return_inverse=True)[1].ravel(), described)
    if vectors is not None and vector_row is not None:
        # digests, for the vectors of many items would fill the memory
        alike = _split(alike, lambda row: blake2b(vectors[vector_row[row]].tobytes(), digest_size=16).digest())
    first, which = np.unique(alike, return_inverse=True)
    return first, which.ravel()


def _split(alike: Array, further: Callable[[int], Hashable]) -> Array:
    """int64 [I]: of items whose numbers are alike (int64 [I]) and of whose rows the same is further known, the first
    row; it is asked for only where items are alike."""
    found, first = np.arange(len(alike)), dict[Hashable, int]()
    _, group, sizes = np.unique(alike, return_inverse=True, return_counts=True)
    for row in np.flatnonzero(sizes[group] > 1).tolist():
        found[row] = first.setdefault((int(group[row]), further(row)), row)
    return found
