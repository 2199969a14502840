"""The canonical events of one bucket: as they were delivered, or, where something is to be done, without repeats, with
feedback from files of its own joined, and without the earliest rows of very long users."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from mtrec_ray.config import Run
from mtrec_ray.data.filesystem import write_table_atomic
from mtrec_ray.data.preparing.shuffle import BucketFiles, read_bucket
from mtrec_ray.data.reading.events import ROW_BITS, delivered_schema, event_schema
from mtrec_ray.data.requests.bucket import IdOrder
from mtrec_ray.data.requests.deliveries import settle

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Source:
    """What all passes over buckets need, to read a bucket's events."""

    run: Run
    """Its `bucket_part`"""
    fs: pafs.FileSystem
    work: str
    """Folder for what later passes need again, which ends with this `prepare`"""
    ids: IdOrder
    source_of_file: Array
    """See `deliveries.sources_of`"""
    number_of_file: Array
    """int64: the numbers of all files in row ids"""


@dataclass(frozen=True)
class Settled:
    """What was done to one bucket."""

    counts: Counter[str]
    last: int
    """The last time that its rows mention, feedback of no exposure included; -1 of no rows"""


def must_settle(run: Run) -> bool:
    """Whether the run has something to be done."""
    return delivered_schema(run) != event_schema(run) or run.data.max_user_events is not None


def settle_bucket(files: BucketFiles, source: Source) -> Settled:
    """Writes the canonical events of a bucket to the work folder, where something is to be done."""
    if not must_settle(source.run):
        return Settled(Counter(), -1)
    delivered = read_bucket(files, source.fs, delivered_schema(source.run), files.places).combine_chunks()
    events, counts = settle(delivered, source.run, source.source_of_file)
    row_ids = events["row_id"].to_numpy()
    numbers = source.number_of_file[row_ids >> ROW_BITS] << ROW_BITS
    column = pa.chunked_array([pa.array(numbers | (row_ids & ((1 << ROW_BITS) - 1)))])
    events = events.set_column(events.column_names.index("row_id"), events.schema.field("row_id"), column)
    write_table_atomic(source.fs, _path(files, source), events)
    return Settled(counts, int(delivered["time"].to_numpy().max(initial=-1)))


def bucket_events(files: BucketFiles, source: Source) -> pa.Table:
    """The canonical events of a bucket, those of one user, item and time in the order of the files."""
    if not must_settle(source.run):
        return read_bucket(files, source.fs, event_schema(source.run), files.numbers)
    if source.fs.get_file_info(_path(files, source)).type != pafs.FileType.File:
        settle_bucket(files, source)
    with source.fs.open_input_file(_path(files, source)) as file:
        return pq.ParquetFile(file).read()


def _path(files: BucketFiles, source: Source) -> str:
    return f"{source.work}/settled/bucket-{files.number:05d}.parquet"
