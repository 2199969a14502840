"""The vector of an item: of its id, its categories, its text and its declared vectors."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mtrec_ray.config import Features, Matching
from mtrec_ray.data.catalogue import Catalogue
from mtrec_ray.data.id_hashes import hash_ids
from mtrec_ray.data.manifest import Manifest, VectorEntry
from mtrec_ray.model.dropout import DropoutContext, dropped_elements
from mtrec_ray.model.entries import Axis
from mtrec_ray.model.features import CategoryTable
from mtrec_ray.model.id_table import ExactTable, HashedTable, id_table
from mtrec_ray.model.vectors import VectorProjection

Array = np.ndarray[Any, np.dtype[Any]]
Embed = Callable[[Tensor], Tensor]
"""The backbone's token embeddings: int64 [...] -> [..., H]. A function, for at ZeRO-3 the weight is not there."""

_NUMBERS_AT_ONCE = 1 << 24
"""Embedded numbers that the vectors of a whole catalogue are made from at a time."""


class ItemVectors(nn.Module):
    """Rows of the catalogue int64 [N] -> [N, dim]: the sum of what is known of the item.

    - a vector of its id (`model.id_table`); in training a share of the items (`features.id_dropout`) is taken for
      unknown, so that the vector of the unknown, if there is one, is trained. Which ones depends on seed, step, item;
    - for each of its own categories the mean of the vectors of its values;
    - with a backbone, its text: the mean of the *token embeddings that the backbone begins with*, through a norm and a
      linear layer. It costs no pass through the backbone, so a catalogue of any size can be read anew at each
      evaluation, and new items have a vector; the order of the words does not count;
    - each of its declared vectors (`data.items.vectors`), projected (`model.vectors`). They stay where they are stored,
      and only those of the items that are asked for come to the device: of a million items with 768 numbers each they
      are 3 GB.
    """

    item_ids: Tensor
    categories: Tensor
    ids: Tensor
    starts: Tensor
    lengths: Tensor

    def __init__(
        self,
        manifest: Manifest,
        catalogue: Catalogue,
        config: Matching,
        features: Features,
        hidden_size: int | None,
        context: DropoutContext,
    ) -> None:
        """`hidden_size`: H of the backbone; None without one."""
        super().__init__()
        self.has_unit_length = config.similarity == "cosine"
        self.dropout, self.context = features.id_dropout, context
        self.table = id_table("ids.matching", "item", manifest.num_items, config.dim, 0.05, features)
        exact = isinstance(self.table, ExactTable)
        self.tables = nn.ModuleList(_category_tables(manifest, config.dim))
        self.longest = int(catalogue.text.lengths.max(initial=0))
        self.hidden_size = hidden_size if self.longest else None
        if self.hidden_size is not None:
            self.text = nn.Sequential(nn.LayerNorm(self.hidden_size), nn.Linear(self.hidden_size, config.dim))
        entries = [entry for entry in manifest.vectors if entry.scope == "item"]
        assert not entries or catalogue.vectors is not None, "a catalogue of data with item vectors is loaded with them"
        self.declared, self.declared_row = catalogue.vectors, catalogue.item_row
        self.declared_width = sum(entry.size for entry in entries)
        self.projections = nn.ModuleList(_projections(entries, config.dim))
        for name, values in (
            ("item_ids", catalogue.index if exact else hash_ids(catalogue.items.to_pylist(), "item")),
            ("categories", catalogue.categories),
            ("ids", np.append(catalogue.text.values, 0)),  # so that there is something to look up
            ("starts", catalogue.text.offsets[:-1]),
            ("lengths", catalogue.text.lengths),
        ):
            self.register_buffer(name, torch.tensor(values, dtype=torch.int64), persistent=False)

    def forward(self, rows: Tensor, embed: Embed | None) -> Tensor:
        vectors = self.table.known(self.item_ids[rows], self._dropped(rows))
        categories = self.categories[rows]
        for table in self.tables:
            assert isinstance(table, CategoryTable)
            vectors = vectors + table.of(categories)
        if self.hidden_size is not None:
            assert embed is not None
            mean = self._mean_embedding(rows, embed).to(vectors.dtype)
            vectors = vectors + torch.where(self.lengths[rows, None] > 0, self.text(mean), 0.0)
        if self.projections:
            declared = self._declared(rows).to(vectors)
            for projection in self.projections:
                vectors = vectors + projection(declared)
        return functional.normalize(vectors, dim=1) if self.has_unit_length else vectors

    @torch.no_grad()
    def all_of(self, rows: Tensor, embed: Embed | None) -> Tensor:
        """The same of many rows, part after part."""
        size = max(1, _NUMBERS_AT_ONCE // max(1, self.longest * (self.hidden_size or 1), self.declared_width))
        return torch.cat([self(part, embed) for part in rows.split(size)])

    def told_apart(self) -> Array:
        """int64 [I, .]: items with the same numbers have the same vector of their id."""
        if isinstance(self.table, HashedTable):
            return self.table.rows_of(self.item_ids).cpu().numpy()
        return self.item_ids[:, None].cpu().numpy()

    def entries(self) -> Mapping[str, Sequence[Axis]]:
        tables = [cast(CategoryTable, table).table.name for table in self.tables]
        projections = [cast(VectorProjection, projection).name for projection in self.projections]
        return {"tables": [tables], "projections": [projections]}

    def _dropped(self, rows: Tensor) -> Tensor | None:
        if not self.training or not self.dropout:
            return None
        if self.context.key is None:
            raise ValueError("id dropout of the item vectors needs a DropoutKey in training")
        return dropped_elements(rows, 1, self.context.key.salt("ids.matching"), self.dropout)[:, 0]

    def _declared(self, rows: Tensor) -> Tensor:
        """float32 [N, V] the items' declared vectors side by side; NaN in all of a missing one."""
        assert self.declared is not None
        assert self.declared_row is not None
        return torch.from_numpy(self.declared[self.declared_row[rows.cpu().numpy()]])

    def _mean_embedding(self, rows: Tensor, embed: Embed) -> Tensor:
        """[N, H] float32 at least; zeros for items without text.

        Each distinct token is embedded once, and no tensor holds a vector for each token of each item: with 8192
        negatives of 64 tokens that would be gigabytes. All tokens are looked up together, for at ZeRO-3 every worker
        must do so equally often, whatever its items are.
        """
        lengths = self.lengths[rows]
        first = lengths.cumsum(0) - lengths  # of each item's tokens, which stand one behind another
        shift = torch.repeat_interleave(self.starts[rows] - first, lengths)
        ids = self.ids[shift + torch.arange(len(shift), device=rows.device)]
        distinct, which = torch.unique(torch.cat([ids.new_zeros(1), ids]), return_inverse=True)  # of no tokens, too
        embedded = embed(distinct)
        embedded = embedded.to(torch.promote_types(embedded.dtype, torch.float32))
        return functional.embedding_bag(which[1:], embedded, first, mode="mean")


def _category_tables(manifest: Manifest, dim: int) -> Sequence[CategoryTable]:
    """Of the item's own categories, which stand side by side in the catalogue."""
    assert manifest.catalogue is not None
    tables, offset = [], 0
    for entry in manifest.categories:
        if entry.name in manifest.catalogue.categories:
            tables.append(CategoryTable(entry.model_copy(update={"offset": offset}), dim))
            offset += entry.width
    return tables


def _projections(entries: Sequence[VectorEntry], dim: int) -> Sequence[VectorProjection]:
    """Of the items' declared vectors, which are stored side by side in the order of the manifest."""
    projections, offset = [], 0
    for entry in entries:
        projections.append(VectorProjection(entry.model_copy(update={"offset": offset}), dim))
        offset += entry.size
    return projections
