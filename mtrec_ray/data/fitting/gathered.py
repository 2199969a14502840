"""What all buckets collected, added up as it comes: it grows with the distinct users, items and texts of the log, and
with the rows that factors are fitted on, if an aggregate asks for these; but not with the buckets."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from mtrec_ray.data.features.factors import Interactions
from mtrec_ray.data.fitting.collect import Collected, KeptRows, Moments
from mtrec_ray.data.fitting.tally import Total, Vocabulary

Array = np.ndarray[Any, np.dtype[Any]]


class Gathered:
    """The sums of the buckets that were added."""

    def __init__(self) -> None:
        self.users, self.items, self.domains, self.policies = Total(), Total(), Total(), Total()
        self.categories: dict[str, Total] = defaultdict(Total)
        self.moments: list[Moments] = []
        """Of each bucket"""
        self.train_rows = 0
        self.event_items: set[str] = set()
        self.event_versions: set[int] = set()
        self.words: set[str] = set()
        self.queries: set[str] = set()
        self._rows: list[KeptRows] = []
        self._item: list[Array] = []
        """int32 [N] of each of these, the place of the item of each row in `items`"""

    @classmethod
    def of(cls, parts: Iterable[Collected]) -> "Gathered":
        gathered = cls()
        for part in parts:
            gathered.add(part)
        return gathered

    def add(self, part: Collected) -> None:
        """What one bucket collected; buckets are added in their order, which the last digits depend on."""
        self.users.add(part.users, part.user_times)
        self.items.add(part.items, part.item_times)
        self.domains.add(part.domains)
        self.policies.add(part.policies)
        for name, tally in part.categories.items():
            self.categories[name].add(tally)
        self.moments.append(part.moments)
        self.train_rows += int(part.users.rows().sum())
        self.event_items.update(part.event_items)
        self.event_versions.update(part.event_versions.tolist())
        self.words.update(part.words)
        self.queries.update(part.queries)
        if part.interactions is not None:
            self._item.append(self.items.places(part.interactions.items)[part.interactions.item])
            self._rows.append(replace(part.interactions, items=[], item=np.zeros(0, np.int32)))

    def interactions(
        self, items: Vocabulary, categories: dict[str, Vocabulary], widths: dict[str, int]
    ) -> Interactions | None:
        """The kept rows of all buckets in the order of (hash of the user, row id), with the rows of items and values;
        None if no aggregate needs them."""
        if not self._rows:
            return None
        user = np.concatenate([part.user for part in self._rows])
        order = np.lexsort((np.concatenate([part.row_id for part in self._rows]), user))
        rank = items.rank(self.items.tally().keys).astype(np.int32)
        codes = {}
        for name in self._rows[0].cells:
            cells = [part.cells[name] for part in self._rows]
            codes[name] = np.concatenate([c.codes(categories[name], widths[name])[c.cell] for c in cells])[order]
        return Interactions(
            user[order],
            rank[np.concatenate(self._item)[order]],
            np.concatenate([part.fold for part in self._rows])[order],
            np.concatenate([part.values for part in self._rows])[order],
            codes,
        )
