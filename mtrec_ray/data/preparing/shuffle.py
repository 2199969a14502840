"""First pass: log files -> canonical events, dealt to buckets by the hash of the user, as Parquet files.

Memory is bounded by one batch of rows per task. What a task writes depends on its file alone, so that it may run again.
"""

import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from mtrec_ray.config import Run
from mtrec_ray.data.filesystem import open_atomic
from mtrec_ray.data.reading.drift import Types, check_drift
from mtrec_ray.data.reading.events import QUARANTINE, event_schema
from mtrec_ray.data.reading.formats import column_types
from mtrec_ray.data.reading.log_files import LogFile, needed_columns
from mtrec_ray.data.reading.logs import read_events
from mtrec_ray.data.reading.tables import EntityTable
from mtrec_ray.data.reading.user_map import KnownUsers
from mtrec_ray.data.requests.bucket import IdOrder
from mtrec_ray.data.requests.ids import all_integers, bucket_of
from mtrec_ray.errors import DataError
from mtrec_ray.registry import suggest


@dataclass(frozen=True)
class FileCounts:
    """What one log file held."""

    rows_read: int
    reasons: Counter[str]
    example: str
    """The first bad row, with file and number; empty if there is none"""
    integer_users: bool
    integer_items: bool
    types: Counter[str] = field(default_factory=Counter)
    unmapped: int = 0
    """Rows whose user `data.user_map` does not know"""
    columns: Types = field(default_factory=dict)
    """Types of those of its columns that the run needs"""


@dataclass(frozen=True)
class ShuffleTask:
    """What every task of the pass is given."""

    run: Run
    fs: pafs.FileSystem
    work: str
    files: Sequence[LogFile]
    known_users: KnownUsers | None


def shuffle_file(item: tuple[int, LogFile], task: ShuffleTask) -> FileCounts:
    """Reads one file (its number, the file); writes `bucket-<b>/file-<n>.parquet` and `quarantine/file-<n>.parquet`."""
    index, file = item
    rows_read, unmapped, reasons, example, types = 0, 0, Counter[str](), "", Counter[str]()
    integers = {"user": True, "item": True}
    with ExitStack() as stack:
        writers: dict[str, pq.ParquetWriter] = {}

        def write(folder: str, table: pa.Table) -> None:
            if folder not in writers:
                path = f"{task.work}/{folder}/file-{index:05d}.parquet"
                stream = stack.enter_context(open_atomic(task.fs, path))
                writers[folder] = stack.enter_context(pq.ParquetWriter(stream, table.schema, compression="zstd"))
            writers[folder].write_table(table)

        for events in read_events(file, index, task.run, task.known_users, task.files):
            rows_read += events.rows_read
            unmapped += events.unmapped
            types.update(events.types)
            for bucket, part in _by_bucket(events.table, task.run.data.buckets):
                write(bucket_folder(bucket), part)
            for name in integers:
                integers[name] &= all_integers(pc.unique(events.table[name]).drop_null().to_pylist())
            if events.quarantine.num_rows:
                write("quarantine", events.quarantine)
                reasons.update(events.quarantine["reason"].to_pylist())
                example = example or _example(events.quarantine)
    found, needed = column_types(file), {needed.column for needed in needed_columns(task.run, file.feedback)}
    columns = {name: type for name, type in found.items() if name in needed}
    return FileCounts(rows_read, reasons, example, integers["user"], integers["item"], types, unmapped, columns)


def read_bucket(
    fs: pafs.FileSystem, work: str, bucket: int, run: Run, schema: Callable[[Run], pa.Schema] = event_schema
) -> pa.Table:
    """All canonical events of a bucket.

    Raises:
        DataError: the first pass wrote to a disk that this machine does not see.
    """
    if fs.get_file_info(work).type != pafs.FileType.Directory and fs.type_name in ("local", "hdfs"):
        raise DataError(
            f"data.prepared_dir: '{run.data.prepared_dir}' is not the same folder on every node; on several nodes it "
            "must be a shared folder or a URL."
        )
    folder = f"{work}/{bucket_folder(bucket)}"
    infos = fs.get_file_info(pafs.FileSelector(folder, allow_not_found=True))
    tables = [pq.read_table(path, filesystem=fs) for path in sorted(info.path for info in infos)]
    return pa.concat_tables([schema(run).empty_table(), *tables])


