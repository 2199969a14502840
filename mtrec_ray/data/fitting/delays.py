"""How late the feedback of tasks with a window comes, from a sample of train rows with label 1."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mtrec_ray.config import Run
from mtrec_ray.data.manifest import DelayEntry
from mtrec_ray.data.requests.bucket import Bucket
from mtrec_ray.data.requests.ids import hashed

Array = np.ndarray[Any, np.dtype[Any]]

SAMPLE = 1_000_000
"""Train rows that are kept, over all buckets: all, or those drawn by hash."""
RANKS = 100


def delayed(bucket: Bucket, run: Run) -> dict[str, Array]:
    """Task -> float64 [n, 2] of a bucket's train rows with label 1: seconds to the feedback, and to the end of what was
    known (infinite where there is no end)."""
    return {
        name: _delayed(bucket, t, run) for t, (name, task) in enumerate(run.tasks.items()) if task.window is not None
    }


def _delayed(bucket: Bucket, t: int, run: Run) -> Array:
    delays, elapsed = bucket.delays.delays[bucket.train, t], bucket.delays.elapsed[bucket.train]
    known = ~np.isnan(delays)
    row_ids = bucket.rows.row_id[bucket.candidates.row[bucket.train]]
    kept = np.argsort(hashed(row_ids[known]))[: max(SAMPLE // run.data.buckets, 1)]
    return np.stack([delays[known], np.nan_to_num(elapsed[known], nan=np.inf)], axis=1).astype(np.float64)[kept]


def delay_entry(window: float, parts: Sequence[Array]) -> DelayEntry | None:
    """From the samples of all buckets; None if they are empty.

    The delays of young rows are the short ones, since the late ones have not come yet; so quantiles are those of rows
    whose window is over. The mean is over all of them, for a log may be shorter than the window.
    """
    sample = np.concatenate(parts)
    if not len(sample):
        return None
    delays, elapsed = sample.T
    complete = np.sort(delays[elapsed >= window])
    ranks = np.arange(RANKS + 1) / RANKS
    return DelayEntry(
        window=window,
        mean=float(np.sort(delays).mean()),
        quantiles=np.quantile(complete, ranks).tolist() if len(complete) else [],
    )
