"""Only what is trained on is changed, and trials share batches only if they change them alike."""

from types import SimpleNamespace

import pytest
import ray.train

from mtrec_ray.data.streaming.chunks import LocalChunks
from mtrec_ray.launch.ingest import order_settings
from mtrec_ray.launch.stack_trials import StackTrials
from mtrec_ray.launch.worker import SCORED, Worker
from tests.batches import make_run
from tests.fixtures import write_prepared


@pytest.fixture
def prepared(tmp_path):
    write_prepared(tmp_path, tasks=("like", "stars"))
    return str(tmp_path)


def run_of(**switches):
    return make_run(*(f"augment.{name}={value}" for name, value in switches.items()), "features.history_dim=2")


def test_a_worker_changes_its_train_stream_alone(prepared, monkeypatch):
    run = run_of(history_mask=0.4, negatives=0.5)
    monkeypatch.setattr(
        ray.train, "get_dataset_shard", lambda split: LocalChunks(prepared, order_settings(run, split, 1), 0)
    )
    worker = Worker(SimpleNamespace(), run, prepared, SimpleNamespace(world_rank=0))
    data = worker.training_data()
    assert data.train.augmenter.settings == run.augment
    assert data.train.augmenter.seed == run.seed
    plain = worker.stream("train")
    changed = [b for step in data.train.epoch(0) for b in step.batches]
    whole = [b for step in plain.epoch(0) for b in step.batches]
    assert sum(b.num_candidates for b in changed) < sum(b.num_candidates for b in whole)
    assert sum(len(b.event_item) for b in changed) < sum(len(b.event_item) for b in whole)
    assert data.valid.augmenter is None
    assert [worker.stream(split).augmenter for split in SCORED] == [None, None]


def test_trials_share_their_batches_if_they_change_them_alike(prepared):
    stack = StackTrials(run_of(), prepared, 1)
    manifest = Worker(SimpleNamespace(), run_of(), prepared, SimpleNamespace(world_rank=0)).manifest
    stack._stack = SimpleNamespace(manifest=manifest)
    plain, one, alike, other = (
        stack._data(run_of(**switches))
        for switches in ({}, {"history_mask": 0.4}, {"history_mask": 0.4}, {"history_mask": 0.5})
    )
    assert one.train is alike.train
    assert len({id(data.train) for data in (plain, one, other)}) == 3
    assert len({id(data.valid) for data in (plain, one, alike, other)}) == 1
    assert plain.train._source.augmenter is plain.valid._source.augmenter is None
    assert [data.train._source.augmenter.settings.history_mask for data in (one, other)] == [0.4, 0.5]
    assert len(stack._streams) == 4
    del one, other
    assert len(stack._streams) == 3  # what no trial reads any more is gone
    assert alike.train in list(stack._streams.values())
