"""The passes over the buckets, each a function of (bucket number, what all of them share), to be run anywhere."""

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from mtrec_ray.config import Run
from mtrec_ray.data.features.attributes import Tables
from mtrec_ray.data.filesystem import write_atomic
from mtrec_ray.data.fitting.fit import Collected, Fitted, collect
from mtrec_ray.data.manifest import SPLITS, ShardEntry
from mtrec_ray.data.preparing.catalogue import SeenItems, matching_tasks, seen_items
from mtrec_ray.data.preparing.encode import Encoded, encode
from mtrec_ray.data.preparing.item_pass import read_answers, send_items
from mtrec_ray.data.preparing.shuffle import read_bucket
from mtrec_ray.data.reading.context import context_numbers
from mtrec_ray.data.requests.attribution import log_end
from mtrec_ray.data.requests.bucket import Bucket, IdOrder, build_bucket, candidate_keys, said_splits
from mtrec_ray.data.requests.ids import hashed
from mtrec_ray.data.requests.requests import find_candidates
from mtrec_ray.data.requests.rows import from_table
from mtrec_ray.data.requests.splits import Key, TimeSplit, histogram

Array = np.ndarray[Any, np.dtype[Any]]

ROW_GROUP_REQUESTS = 32


@dataclass(frozen=True)
class Source:
    """Where the shuffled events lie."""

    run: Run
    fs: pafs.FileSystem
    work: str
    ids: IdOrder


@dataclass(frozen=True)
class Counts:
    """Candidates of one bucket."""

    candidates: int
    users: int
    few: int
    """Users with fewer than 3 candidates"""
    duplicates: int
    """Rows that repeat user, item, time and type of another"""
    said: Counter[int]
    """Candidates per code of the split column"""
    hours: Counter[int]
    log_end: int
    """The last time that the bucket's rows mention"""


def count_bucket(bucket: int, source: Source) -> Counts:
    """Counts candidates, and writes their times, sorted, for the passes that look for the split boundaries."""
    rows = from_table(read_bucket(source.fs, source.work, bucket, source.run), source.run, source.ids.items)
    candidates = find_candidates(rows, source.run)
    times = rows.time[candidates.row]
    order = np.argsort(times, kind="stable")
    columns = {"time": times[order], "position": order}
    _write_parquet(source.fs, _times_path(source, bucket), pa.table(columns), None)
    same = (np.diff(rows.time) == 0) & (np.diff(rows.item) == 0) & (np.diff(rows.user) == 0)
    repeated = same & (rows.event[1:] == rows.event[:-1])
    per_user = np.diff(candidates.starts)
    return Counts(
        candidates=len(times),
        users=len(rows.users),
        few=int((per_user < 3).sum()),
        duplicates=int(repeated.sum()),
        said=said_splits(rows, candidates),
        hours=histogram(times, 3_600_000_000),
        log_end=log_end(rows, source.run),
    )


def count_seconds(bucket: int, shared: tuple[Source, list[int]]) -> Counter[int]:
    """Candidates per second of some hours (their first microseconds)."""
    source, lows = shared
    times = pq.read_table(_times_path(source, bucket), columns=["time"], filesystem=source.fs)["time"].to_numpy()
    return sum((histogram(times, 1_000_000, low) for low in lows), Counter())


