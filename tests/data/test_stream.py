import dataclasses
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtrec_ray.data.streaming.chunks import NUMBER, LocalChunks, chunk_bounds, open_order, read_chunk
from mtrec_ray.data.streaming.collate import Collator
from mtrec_ray.data.streaming.order import OrderSettings
from mtrec_ray.data.streaming.shards import load_manifest
from mtrec_ray.data.streaming.stream import StepStream
from mtrec_ray.errors import DataError
from tests.fixtures import write_prepared

SETTINGS = OrderSettings("train", 0, 8, 40, 2, True)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    write_prepared(folder)
    return str(folder)


def stream(prepared, rank=0, settings=SETTINGS, source=None) -> StepStream:
    source = source or LocalChunks(prepared, settings, rank)
    return StepStream(open_order(prepared, settings), rank, Collator(load_manifest(prepared)), source)


class Cut:
    """The same rows as another source, through `change`, in tables of two rows."""

    def __init__(self, source, change=lambda table: table):
        self.source, self.change = source, change

    def tables(self, first, last):
        for table in self.source.tables(first, last):
            table = self.change(table)
            yield table.slice(0, 0)
            yield from (table.slice(i, 2) for i in range(0, table.num_rows, 2))


def row_ids(steps):
    return [[batch.row_ids.tolist() for batch in step.batches] for step in steps]


def test_the_ranks_together_give_every_row_once_an_epoch(prepared):
    ranks = [list(stream(prepared, rank).epoch(1)) for rank in range(2)]
    flat = [row for steps in ranks for step in steps for batch in step.batches for row in batch.row_ids.tolist()]
    shards = open_order(prepared, SETTINGS).shards
    every = shards.rows(np.arange(37), ["row_id"])["row_id"].combine_chunks().flatten().to_pylist()
    assert sorted(flat) == sorted(every)
    for one, two in zip(*ranks, strict=True):
        assert one.plan.step == two.plan.step
        assert len(one.batches) == len(two.batches)


def test_starts_anywhere_and_crosses_epochs(prepared):
    whole = row_ids(stream(prepared).steps(0, 12))
    assert row_ids(stream(prepared).steps(4, 7)) == whole[4:7]
    assert row_ids(stream(prepared).epoch(1)) == whole[5:10]
    again = stream(prepared)
    assert row_ids(again.epoch(0)) == row_ids(again.epoch(0)) == whole[:5]


def test_tables_may_be_cut_anywhere(prepared):
    cut = Cut(LocalChunks(prepared, SETTINGS, 0))
    assert row_ids(stream(prepared, source=cut).steps(0, 12)) == row_ids(stream(prepared).steps(0, 12))


def test_rows_in_another_order_raise(prepared):
    swapped = Cut(LocalChunks(prepared, SETTINGS, 0), lambda table: table.take(np.arange(table.num_rows)[::-1]))
    with pytest.raises(RuntimeError, match="rank 0, epoch 0, step 0: the stream gave requests"):
        list(stream(prepared, source=swapped).epoch(0))


def test_missing_rows_raise(prepared):
    short = Cut(LocalChunks(prepared, SETTINGS, 0), lambda table: table.slice(0, table.num_rows - 1))
    with pytest.raises(RuntimeError, match="step 4"):
        list(stream(prepared, source=short).epoch(0))


def test_a_chunk_is_the_plan_of_its_steps(prepared):
    order = open_order(prepared, SETTINGS)
    expected = np.concatenate([numbers for s in range(3, 7) for numbers in order.at(s).micro_steps[1]])
    assert read_chunk(prepared, SETTINGS, 3, 7, 1)[NUMBER].to_pylist() == expected.tolist()
    parts = [read_chunk(prepared, SETTINGS, a, b, 1) for a, b in ((3, 4), (4, 7))]
    assert str(pa.concat_tables(parts).to_pylist()) == str(read_chunk(prepared, SETTINGS, 3, 7, 1).to_pylist())


def test_a_rank_may_have_nothing(prepared):
    settings = dataclasses.replace(SETTINGS, split="valid", world_size=8)
    steps = list(stream(prepared, 7, settings).epoch(0))  # 7 requests on 8 ranks
    assert [[batch.num_candidates for batch in step.batches] for step in steps] == [[0]]


def test_chunks_cut_at_the_same_steps_after_a_resume(prepared):
    order = open_order(prepared, SETTINGS)
    whole = chunk_bounds(order, 0, 1000)
    assert whole.tolist() == [0, 256, 512, 768, 1000]
    assert chunk_bounds(order, 300, 1000).tolist() == [300, 512, 768, 1000]
    assert chunk_bounds(order, 512, 600).tolist() == [512, 600]


def test_waiting_is_measured(prepared):
    class Slow(Cut):
        def tables(self, first, last):
            time.sleep(0.3)
            yield from super().tables(first, last)

    slow = stream(prepared, source=Slow(LocalChunks(prepared, SETTINGS, 0)))
    list(slow.epoch(0))
    assert slow.wait_seconds >= 0.25


def test_leaving_early_stops_the_thread(prepared):
    steps = stream(prepared).steps(0, 10_000)
    next(steps)
    steps.close()  # joins the thread; hangs if that goes on


def test_a_damaged_shard_is_refused(tmp_path):
    manifest = write_prepared(tmp_path)
    path = tmp_path / manifest.shards["train"][0].path
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(DataError, match=r"manifest promises 13 requests.*delete it"):
        read_chunk(str(tmp_path), SETTINGS, 0, 5, 0)
    path.write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"part-00000.parquet: found .*delete it"):
        read_chunk(str(tmp_path), SETTINGS, 0, 5, 0)


def test_a_folder_without_manifest_is_refused(tmp_path):
    with pytest.raises(DataError, match="no prepared folder; run `mtrec prepare`"):
        load_manifest(str(tmp_path))
