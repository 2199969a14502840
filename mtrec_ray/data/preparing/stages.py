"""The passes over buckets of users before anything is encoded: they count, and they collect what is fitted.

A task holds one bucket in memory.
"""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from mtrec_ray.config import Run
from mtrec_ray.data.features.attributes import Tables
from mtrec_ray.data.filesystem import write_table_atomic
from mtrec_ray.data.fitting.collect import Collected, collect
from mtrec_ray.data.manifest import SPLITS
from mtrec_ray.data.preparing.catalogue import SeenItems, matching_tasks, seen_items
from mtrec_ray.data.preparing.item_pass import send_items
from mtrec_ray.data.preparing.settle import Settled, Source, bucket_events, settle_bucket
from mtrec_ray.data.preparing.shuffle import BucketFiles
from mtrec_ray.data.reading.context import context_numbers
from mtrec_ray.data.requests.attribution import log_end
from mtrec_ray.data.requests.bucket import Bucket, build_bucket, candidate_keys, said_splits
from mtrec_ray.data.requests.requests import find_candidates, without_exposures
from mtrec_ray.data.requests.rows import Rows, from_table
from mtrec_ray.data.requests.splits import Key, TimeSplit, histogram

Array = np.ndarray[Any, np.dtype[Any]]


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
    settled: Settled


def count_bucket(files: BucketFiles, source: Source) -> Counts:
    """Settles the deliveries of a bucket, and counts its candidates."""
    settled = settle_bucket(files, source)
    rows = _rows(files, source)
    candidates = find_candidates(rows, source.run)
    times = rows.time[candidates.row]
    _write_times(files, source, times)
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
        log_end=max(log_end(rows, source.run), settled.last),
        settled=settled,
    )


def count_seconds(files: BucketFiles, shared: tuple[Source, list[int]]) -> Counter[int]:
    """Candidates per second of some hours (their first microseconds)."""
    source, lows = shared
    times = _read_times(files, source)["time"].to_numpy()
    return sum((histogram(times, 1_000_000, low) for low in lows), Counter())


def boundary_keys(files: BucketFiles, shared: tuple[Source, list[int]]) -> list[Key]:
    """Places in the order by time of the candidates of some seconds (their first microseconds)."""
    source, lows = shared
    table = _read_times(files, source)
    times = table["time"].to_numpy()
    near = np.isin(times // 1_000_000, np.array(lows) // 1_000_000)
    if not near.any():
        return []
    rows = _rows(files, source)
    return candidate_keys(rows, find_candidates(rows, source.run), source.ids, table["position"].to_numpy()[near])


@dataclass(frozen=True)
class FitTask:
    """For the pass that collects what is fitted."""

    source: Source
    tables: Tables
    boundaries: TimeSplit | None
    fitted_until: TimeSplit | None
    """As boundaries: train rows from which everything is fitted; None for all train rows"""
    log_end: int
    most_interactions: int
    items_run: bool
    """Whether an aggregate asks how items have done so far"""


@dataclass(frozen=True)
class Figures:
    """What the manifest says of one bucket."""

    events: int
    """Of histories"""
    users: dict[str, int]
    """See `user_counts`"""
    positions: list[int]
    """The smallest and the largest position of a train row; empty if none is known"""
    propensities: int
    """Train rows whose propensity is known"""


@dataclass(frozen=True)
class Sums:
    """What one bucket adds to the whole."""

    collected: Collected
    items: set[str]
    """All items of its rows"""
    seen: SeenItems | None
    """What a catalogue, if a task needs one, says of them"""
    figures: Figures


def collect_bucket(files: BucketFiles, task: FitTask) -> Sums:
    """Sums up a bucket, and sends what happened to its items, if that is asked for."""
    run = task.source.run
    data = read_built(files, task.source, task.boundaries, task.log_end)
    if task.items_run:
        send_items(task.source.fs, task.source.work, files.number, data, run)
    collected = collect(data, run, task.tables, task.most_interactions)
    if task.fitted_until is not None:
        early = read_built(files, task.source, task.fitted_until, task.log_end)
        fitted = collect(early, run, task.tables, task.most_interactions)
        now = collected.moments
        collected = replace(fitted, moments=replace(fitted.moments, observed=now.observed, positives=now.positives))
    return Sums(
        collected=collected,
        items=set(data.rows.items),
        seen=seen_items(data, run) if matching_tasks(run) else None,
        figures=Figures(
            events=len((data.events if run.history.exposures else without_exposures(data.events)).row),
            users=_users_of(data),
            positions=_ends(_known(data, "position", run)),
            propensities=len(_known(data, "propensity", run)),
        ),
    )


def send_bucket(files: BucketFiles, task: FitTask) -> None:
    """What `collect_bucket` sends, of a bucket whose sums are known."""
    data = read_built(files, task.source, task.boundaries, task.log_end)
    send_items(task.source.fs, task.source.work, files.number, data, task.source.run)


def read_built(files: BucketFiles, source: Source, boundaries: TimeSplit | None, log_end: int) -> Bucket:
    return build_bucket(bucket_events(files, source), source.run, source.ids, boundaries, log_end)


def has_windows(run: Run) -> bool:
    """Whether labels depend on when the log ends."""
    return any(task.window is not None for task in run.tasks.values())


def user_counts(split: str) -> tuple[str, str]:
    """Names of two counts: users with a candidate in the split, and those of them who had no event before the first."""
    return f"{split}_users", f"{split}_users_without_earlier_event"


def _rows(files: BucketFiles, source: Source) -> Rows:
    return from_table(bucket_events(files, source), source.run, source.ids.items)


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


def _write_times(files: BucketFiles, source: Source, times: Array) -> None:
    """The times of candidates, sorted, for the passes that look for the split boundaries."""
    order = np.argsort(times, kind="stable")
    write_table_atomic(source.fs, _times_path(files, source), pa.table({"time": times[order], "position": order}))


def _read_times(files: BucketFiles, source: Source) -> pa.Table:
    path = _times_path(files, source)
    if source.fs.get_file_info(path).type != pafs.FileType.File:  # the bucket was counted by an earlier `prepare`
        rows = _rows(files, source)
        _write_times(files, source, rows.time[find_candidates(rows, source.run).row])
    with source.fs.open_input_file(path) as file:
        return pq.ParquetFile(file).read()


def _times_path(files: BucketFiles, source: Source) -> str:
    return f"{source.work}/times/bucket-{files.number:05d}.parquet"
