"""Hive partitions by hour: `<folder>/dt=2024-01-31/hr=07/part-00000.parquet`, rows by time."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from mtrec_ray.data.filesystem import write_table_atomic
from mtrec_ray.data.reading.log_files import FileNumbers
from mtrec_ray.data.reading.logs import ROW_BITS
from mtrec_ray.data.sample.population import Array
from mtrec_ray.data.sample.scenario import HOUR

PART_ROWS = 1_000_000
"""Most rows of one file."""


class Partitions:
    """Writes tables whose rows are ordered by `time`, each table later than the one before.

    The files' paths ascend in the order of writing, in which the reader numbers them.
    """

    def __init__(self, fs: pafs.FileSystem, folder: str) -> None:
        self.fs, self.folder = fs, folder
        self.rows = 0
        self._numbers = FileNumbers()

    def write(self, table: pa.Table) -> Array:
        """The rows' ids [N], as prepared data has them."""
        hour = table.column("time").to_numpy() // HOUR
        edges = np.flatnonzero(np.diff(hour)) + 1
        ids = [np.zeros(0, np.int64)]
        for first, stop in zip([0, *edges], [*edges, len(hour)], strict=True):
            for part, start in enumerate(range(first, stop, PART_ROWS)):
                rows = table.slice(start, min(PART_ROWS, stop - start))
                name = f"{_place(int(hour[first]))}/part-{part:05d}.parquet"
                write_table_atomic(self.fs, f"{self.folder}/{name}", rows)
                ids.append((self._numbers.next(name) << ROW_BITS) + 1 + np.arange(rows.num_rows))
        self.rows += table.num_rows
        return np.concatenate(ids)


def _place(hour: int) -> str:
    start = datetime.fromtimestamp(hour * HOUR, UTC)
    return f"dt={start:%Y-%m-%d}/hr={start:%H}"
