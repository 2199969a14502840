"""Scores of whole splits as `predictions.parquet`: a row per candidate, with all that recomputes every metric."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from mtrec_ray.data.filesystem import open_fs, write_table_atomic
from mtrec_ray.data.manifest import TaskEntry
from mtrec_ray.data.streaming.shards import Shards
from mtrec_ray.evaluate.predictions import from_numpy
from mtrec_ray.train.evaluation import Scores

PREDICTIONS = "predictions.parquet"


def predictions_table(shards: Shards, scores: Scores, tasks: Sequence[TaskEntry]) -> pa.Table:
    """Columns `split, row_id, user, item, time, label.<task>, score.<task>`, ascending by row id.

    Raises:
        RuntimeError: the scores are not of every candidate of the split, once each.
    """
    table = shards.rows(np.arange(shards.num_requests), ["user", "row_id", "item", "time"])
    row_ids = table.column("row_id").combine_chunks()
    counts = np.diff(row_ids.offsets.to_numpy())
    order = np.argsort(row_ids.flatten().to_numpy(), kind="stable")
    expected = row_ids.flatten().to_numpy()[order]
    if not np.array_equal(expected, scores.row_ids):
        raise RuntimeError(f"{shards.split}: {len(scores.row_ids)} candidates scored, {len(expected)} prepared")
    user = table.column("user").combine_chunks().take(pa.array(np.repeat(np.arange(len(counts)), counts)[order]))
    columns = {
        "split": pa.array([shards.split] * len(order), pa.string()),
        "row_id": pa.array(expected),
        "user": user,
        "item": table.column("item").combine_chunks().flatten().take(pa.array(order)),
        "time": table.column("time").combine_chunks().flatten().take(pa.array(order)),
    }
    columns |= {f"label.{task.name}": pa.array(scores.labels[:, t]) for t, task in enumerate(tasks)}
    columns |= {f"score.{task.name}": from_numpy(scores.scores[task.name]) for task in tasks}
    return pa.table(columns)


def write_predictions(run_folder: str, tables: Mapping[str, pa.Table]) -> None:
    """`predictions.parquet` of the run, all at once."""
    filesystem, root = open_fs(run_folder)
    write_table_atomic(filesystem, f"{root}/{PREDICTIONS}", pa.concat_tables(list(tables.values())))