def boundary_keys(bucket: int, shared: tuple[Source, list[int]]) -> list[Key]:
    """Places in the order by time of the candidates of some seconds (their first microseconds)."""
    source, lows = shared
    table = pq.read_table(_times_path(source, bucket), filesystem=source.fs)
    times = table["time"].to_numpy()
    near = np.isin(times // 1_000_000, np.array(lows) // 1_000_000)
    if not near.any():
        return []
    rows = from_table(read_bucket(source.fs, source.work, bucket, source.run), source.run, source.ids.items)
    return candidate_keys(rows, find_candidates(rows, source.run), source.ids, table["position"].to_numpy()[near])


@dataclass(frozen=True)
class FitTask:
    """For the pass that collects what is fitted."""

    source: Source
    tables: Tables
    boundaries: TimeSplit | None
    log_end: int
    most_interactions: int
    items_run: bool
    """Whether an aggregate asks how items have done so far"""


def collect_bucket(bucket: int, task: FitTask) -> tuple[Collected, set[str], SeenItems | None]:
    """What is fitted, all items of the bucket, and what a catalogue, if a task needs one, says of them."""
    source = task.source
    data = _build(bucket, source, task.boundaries, task.log_end)
    if task.items_run:
        send_items(source.fs, source.work, bucket, data, source.run)
    seen = seen_items(data, source.run) if matching_tasks(source.run) else None
    return collect(data, source.run, task.tables, task.most_interactions), set(data.rows.items), seen


@dataclass(frozen=True)
class EncodeTask:
    """For the pass that writes the result."""

    source: Source
    out: str
    tables: Tables
    boundaries: TimeSplit | None
    log_end: int
    fitted: Fitted
    tokenizer: PreTrainedTokenizerBase | None
    shared_end: bool
    items_run: bool
    sample_below: int
    """Train candidates whose hashed row id is below this are the sample for the scalers"""
    catalogue: pa.Array | None
    """string [I] the items of the catalogue, if there is one"""


@dataclass(frozen=True)
class Written:
    """What the last pass made of one bucket."""

    shards: dict[str, ShardEntry]
    documents: str | None
    sample_ids: Array
    """int64 [n] row ids of the sample"""
    sample: Array
    """float32 [n, F]"""
    longest: dict[str, int]
    counts: dict[str, int]
    positions: list[int]
    """The smallest and the largest position of a train row; empty if none is known"""
    propensities: int
    """Train rows whose propensity is known"""


def encode_bucket(bucket: int, task: EncodeTask) -> Written:
    """Writes the shards of one bucket, and its documents if it has any."""
    run, fs, work = task.source.run, task.source.fs, task.source.work
    data = _build(bucket, task.source, task.boundaries, task.log_end)
    item_past = read_answers(fs, work, bucket, run.data.buckets) if task.items_run else np.zeros((0, 0))
    encoded = encode(data, run, task.tables, task.fitted, task.tokenizer, task.shared_end, item_past, task.catalogue)
    name = f"part-{bucket:05d}"
    documents = None
    if encoded.documents.num_rows:
        documents = f"documents/{name}.parquet"
        _write_parquet(fs, f"{task.out}/{documents}", encoded.documents, None)
    row_ids = data.rows.row_id[data.candidates.row]
    chosen = data.train & (hashed(row_ids) < np.uint64(task.sample_below))
    return Written(
        shards={split: _write_shard(encoded, split, name, task) for split in SPLITS},
        documents=documents,
        sample_ids=row_ids[chosen],
        sample=encoded.numbers[chosen],
        longest=encoded.longest,
        counts=encoded.counts | _users_of(data),
        positions=_ends(_known(data, "position", run)),
        propensities=len(_known(data, "propensity", run)),
    )


def _build(bucket: int, source: Source, boundaries: TimeSplit | None, log_end: int) -> Bucket:
    table = read_bucket(source.fs, source.work, bucket, source.run)
    return build_bucket(table, source.run, source.ids, boundaries, log_end)


def user_counts(split: str) -> tuple[str, str]:
    """Names of two counts: users with a candidate in the split, and those of them who had no event before the first."""
    return f"{split}_users", f"{split}_users_without_earlier_event"


def _users_of(data: Bucket) -> dict[str, int]:
    counts: dict[str, int] = {}
    for code, split in enumerate(SPLITS[1:], 1):
        mine = data.split == code
        users = np.unique(data.candidates.user[mine])
        new = np.unique(data.candidates.user[mine & (data.ends == 0)])
        counts |= dict(zip(user_counts(split), (len(users), len(new)), strict=True))
    return counts


def _known(data: Bucket, name: str, run: Run) -> Array:
    """float32: the values of a number of the context that are known of train rows."""
    numbers = context_numbers(run.data.columns)
    if name not in numbers:
        return np.zeros(0, dtype=np.float32)
    values = data.rows.context[data.candidates.row[data.train], numbers.index(name)]
    return values[~np.isnan(values)]


def _ends(values: Array) -> list[int]:
    return [int(values.min()), int(values.max())] if len(values) else []


def _write_shard(encoded: Encoded, split: str, name: str, task: EncodeTask) -> ShardEntry:
    path = f"{split}/{name}.parquet"
    requests, lengths = encoded.requests[split], encoded.lengths[split]
    digest = _write_parquet(task.source.fs, f"{task.out}/{path}", requests, ROW_GROUP_REQUESTS)
    _write_parquet(task.source.fs, f"{task.out}/{split}/{name}.lengths.parquet", lengths, None)
    return ShardEntry(
        path=path,
        requests=requests.num_rows,
        candidates=int(lengths["candidates"].to_numpy().sum()),
        tokens=int(lengths["tokens"].to_numpy().sum()),
        sha256=digest,
    )


def _write_parquet(fs: pafs.FileSystem, path: str, table: pa.Table, row_group: int | None) -> str:
    """Writes the file at once, and returns its SHA-256."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=row_group)
    content = sink.getvalue()
    write_atomic(fs, path, content)
    return hashlib.sha256(content).hexdigest()


def _times_path(source: Source, bucket: int) -> str:
    return f"{source.work}/times/part-{bucket:05d}.parquet"
