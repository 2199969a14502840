"""The candidates of a prepared split as flat arrays, shard by shard, for whatever is computed without the model."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mtrec_ray.data.filesystem import open_fs, path_in
from mtrec_ray.data.manifest import Manifest, ShardEntry
from mtrec_ray.data.reading.context import row_weights
from mtrec_ray.errors import DataError


@dataclass(frozen=True)
class Candidates:
    """C candidates of one shard; T tasks, G category slots, F numbers in the manifest's order."""

    row_id: np.ndarray
    """int64 [C]"""
    item_index: np.ndarray
    """int32 [C], 0 = unknown"""
    history: np.ndarray
    """int32 [C] events that the candidate sees"""
    categories: np.ndarray
    """int32 [C, G], 0 = unknown, -1 = absent"""
    numbers: np.ndarray
    """float32 [C, F], NaN = missing"""
    labels: np.ndarray
    """float32 [C, T], NaN = not observed"""
    weights: np.ndarray
    """float64 [C] how much each row counts (`data.reading.context.row_weights`)"""


def read_shard(prepared: str, entry: ShardEntry, columns: list[str]) -> pa.Table:
    """Some columns of one shard's request rows. Raises `DataError` for a file that is not there or is damaged."""
    filesystem, root = open_fs(prepared)
    try:
        return pq.ParquetFile(path_in(root, entry.path), filesystem=filesystem).read(columns)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{prepared}/{entry.path} cannot be read ({error}). It is damaged: delete it, all files of its name and "
            "the prepared folder, and run `mtrec prepare` again."
        ) from error


def read_candidates(prepared: str, manifest: Manifest, split: str) -> Iterator[Candidates]:
    """The candidates of a split, one shard at a time, in the shards' order."""
    columns = ["row_id", "item_index", "candidate_events", "categories", "numbers", "labels", "context"]
    for entry in manifest.shards[split]:
        table = read_shard(prepared, entry, columns)
        row_id = flat(table, "row_id")
        yield Candidates(
            row_id=row_id,
            item_index=flat(table, "item_index"),
            history=flat(table, "candidate_events"),
            categories=flat(table, "categories").reshape(len(row_id), _slots(manifest)),
            numbers=flat(table, "numbers").reshape(len(row_id), len(manifest.numbers)),
            labels=flat(table, "labels").reshape(len(row_id), len(manifest.tasks)),
            weights=weights_of(table, manifest),
        )


def no_candidates(manifest: Manifest) -> Candidates:
    """What a split without rows holds."""
    none, integers = np.empty(0, np.int64), np.empty((0, _slots(manifest)), np.int32)
    numbers, labels = (np.empty((0, len(entries)), np.float32) for entries in (manifest.numbers, manifest.tasks))
    return Candidates(none, none, none, integers, numbers, labels, np.empty(0))


def weights_of(table: pa.Table, manifest: Manifest) -> np.ndarray:
    """float64 [C] of the candidates of request rows with the column `context`."""
    context = flat(table, "context").astype(np.float64)
    candidates = int(lengths(table, "row_id").sum())
    return row_weights(context.reshape(candidates, len(manifest.context)), manifest.context)


def _slots(manifest: Manifest) -> int:
    return max((category.offset + category.width for category in manifest.categories), default=0)


def flat(table: pa.Table, column: str) -> np.ndarray:
    """A list column's values, row after row."""
    return np.asarray(table.column(column).combine_chunks().flatten())


def lengths(table: pa.Table, column: str) -> np.ndarray:
    """int64 [R]: values in each row of a list column."""
    return np.asarray(pc.list_value_length(table.column(column).combine_chunks())).astype(np.int64)


def seen_in_train(prepared: str, manifest: Manifest) -> tuple[pa.Array, pa.Array]:
    """The distinct users and items of the train candidates."""
    users, items = pa.array([], pa.string()), pa.array([], pa.string())
    for entry in manifest.shards["train"]:
        table = read_shard(prepared, entry, ["user", "item"])
        users = pc.unique(pa.concat_arrays([users, table.column("user").combine_chunks().cast(pa.string())]))
        item = table.column("item").combine_chunks().flatten().cast(pa.string())
        items = pc.unique(pa.concat_arrays([items, item]))
    return users, items
