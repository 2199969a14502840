"""What kind `watch_time` is fitted on: how long items of similar duration are watched, from a sample of train rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mtrec_ray.config import Run
from mtrec_ray.data.features.attributes import Tables, number_columns, read_numbers
from mtrec_ray.data.manifest import DurationEntry
from mtrec_ray.data.requests.bucket import Bucket
from mtrec_ray.data.requests.ids import hashed
from mtrec_ray.tasks.columns import FeatureColumns

Array = np.ndarray[Any, np.dtype[Any]]

SAMPLE = 1_000_000
"""Train rows that are kept, over all buckets: all, or those drawn by hash."""
RANKS = 100


def watched(bucket: Bucket, run: Run, tables: Tables) -> dict[str, Array]:
    """`watch_time` task -> float64 [n, 2] duration and label of a bucket's train rows that have both.

    Raises:
        ConfigError: a duration that is no declared number.
    """
    tasks = {name: t for t, (name, task) in enumerate(run.tasks.items()) if task.kind == "watch_time"}
    return {name: _watched(name, bucket.labels[bucket.train, t], bucket, run, tables) for name, t in tasks.items()}


def _watched(name: str, labels: Array, bucket: Bucket, run: Run, tables: Tables) -> Array:
    chosen = bucket.candidates.row[bucket.train]
    scope, number = _duration(name, run)
    # In the precision in which both are stored, so that equal values stay equal.
    durations = read_numbers(scope, number, bucket.rows, tables)[chosen].astype(np.float32)
    known = ~np.isnan(labels) & (durations > 0) & np.isfinite(durations)
    kept = np.argsort(hashed(bucket.rows.row_id[chosen][known]))[: max(SAMPLE // run.data.buckets, 1)]
    return np.stack([durations[known], labels[known]], axis=1).astype(np.float64)[kept]


def duration_entry(name: str, parts: Sequence[Array], run: Run) -> DurationEntry | None:
    """From the samples of all buckets; None if they are empty."""
    from mtrec_ray.tasks.watch_time import WatchTime  # needs torch

    sample = np.concatenate(parts)
    if not len(sample):
        return None
    durations, labels = sample[:, 0], np.maximum(sample[:, 1], 0.0)
    params = WatchTime.check(name, run.tasks[name].params)
    assert isinstance(params, WatchTime.Params)
    shares = np.minimum(labels / durations, params.cap) / params.cap
    edges = _edges(durations, params.groups)
    group = np.searchsorted(edges, durations, side="right")
    ranks = np.arange(RANKS + 1) / RANKS
    return DurationEntry(
        share=float(np.sort(shares).mean()),
        edges=edges.tolist(),
        quantiles=[np.quantile(labels[group == g], ranks).tolist() for g in range(len(edges) + 1)],
    )


def _edges(durations: Array, groups: int) -> Array:
    """Ascending durations that cut the rows into at most so many groups, of as equal size as ties allow."""
    inner = np.quantile(durations, np.arange(1, groups) / groups, method="lower")
    return np.unique(inner[inner > durations.min()])


def _duration(name: str, run: Run) -> Any:
    """Scope and column of a task's duration."""
    columns = number_columns(run)
    known = FeatureColumns(numbers={number.feature: index for index, (_, number) in enumerate(columns)})
    where = f"tasks.{name}.params.duration"
    return columns[known.number(str(run.tasks[name].params.get("duration")), where)]
