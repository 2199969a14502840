"""First pass: log files -> canonical events, dealt to buckets by the hash of the user, as Parquet files.

Memory is bounded by one batch of rows per task. What a task writes depends on its file alone, and is a piece that is
kept: rows have their numbers in the file, and no id, as long as nobody knows which files there are.
"""

import hashlib
import io
import posixpath
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from mtrec_ray.config import Run
from mtrec_ray.data.filesystem import FoundFile, open_atomic
from mtrec_ray.data.preparing.dealing import dealt
from mtrec_ray.data.preparing.pieces import Pieces, key_of
from mtrec_ray.data.reading.drift import Types, check_drift
from mtrec_ray.data.reading.events import QUARANTINE, ROW_BITS
from mtrec_ray.data.reading.formats import column_types
from mtrec_ray.data.reading.log_files import LogFile, needed_columns
from mtrec_ray.data.reading.logs import read_events
from mtrec_ray.data.reading.tables import EntityTable
from mtrec_ray.data.reading.user_map import KnownUsers
from mtrec_ray.data.requests.bucket import IdOrder
from mtrec_ray.data.requests.ids import all_integers
from mtrec_ray.errors import DataError
from mtrec_ray.registry import suggest

READ = "read"
_QUARANTINE = "quarantine.parquet"


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
    buckets: dict[int, str] = field(default_factory=dict)
    """SHA-256 of what was written for each bucket"""


@dataclass(frozen=True)
class ShuffleTask:
    """What every task of the pass is given."""

    run: Run
    """Its `reading_part`"""
    pieces: Pieces
    files: Sequence[LogFile]
    known_users: KnownUsers | None


@dataclass(frozen=True)
class BucketFiles:
    """Where the events of one bucket lie."""

    number: int
    """Of the bucket"""
    key: str
    """Digest of all that they depend on"""
    paths: list[str]
    """One per file that has some, in the order of the files"""
    places: list[int]
    """Of these files in the list of all"""
    numbers: list[int]
    """Of these files in row ids"""


def shuffle_file(item: tuple[int, LogFile, str], task: ShuffleTask) -> FileCounts:
    """Reads one file (its place, the file, its key); writes `<key>/bucket-<b>.parquet` and, of bad rows,
    `<key>/quarantine.parquet`."""
    index, file, key = item
    rows_read, unmapped, reasons, example, types = 0, 0, Counter[str](), "", Counter[str]()
    integers = {"user": True, "item": True}
    with ExitStack() as stack:
        writers: dict[str, pq.ParquetWriter] = {}
        written: dict[str, _Hashed] = {}

        def write(name: str, table: pa.Table) -> None:
            if name not in writers:
                stream = stack.enter_context(open_atomic(task.pieces.fs, task.pieces.path(READ, key, f"/{name}")))
                written[name] = _Hashed(stream)
                writers[name] = stack.enter_context(pq.ParquetWriter(written[name], table.schema, compression="zstd"))
            writers[name].write_table(table)

        for events in read_events(file, index, task.run, task.known_users, task.files):
            rows_read += events.rows_read
            unmapped += events.unmapped
            types.update(events.types)
            for bucket, part in enumerate(dealt(events.table, "user", task.run.data.buckets)):
                if part.num_rows:
                    write(_bucket_name(bucket), _numbered(part, pc.bit_wise_and(part["row_id"], (1 << ROW_BITS) - 1)))
            for name in integers:
                integers[name] &= all_integers(pc.unique(events.table[name]).drop_null().to_pylist())
            if events.quarantine.num_rows:
                write(_QUARANTINE, events.quarantine)
                reasons.update(events.quarantine["reason"].to_pylist())
                example = example or _example(events.quarantine)
    found, needed = column_types(file), {needed.column for needed in needed_columns(task.run, file.feedback)}
    columns = {name: type for name, type in found.items() if name in needed}
    digests = {name: stream.sha256.hexdigest() for name, stream in written.items()}
    buckets = {b: digests[name] for b in range(task.run.data.buckets) if (name := _bucket_name(b)) in digests}
    integer_users, integer_items = integers["user"], integers["item"]
    return FileCounts(rows_read, reasons, example, integer_users, integer_items, types, unmapped, columns, buckets)


