"""A scenario as files: partitioned logs, tables, configs, and the truth apart from the logs.

logs/dt=2024-01-31/hr=07/part-00000.parquet     impressions; with their feedback, unless it has files of its own
feedback/dt=.../hr=.../part-00000.parquet       on request: one row per feedback, by the time of the feedback
items.parquet, users.parquet                    titles, categories, prices, where links come from; segments, unless
                                                they are hidden, and friends
user_graph.parquet, item_graph.parquet          edges, in scenarios that have them
run.yaml, run_random.yaml                       configs: test rows by time; only the uniformly drawn ones of them
truth.parquet, truth.json                       true probabilities by row id; strengths, sizes, figures
observer.parquet                                the ideal observer's probabilities by row id
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from mtrec_ray.data.filesystem import open_atomic, open_fs, write_atomic, write_table_atomic
from mtrec_ray.data.sample.clearing import clear
from mtrec_ray.data.sample.exposures import Exposures, Truth
from mtrec_ray.data.sample.judging import Figures, judge
from mtrec_ray.data.sample.partitions import Partitions
from mtrec_ray.data.sample.run_config import run_yaml
from mtrec_ray.data.sample.scenario import DAY, Scenario, Size
from mtrec_ray.data.sample.simulate import World
from mtrec_ray.data.sample.tables import (
    edge_table,
    feedback_table,
    item_table,
    log_table,
    truth_table,
    user_table,
)
from mtrec_ray.errors import ConfigError
from mtrec_ray.progress import Bar, track


@dataclass(frozen=True)
class Generated:
    folder: str
    rows: int
    requests: int
    rates: dict[str, float]
    """Share of ones among the observed labels of each stage"""
    figures: dict[str, Figures] = field(default_factory=dict)
    """By task; empty if not asked for"""


def write_scenario(
    folder: str, scenario: Scenario, size: Size, feedback_files: bool = False, figures: bool = True, worth: bool = False
) -> Generated:
    """Writes the files named above; logs that an earlier call wrote there are replaced.

    Args:
        folder: local path or URL.
        feedback_files: impressions without labels, and feedback in files of its own, which name the impression.
        figures: judge truth, observer and floors, for which all rows are held in memory; else a day's rows are.
        worth: judge also what the observer loses without text, ids and history.

    Raises:
        ConfigError: too few items for the requests of a day, no request at all, or too few labels to judge.
        DataError: the folder holds logs that are not ours.
    """
    fs, root = open_fs(folder)
    clear(fs, root, folder)
    write_atomic(fs, f"{root}/truth.json", b"null")  # says whose folder this is, should we not come to the end
    world = World.drawn(scenario, size)
    _write_tables(fs, root, world)
    tally = _Tally()
    kept: list[tuple[np.ndarray, Exposures, Truth]] = []
    with (
        track("Writing days", size.days, "days") as bar,
        open_atomic(fs, f"{root}/truth.parquet") as stream,
        _TableStream(stream) as truths,
    ):
        for ids, rows, truth in _write_days(fs, root, world, feedback_files, bar):
            truths.write(truth_table(ids, truth))
            tally.add(rows)
            bar.note(f"{tally.rows:,} rows")
            if figures:
                kept.append((ids, rows, truth))
        if tally.rows == 0:
            raise ConfigError(f"{size.users} users came not once in {size.days} days; give more users or days.")
    for name, random_test in (("run.yaml", False), ("run_random.yaml", True)):
        text = run_yaml(world, folder.rstrip("/"), feedback_files, random_test)
        write_atomic(fs, f"{root}/{name}", text.encode())
    found: dict[str, Figures] = {}
    if figures:
        log, facts = Exposures.joined([rows for _, rows, _ in kept]), Truth.joined([truth for _, _, truth in kept])
        row_ids = np.concatenate([ids for ids, _, _ in kept])
        kept.clear()
        found, seen = judge(world, log, facts, worth)
        write_table_atomic(fs, f"{root}/observer.parquet", pa.table({"row_id": row_ids, **seen}))
    generated = Generated(folder, tally.rows, tally.requests, tally.rates(), found)
    told = {"scenario": asdict(scenario), "size": asdict(size), "generated": asdict(generated)}
    write_atomic(fs, f"{root}/truth.json", json.dumps(_defined(told), indent=1).encode())
    return generated


def _defined(value: Any) -> Any:
    """JSON knows no NaN: null in its place."""
    if isinstance(value, dict):
        return {name: _defined(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_defined(part) for part in value]
    return None if value != value else value


def _write_tables(fs: pafs.FileSystem, root: str, world: World) -> None:
    write_table_atomic(fs, f"{root}/items.parquet", item_table(world))
    users = user_table(world)
    if users is not None:
        write_table_atomic(fs, f"{root}/users.parquet", users)
    if world.users.friends is not None:
        edges = edge_table(("user_id", "friend_id"), world.users.friends)
        write_table_atomic(fs, f"{root}/user_graph.parquet", edges)
    if world.items.neighbours is not None:
        edges = edge_table(("item_id", "other_item_id"), world.items.neighbours)
        write_table_atomic(fs, f"{root}/item_graph.parquet", edges)


def _write_days(
    fs: pafs.FileSystem, root: str, world: World, feedback_files: bool, bar: Bar
) -> Iterator[tuple[np.ndarray, Exposures, Truth]]:
    """Ids, rows and truth of each day, once they are written. Feedback waits until its own day is over."""
    impressions, feedback = Partitions(fs, f"{root}/logs"), Partitions(fs, f"{root}/feedback")
    waiting: list[pa.Table] = []
    for day, (rows, truth) in enumerate(world.days()):
        first = impressions.rows
        table = log_table(world, rows, first, labelled=not feedback_files)
        if len(rows):
            yield impressions.write(table), rows, truth
        if feedback_files:
            waiting.append(feedback_table(world, rows, first))
            waiting = [_until(waiting, world.size.start + (day + 1) * DAY, feedback)]
        bar.advance()
    if waiting:
        _until(waiting, None, feedback)


def _until(waiting: list[pa.Table], time: int | None, feedback: Partitions) -> pa.Table:
    """Writes what came before `time` and gives back the rest."""
    table = pa.concat_tables(waiting).sort_by([(name, "ascending") for name in ("time", "impression_id", "event")])
    count = table.num_rows if time is None else int(np.searchsorted(table.column("time").to_numpy(), time))
    if count:
        feedback.write(table.slice(0, count))
    return table.slice(count)


class _TableStream:
    """A Parquet file to which tables are added; the first one says the columns."""

    def __init__(self, stream: pa.NativeFile) -> None:
        self.stream = stream
        self.writer: pq.ParquetWriter | None = None

    def __enter__(self) -> "_TableStream":
        return self

    def __exit__(self, *_: object) -> None:
        if self.writer is not None:
            self.writer.close()

    def write(self, table: pa.Table) -> None:
        if self.writer is None:
            self.writer = pq.ParquetWriter(self.stream, table.schema, compression="zstd")
        self.writer.write_table(table)


class _Tally:
    def __init__(self) -> None:
        self.rows = self.requests = 0
        self.ones: Counter[str] = Counter()
        self.observed: Counter[str] = Counter()

    def add(self, rows: Exposures) -> None:
        self.rows += len(rows)
        self.requests += len(np.unique(rows.request))
        for name, label in rows.labels.items():
            self.ones[name] += int(np.nansum(label))
            self.observed[name] += int((~np.isnan(label)).sum())

    def rates(self) -> dict[str, float]:
        return {name: self.ones[name] / max(1, observed) for name, observed in self.observed.items()}
