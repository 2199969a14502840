"""From a rank's ordered rows to the micro-batches of each step: collated ahead, and checked against the plan."""

import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa

from mtrec_ray.data.batch import Batch
from mtrec_ray.data.catalogue import load_catalogue
from mtrec_ray.data.manifest import Manifest
from mtrec_ray.data.streaming.augment.augmenter import Augmenter
from mtrec_ray.data.streaming.chunks import NUMBER, ChunkSource, LocalChunks, open_order
from mtrec_ray.data.streaming.collate import Collator
from mtrec_ray.data.streaming.order import Order, OrderSettings, StepPlan
from mtrec_ray.data.vectors import load_vectors

_STEPS_AHEAD = 2


class Step(NamedTuple):
    """One optimizer step's data for one rank."""

    plan: StepPlan
    batches: list[Batch]
    """One per micro-step; equally many on every rank, some may be empty."""


class StepStream:
    """One rank's steps in the order, from any step on.

    Steps are counted over epochs: step n is step n % `order.steps_per_epoch` of epoch n // `order.steps_per_epoch`.
    `wait_seconds` adds up how long the consumer was kept waiting for data.
    """

    def __init__(
        self, order: Order, rank: int, collator: Collator, source: ChunkSource, augmenter: Augmenter | None = None
    ) -> None:
        """`augmenter`: of a stream that is trained on."""
        self.order = order
        self.rank = rank
        self.collator = collator
        self.source = source
        self.augmenter = augmenter
        self.wait_seconds = 0.0

    @classmethod
    def local(
        cls,
        prepared: str,
        manifest: Manifest,
        settings: OrderSettings,
        causal: bool = True,
        augmenter: Augmenter | None = None,
    ) -> Self:
        """Rank 0's, read in this process."""
        chunks = LocalChunks(prepared, settings, 0)
        collator = Collator(manifest, causal, load_vectors(prepared, manifest), load_catalogue(prepared, manifest))
        return cls(open_order(prepared, settings), 0, collator, chunks, augmenter)

    def steps(self, first: int, last: int) -> Iterator[Step]:
        """Steps [first, last), collated in a thread ahead of the consumer; each call reads anew.

        Raises:
            RuntimeError: a row that came is not the one that the plan has at its place, or rows are missing.
        """
        ahead = _Ahead(self._collate(first, last))
        try:
            for _ in range(first, last):
                start = time.perf_counter()
                step = ahead.get()
                self.wait_seconds += time.perf_counter() - start
                yield step
        finally:
            ahead.stop()

    def epoch(self, epoch: int) -> Iterator[Step]:
        """All steps of one epoch."""
        return self.steps(epoch * self.order.steps_per_epoch, (epoch + 1) * self.order.steps_per_epoch)

    def _collate(self, first: int, last: int) -> Iterator[Step]:
        rows = _Rows(self.source.tables(first, last), self.order.shards.schema)
        for index in range(first, last):
            plan = self.order.at(index)
            yield Step(plan, [self._batch(rows, plan, numbers, index) for numbers in plan.micro_steps[self.rank]])

    def _batch(self, rows: "_Rows", plan: StepPlan, numbers: np.ndarray, index: int) -> Batch:
        table = rows.take(len(numbers))
        found = table.column(NUMBER).to_numpy() if len(numbers) else numbers
        if not np.array_equal(found, numbers):
            raise RuntimeError(
                f"rank {self.rank}, epoch {plan.epoch}, step {plan.step}: the stream gave requests {found.tolist()}, "
                f"the order has {numbers.tolist()}"
            )
        return self.collator(table if self.augmenter is None else self.augmenter(table, index))


class _Rows:
    """Rows from tables that may be cut anywhere."""

    def __init__(self, tables: Iterator[pa.Table], schema) -> None:  # type: ignore[no-untyped-def]
        self._tables = tables
        self._schema = schema
        self._left: deque[pa.Table] = deque()
        self._count = 0

    def take(self, count: int) -> pa.Table:
        """The next `count` rows, or fewer where the tables end."""
        while self._count < count and (table := next(self._tables, None)) is not None:
            if table.num_rows:
                self._left.append(table)
                self._count += table.num_rows
        parts = []
        while count and self._left:
            table = self._left.popleft()
            parts.append(table.slice(0, count))
            if table.num_rows > count:
                self._left.appendleft(table.slice(count))
            count -= parts[-1].num_rows
            self._count -= parts[-1].num_rows
        return pa.concat_tables(parts) if parts else self._schema().empty_table()


class _Ahead:
    """Runs an iterator in a thread, a few items ahead; its errors are raised where the items are taken."""

    def __init__(self, items: Iterator[Step]) -> None:
        self._queue: queue.Queue[Step | BaseException] = queue.Queue(_STEPS_AHEAD)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(items,), daemon=True, name="collate")
        self._thread.start()

    def get(self) -> Step:
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self, items: Iterator[Step]) -> None:
        try:
            for item in items:
                if not self._put(item):
                    return
        except BaseException as error:  # also of Ray: it must reach the consumer, who waits
            self._put(error)

    def _put(self, item: Step | BaseException) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
