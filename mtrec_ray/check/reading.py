"""The log in bounded memory: all rows of some users, and all rows of some items.

Which users and items is decided by a hash of their ids, so the same log gives the same rows everywhere. As long as the
log has fewer rows than are asked for, all of them are kept, and both tables are the same rows. Where deliveries must
be settled first (`data.feedback`, `data.unique_by`, ...), which takes all rows of a user, the items are those of the
users looked at, too.
"""

from collections import Counter
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from mtrec_ray.config import Run
from mtrec_ray.data.preparing.settle import must_settle
from mtrec_ray.data.preparing.shuffle import check_types
from mtrec_ray.data.reading.drift import check_drift
from mtrec_ray.data.reading.events import QUARANTINE, delivered_schema
from mtrec_ray.data.reading.formats import column_types
from mtrec_ray.data.reading.logs import LogFile, check_log, find_files, read_events
from mtrec_ray.data.reading.user_map import read_user_map
from mtrec_ray.data.requests.bucket import IdOrder
from mtrec_ray.data.requests.deliveries import settle, sources_of
from mtrec_ray.data.requests.ids import all_integers, stable_hash
from mtrec_ray.errors import DataError
from mtrec_ray.progress import track

MOST_ROWS = 500_000
"""Rows that are looked at, of users and of items each."""
_BAD_KEPT = 10_000


@dataclass(frozen=True)
class LogRead:
    """A log, or a part of it."""

    files: list[LogFile]
    """A row id's file number is the place here"""
    of_users: pa.Table
    """Canonical events: all rows of the users looked at"""
    of_items: pa.Table
    """All rows of the items looked at"""
    user_share: float
    """Share of all users, about, that are looked at; 1 = all; likewise `item_share`"""
    item_share: float
    rows_read: int
    bad: pa.Table
    """Rows that could not be read (`logs.QUARANTINE`), at most 10,000 of them"""
    reasons: Counter[str]
    """Of all rows that could not be read"""
    ids: IdOrder
    last: int
    """The last time that the rows of the users mention, µs; feedback of no exposure included"""

    @property
    def whole(self) -> bool:
        return self.user_share == self.item_share == 1


class HashSample:
    """All rows of those ids whose hash is low; the bound falls by half whenever the rows are too many."""

    def __init__(self, column: str, most_rows: int, empty: pa.Table) -> None:
        self.column, self.most_rows = column, most_rows
        self.below = 2**64
        self.tables = [empty]
        self.rows = 0

    @property
    def share(self) -> float:
        return self.below / 2**64

    def add(self, table: pa.Table) -> None:
        self._keep([*self.tables, self._filtered(table)])
        while self.rows > self.most_rows:
            self.below //= 2
            self._keep([self._filtered(kept) for kept in self.tables])

    def table(self) -> pa.Table:
        return pa.concat_tables(self.tables)

    def _keep(self, tables: list[pa.Table]) -> None:
        self.tables = tables
        self.rows = sum(kept.num_rows for kept in tables)

    def _filtered(self, table: pa.Table) -> pa.Table:
        if self.below == 2**64 or not table.num_rows:
            return table
        ids = table[self.column].combine_chunks().dictionary_encode()
        low = pa.array([stable_hash(key, "check") < self.below for key in ids.dictionary.to_pylist()])
        return table.filter(pc.take(low, ids.indices))


def read_log(run: Run, most_rows: int = MOST_ROWS) -> LogRead:
    """Reads all files once.

    Raises:
        DataError: no such log, a column that changes its type, no usable row, none of a type that is asked for, or no
            user or item with so few rows as are to be looked at.
        ConfigError: expressions that cannot be read.
    """
    files = find_files(run.data)
    check_log(files, run)
    known_users, settling = read_user_map(run.data), must_settle(run)
    empty = delivered_schema(run).empty_table()
    users, items = HashSample("user", most_rows, empty), HashSample("item", most_rows, empty)
    bad, rows_read, reasons, types = [QUARANTINE.empty_table()], 0, Counter[str](), Counter[str]()
    integers = {"user": True, "item": True}
    with track("Reading the log", unit="rows") as bar:
        for number, file in enumerate(files):
            for events in read_events(file, number, run, known_users, files):
                users.add(events.table)
                if not settling:
                    items.add(events.table)
                for name in integers:
                    integers[name] &= all_integers(pc.unique(events.table[name]).drop_null().to_pylist())
                rows_read += events.rows_read
                types.update(events.types)
                reasons.update(events.quarantine["reason"].to_pylist())
                bad.append(events.quarantine.slice(0, max(0, _BAD_KEPT - sum(part.num_rows for part in bad))))
                bar.advance(events.rows_read)
    if rows_read == reasons.total():
        common = "; ".join(f"{reason} ({n})" for reason, n in reasons.most_common(3))
        raise DataError(f"data.logs: no usable row in {len(files)} file(s). {common}")
    check_drift(files, [column_types(file) for file in files], run)
    check_types(types, run)
    for sample in (users,) if settling else (users, items):
        if not sample.rows:
            raise DataError(
                f"One {sample.column} has more than {most_rows:,} rows, which are all that may be looked at; give a "
                "larger --rows."
            )
    of_users = users.table()
    last = int(of_users["time"].to_numpy().max())
    if settling:
        of_users, _ = settle(of_users.combine_chunks(), run, sources_of(files))
    return LogRead(
        files=files,
        of_users=of_users,
        of_items=of_users if settling else items.table(),
        user_share=users.share,
        item_share=1.0 if settling else items.share,
        rows_read=rows_read,
        bad=pa.concat_tables(bad),
        reasons=reasons,
        ids=IdOrder(integers["user"], integers["item"]),
        last=last,
    )