def file_key(file: LogFile, run: Run, user_map: Sequence[FoundFile]) -> str:
    """The key of what is read of a file. `run`: its `reading_part`; `user_map`: the files of that map."""
    stamps = [(found.path, found.size, found.mtime_ns) for found in user_map]
    said = (file.path, file.format, file.size, file.mtime_ns, file.feedback, file.partitions)
    return key_of(READ, run, *said, stamps)


def bucket_files(
    files: Sequence[LogFile], keys: Sequence[str], counts: Sequence[FileCounts], pieces: Pieces, run: Run, *beside: Any
) -> list[BucketFiles]:
    """Every bucket's files, of whose rows the key depends, and `beside`, on what else all that is made of them does."""
    found = []
    for bucket in range(run.data.buckets):
        places = [i for i, c in enumerate(counts) if bucket in c.buckets]
        rows = [(counts[i].buckets[bucket], files[i].number, files[i].feedback) for i in places]
        found.append(
            BucketFiles(
                number=bucket,
                key=key_of("bucket", run, beside, rows),
                paths=[pieces.path(READ, keys[i], f"/{_bucket_name(bucket)}") for i in places],
                places=places,
                numbers=[files[i].number for i in places],
            )
        )
    return found


def read_bucket(files: BucketFiles, fs: pafs.FileSystem, schema: pa.Schema, numbers: Sequence[int]) -> pa.Table:
    """All events of a bucket in the order of the files, with row ids of these `numbers` of the files.

    Raises:
        DataError: the first pass wrote to a disk that this machine does not see.
    """
    tables = [schema.empty_table()]
    try:
        for path, number in zip(files.paths, numbers, strict=True):
            part = pq.ParquetFile(path, filesystem=fs).read()
            tables.append(_numbered(part, pc.add(part["row_id"], number << ROW_BITS)))
    except FileNotFoundError as error:
        raise DataError(
            f"data.prepared_dir: '{path}' is not there. On several nodes it must be a shared folder or a URL, the same "
            "on every node; and no `mtrec prepare --prune` may run meanwhile."
        ) from error
    return pa.concat_tables(tables)


def write_quarantine(
    pieces: Pieces, keys: Sequence[str], path: str, tables: Iterable[EntityTable | None]
) -> Counter[str]:
    """Gathers the bad rows of files, by their keys, and of tables; returns the reasons of those of the tables."""
    bad = [(file, row) for table in tables if table is not None for file, row in table.bad]
    columns = [[f for f, _ in bad], *([getattr(row, key) for _, row in bad] for key in ("row", "reason", "content"))]
    with open_atomic(pieces.fs, path) as stream, pq.ParquetWriter(stream, QUARANTINE, compression="zstd") as writer:
        for key in keys:
            writer.write_table(pq.ParquetFile(pieces.path(READ, key, f"/{_QUARANTINE}"), filesystem=pieces.fs).read())
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
        common = "; ".join(f"{reason} ({n:,})" for reason, n in reasons.most_common(3))
        example = next(c.example for c in counts if c.example)
        raise DataError(
            f"data.logs: {bad:,} of {read:,} rows ({bad / read:.1%}) cannot be used, more than data.max_bad_share "
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


class _Hashed(io.RawIOBase):
    """A stream that says what has been written to it."""

    def __init__(self, stream: pa.NativeFile) -> None:
        self.stream, self.sha256 = stream, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self.sha256.update(content)
        self.stream.write(content)
        return len(content)


def _bucket_name(bucket: int) -> str:
    return f"bucket-{bucket:05d}.parquet"


def _numbered(table: pa.Table, row_ids: pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.column_names.index("row_id"), table.schema.field("row_id"), row_ids)


def _example(quarantine: pa.Table) -> str:
    row: dict[str, Any] = quarantine.slice(0, 1).to_pylist()[0]
    return f"row {row['row']} of {posixpath.basename(row['file'])}: {row['reason']}: {row['content']}"
