"""The order through the real parts: Ray Data reads, Ray Train's workers form the batches."""

from dataclasses import replace

import numpy as np
import pytest

from mtrec_ray.config import Cluster
from mtrec_ray.data.streaming.chunks import LocalChunks, RayChunks, open_order
from mtrec_ray.data.streaming.collate import Collator
from mtrec_ray.data.streaming.order import OrderSettings
from mtrec_ray.data.streaming.shards import load_manifest
from mtrec_ray.data.streaming.stream import StepStream
from mtrec_ray.errors import DataError
from mtrec_ray.launch.ingest import OrderedIngest
from mtrec_ray.launch.jobs import run_workers
from mtrec_ray.launch.relay import relayed
from mtrec_ray.launch.session import ray_session
from tests.fixtures import write_prepared

SETTINGS = OrderSettings("train", 3, 8, 40, 1, True)
FIRST, LAST = 3, 13  # from the middle of the first epoch into the third


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    write_prepared(folder)
    return str(folder)


def steps_of(prepared, source) -> list[list[int]]:
    """Row ids of each step, ascending."""
    stream = StepStream(open_order(prepared, source.settings), source.rank, Collator(load_manifest(prepared)), source)
    return [
        sorted(row for batch in step.batches for row in batch.row_ids.tolist()) for step in stream.steps(FIRST, LAST)
    ]


def gather_steps(relay, prepared) -> list[list[int]]:
    """What a worker does: its own rows, then everybody's."""
    import ray.train
    import torch.distributed as dist

    own = steps_of(prepared, ray.train.get_dataset_shard("train"))
    ranks = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, own)
    return [sorted(np.concatenate(step).astype(int).tolist()) for step in zip(*ranks, strict=True)]


def test_a_ranks_configuration_is_its_own(prepared):
    valid = replace(SETTINGS, split="valid", shuffle=False)
    ranks = OrderedIngest(prepared).configure({"train": SETTINGS, "valid": valid}, 3, None, None)
    assert ranks == [
        {
            "train": RayChunks(prepared, replace(SETTINGS, world_size=3), rank),
            "valid": RayChunks(prepared, replace(valid, world_size=3), rank),
        }
        for rank in range(3)
    ]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gets_the_same_order(ray_cluster, prepared, tmp_path, workers):
    with relayed() as relay:
        found = run_workers(
            gather_steps,
            {"prepared": prepared},
            Cluster(workers=workers),
            relay,
            name="order",
            storage=str(tmp_path),
            datasets={"train": SETTINGS},
            ingest=OrderedIngest(prepared),
        )
    assert found == steps_of(prepared, LocalChunks(prepared, SETTINGS, 0))


def fail(relay, counter) -> None:
    with open(counter, "a") as file:
        file.write("started\n")
    raise DataError("logs/a.csv row 3: time is 'soon'")


@pytest.mark.ray
@pytest.mark.slow
def test_a_mistake_of_the_user_comes_back_as_itself_and_is_not_tried_again(ray_cluster, tmp_path):
    counter = tmp_path / "counter"
    with pytest.raises(DataError) as caught, ray_session(Cluster()), relayed() as relay:
        run_workers(
            fail, {"counter": str(counter)}, Cluster(max_failures=2), relay, name="x", storage=str(tmp_path / "ray")
        )
    assert str(caught.value) == "logs/a.csv row 3: time is 'soon'"
    assert counter.read_text() == "started\n"
