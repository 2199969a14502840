"""Side features of a candidate: what is known of user, item and moment beside the text."""

from collections.abc import Mapping, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from mtrec_ray.config import Features
from mtrec_ray.data.batch import Batch
from mtrec_ray.data.manifest import CategoryEntry, Manifest
from mtrec_ray.errors import ConfigError
from mtrec_ray.model.dropout import DropoutContext, StatelessDropout, dropped_elements
from mtrec_ray.model.entries import Axis, numbered
from mtrec_ray.model.history_attention import HistoryAttention
from mtrec_ray.model.id_table import id_table, ids_of
from mtrec_ray.model.interactions import Interactions
from mtrec_ray.model.numeric import NumberEncoder
from mtrec_ray.model.row_table import RowTable
from mtrec_ray.model.vectors import VectorProjection


class SideFeatures(nn.Module):
    """`Batch` -> [C, out_dim]: id tables, categories, numbers, vectors and history attention, read by a small network.

    Which parts there are is up to the config's `features` and to what the data holds. `context` gives the dropouts
    their key and the candidates' uids. `further`: other parts by name, each with an `out_dim`.
    """

    def __init__(
        self, manifest: Manifest, config: Features, context: DropoutContext, further: Mapping[str, nn.Module]
    ) -> None:
        super().__init__()
        parts: dict[str, nn.Module] = {}
        if config.user_dim:
            parts["ids.user"] = IdTable("user", manifest.num_users, config.user_dim, config, context)
        if config.item_dim:
            parts["ids.item"] = IdTable("item", manifest.num_items, config.item_dim, config, context)
        if config.category_dim:
            parts |= {f"category.{e.name}": CategoryTable(e, config.category_dim) for e in manifest.categories}
        if manifest.numbers:
            parts["numbers"] = NumberEncoder(manifest.numbers, config.number_dim)
        parts |= {f"vector.{e.scope}.{e.name}": VectorProjection(e, config.vector_dim) for e in manifest.vectors}
        if config.history_dim:
            items = id_table("ids.history", "item", manifest.num_items, config.history_dim, 0.1, config)
            parts["history"] = HistoryAttention(items, manifest.tasks, config.history_gaps)
        parts |= further
        self.parts, self._names = nn.ModuleList(parts.values()), list(parts)
        width = sum(cast(int, part.out_dim) for part in parts.values())
        self.interactions = _interactions(parts) if config.interactions else None
        if self.interactions is not None:
            width += self.interactions.out_dim
        self.network, self.out_dim = mlp(width, config.hidden if parts else [], config.dropout, "features", context)

    def forward(self, batch: Batch) -> Tensor:
        found = [part(batch.vectors if isinstance(part, VectorProjection) else batch) for part in self.parts]
        if self.interactions is not None:
            embedded = [vectors for vectors, part in zip(found, self.parts, strict=True) if isinstance(part, _EMBEDDED)]
            found.append(self.interactions(embedded))
        side: Tensor = (
            self.network(torch.cat(found, dim=1)) if found else batch.numbers.new_zeros(len(batch.row_ids), 0)
        )
        return side

    def columns(self) -> list[str]:
        """Names of the output's columns."""
        return numbered("side feature", self.out_dim) if len(self.network) else self._read()

    def entries(self) -> Mapping[str, Sequence[Axis]]:
        return {"parts": [self._names], "network.0.weight": [None, self._read()]}

    def _read(self) -> list[str]:
        """Names of the columns that the parts give, side by side."""
        found: list[str] = []
        for name, part in zip(self._names, self.parts, strict=True):
            found += part.columns() if isinstance(part, NumberEncoder) else numbered(name, cast(int, part.out_dim))
        return found + ([] if self.interactions is None else self.interactions.columns())


class IdTable(nn.Module):
    """The vectors of users or of items: `Batch` -> [C, out_dim].

    In training a share of the ids is taken for unknown, which trains the vector of the unknown, if there is one, and
    keeps the network from leaning on ids alone. Which ones is a function of seed, step and row, not of the worker.
    """

    first_deviation = 0.05
    """Of the elements of the first vectors."""

    def __init__(
        self, name: Literal["user", "item"], known: int, dim: int, config: Features, context: DropoutContext
    ) -> None:
        """`known`: rows of the vocabulary."""
        super().__init__()
        self.name, self.dropout, self.context = name, config.id_dropout, context
        self.table = id_table(f"ids.{name}", name, known, dim, self.first_deviation, config)
        self.out_dim = dim

    def forward(self, batch: Batch) -> Tensor:
        dropped = None
        key, uids = self.context.key, self.context.uids
        if self.training and self.dropout:
            if key is None or uids is None:
                raise ValueError(f"id dropout of the {self.name} table needs a DropoutKey in training")
            dropped = dropped_elements(uids, 1, key.salt(f"ids.{self.name}"), self.dropout)[:, 0]
        return self.table.known(ids_of(batch, self.name, self.table), dropped)


class CategoryTable(nn.Module):
    """The mean of the vectors of a candidate's values of one category; zero if it has none: `Batch` -> [C, out_dim]."""

    first_deviation = 0.05
    """Of the elements of a value's first vector."""

    def __init__(self, entry: CategoryEntry, dim: int) -> None:
        super().__init__()
        self.columns = slice(entry.offset, entry.offset + entry.width)
        self.table = RowTable(f"category.{entry.name}", entry.size, dim, self.first_deviation)
        self.out_dim = dim

    def forward(self, batch: Batch) -> Tensor:
        return self.of(batch.categories)

    def of(self, categories: Tensor) -> Tensor:
        """int64 [N, G] -> [N, out_dim]"""
        values = categories[:, self.columns]
        present = (values >= 0)[..., None]
        vectors: Tensor = (self.table(values.clamp(min=0)) * present).sum(1)
        return vectors / present.sum(1).clamp(min=1)


_EMBEDDED = (IdTable, CategoryTable, VectorProjection)


def _interactions(parts: Mapping[str, nn.Module]) -> Interactions:
    embedded = {name: part for name, part in parts.items() if isinstance(part, _EMBEDDED)}
    if len(embedded) < 2:
        raise ConfigError(
            "features.interactions: true needs at least two of id tables, categories and vectors, found "
            f"{', '.join(embedded) or 'none'}; set it to false, or declare more of them in `data`."
        )
    return Interactions(
        {name: part.out_dim for name, part in embedded.items()}, [part.first_deviation for part in embedded.values()]
    )


def mlp(width: int, hidden: list[int], dropout: float, name: str, context: DropoutContext) -> tuple[nn.Sequential, int]:
    """Linear, ReLU, dropout for each of `hidden`, and the width of the last; dropouts are named after `name`."""
    layers: list[nn.Module] = []
    for i, size in enumerate(hidden):
        layers += [nn.Linear(width, size), nn.ReLU(), StatelessDropout(dropout, f"{name}.{i}", context)]
        width = size
    return nn.Sequential(*layers), width
