"""Side features of a candidate: what is known of user, item and moment beside the text."""

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from mtrec_ray.config import Features
from mtrec_ray.data.batch import Batch
from mtrec_ray.data.manifest import CategoryEntry, Manifest
from mtrec_ray.model.dropout import DropoutContext, StatelessDropout, dropped_elements
from mtrec_ray.model.history_attention import HistoryAttention
from mtrec_ray.model.numeric import NumberEncoder


class SideFeatures(nn.Module):
    """`Batch` -> [C, out_dim]: id tables, categories, numbers and history attention, read by a small network.

    Which parts there are is up to the config's `features` and to what the data holds. `context` gives the dropouts
    their key and the candidates' uids. `further`: other parts, each with an `out_dim`.
    """

    def __init__(
        self, manifest: Manifest, config: Features, context: DropoutContext, further: Sequence[nn.Module] = ()
    ) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        if config.user_dim:
            parts.append(IdTable("user", manifest.num_users, config.user_dim, config.id_dropout, context))
        if config.item_dim:
            parts.append(IdTable("item", manifest.num_items, config.item_dim, config.id_dropout, context))
        if config.category_dim:
            parts += [CategoryTable(entry, config.category_dim) for entry in manifest.categories]
        if manifest.numbers:
            parts.append(NumberEncoder(manifest.numbers, config.number_dim))
        if config.history_dim:
            parts.append(HistoryAttention(manifest.num_items, manifest.tasks, config.history_dim))
        parts += further
        self.parts = nn.ModuleList(parts)
        width = sum(cast(int, part.out_dim) for part in parts)
        self.network, self.out_dim = mlp(width, config.hidden if parts else [], config.dropout, "features", context)

    def forward(self, batch: Batch) -> Tensor:
        found = [part(batch) for part in self.parts]
        side: Tensor = (
            self.network(torch.cat(found, dim=1)) if found else batch.numbers.new_zeros(len(batch.row_ids), 0)
        )
        return side


class IdTable(nn.Module):
    """One learned vector per user or item: `Batch` -> [C, out_dim]. Row 0 stands for unknown ids.

    In training a share of the ids is taken for unknown, which trains row 0 and keeps the network from leaning on ids
    alone. Which ones is a function of seed, step and row, not of the worker.
    """

    def __init__(
        self, name: Literal["user", "item"], rows: int, dim: int, dropout: float, context: DropoutContext
    ) -> None:
        super().__init__()
        self.name, self.dropout, self.context = name, dropout, context
        self.table = nn.Embedding(rows, dim)
        nn.init.normal_(self.table.weight, std=0.05)
        self.out_dim = dim

    def forward(self, batch: Batch) -> Tensor:
        index = batch.user_index if self.name == "user" else batch.item_index
        key, uids = self.context.key, self.context.uids
        if self.training and self.dropout:
            if key is None or uids is None:
                raise ValueError(f"id dropout of the {self.name} table needs a DropoutKey in training")
            dropped = dropped_elements(uids, 1, key.salt(f"ids.{self.name}"), self.dropout)[:, 0]
            index = index.masked_fill(dropped, 0)
        vectors: Tensor = self.table(index)
        return vectors


class CategoryTable(nn.Module):
    """The mean of the vectors of a candidate's values of one category; zero if it has none: `Batch` -> [C, out_dim]."""

    def __init__(self, entry: CategoryEntry, dim: int) -> None:
        super().__init__()
        self.columns = slice(entry.offset, entry.offset + entry.width)
        self.table = nn.Embedding(entry.size, dim)
        nn.init.normal_(self.table.weight, std=0.05)
        self.out_dim = dim

    def forward(self, batch: Batch) -> Tensor:
        return self.of(batch.categories)

    def of(self, categories: Tensor) -> Tensor:
        """int64 [N, G] -> [N, out_dim]"""
        values = categories[:, self.columns]
        present = (values >= 0)[..., None]
        vectors: Tensor = (self.table(values.clamp(min=0)) * present).sum(1)
        return vectors / present.sum(1).clamp(min=1)


def mlp(width: int, hidden: list[int], dropout: float, name: str, context: DropoutContext) -> tuple[nn.Sequential, int]:
    """Linear, ReLU, dropout for each of `hidden`, and the width of the last; dropouts are named after `name`."""
    layers: list[nn.Module] = []
    for i, size in enumerate(hidden):
        layers += [nn.Linear(width, size), nn.ReLU(), StatelessDropout(dropout, f"{name}.{i}", context)]
        width = size
    return nn.Sequential(*layers), width
