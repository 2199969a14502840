"""Slices of the rows of a split: is the user, is the item known from train, how long is the history, which surface,
which logging policy."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrec_ray.data.manifest import Manifest
from mtrec_ray.evaluate.candidates import flat, read_shard, seen_in_train
from mtrec_ray.evaluate.predictions import Rows, positions

HISTORY_EDGES = (1, 5, 20, 100)
"""First length of each band after the empty history, in events that the candidate sees."""
MOST_VALUES = 8
"""Slices per column of `Rows.said`: its most frequent values, equally frequent ones by name."""


class Slicer:
    """Knows the train split's users and items and the history lengths; reads the shards once."""

    def __init__(self, prepared: str, manifest: Manifest) -> None:
        self.prepared, self.manifest = prepared, manifest
        self.users, self.items = seen_in_train(prepared, manifest)

    def slices(self, split: str, rows: Rows) -> dict[str, np.ndarray]:
        """Name -> bool [N]; slices without rows are left out. A row may lie in several."""
        warm_user, warm_item = _is_in(rows.user, self.users), _is_in(rows.item, self.items)
        named = {
            "user in train": warm_user,
            "user new": ~warm_user,
            "item in train": warm_item,
            "item new": ~warm_item,
        }
        history = self._history(split, rows.row_id)
        bands = np.digitize(history, HISTORY_EDGES)
        for band in range(len(HISTORY_EDGES) + 1):
            named[_band_name(band)] = (bands == band) & (history >= 0)
        for name, texts in rows.said.items():
            named |= _by_value(name, texts)
        return {name: mask for name, mask in named.items() if mask.any()}

    def _history(self, split: str, row_id: np.ndarray) -> np.ndarray:
        """int [N] events that each row sees; -1 for a row that the prepared split does not hold."""
        tables = [
            read_shard(self.prepared, entry, ["row_id", "candidate_events"]) for entry in self.manifest.shards[split]
        ]
        keys = np.concatenate([np.empty(0, np.int64), *(flat(table, "row_id") for table in tables)])
        lengths = np.concatenate([np.empty(0, np.int64), *(flat(table, "candidate_events") for table in tables)])
        if len(keys) == 0:
            return np.full(len(row_id), -1)
        places = positions(keys, row_id)
        return np.where(places < 0, -1, lengths[places])


def _by_value(name: str, texts: pa.Array) -> dict[str, np.ndarray]:
    """`policy random` -> bool [N], and so on; `no policy` where the log does not say."""
    counts = {entry["values"]: entry["counts"] for entry in pc.value_counts(texts).to_pylist()}
    values = sorted(counts, key=lambda value: (-counts[value], value))[:MOST_VALUES]
    return {
        f"{name} {value}" if value else f"no {name}": pc.equal(texts, value).to_numpy(zero_copy_only=False)
        for value in values
    }


def _is_in(values: pa.Array, known: pa.Array) -> np.ndarray:
    return pc.is_in(values, value_set=known).to_numpy(zero_copy_only=False)


def _band_name(band: int) -> str:
    if band == 0:
        return "history empty"
    low = HISTORY_EDGES[band - 1]
    if band == len(HISTORY_EDGES):
        return f"history {low}+"
    high = HISTORY_EDGES[band] - 1
    return f"history {low}" if low == high else f"history {low}–{high}"
