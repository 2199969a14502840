"""Where the positives of a split stand among all items of the catalogue: what kinds that match are evaluated by."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mtrec_ray.data.batch import Batch
from mtrec_ray.data.catalogue import Catalogue
from mtrec_ray.model.history_attention import visible_pairs
from mtrec_ray.model.matching import Matcher
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
class _Items:
    """Items that the model cannot tell apart share one of U vectors, so their scores are equal to the last digit."""

    vectors: Tensor
    """[U, dim]"""
    which: Tensor
    """int64 [I]"""
    first_seen: Tensor
    """int64 [I] µs"""


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
        catalogue = self._matcher.catalogue
        first, which = _told_apart(catalogue)
        backbone: Any = model.backbone
        device = self._matcher.items.index.device
        vectors = self._matcher.items.all_of(
            torch.from_numpy(first).to(device), None if backbone is None else backbone.embed
        )
        self._items = _Items(
            vectors, torch.from_numpy(which).to(device), torch.tensor(catalogue.first_seen, device=device)
        )

    def of(self, batch: Batch) -> dict[str, Ranked]:
        """Per task, for a batch that the model has just scored."""
        found = {}
        known: dict[bool, Ranked] = {}
        positive = (batch.labels[:, [kind.index for kind in self._kinds]] > 0).cpu().numpy()
        for kind, own in zip(self._kinds, positive.T, strict=True):
            excludes = kind.params.exclude_seen
            if excludes not in known:
                same = [other.params.exclude_seen == excludes for other in self._kinds]
                known[excludes] = self._ranked(batch, np.any(positive[:, same], axis=1), excludes)
            rank, size = known[excludes]
            found[kind.task.name] = Ranked(np.where(own, rank, 0), np.where(own, size, 0))
        return found

    @torch.no_grad()
    def _ranked(self, batch: Batch, asked: Array, excludes: bool) -> Ranked:
        """Of the rows of bool [C]."""
        rows = torch.from_numpy(np.flatnonzero(asked)).to(batch.catalogue.device)
        rank, size = (np.zeros(len(asked), dtype=np.int64) for _ in range(2))
        items, users = self._items, self._matcher.user
        assert users is not None, "the model has scored the batch"
        for part in _parts(rows, _SCORES_AT_ONCE // max(1, len(items.which))):
            own = batch.catalogue[part]
            scores = (users[part] @ items.vectors.T)[:, items.which]
            counts = items.first_seen <= batch.times[part, None]
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


def _told_apart(catalogue: Catalogue) -> tuple[Array, Array]:
    """int64 [U] an item of each kind that a model can tell apart, and int64 [I] which of them each item is.

    Items that train knows have vectors of their own; of the others categories and text are all there is.
    """
    alike: dict[tuple[bytes, bytes], int] = {}
    text, same_as = catalogue.text, np.arange(len(catalogue))
    for row in np.flatnonzero(catalogue.index == 0).tolist():
        ids = text.values[text.offsets[row] : text.offsets[row + 1]]
        same_as[row] = alike.setdefault((catalogue.categories[row].tobytes(), ids.tobytes()), row)
    first, which = np.unique(same_as, return_inverse=True)
    return first, which.ravel()
