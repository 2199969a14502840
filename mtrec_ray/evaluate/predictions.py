"""Scores per row: `predictions.parquet` of a run, and the score files of baselines that are set beside it."""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mtrec_ray.data.filesystem import open_fs
from mtrec_ray.data.manifest import Manifest
from mtrec_ray.data.reading.context import CODED, weighs
from mtrec_ray.errors import DataError

Scores = dict[str, np.ndarray]
"""Task name -> [N], or [N, classes] for a multiclass task; a task that is absent was not scored."""


@dataclass(frozen=True)
class Rows:
    """N rows of one split of `predictions.parquet`."""

    row_id: np.ndarray
    """int64 [N]"""
    users: np.ndarray
    """int64 [N] a code per distinct user of the split"""
    items: np.ndarray
    """int64 [N] likewise"""
    shown: np.ndarray
    """int64 [N] the smallest row id of what was shown together; see `evaluate.facts.shown_together`"""
    user: pa.Array
    """string [N]"""
    item: pa.Array
    """string [N]"""
    said: dict[str, pa.Array]
    """string [N] per column of `domain` and `policy` that the log has, "" = it does not say of this row"""
    labels: Scores
    """[N] per task, NaN = not observed"""
    scores: Scores
    ranks: Scores = field(default_factory=dict)
    """[N] per task that matches users with items: see `Judged.ranks`"""
    weights: np.ndarray | None = None
    """float64 [N] see `Judged.weights`; None where the log has no column that says so"""


def read_table(path: str, columns: list[str]) -> pa.Table:
    """A Parquet file of scores; more columns than `columns` are welcome.

    Raises:
        DataError: no such file, not Parquet, or one of `columns` is missing.
    """
    filesystem, inner = open_fs(path)
    try:
        table = pq.read_table(inner, filesystem=filesystem)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; `mtrec train` or `mtrec score` writes predictions.") from error
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error
    missing = sorted(set(columns) - set(table.column_names))
    if missing:
        raise DataError(f"{path} lacks the columns {', '.join(missing)}; found {', '.join(table.column_names)}.")
    return table


def read_rows(path: str, manifest: Manifest) -> dict[str, Rows]:
    """`predictions.parquet` by split, in the manifest's order of splits."""
    tasks = [task.name for task in manifest.tasks if task.labels != "none"]
    names = [f"{part}.{task}" for part in ("label", "score") for task in tasks]
    weight = ["weight"] if weighs(manifest.context) else []
    table = read_table(path, ["split", "row_id", "shown", "user", "item", *weight, *names])
    splits = [split for split in manifest.shards if split in set(pc.unique(table.column("split")).to_pylist())]
    if not splits:
        raise DataError(f"{path} holds no rows of the splits {', '.join(manifest.shards)}.")
    return {split: _rows(_of_split(table, split), tasks, bool(weight)) for split in splits}


def _rows(table: pa.Table, tasks: list[str], weighed: bool) -> Rows:
    user, item = _strings(table, "user"), _strings(table, "item")
    return Rows(
        row_id=table.column("row_id").to_numpy(),
        users=_codes(user),
        items=_codes(item),
        shown=table.column("shown").to_numpy(),
        user=user,
        item=item,
        said={name: _strings(table, name) for name in CODED if name in table.column_names},
        labels={task: to_numpy(table.column(f"label.{task}")) for task in tasks},
        scores={task: to_numpy(table.column(f"score.{task}")) for task in tasks},
        ranks={
            task: np.nan_to_num(to_numpy(table.column(f"rank.{task}")))
            for task in tasks
            if f"rank.{task}" in table.column_names
        },
        weights=to_numpy(table.column("weight")) if weighed else None,
    )


def read_scores(path: str, split: str, row_id: np.ndarray, tasks: list[str], column: str = "score") -> Scores:
    """The scores that a file (`split, row_id, score.<task>`) gives to these rows [N], in their order; or `column:
    rank`, its ranks, NaN where there is none.

    A task without a column in the file, or whose scores are all null, is left out.

    Raises:
        DataError: a row that the file does not score: figures over different rows must not stand side by side.
    """
    table = _of_split(read_table(path, ["split", "row_id"]), split)
    places = positions(table.column("row_id").to_numpy(), row_id)
    if (places < 0).any():
        raise DataError(
            f"{path} scores {table.num_rows:,} rows of split '{split}', but not row_id {row_id[places < 0][0]} "
            f"({int((places < 0).sum()):,} of {len(row_id):,} rows missing). Both must come from the same prepared "
            "data."
        )
    columns = {task: f"{column}.{task}" for task in tasks if f"{column}.{task}" in table.column_names}
    chosen = {task: table.column(name).take(pa.array(places)) for task, name in columns.items()}
    return {task: to_numpy(values) for task, values in chosen.items() if values.null_count < len(values)}


def positions(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """int64 [len(wanted)]: where each wanted value stands in `keys`, -1 = nowhere."""
    if len(keys) == 0:
        return np.full(len(wanted), -1)
    order = np.argsort(keys, kind="stable")
    places = np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)
    return np.where(keys[order[places]] == wanted, order[places], -1)


def _codes(texts: pa.Array) -> np.ndarray:
    """int64 [N] a number per distinct text."""
    return texts.dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _strings(table: pa.Table, name: str) -> pa.Array:
    return table.column(name).combine_chunks().cast(pa.string())


def to_numpy(column: pa.ChunkedArray) -> np.ndarray:
    """float64 [N], or [N, K] of a list column; null = NaN."""
    column = column.combine_chunks()
    if pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        return np.asarray(column.flatten().to_numpy(zero_copy_only=False), dtype=np.float64).reshape(len(column), -1)
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)


def from_numpy(scores: np.ndarray) -> pa.Array:
    """The column that `to_numpy` reads back: float32, one number or a list per row."""
    if scores.ndim == 1:
        return pa.array(scores.astype(np.float32))
    flat = pa.array(scores.astype(np.float32).ravel())
    return pa.ListArray.from_arrays(pa.array(np.arange(len(scores) + 1, dtype=np.int32) * scores.shape[1]), flat)


def _of_split(table: pa.Table, split: str) -> pa.Table:
    return table.filter(pc.equal(table.column("split"), split))
