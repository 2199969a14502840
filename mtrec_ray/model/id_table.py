"""Tables of the vectors of user and item ids, as `features.ids` has them."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from mtrec_ray.config import Features
from mtrec_ray.data.batch import Batch
from mtrec_ray.data.id_hashes import hashed_rows
from mtrec_ray.model.entries import Axis
from mtrec_ray.model.row_table import RowTable


class ExactTable(RowTable):
    """Ids as rows of the vocabulary int64 [...] -> [..., dim]; 0 is that of all ids that train does not know."""

    def known(self, ids: Tensor, dropped: Tensor | None) -> Tensor:
        """The same, where ids are taken for unknown that are dropped, bool [...]."""
        vectors: Tensor = self(ids if dropped is None else ids.masked_fill(dropped, 0))
        return vectors


class HashedTable(RowTable):
    """Ids as hashes int64 [...] -> [..., dim], the sum of the rows of each (`data.id_hashes`).

    Ids that train does not know read whatever others have made of their rows; there is no row for the unknown. An id
    that is dropped has a vector of zeros and changes no row.
    """

    def __init__(self, name: str, rows: int, dim: int, std: float, hashes: int) -> None:
        """`std`: of the sums."""
        super().__init__(name, rows, dim, std / hashes**0.5)
        self.hashes = hashes

    def entries(self) -> Mapping[str, Sequence[Axis]]:
        """None: in tables of one size an id has the same rows."""
        return {}

    def forward(self, ids: Tensor) -> Tensor:
        vectors: Tensor = super().forward(self.rows_of(ids))
        return vectors.sum(-2)

    def rows_of(self, ids: Tensor) -> Tensor:
        """int64 [..., hashes]"""
        return hashed_rows(ids, len(self.weight), self.hashes)

    def known(self, ids: Tensor, dropped: Tensor | None) -> Tensor:
        vectors: Tensor = self(ids)
        return vectors if dropped is None else torch.where(dropped[..., None], 0.0, vectors)


IdVectors = ExactTable | HashedTable


def id_table(name: str, of: Literal["user", "item"], known: int, dim: int, std: float, config: Features) -> IdVectors:
    """A table `dim` wide. `known`: rows of the vocabulary, for an exact one."""
    if config.ids == "exact":
        return ExactTable(name, known, dim, std)
    return HashedTable(name, config.user_rows if of == "user" else config.item_rows, dim, std, config.hashes)


def ids_of(batch: Batch, of: Literal["user", "item", "event"], table: IdVectors) -> Tensor:
    """int64 [C], or of the events' items [E], as the table reads them."""
    hashed = isinstance(table, HashedTable)
    if of == "user":
        return batch.user_hash if hashed else batch.user_index
    if of == "item":
        return batch.item_hash if hashed else batch.item_index
    return batch.event_hash if hashed else batch.event_item
