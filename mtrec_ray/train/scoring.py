"""Scores of whole splits as `predictions.parquet`: a row per candidate, with all that recomputes every metric."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from mtrec_ray.data.filesystem import open_fs, write_table_atomic
from mtrec_ray.data.manifest import TaskEntry
from mtrec_ray.data.reading.context import CODED, weighs
from mtrec_ray.data.streaming.shards import Shards
from mtrec_ray.evaluate.facts import read_weights, shown_together
from mtrec_ray.evaluate.predictions import from_numpy
from mtrec_ray.train.evaluation import Scores

PREDICTIONS = "predictions.parquet"


def predictions_table(shards: Shards, scores: Scores, tasks: Sequence[TaskEntry]) -> pa.Table:
    """Columns `split, row_id, shown, user, item, time, label.<task>, score.<task>`, ascending by row id; of tasks that
    match users with items also `rank.<task>` and `catalogue.<task>`, null but for positives (see `train.ranks`).

    `shown`: the smallest row id of what was shown together. A task without labels has no columns.
    And `domain` and `policy` where the log has them, in its own words, which train rows may lack, and `weight` where it
    says how much rows count (`data.reading.context.row_weights`).

    Raises:
        RuntimeError: the scores are not of every candidate of the split, once each.
    """
    said = [name for name in CODED if f"{name}_name" in shards.schema().names]
    of_candidates = {"item": "item", "time": "time", **{name: f"{name}_name" for name in said}}
    table = shards.rows(np.arange(shards.num_requests), ["user", "row_id", "candidate_events", *of_candidates.values()])
    row_ids = table.column("row_id").combine_chunks()
    counts = np.diff(row_ids.offsets.to_numpy())
    order = np.argsort(row_ids.flatten().to_numpy(), kind="stable")
    expected = row_ids.flatten().to_numpy()[order]
    if not np.array_equal(expected, scores.row_ids):
        raise RuntimeError(f"{shards.split}: {len(scores.row_ids)} candidates scored, {len(expected)} prepared")
    request = np.repeat(np.arange(len(counts)), counts)
    events = table.column("candidate_events").combine_chunks().flatten().to_numpy()
    shown = shown_together(request, events, row_ids.flatten().to_numpy())
    user = table.column("user").combine_chunks().take(pa.array(request[order]))
    columns = {
        "split": pa.array([shards.split] * len(order), pa.string()),
        "row_id": pa.array(expected),
        "shown": pa.array(shown[order]),
        "user": user,
    }
    for name, column in of_candidates.items():
        columns[name] = table.column(column).combine_chunks().flatten().take(pa.array(order))
    if weighs(shards.context):
        columns["weight"] = pa.array(read_weights(shards)[1])
    labelled = [(t, task.name) for t, task in enumerate(tasks) if task.labels != "none"]
    columns |= {f"label.{name}": pa.array(scores.labels[:, t]) for t, name in labelled}
    columns |= {f"score.{name}": from_numpy(scores.scores[name]) for _, name in labelled}
    for name in scores.ranks:
        for what, values in (("rank", scores.ranks[name]), ("catalogue", scores.catalogue[name])):
            columns[f"{what}.{name}"] = pa.array(values, mask=values == 0)
    return pa.table(columns)


def write_predictions(run_folder: str, tables: Mapping[str, pa.Table]) -> None:
    """`predictions.parquet` of the run, all at once."""
    filesystem, root = open_fs(run_folder)
    write_table_atomic(filesystem, f"{root}/{PREDICTIONS}", pa.concat_tables(list(tables.values())))
