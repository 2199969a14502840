"""The pass that makes canonical events of delivered ones, where something is to be done: repeats, feedback in files of
its own, very long users. A task holds one bucket."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.fs as pafs

from mtrec_ray.config import Run
from mtrec_ray.data.filesystem import write_table_atomic
from mtrec_ray.data.preparing.shuffle import bucket_folder, read_bucket
from mtrec_ray.data.reading.events import delivered_schema, event_schema
from mtrec_ray.data.requests.deliveries import settle

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class SettleTask:
    """What every task of the pass is given."""

    run: Run
    fs: pafs.FileSystem
    work: str
    settled: str
    """Where the canonical events go, in folders as those of `work`"""
    source_of_file: Array
    """See `deliveries.sources_of`"""


@dataclass(frozen=True)
class Settled:
    """What was done to one bucket."""

    counts: Counter[str]
    last: int
    """The last time that its rows mention, feedback of no exposure included; -1 of no rows"""


def must_settle(run: Run) -> bool:
    """Whether the run has something for this pass to do."""
    return delivered_schema(run) != event_schema(run) or run.data.max_user_events is not None


def settle_bucket(bucket: int, task: SettleTask) -> Settled:
    """Writes the canonical events of a bucket."""
    delivered = read_bucket(task.fs, task.work, bucket, task.run, delivered_schema).combine_chunks()
    events, counts = settle(delivered, task.run, task.source_of_file)
    write_table_atomic(task.fs, f"{task.settled}/{bucket_folder(bucket)}/all.parquet", events)
    return Settled(counts, int(delivered["time"].to_numpy().max(initial=-1)))
