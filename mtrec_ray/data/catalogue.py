"""The catalogue of a prepared folder: every item of the log and of the item table, for tasks that match users against
all items (`labels.MATCHING`).

`catalogue.parquet`, a row per item in the order of their ids, the same however the log was cut:

`item string` · `hash int64` of the item (`data.id_hashes`) · `index int32` row of the item vocabulary, 0 = unknown to
train · `categories list<int32>` values of the item's own categories side by side, each as wide as in the manifest (0
unknown, -1 absent) · `ids list<int32>` tokens of its text, at most `history.candidate_tokens`; empty without text or
backbone · `first_seen int64` µs, the smallest time at which the log mentions it, or `data.items.published` if that is
earlier; null for items of the table alone of which nobody says since when they exist · `shown int64` train rows ·
`positives.<task> int64` train rows with label 1, per task that matches · with `data.items.vectors` also
`item_row int32` row of the stored vectors of items (`data.vectors`), 0 = not in the table.

Requests name items by their hashes, columns `item_hash` of candidates and `event_hash` of history events, which no
later item moves as it moves rows; the rows are looked up where requests are read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mtrec_ray.data.filesystem import open_fs
from mtrec_ray.data.manifest import Manifest
from mtrec_ray.data.requests.ids import RowsByHash
from mtrec_ray.data.requests.ragged import Ragged
from mtrec_ray.data.requests.rows import NEVER
from mtrec_ray.data.vectors import StoredVectors
from mtrec_ray.errors import DataError

Array = np.ndarray[Any, np.dtype[Any]]

CATALOGUE = "catalogue.parquet"
_POSITIVES = "positives."
_ITEM_ROW = "item_row"


@dataclass(frozen=True)
class Catalogue:
    """I items in the order of their ids."""

    items: pa.Array
    """string [I]"""
    hashes: Array
    """int64 [I], all different"""
    index: Array
    """int64 [I] row of the item vocabulary, 0 = unknown to train"""
    categories: Array
    """int64 [I, G] values of the item's own categories, 0 unknown, -1 absent"""
    text: Ragged
    """[I] int32 token ids"""
    first_seen: Array
    """int64 [I] µs; `NEVER` for items of which nobody says since when they exist"""
    shown: Array
    """int64 [I] train rows"""
    positives: dict[str, Array]
    """int64 [I] train rows with label 1, per task"""
    item_row: Array | None = None
    """int64 [I] row of `vectors`, 0 = not in the table; None where items have no vectors"""
    vectors: Array | None = None
    """float32 [1 + N, V], as `data.vectors` has them; None too where nobody has asked for them"""

    def __len__(self) -> int:
        return len(self.items)

    def to_table(self) -> pa.Table:
        width = self.categories.shape[1]
        widths = Ragged(self.categories.astype(np.int32).ravel(), np.arange(len(self) + 1) * width)
        stored = {} if self.item_row is None else {_ITEM_ROW: pa.array(self.item_row.astype(np.int32))}
        return pa.table(
            {
                "item": self.items,
                "hash": pa.array(self.hashes),
                "index": pa.array(self.index.astype(np.int32)),
                "categories": widths.to_arrow(),
                "ids": Ragged(self.text.values.astype(np.int32), self.text.offsets).to_arrow(),
                "first_seen": pa.array(self.first_seen, mask=self.first_seen == NEVER),
                "shown": pa.array(self.shown),
                **{f"{_POSITIVES}{task}": pa.array(counts) for task, counts in self.positives.items()},
                **stored,
            }
        )

    @classmethod
    def from_table(cls, table: pa.Table) -> "Catalogue":
        table = table.combine_chunks()
        categories, ids = (_ragged(table[name]) for name in ("categories", "ids"))
        return cls(
            items=_array(table["item"]),
            hashes=table["hash"].to_numpy(),
            index=table["index"].to_numpy().astype(np.int64),
            categories=categories.values.astype(np.int64).reshape(table.num_rows, -1),
            text=ids,
            first_seen=pc.fill_null(table["first_seen"], NEVER).to_numpy(),
            shown=table["shown"].to_numpy(),
            positives={
                name.removeprefix(_POSITIVES): table[name].to_numpy()
                for name in table.column_names
                if name.startswith(_POSITIVES)
            },
            item_row=table[_ITEM_ROW].to_numpy().astype(np.int64) if _ITEM_ROW in table.column_names else None,
        )


class CatalogueRows:
    """The rows of a catalogue by the hashes of its items."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._rows = RowsByHash(catalogue.hashes)

    def of(self, hashes: Array) -> Array:
        """int64 [N] of the items with these hashes, int64 [N].

        Raises:
            DataError: an item that the catalogue lacks.
        """
        found = self._rows.of(hashes)
        if missing := int((found < 0).sum()):
            raise DataError(
                f"{CATALOGUE}: {missing} of {len(found)} items of requests are not in it. The prepared "
                "folder is damaged; delete it and run `mtrec prepare` again."
            )
        return found


def load_catalogue(
    prepared: str, manifest: Manifest, stored: Mapping[str, StoredVectors] | None = None
) -> Catalogue | None:
    """The catalogue of a prepared folder; None where no task needs one.

    `stored`: the vectors of items and users (`data.vectors.load_vectors`), which a model needs of data that has some.

    Raises:
        DataError: the file is not what the manifest promises.
    """
    if manifest.catalogue is None:
        return None
    fs, root = open_fs(prepared)
    path, promised = manifest.catalogue.path, f"{manifest.catalogue.items} items"
    try:
        found = Catalogue.from_table(pq.read_table(f"{root}/{path}", filesystem=fs))
    except (OSError, pa.ArrowException, KeyError) as error:
        raise DataError(_damaged(prepared, path, str(error), promised)) from error
    if len(found) != manifest.catalogue.items:
        raise DataError(_damaged(prepared, path, f"{len(found)} items", promised))
    if any(entry.scope == "item" for entry in manifest.vectors) and found.item_row is None:
        raise DataError(_damaged(prepared, path, f"no column '{_ITEM_ROW}'", "vectors of items"))
    of_items = (stored or {}).get("item")
    return replace(found, vectors=None if of_items is None else of_items.values)


def _damaged(prepared: str, path: str, found: str, promised: str) -> str:
    return (
        f"{prepared}/{path}: found {found}, but the manifest promises {promised}. The prepared folder is damaged, or "
        "of an earlier version; delete it and run `mtrec prepare` again."
    )


def _array(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _ragged(column: pa.ChunkedArray) -> Ragged:
    lists = _array(column)
    return Ragged(lists.flatten().to_numpy(zero_copy_only=False), lists.offsets.to_numpy().astype(np.int64))
