"""Consecutive steps' request rows for one rank: read by a pure function, here or in Ray Data tasks.

This module is what a Ray Data task imports, so it stays free of torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from typing import Protocol

import numpy as np
import pyarrow as pa

from mtrec_ray.data.streaming.order import Order, OrderSettings
from mtrec_ray.data.streaming.shards import Shards, load_manifest

NUMBER = "request_number"
"""Column added to the request rows: which request of the split the row is, from where it was read."""
_READ_CPUS = 0.25  # reading waits for storage more than it computes; whole CPUs would starve beside the workers
_READS_AT_ONCE = 2


class ChunkSource(Protocol):
    """Where a rank's rows come from."""

    def tables(self, first: int, last: int) -> Iterator[pa.Table]:
        """Rows of steps [first, last), counted over epochs, in the rank's order, cut into tables anywhere."""
        ...


def read_chunk(prepared: str, settings: OrderSettings, first: int, last: int, rank: int) -> pa.Table:
    """One rank's request rows of steps [first, last), counted over epochs, micro-step after micro-step.

    Columns: those of the prepared request rows and `request_number`. A pure function of its arguments and of the
    prepared folder, which never changes.
    """
    order = open_order(prepared, settings)
    plans = (order.at(step) for step in range(first, last))
    parts = [numbers for plan in plans for numbers in plan.micro_steps[rank]]
    numbers = np.concatenate([np.zeros(0, dtype=np.int64), *parts])
    return order.shards.rows(numbers).append_column(NUMBER, pa.array(numbers))


@lru_cache(maxsize=8)
def open_order(prepared: str, settings: OrderSettings) -> Order:
    """The order over a prepared folder; kept, so that the tasks of one process read the manifest once."""
    return Order(Shards(prepared, load_manifest(prepared), settings.split), settings)


def chunk_bounds(order: Order, first: int, last: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Step numbers that cut [first, last) into chunks of about one window of the order.

    Cuts lie at multiples of the chunk's length, so that a resumed run reads the same chunks but for the first.
    """
    length = order.steps_per_window
    inner = np.arange((first // length + 1) * length, last, length)
    return np.array([first, *inner, last], dtype=np.int64)


@dataclass(frozen=True)
class LocalChunks:
    """Reads in this process, for tests and tools."""

    prepared: str
    settings: OrderSettings
    rank: int

    def tables(self, first: int, last: int) -> Iterator[pa.Table]:
        bounds = chunk_bounds(open_order(self.prepared, self.settings), first, last)
        for start, end in pairwise(bounds):
            yield read_chunk(self.prepared, self.settings, int(start), int(end), self.rank)


@dataclass(frozen=True)
class RayChunks:
    """Reads in Ray Data tasks anywhere on the cluster, ahead of the consumer; picklable.

    Ray Data keeps no position and gives no order to several consumers, so every rank has a dataset of its own that
    starts at the step asked for. Each call builds a new one: an exhausted iterator would give nothing, silently.
    """

    prepared: str
    settings: OrderSettings
    rank: int

    def tables(self, first: int, last: int) -> Iterator[pa.Table]:
        if first >= last:
            return
        dataset = rank_dataset(self.prepared, self.settings, first, last, self.rank)
        yield from dataset.iterator().iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)


def rank_dataset(prepared: str, settings: OrderSettings, first: int, last: int, rank: int):  # type: ignore[no-untyped-def]
    """Ray Data set of one rank's rows of steps [first, last), in order; one read task per chunk."""
    import ray.data

    bounds = chunk_bounds(open_order(prepared, settings), first, last)
    chunks = len(bounds) - 1
    dataset = ray.data.range(chunks, override_num_blocks=chunks).map_batches(
        partial(_read_rows, prepared=prepared, settings=settings, bounds=bounds, rank=rank),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=_READ_CPUS,
        compute=ray.data.TaskPoolStrategy(size=_READS_AT_ONCE),
    )
    dataset.context.execution_options.preserve_order = True
    return dataset


def _read_rows(
    chunks: pa.Table, prepared: str, settings: OrderSettings, bounds: np.ndarray, rank: int
) -> Iterator[pa.Table]:
    for chunk in chunks.column("id").to_pylist():
        yield read_chunk(prepared, settings, int(bounds[chunk]), int(bounds[chunk + 1]), rank)