def bucket_folder(bucket: int) -> str:
    return f"bucket-{bucket:05d}"


def write_quarantine(fs: pafs.FileSystem, work: str, path: str, tables: Iterable[EntityTable | None]) -> Counter[str]:
    """Gathers the bad rows of all files and tables in one; returns the reasons of those of the tables."""
    bad = [(file, row) for table in tables if table is not None for file, row in table.bad]
    columns = [[f for f, _ in bad], *([getattr(row, key) for _, row in bad] for key in ("row", "reason", "content"))]
    infos = fs.get_file_info(pafs.FileSelector(f"{work}/quarantine", allow_not_found=True))
    with open_atomic(fs, path) as stream, pq.ParquetWriter(stream, QUARANTINE, compression="zstd") as writer:
        for info in sorted(infos, key=lambda info: info.path):
            writer.write_table(pq.read_table(info.path, filesystem=fs))
        writer.write_table(pa.table(columns, schema=QUARANTINE))
    return Counter(row.reason for _, row in bad)


def check_shuffled(files: Sequence[LogFile], counts: Sequence[FileCounts], run: Run, quarantine: str) -> IdOrder:
    """How ids compare, if there is enough to go on with.

    Raises:
        DataError: a column that changes its type, no rows, too many bad ones, none of the candidates' type
            (`behaviours`), or none of a type that a task looks for in feedback.
    """
    check_drift(files, [c.columns for c in counts], run)
    read, reasons = sum(c.rows_read for c in counts), sum((c.reasons for c in counts), Counter[str]())
    bad = reasons.total()
    if bad > run.data.max_bad_share * read:
        common = "; ".join(f"{reason} ({n})" for reason, n in reasons.most_common(3))
        example = next(c.example for c in counts if c.example)
        raise DataError(
            f"data.logs: {bad} of {read} rows ({bad / read:.1%}) cannot be used, more than data.max_bad_share "
            f"{run.data.max_bad_share:.1%}. Most common: {common}. For example {example}. All of them are in "
            f"'{quarantine}'. Correct the log or the config, or raise data.max_bad_share."
        )
    if read == bad:
        raise DataError(f"data.logs: the log is empty: no usable row in {len(counts)} file(s).")
    check_types(sum((c.types for c in counts), Counter[str]()), run)
    return IdOrder(all(c.integer_users for c in counts), all(c.integer_items for c in counts))


def check_types(types: Counter[str], run: Run) -> None:
    """`types`: rows of each event type. Raises `DataError` where none has the candidates' (`behaviours`), or one that a
    task looks for in feedback."""
    if run.data.layout == "behaviours" and not types[run.data.candidate_event or ""]:
        known = ", ".join(f"{name} ({n})" for name, n in types.most_common(8))
        raise DataError(
            f"data.candidate_event: no row has type '{run.data.candidate_event}' in column "
            f"'{run.data.columns.event}'. Found: {known}."
        )
    for name, task in run.tasks.items():
        if run.data.feedback and task.event is not None and not types[task.event]:
            raise DataError(
                f"tasks.{name}.event: no row of data.feedback has type '{task.event}'."
                f"{suggest(task.event, list(types))}"
            )


def _by_bucket(table: pa.Table, buckets: int) -> Iterable[tuple[int, pa.Table]]:
    users = table["user"].combine_chunks().dictionary_encode()
    of_user = np.array([bucket_of(user, buckets) for user in users.dictionary.to_pylist()], dtype=np.int64)
    of_row = of_user[users.indices.to_numpy()] if table.num_rows else np.zeros(0, dtype=np.int64)
    for bucket in np.unique(of_row).tolist():
        yield bucket, table.filter(pa.array(of_row == bucket))


def _example(quarantine: pa.Table) -> str:
    row: dict[str, Any] = quarantine.slice(0, 1).to_pylist()[0]
    return f"row {row['row']} of {posixpath.basename(row['file'])}: {row['reason']}: {row['content']}"
